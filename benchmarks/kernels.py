"""What the compiled step of an H100 consists of: kernels and bytes by kind.

    python -m benchmarks.kernels

compiles the cases ahead of time, without a GPU, where the packages are installed that
`python -m kdjax.preflight --topology h100:1x1` asks for. Nothing is run, and there is
no tuning: a library call, such as a convolution, counts as one kernel. The last row is
the longest chain of kernels that must run one after the other: how far a step could
shrink if all others ran beside them.
"""

import sys
from collections.abc import Sequence

import jax

from benchmarks import _kdjax, cases, measure
from benchmarks.cases import Case
from kdjax.preflight import target
from kdjax.preflight.hlo.kernels import Part, longest_chain, step_by_kind
from kdjax.runtime import backend
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError

CASES = {**cases.CASES, "kd-resnet": cases.RESNETS}
_STEPS = 7  # in one dispatch: more than any loop outside of the steps has turns


def compiled_step(case: Case, precision: str) -> tuple[dict[str, Part], int]:
    """Returns a case's step, compiled for one H100.

    Returns:
        The kernels by kind, and how many of all must run one after the other.
    """
    (device,) = target.find("h100:1x1").devices
    with backend.compiling_for("gpu"):
        program = _kdjax.program(case, compute=_kdjax.COMPUTE[precision], ahead=device)
        compiled = program.lower_train(_STEPS).compile(backend.compiler_options())
    text = compiled.as_text() or ""
    return step_by_kind(text, _STEPS), longest_chain(text, _STEPS)


def show(name: str, parts: dict[str, Part], chain: int) -> None:
    """Prints a table of the kinds, their sum, and the longest chain."""
    total = Part(*map(sum, zip(*parts.values(), strict=True)))
    measure.show(
        f"{name}: a step compiled for an H100",
        ("kind", "kernels", "MB"),
        [
            (kind, str(part.kernels), f"{part.bytes / 1e6:,.1f}")
            for kind, part in {**parts, "all": total}.items()
        ]
        + [("one after the other", str(chain), "")],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles the cases and returns the exit status."""
    parser = measure.parser("kernels", __doc__)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--precision", choices=tuple(_kdjax.COMPUTE), default="bf16")
    options = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    found: dict[str, dict[str, Part]] = {}
    chains: dict[str, int] = {}
    for name in options.cases:
        try:
            found[name], chains[name] = compiled_step(CASES[name], options.precision)
        except UserError as error:
            console.print(f"kernels: {error}", markup=False)
            return 2
        show(f"{name}, {options.precision}", found[name], chains[name])
        figures = {
            name: {kind: part._asdict() for kind, part in parts.items()}
            for name, parts in found.items()
        }
        about = {"precision": options.precision, "longest_chain": chains}
        measure.save(options.out, {**about, "cases": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
