"""One interpreter with everything imported, which forks a process for every command.

Starting Python and importing JAX would take most of a short run's time. Requests come
as lines of JSON on stdin; for each the process's number and then its end is printed.
"""

import atexit
import json
import os
import sys
from pathlib import Path


def serve() -> None:
    """Reads requests until stdin ends; returns in the child that is to run one."""
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            become(request)
            return
        print(json.dumps({"process": child}), flush=True)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)
    os._exit(0)


def become(request: dict) -> None:
    """Makes this child what a shell would start."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(request[name], flags, 0o644), number)
    os.environ.update(request["env"])
    sys.argv = ["kdjax", *request["args"]]
    if "fault" in request:
        from tests.campaign import shim

        folder, fault, number = request["fault"]
        shim.arm(Path(folder), shim.Fault(fault), number)
        atexit.register(
            lambda: Path(request["counted"]).write_text(json.dumps(shim.counted()))
        )


def import_all() -> None:
    """Imports what a run does: no device is touched, and no thread is started."""
    import tensorboardX  # noqa: F401

    from kdjax.experiment import dry_run, flags, run  # noqa: F401


if __name__ == "__main__":
    import warnings

    import_all()
    warnings.filterwarnings("ignore", ".*os.fork.*", RuntimeWarning)
    serve()
    from kdjax.main import main

    sys.exit(main())
