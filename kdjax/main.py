"""The command: `python -m kdjax.main --config configs/ctkd.py --workdir runs/ctkd`."""

import sys
from collections.abc import Sequence

from kdjax import command_line
from kdjax.errors import UserError

_USAGE = """\
usage: python -m kdjax.main --config CONFIG.py[:ARG] --workdir DIR [--config.KEY=VALUE]

  --config   an experiment, such as configs/ctkd.py or configs/ctkd.py:digits,seeds=3
  --workdir  the folder for stages and results; what it holds already is not repeated
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs an experiment and returns the exit code."""
    try:
        parsed = command_line.parse(sys.argv if argv is None else argv)
        if parsed is None:
            print(_USAGE)
            return 0
        # Only now: wrong flags are answered at once.
        from kdjax import backend, experiment, graph, interrupt

        signals = interrupt.Interrupt()
        signals.install()
        backend.use_compilation_cache()
        config, workdir = parsed
        try:
            experiment.Run(graph.parse(config), workdir, signals).run()
        except interrupt.Interrupted as interruption:
            print(f"kdjax: {interruption}", file=sys.stderr)
            return interruption.exit_code
    except UserError as error:
        print(f"kdjax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
