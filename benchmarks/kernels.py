"""What the compiled step of an H100 consists of: kernels and bytes by kind.

    python -m benchmarks.kernels

compiles the cases ahead of time, without a GPU, where the packages are installed that
`python -m kdjax.preflight --topology h100:1x1` asks for. Nothing is run, and there is
no tuning: a library call, such as a convolution, counts as one kernel.
"""

import sys
from collections.abc import Sequence

import jax

from benchmarks import _kdjax, cases, measure
from benchmarks.cases import Case
from kdjax.preflight import target
from kdjax.preflight.hlo.kernels import Part, step_by_kind
from kdjax.runtime import backend
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError

CASES = {**cases.CASES, "kd-resnet": cases.RESNETS}
_STEPS = 7  # in one dispatch: more than any loop outside of the steps has turns


def compiled_step(case: Case, precision: str) -> dict[str, Part]:
    """Returns the kernels of a case's step by kind, compiled for one H100."""
    (device,) = target.find("h100:1x1").devices
    with backend.compiling_for("gpu"):
        program = _kdjax.program(case, compute=_kdjax.COMPUTE[precision], ahead=device)
        compiled = program.lower_train(_STEPS).compile(backend.compiler_options())
    return step_by_kind(compiled.as_text() or "", _STEPS)


def show(name: str, parts: dict[str, Part]) -> None:
    """Prints a table of the kinds, and their sum."""
    total = Part(*map(sum, zip(*parts.values(), strict=True)))
    measure.show(
        f"{name}: a step compiled for an H100",
        ("kind", "kernels", "MB"),
        [
            (kind, str(part.kernels), f"{part.bytes / 1e6:,.1f}")
            for kind, part in {**parts, "all": total}.items()
        ],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles the cases and returns the exit status."""
    parser = measure.parser("kernels", __doc__)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--precision", choices=tuple(_kdjax.COMPUTE), default="bf16")
    options = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    found = {}
    for name in options.cases:
        try:
            found[name] = compiled_step(CASES[name], options.precision)
        except UserError as error:
            console.print(f"kernels: {error}", markup=False)
            return 2
        show(f"{name}, {options.precision}", found[name])
        figures = {
            name: {kind: part._asdict() for kind, part in parts.items()}
            for name, parts in found.items()
        }
        measure.save(options.out, {"precision": options.precision, "cases": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
