#!/usr/bin/env bash
# A working folder that travels: a run on machines that are lent for a short time.
#
#   launch/visit.sh pack WORKDIR PACKED      after the run has ended, or was stopped
#   launch/visit.sh unpack PACKED WORKDIR    on the next machine, where the run continues
#
# A run that is sent SIGTERM saves a checkpoint and ends, with exit code 143; then pack
# it. PACKED gets files of at most 15 MB each (BYTES changes that) and SHA256SUMS,
# by which unpack knows that all of them have arrived whole. What is packed: finished
# stages, the checkpoints of those that are not, recordings and results. Left out: the
# bank, which the next run computes again, and half-written files.
# WORKDIR must not exist, or be empty, before it is unpacked. Needs tar, split and
# sha256sum.
set -euo pipefail

usage() {
  sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p' >&2
  exit 2
}

fail() {
  echo "visit: $1" >&2
  exit 2
}

pack() {
  local workdir=$1 packed=$2
  [[ -d $workdir/stages ]] || fail "$workdir holds no stages: is it a run's --workdir?"
  mkdir -p "$packed"
  # The list of an earlier visit goes first: without it its parts are no package.
  rm -f "$packed/SHA256SUMS" "$packed"/visit-*.part
  tar --create --file=- --directory="$workdir" --exclude=./bank --exclude='*.tmp' \
    --exclude='*-tmp-*' --exclude='*.orbax-checkpoint-tmp*' . |
    split --bytes="${BYTES:-15000000}" --suffix-length=4 --additional-suffix=.part \
      - "$packed/visit-" ||
    fail "$workdir changed while it was packed, or $packed is full: end the run first"
  (cd "$packed" && sha256sum visit-*.part > SHA256SUMS.tmp && mv SHA256SUMS.tmp SHA256SUMS)
}

unpack() {
  local packed=$1 workdir=$2
  [[ -f $packed/SHA256SUMS ]] || fail "$packed holds no SHA256SUMS: nothing was packed there"
  [[ -z $(ls -A "$workdir" 2> /dev/null) ]] || fail "$workdir is not empty"
  (cd "$packed" && sha256sum --check --quiet --strict SHA256SUMS) > /dev/null 2>&1 ||
    fail "$packed misses parts or has damaged ones: sha256sum --check tells which"
  local parts
  parts=$(sed 's/^[^ ]* [ *]//' "$packed/SHA256SUMS")
  # Beside it first: a folder that is there is whole.
  rm -rf "$workdir.partial"
  mkdir -p "$workdir.partial"
  (cd "$packed" && xargs cat <<< "$parts") |
    tar --extract --file=- --directory="$workdir.partial" ||
    fail "$packed cannot be unpacked into $workdir.partial"
  [[ ! -d $workdir ]] || rmdir "$workdir"
  mv "$workdir.partial" "$workdir"
}

(($# == 3)) || usage
case $1 in
  pack) pack "${2%/}" "${3%/}" ;;
  unpack) unpack "${2%/}" "${3%/}" ;;
  *) usage ;;
esac
