"""Whether a config's train step fits hardware that is not there, and what it costs.

python -m kdjax.preflight --config configs/ctkd.py --topology v5e:4x4
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdjax.experiment.flags import parse_flags
from kdjax.runtime import command
from kdjax.runtime.errors import UserError


def _parse(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Returns the options and the config, as plain dictionaries.

    Raises:
        UserError: wrong flags or values.
    """
    parser = command.Parser(
        prog="python -m kdjax.preflight",
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="--config.KEY=VALUE changes the config, as for kdjax.main.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="CONFIG.py[:ARG]")
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5e:4x4, v4:2x2x1, v5p:2x2x1, v6e:2x4 and the like; h100:HOSTSxGPUS, "
        "h200:HOSTSxGPUS; cpu:N",
    )
    parser.add_argument("--stage", metavar="NAME", help="(default: the last)")
    parser.add_argument(
        "--replicas",
        type=int,
        default=1,
        metavar="N",
        help="seeds that are trained side by side (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    options, rest = parser.parse_known_args(argv)
    # Imported late, so that wrong flags fail fast; on CPU, before a config file can
    # make jax initialise whatever devices this machine has.
    import jax

    jax.config.update("jax_platforms", "cpu")
    # The flags need a working folder, which is never touched.
    line = ["kdjax", f"--config={options.config}", *rest, "--workdir=."]
    flags = parse_flags(line)
    if flags is None or flags.stages or flags.dry_run or flags.coordinator:
        raise UserError("preflight takes flags of the config only; see --help")
    return options, flags.config


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles, prints the report, and returns the exit code."""
    return command.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    options, config = _parse(argv)
    import jax

    from kdjax.experiment.config import parse_config
    from kdjax.preflight import compiling, report, target
    from kdjax.runtime.files import write_json

    parsed = parse_config(config)
    if parsed.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    topology = target.find(options.topology)
    compiled = compiling.compile_stage(
        parsed, topology, options.stage, options.replicas
    )
    report.show(compiled)
    if options.out:
        write_json(options.out, {"config": options.config, **report.figures(compiled)})


if __name__ == "__main__":
    sys.exit(main())
