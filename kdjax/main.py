"""The command: `python -m kdjax.main --config configs/ctkd.py --workdir runs/ctkd`."""

import sys
import traceback
from collections.abc import Sequence

from kdjax.experiment.flags import Command, parse_flags
from kdjax.runtime.errors import UserError, one_line

_USAGE = """\
usage: python -m kdjax.main --config CONFIG.py[:ARG] --workdir DIR [--config.KEY=VALUE]

  --config   an experiment, such as configs/ctkd.py or configs/ctkd.py:digits,seeds=3
  --workdir  the folder for stages and results; what it holds already is not repeated
  --stages   NAME,...: these stages only, with those that teach them
  --dry-run  print what there is and what would run

of several processes, each has (unless Slurm, Open MPI or a TPU slice tells it):
  --coordinator  HOST:PORT on the machine of process 0
  --processes    how many there are
  --process      which of them this is, from 0
  --wait         how many seconds to wait for the others (300)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs an experiment and returns the exit code."""
    try:
        command = parse_flags(sys.argv if argv is None else argv)
    except UserError as error:
        print(f"kdjax: {error}", file=sys.stderr)
        return 2
    if command is None:
        print(_USAGE)
        return 0
    # Only now: wrong flags are answered at once.
    from kdjax.runtime import distributed
    from kdjax.runtime.signals import Interrupted

    try:
        _run(command)
    except Interrupted as interruption:
        print(f"kdjax: {interruption}", file=sys.stderr)
        return interruption.exit_code
    except Exception as error:
        if distributed.lost_peer(error):
            print(f"kdjax: {distributed.LOST}", file=sys.stderr)
            return distributed.leave(1, patience=0)
        line = one_line(error)
        if line is not None:
            print(f"kdjax: {line}", file=sys.stderr)
            return distributed.leave(2)
        if not distributed.several():
            raise
        traceback.print_exc()
        return distributed.leave(1)
    return 0


def _run(command: Command) -> None:
    """Joins the other processes, if there are any, and does what was asked for."""
    from kdjax.experiment import dry_run
    from kdjax.experiment.config import parse_config
    from kdjax.experiment.run import Run
    from kdjax.runtime import backend, distributed, parallel
    from kdjax.runtime.console import console
    from kdjax.runtime.signals import Interrupt

    parsed = parse_config(command.config)
    if command.dry_run:
        dry_run.show(parsed, command.workdir, command.stages)
        return
    distributed.start(
        command.coordinator, command.processes, command.process, wait=command.wait
    )
    console.quiet = not parallel.is_first()
    interrupt = Interrupt()
    interrupt.install()
    backend.use_compilation_cache()
    Run(parsed, command.workdir, interrupt).run(command.stages)


if __name__ == "__main__":
    sys.exit(main())
