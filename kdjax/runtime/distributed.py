"""Several processes: how they find each other, and how they end together.

Processes join by flags, or by the environment that Slurm, Open MPI or a Cloud TPU slice
sets; a single process does none of this. When one process ends, the others end too,
within a minute: nothing can be computed without it.

JAX is imported only where it is needed, so that commands report wrong flags at once.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time

from kdjax.runtime import launchers, private_names
from kdjax.runtime.errors import UserError

LOST = (
    "another process of this run ended; "
    "start the same command again in all of them to continue"
)
# A process counts as lost after this many seconds without a heartbeat.
_HEARTBEAT = 30
# Seconds that a failed process waits for the others, which may fail in the same way.
_PATIENCE = 5


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    auto: bool = True,
    wait: int = 300,
) -> None:
    """Joins the other processes of the run, if there are any.

    Must be called before anything touches a device. The first three arguments, if
    given, decide alone, and every local device is used (or those of
    JAX_LOCAL_DEVICE_IDS). Otherwise the environment decides, see `launchers.detect`.

    Args:
        coordinator: HOST:PORT of process 0, which must be free there.
        num_processes: the number of processes.
        process_id: the number of this process, from 0.
        auto: whether to look for Slurm, Open MPI and Cloud TPU slices.
        wait: the seconds to wait for the others.

    Raises:
        UserError: the arguments or the environment are invalid, the coordinator's port
            is taken, or the coordinator is not reached in time.
    """
    import jax

    if coordinator is not None and num_processes is not None and process_id is not None:
        launchers.check(coordinator, num_processes, process_id)
        if num_processes == 1:
            return
        _reach(coordinator, process_id, wait)
        there = f"at {coordinator} "
        method, devices = "deactivate", None
    else:
        launcher = launchers.detect(os.environ) if auto else None
        if launcher is None:
            return
        there = f"(found by {launcher}) "
        method, devices = launcher, launchers.local_devices(os.environ)
    _Abort.line = (
        f"the processes did not come together {there}within {wait} s: "
        "is each of them started, with its own process number?"
    )
    _Abort.install()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            local_device_ids=devices,
            cluster_detection_method=method,
            initialization_timeout=wait,
            heartbeat_timeout_seconds=_HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        line = str(error).replace("\n", " ")
        raise UserError(f"several processes {there}cannot start: {line}") from error
    _Abort.line = LOST


def several() -> bool:
    """Returns whether this process is one of several that have joined."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def lost_peer(error: BaseException) -> bool:
    """Returns whether an error looks like the end of another process."""
    if not several() or isinstance(error, UserError):
        return False
    import jax

    # Gloo's errors are JaxRuntimeError or, out of a jitted call, plain ValueError.
    known = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    return known and private_names.is_about_a_lost_peer(str(error))


def leave(code: int, patience: float = _PATIENCE) -> int:
    """Leaves the other processes after an error, without a long wait for them.

    At a normal exit JAX waits for all processes, for minutes. If the others do not
    share the error they continue and never exit: then this process ends alone.

    Args:
        code: the exit code.
        patience: seconds to wait for the others; with 0 the process ends here.

    Returns:
        The exit code, if this process is alone or the others have left too.
    """
    if not several():
        return code
    import jax

    sys.stdout.flush()
    sys.stderr.flush()
    _Abort.line, _Abort.code = "", code
    if patience == 0:
        os._exit(code)
    timer = threading.Timer(patience, os._exit, (code,))
    timer.daemon = True
    timer.start()
    jax.distributed.shutdown()
    timer.cancel()
    return code


class _Abort:
    """What this process prints and returns when JAX aborts it.

    JAX's coordination client ends a process by abort() when the others do not join, or
    one of them dies. Its own callback cannot be set from Python (jaxlib 0.10.2), and a
    Python signal handler would run too late, so a C handler catches abort()'s signal.
    """

    line = LOST
    code = 1

    @classmethod
    def install(cls) -> None:
        ctypes.CDLL(None).signal(signal.SIGABRT, _answer)

    @classmethod
    def answer(cls, number: int) -> None:
        if cls.line:
            os.write(2, f"kdjax: {cls.line}\n".encode())
        os._exit(cls.code)


# At module level: C keeps only its address.
_answer = ctypes.CFUNCTYPE(None, ctypes.c_int)(_Abort.answer)


def _reach(coordinator: str, process_id: int, wait: float) -> None:
    """Raises UserError if process 0 cannot listen, or another one cannot reach it."""
    host, _, port = coordinator.rpartition(":")
    if process_id == 0:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            with socket.create_server(
                ("", int(port)), family=family, dualstack_ipv6=both
            ):
                return
        except OSError as error:
            raise UserError(
                f"coordinator {coordinator}: cannot listen there: {error.strerror}"
            ) from error
    end = time.monotonic() + wait
    while True:
        try:
            left = max(end - time.monotonic(), 0.1)
            socket.create_connection((host.strip("[]"), int(port)), left).close()
            return
        except OSError as error:
            if time.monotonic() + 0.2 > end:
                reason = error.strerror or error
                raise UserError(
                    f"coordinator {coordinator} is not reached within {wait} s: "
                    f"{reason}; is process 0 started there?"
                ) from error
            time.sleep(0.2)
