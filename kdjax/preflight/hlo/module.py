"""The text of an HLO module as computations, instructions and how often they run."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

# '  ROOT %add.3 = f32[2]{0} add(%a, %b), metadata={...}'
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLEE = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation"
    r"|called_computation)=%?([\w.\-]+)"
)
_LISTED = re.compile(r"(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
# In a loop's backend_config, where XLA knows the count.
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# 'f32[2,<=3]{1,0:S(1)}': a dynamic size has a bound, S(1) is on-chip memory.
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\(([1-9]\d*)\)")
_BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of an array.

    Attributes:
        dtype: HLO's name, such as 'bf16'.
        shape: sizes.
        space: number of the memory it is in: 0 is the device's main memory.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """The size without padding."""
        # 'bf16' has 16 bits, 'pred' a byte; types without a number hold no data.
        match = _BITS.search(self.dtype)
        bits = int(match[0]) if match else 8 if self.dtype == "pred" else 0
        return math.ceil(math.prod(self.shape) * bits / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in its computation.
        result: the arrays it makes: one, or those of a tuple.
        kind: its opcode.
        rest: what follows the opening parenthesis.
    """

    name: str
    result: tuple[Array, ...]
    kind: str
    rest: str

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions whose results it reads."""
        depth = 1  # `rest` begins inside the operands' parentheses
        for end, letter in enumerate(self.rest):
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                return tuple(re.findall(r"%([\w.\-]+)", self.rest[:end]))
        return ()

    @property
    def callees(self) -> list[str]:
        """Names of the computations that it calls."""
        callees = _CALLEE.findall(self.rest)
        for listed in _LISTED.findall(self.rest):
            callees += [name.strip().lstrip("%") for name in listed.split(",")]
        return callees

    @property
    def trips(self) -> int | None:
        """How often it calls its computations; None: a loop of unknown trip count."""
        if self.kind != "while":
            return 1
        match = _TRIPS.search(self.rest)
        return int(match[1]) if match else None


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
        computations: instructions by name, in order, of every computation.
        entry: the name of the computation that the program starts with.
    """

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "Module":
        """Returns the module that a text describes.

        Raises:
            ValueError: it has no entry computation.
        """
        computations: dict[str, dict[str, Instruction]] = {}
        current: dict[str, Instruction] = {}
        entry = None
        for line in text.splitlines():
            # A computation begins at the margin, its instructions are indented.
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                name = line.removeprefix("ENTRY ").lstrip("%")
                name = name.split(" ")[0].split("(")[0]
                current = computations[name] = {}
                if line.startswith("ENTRY "):
                    entry = name
            elif match := _LINE.match(line):
                name, result, kind, rest = match.groups()
                current[name] = Instruction(name, arrays(result), kind, rest)
        if entry is None:
            raise ValueError("no ENTRY computation: is this the text of a module?")
        return cls(computations, entry)

    def runs(self, unknown: int) -> dict[str, int]:
        """Returns how often each computation runs, in one run of the program.

        Args:
            unknown: how often the body of a loop without a known trip count runs.
        """
        counts = dict.fromkeys(self._callers_first(), 0)
        counts[self.entry] = 1
        # Callers come first: a computation's count is complete when its own turn comes.
        for name in counts:
            for instruction in self.computations[name].values():
                trips = instruction.trips
                for callee in instruction.callees:
                    counts[callee] += counts[name] * (
                        unknown if trips is None else trips
                    )
        return counts

    def _callers_first(self) -> list[str]:
        # A depth-first search that appends callees first; reversed below.
        done: dict[str, None] = {}

        def visit(name: str) -> None:
            if name not in done:
                for instruction in self.computations[name].values():
                    for callee in instruction.callees:
                        visit(callee)
                done[name] = None

        visit(self.entry)
        return list(done)[::-1]

    def instructions(self, unknown: int = 1) -> Iterator[tuple[Instruction, int, str]]:
        """Yields every instruction, how often it runs, and its computation's name.

        Args:
            unknown: as for `runs`.
        """
        for name, count in self.runs(unknown).items():
            for instruction in self.computations[name].values():
                yield instruction, count, name

    def read(self, computation: str, instruction: Instruction) -> list[Array]:
        """Returns the arrays that an instruction reads, those of tuples one by one."""
        around = self.computations[computation]
        return [
            array
            for name in instruction.operands
            if name in around
            for array in around[name].result
        ]


def arrays(text: str) -> tuple[Array, ...]:
    """Returns the arrays of a type, such as '(f32[2,3]{1,0}, pred[])'."""
    arrays = []
    for dtype, shape, layout in _ARRAY.findall(text):
        space = _SPACE.search(layout)
        sizes = tuple(int(size.strip(" <=")) for size in shape.split(",") if size)
        arrays.append(Array(dtype, sizes, int(space[1]) if space else 0))
    return tuple(arrays)
