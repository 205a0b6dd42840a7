"""The command: `kdjax --config configs/ctkd.py --workdir runs/ctkd`.

From a checkout that is not installed, `python -m kdjax.main`.
"""

import os
import sys
from collections.abc import Sequence

from kdjax.runtime import command
from kdjax.runtime.signals import Interrupt

_USAGE = """\
usage: kdjax --config CONFIG[:ARG] --workdir DIR [--config.KEY=VALUE]
       kdjax --list [CONFIG]

  --config   an experiment: a file, or a published one that --list names, such as
             configs/ctkd.py or configs/ctkd.py:digits,seeds=3
  --workdir  the folder for stages and results; what it holds already is not repeated
  --stages   NAME,...: these stages only, with those that teach them
  --dry-run  print what there is and what would run
  --list     name the published configs, or tell which arguments one takes

of several processes, each has (unless Slurm, Open MPI or a TPU slice tells it):
  --coordinator  HOST:PORT on the machine of process 0
  --processes    how many there are
  --process      which of them this is, from 0
  --wait         how many seconds to wait for the others (300)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs an experiment and returns the exit code."""
    # Before anything large is imported, which takes seconds.
    interrupt = Interrupt(at_once=True)

    def run() -> None:
        with interrupt.installed():
            _main(sys.argv if argv is None else argv, interrupt)

    return command.run(run)


def script() -> int:
    """Is the installed `kdjax`, and returns the exit code.

    As with `python -m`, modules that lie here are found: networks of one's own, and
    what a config imports.
    """
    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    return command.finish(main())


def _main(argv: Sequence[str], interrupt: Interrupt) -> None:
    """Joins the other processes, if there are any, and does what was asked for."""
    from kdjax.experiment import published
    from kdjax.experiment.flags import parse_flags

    if "--list" in argv[1:]:
        print(published.listing([word for word in argv[1:] if word != "--list"]))
        return
    options = parse_flags(argv)
    if options is None:
        print(_USAGE)
        return
    # Only now: wrong flags are answered at once.
    from kdjax.experiment import dry_run
    from kdjax.experiment.config import parse_config
    from kdjax.experiment.run import Run
    from kdjax.runtime import backend, distributed, parallel
    from kdjax.runtime.console import console

    parsed = parse_config(options.config)
    if options.dry_run:
        dry_run.show(parsed, options.workdir, options.stages)
        return
    distributed.start(
        options.coordinator, options.processes, options.process, wait=options.wait
    )
    console.quiet = not parallel.is_first()
    backend.use_compilation_cache()
    Run(parsed, options.workdir, interrupt).run(options.stages)


if __name__ == "__main__":
    sys.exit(command.finish(main()))
