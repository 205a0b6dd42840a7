"""The rooms of the package, one above the other: imports lead down only."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kdjax"
# From the lowest up. A room imports from those below it, not from its neighbours.
FLOORS = (
    ("runtime", "losses"),
    ("data", "models"),
    ("methods", "predict"),
    ("train",),
    ("experiment",),
    ("export",),
    ("analysis",),
    ("report",),
    ("main", "sweep", "preflight", "import_torch", "api", "compare", "watch"),
)
BELOW = {
    room: {below for lower in FLOORS[:number] for below in lower}
    for number, floor in enumerate(FLOORS)
    for room in floor
}
# Besides the standard library: those who import the losses alone need nothing else.
FREE = {"jax", "optax"}


def modules() -> dict[str, ast.Module]:
    """Returns the syntax trees of all modules by dotted name."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        trees[".".join(parts)] = ast.parse(path.read_text())
    return trees


MODULES = modules()


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yields imports, also those inside functions, but none for type checks alone."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children: list[ast.AST] = list(node.orelse)
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        else:
            yield from statements(child)


def imports(tree: ast.Module) -> set[str]:
    """Returns the dotted names that a module imports, each with what it takes of it."""
    names = set()
    for statement in statements(tree):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        else:
            assert statement.level == 0, ast.unparse(statement)
            names |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    return names


def rooms(tree: ast.Module) -> set[str]:
    """Returns the rooms of kdjax from which a module imports."""
    parts = [name.split(".") for name in imports(tree)]
    return {part[1] for part in parts if part[0] == "kdjax" and len(part) > 1}


def own(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import kdjax", set()),
        ("import kdjax.data.stream", {"data"}),
        ("from kdjax import data, models as m", {"data", "models"}),
        ("from kdjax.train.step import Step", {"train"}),
        ("def f():\n    def g():\n        from kdjax.data import x", {"data"}),
        ("if TYPE_CHECKING:\n    import kdjax.data", set()),
        ("if typing.TYPE_CHECKING:\n    pass\nelse:\n    import kdjax.data", {"data"}),
        ("if here:\n    import kdjax.data", {"data"}),
    ],
)
def test_imports_are_seen(text, expected):
    assert rooms(ast.parse(text)) == expected


def test_the_top_level_is_the_rooms():
    names = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert names == BELOW.keys() - {"main"} | {"__init__.py", "main.py"}


@pytest.mark.parametrize("name", MODULES)
def test_imports_lead_down_only(name):
    if own(name) == "__init__":
        # Lazily: `test_api_mistakes` shows that the losses alone load none of it.
        assert rooms(MODULES[name]) == {"api"}
        return
    # The version of the package is everybody's.
    others = rooms(MODULES[name]) - {own(name), "__version__"}
    assert others <= BELOW[own(name)]


def test_nothing_imports_the_configs_or_the_tests():
    for name, tree in MODULES.items():
        first = {imported.split(".")[0] for imported in imports(tree)}
        assert not first & {"configs", "tests", "benchmarks"}, name


def test_losses_are_pure_functions_of_arrays():
    for name, tree in MODULES.items():
        if own(name) == "losses":
            first = {imported.split(".")[0] for imported in imports(tree)}
            assert first <= {"kdjax", *FREE, *sys.stdlib_module_names}, name
