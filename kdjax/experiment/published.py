"""The published configs: a checkout's `configs/`, which installed packages carry.

They import each other as `configs.kd`. Nothing of that name is installed for everybody:
it stands for them while a config is read.
"""

import ast
import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from kdjax.runtime.errors import unknown

_PACKAGE = Path(__file__).parents[1]
_NAME = "configs"
_ARGUMENTS = """\
--config takes such a name, and after a colon arguments, joined by commas: a variant
that the config names, and KEY=VALUE. Every config takes epochs, batch_size, train_size,
test_size and seeds:

  kdjax --config configs/ctkd.py:digits,epochs=4,seeds=3 --workdir runs/digits
  kdjax --list configs/ctkd.py    all arguments of a config, and where its file is

A file that lies here under such a name comes first."""


def _folder() -> Path:
    """Returns where they lie: inside the installed package, or beside a checkout's."""
    carried = _PACKAGE / "published" / _NAME
    return carried if carried.is_dir() else _PACKAGE.parent / _NAME


FOLDER = _folder()


def names() -> tuple[str, ...]:
    """Returns what they are called, such as configs/ctkd.py, in alphabetical order."""
    # `common` is what they share.
    paths = sorted(set(FOLDER.glob("*.py")) - {FOLDER / "common.py"})
    return tuple(f"{_NAME}/{path.name}" for path in paths)


def find(name: str) -> Path:
    """Returns a config's file: one that lies here, else a published one.

    Args:
        name: a path; of a published config also without the folder and without .py.

    Raises:
        UserError: there is no such file.
    """
    path = Path(name)
    if os.path.isfile(path):  # also of a name that is too long for a file
        return path
    if path.suffix in ("", ".py") and path.parent in (Path(), Path(_NAME)):
        published = f"{_NAME}/{path.stem}.py"
        if published in names():
            return FOLDER / path.with_suffix(".py").name
    beside = set(path.parent.glob("*.py")) - {path.parent / "common.py"}
    raise unknown("config", name, sorted({*map(str, beside), *names()}))


@contextlib.contextmanager
def importable(path: Path) -> Iterator[None]:
    """Lets a config's file import published configs while it is read.

    A published config's `configs` are the published ones, whatever else has that name
    here. Any other file's are those that it finds without kdjax; published ones take
    the place of files that its own folder `configs` lacks.

    Args:
        path: of the config's file.
    """
    found = importlib.util.find_spec(_NAME)
    places = (found.submodule_search_locations if found else None) or ()
    if path.resolve().parent != FOLDER.resolve():
        # A folder without __init__.py goes on at the next one of its name.
        with _last_on_path(str(FOLDER.parent)):
            yield
    elif [Path(place).resolve() for place in places][:1] == [FOLDER.resolve()]:
        yield  # from a checkout's root
    else:
        spec = ModuleSpec(_NAME, None, is_package=True)
        spec.submodule_search_locations = [str(FOLDER)]
        others = _take_out()
        sys.modules[_NAME] = importlib.util.module_from_spec(spec)
        try:
            yield
        finally:
            _take_out()
            sys.modules.update(others)


@contextlib.contextmanager
def _last_on_path(root: str) -> Iterator[None]:
    """Appends a folder to where modules are looked for, if it is not there yet."""
    if root in sys.path:
        yield
        return
    sys.path.append(root)
    try:
        yield
    finally:
        sys.path.remove(root)


def _take_out() -> dict[str, ModuleType]:
    """Removes what is imported as `configs`, and returns it by name."""
    taken = [name for name in sys.modules if name.partition(".")[0] == _NAME]
    return {name: sys.modules.pop(name) for name in taken}


def listing(chosen: Sequence[str] = ()) -> str:
    """Returns the text that lists the published configs, or tells all about some.

    Args:
        chosen: configs as for `find`; none means all published ones, a line each.

    Raises:
        UserError: there is no such config.
    """
    if chosen:
        paths = [find(name.partition(":")[0]) for name in chosen]
        return "\n\n".join(f"{_docstring(path)}\n\nIts file: {path}" for path in paths)
    width = max(map(len, names()))
    summaries = {name: _docstring(FOLDER / Path(name).name) for name in names()}
    lines = [
        f"  {name:{width}}  {text.splitlines()[0]}" for name, text in summaries.items()
    ]
    return "\n".join(("published configs:", "", *lines, "", _ARGUMENTS))


def _docstring(path: Path) -> str:
    """Returns a file's docstring; nothing of it is run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return ast.get_docstring(tree) or "(without a docstring)"
