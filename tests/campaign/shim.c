/* Faults at a process's n-th change of a folder: see shim.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FULL, QUOTA, INODES, BROKEN, ONCE, UNREADABLE };
enum { WRITE, MAKE, MOVE, DROP, READ };

static char root[PATH_MAX];
static int fault;
static long at;
static atomic_long changes, reads;

/* Arms the shim: the fault comes with the n-th change below a folder, from 1. */
void campaign_arm(const char *folder, int kind, long number) {
  strncpy(root, folder, sizeof root - 1);
  fault = kind;
  at = number;
}

long campaign_changes(void) { return atomic_load(&changes); }
long campaign_reads(void) { return atomic_load(&reads); }

static int below(const char *path) {
  return root[0] && path && !strncmp(path, root, strlen(root));
}

static int below_at(int folder, const char *path) {
  if (!root[0] || !path) return 0;
  if (path[0] == '/') return below(path);
  char link[64], target[PATH_MAX];
  if (folder == AT_FDCWD) {
    if (!getcwd(target, sizeof target)) return 0;
    return below(target);
  }
  snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
  ssize_t size = readlink(link, target, sizeof target - 1);
  if (size < 0) return 0;
  target[size] = 0;
  return below(target);
}

static int below_fd(int file) {
  if (!root[0]) return 0;
  char link[64], target[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t size = readlink(link, target, sizeof target - 1);
  if (size < 0) return 0;
  target[size] = 0;
  return below(target);
}

/* Returns the error that a call gets, or 0; a process that is to be killed is. */
static int error_of(int what, int *first) {
  long number;
  *first = 0;
  if (what == READ) {
    number = atomic_fetch_add(&reads, 1) + 1;
    return fault == UNREADABLE && number >= at ? EIO : 0;
  }
  number = atomic_fetch_add(&changes, 1) + 1;
  if (fault == UNREADABLE || fault == COUNT || number < at) return 0;
  *first = number == at;
  switch (fault) {
    case KILL: return *first ? -1 : 0;
    case FULL: return what == WRITE || what == MAKE ? ENOSPC : 0;
    case QUOTA: return what == WRITE || what == MAKE ? EDQUOT : 0;
    case INODES: return what == MAKE ? ENOSPC : 0;
    case BROKEN: return EIO;
    case ONCE: return *first ? EIO : 0;
  }
  return 0;
}

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = dlsym(RTLD_NEXT, #name)
#define CHECK(inside, what) \
  if (inside) { \
    int first, error = error_of(what, &first); \
    if (error < 0) kill(getpid(), SIGKILL); \
    if (error > 0) { errno = error; return -1; } \
  }

static int opens(int folder, const char *path, int flags) {
  if (flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {
    if (!below_at(folder, path)) return -1;
    return faccessat(folder, path, F_OK, 0) ? MAKE : WRITE;
  }
  if ((flags & O_ACCMODE) == O_RDONLY && !(flags & O_DIRECTORY))
    return below_at(folder, path) ? READ : -1;
  return -1;
}

#define OPEN(name, call_folder, params, args) \
  int name params { \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
      va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); } \
    static int (*real) params; \
    if (!real) real = dlsym(RTLD_NEXT, #name); \
    int what = opens(call_folder, path, flags); \
    CHECK(what >= 0, what) \
    return real args; \
  }
OPEN(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, folder, (int folder, const char *path, int flags, ...),
     (folder, path, flags, mode))
OPEN(openat64, folder, (int folder, const char *path, int flags, ...),
     (folder, path, flags, mode))

/* The first write that fails for lack of space, or at which the process is killed,
   writes half of what it should. */
ssize_t write(int file, const void *data, size_t size) {
  REAL(ssize_t, write, int, const void *, size_t);
  if (below_fd(file)) {
    int first, error = error_of(WRITE, &first);
    if (error && first && error != EIO) {
      if (real(file, data, size / 2) < 0) return -1;
      if (error < 0) kill(getpid(), SIGKILL);
      if (size / 2) return size / 2;
    }
    if (error > 0) { errno = error; return -1; }
  }
  return real(file, data, size);
}

#define PWRITE(name) \
  ssize_t name(int file, const void *data, size_t size, off_t offset) { \
    REAL(ssize_t, name, int, const void *, size_t, off_t); \
    CHECK(below_fd(file), WRITE) \
    return real(file, data, size, offset); \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int file, const struct iovec *parts, int count) {
  REAL(ssize_t, writev, int, const struct iovec *, int);
  CHECK(below_fd(file), WRITE)
  return real(file, parts, count);
}

#define ON_FILE(name, what) \
  int name(int file) { REAL(int, name, int); CHECK(below_fd(file), what) return real(file); }
ON_FILE(fsync, MOVE)
ON_FILE(fdatasync, MOVE)

#define TRUNCATE(name) \
  int name(int file, off_t size) { \
    REAL(int, name, int, off_t); CHECK(below_fd(file), MOVE) return real(file, size); }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

int rename(const char *from, const char *to) {
  REAL(int, rename, const char *, const char *);
  CHECK(below_at(AT_FDCWD, to), MOVE)
  return real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
  REAL(int, renameat, int, const char *, int, const char *);
  CHECK(below_at(b, to), MOVE)
  return real(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  REAL(int, renameat2, int, const char *, int, const char *, unsigned);
  CHECK(below_at(b, to), MOVE)
  return real(a, from, b, to, flags);
}
int mkdir(const char *path, mode_t mode) {
  REAL(int, mkdir, const char *, mode_t);
  CHECK(below_at(AT_FDCWD, path) && access(path, F_OK), MAKE)
  return real(path, mode);
}
int mkdirat(int folder, const char *path, mode_t mode) {
  REAL(int, mkdirat, int, const char *, mode_t);
  CHECK(below_at(folder, path) && faccessat(folder, path, F_OK, 0), MAKE)
  return real(folder, path, mode);
}
int link(const char *from, const char *to) {
  REAL(int, link, const char *, const char *);
  CHECK(below_at(AT_FDCWD, to), MAKE)
  return real(from, to);
}
int unlink(const char *path) {
  REAL(int, unlink, const char *);
  CHECK(below_at(AT_FDCWD, path), DROP)
  return real(path);
}
int unlinkat(int folder, const char *path, int flags) {
  REAL(int, unlinkat, int, const char *, int);
  CHECK(below_at(folder, path), DROP)
  return real(folder, path, flags);
}
int rmdir(const char *path) {
  REAL(int, rmdir, const char *);
  CHECK(below_at(AT_FDCWD, path), DROP)
  return real(path);
}
