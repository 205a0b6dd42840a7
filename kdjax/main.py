"""The command: `python -m kdjax.main --config configs/ctkd.py --workdir runs/ctkd`."""

import errno
import sys
from collections.abc import Sequence

from kdjax import command_line
from kdjax.errors import UserError

_USAGE = """\
usage: python -m kdjax.main --config CONFIG.py[:ARG] --workdir DIR [--config.KEY=VALUE]

  --config   an experiment, such as configs/ctkd.py or configs/ctkd.py:digits,seeds=3
  --workdir  the folder for stages and results; what it holds already is not repeated
  --stages   NAME,...: these stages only, with those that teach them
  --dry-run  print what there is and what would run
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs an experiment and returns the exit code."""
    try:
        command = command_line.parse(sys.argv if argv is None else argv)
        if command is None:
            print(_USAGE)
            return 0
        # Only now: wrong flags are answered at once.
        from kdjax import backend, experiment, graph, interrupt, preview

        parsed = graph.parse(command.config)
        if command.dry_run:
            preview.show(parsed, command.workdir, command.stages)
            return 0
        signals = interrupt.Interrupt()
        signals.install()
        backend.use_compilation_cache()
        try:
            experiment.Run(parsed, command.workdir, signals).run(command.stages)
        except interrupt.Interrupted as interruption:
            print(f"kdjax: {interruption}", file=sys.stderr)
            return interruption.exit_code
    except UserError as error:
        print(f"kdjax: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"kdjax: {error.strerror}: {error.filename}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
