"""The pages' Python runs, their commands are accepted, their links lead somewhere."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import create_autospec

import pages
import pytest
from ml_collections import config_flags

import kdjax
from configs import own
from kdjax import main as kdjax_main
from kdjax.data.sources import SOURCES
from kdjax.experiment.builders import parse_arg
from kdjax.experiment.config import parse_config
from kdjax.experiment.flags import parse_flags
from kdjax.preflight import __main__ as preflight
from kdjax.sweep import __main__ as sweep

ROOT, PAGES = pages.ROOT, pages.PAGES

# What only a certain machine, or a file of the reader's, can run.
NOT_PARSED = {
    "cp": "copies files",
    "pip": "installs packages",
    "sphinx-build": "see test_the_site_is_built",
    "ruff": "a tool of the tests",
    "mypy": "a tool of the tests",
    "pytest": "the tests themselves",
}


def checked_kdjax():
    """Returns kdjax's functions without effects: wrong arguments and names fail."""
    result = create_autospec(kdjax.Result, instance=True)
    network = create_autospec(kdjax.Network, instance=True)
    stub = create_autospec(kdjax, instance=True)
    for name, returned in (("distill", result), ("run", result), ("load", network)):
        function = create_autospec(getattr(kdjax, name), return_value=returned)
        setattr(stub, name, function)
    return stub, result


# Pages whose Python runs in another test, with what it needs.
RUN_ELSEWHERE = {
    "README.md": "test_readme.py",
    "docs/losses.md": "test_readme.py",
    "docs/extend.md": "test_readme.py",
    "docs/pytorch.md": "test_foreign_runs.py",
}


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if pages.blocks(page, "python")],
)
def test_python_calls_what_there_is(page):
    stub, result = checked_kdjax()
    for text in pages.blocks(page, "python"):
        compile(text, page, "exec")
        if page in RUN_ELSEWHERE:
            continue
        names = {name: [0] for name in ("images", "labels", "x", "y")}
        names |= {"MyNet": lambda classes: classes, "result": result, "kdjax": stub}
        exec(text.replace("import kdjax\n", ""), names)


def parsed_config(words):
    """Checks the arguments of kdjax.main, but for files of the reader's."""
    if words and words[0] == "--list":
        assert kdjax_main.main(["kdjax", *words]) == 0
        return
    configs = [word for word in words if word.startswith("configs/own.py:")]
    if configs:
        assert parse_arg(configs[0].partition(":")[2], ("",), own.ARGUMENTS)
        return
    examples = [word for word in words if word.startswith("docs/examples/")]
    if examples:  # of data of the reader's: see test_own_command.py
        compile((ROOT / examples[0]).read_text(), examples[0], "exec")
        return
    parsed = parse_flags(["kdjax", *words])
    stages = parse_config(parsed.config).stages
    assert stages
    assert set(parsed.stages) <= set(stages)


def parsed_module(module, words):
    """Checks a `python -m` of the package or the benchmarks."""
    if module == "kdjax.main":
        parsed_config(words)
    elif module == "kdjax.data.prepare":
        assert words[0] in SOURCES
    elif module == "kdjax.sweep":
        assert sweep.parse(["kdjax.sweep", *words])
    elif module == "kdjax.preflight":
        _, config = preflight._parse(words)
        assert parse_config(config).stages
    elif module.startswith("kdjax."):
        assert importlib.import_module(f"{module}.__main__")._parse(words)
    else:
        text = (ROOT / "benchmarks" / "measure.py").read_text()
        origin = Path(importlib.util.find_spec(module).origin)
        files = origin.parent.glob("*.py") if origin.stem == "__init__" else [origin]
        text += "".join(file.read_text() for file in files)
        for word in words:
            assert not word.startswith("--") or f'"{word}"' in text, word


def parsed(words):
    """Checks that a command exists and takes its arguments."""
    program, rest = words[0], words[1:]
    if program in NOT_PARSED:
        return
    if program == "kdjax":
        parsed_config(rest)
    elif program == "python" and rest[0] == "-m":
        parsed_module(rest[1], rest[2:])
    elif program == "python":
        compile((ROOT / rest[0]).read_text(), rest[0], "exec")
    else:
        assert (ROOT / program).is_file(), program
        if "--" in rest:
            parsed_config(rest[rest.index("--") + 1 :])


@pytest.mark.parametrize("page", [page for page in PAGES if pages.commands(page)])
def test_commands_are_accepted(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in pages.commands(page):
        parsed(words)


def test_commands_in_the_text_exist():
    named = {
        module
        for text in PAGES.values()
        for module in re.findall(r"python -m ((?:kdjax|benchmarks)[\w.]*)", text)
    }
    assert len(named) > 15
    for module in sorted(named):
        assert importlib.util.find_spec(module), module


def test_every_config_that_is_named_exists(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = set()
    for text in PAGES.values():
        found = re.findall(r"configs/\w+\.py(?::[\w=,/.+-]+)?", text)
        names |= {name.rstrip(".,") for name in found}
        for config, line in re.findall(
            r"`(configs/\w+_tables\.py)`(.*?)\n\n", text, re.S
        ):
            names |= {
                config + table for table in re.findall(r":(?:table|figure)[\w-]+", line)
            }
    assert len(names) >= 30
    for name in sorted(names - {"configs/common.py"}):
        if not name.startswith("configs/own.py"):  # whose files are the reader's
            parsed_config(["--config", name, "--workdir", "w"])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", pages.without_code(PAGES[page])):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in pages.anchors(str(file.relative_to(ROOT))), target


def test_every_page_has_a_place_in_the_site():
    for page in PAGES:
        folder, _, name = page.rpartition("/")
        if name not in ("README.md", "index.md"):
            index = PAGES[f"{folder}/index.md"]
            listed = " ".join(re.findall(r"```{toctree}(.*?)```", index, re.S)).split()
            assert name.removesuffix(".md") in listed, page


def test_the_readme_is_short():
    assert PAGES["README.md"].count("\n") <= 200


def texts_of_the_package():
    """Returns the fixed parts of all strings in the package's code."""
    found = []
    # Its errors are passed on by the command.
    flags = Path(config_flags.__file__).with_name("config_flags.py")
    for path in (flags, *(ROOT / "kdjax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = node.values
                found += [p.value for p in parts if isinstance(p, ast.Constant)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\0".join(found)


def test_messages_to_look_up_are_the_code_s():
    text = texts_of_the_package()
    messages = [
        message
        for row in PAGES["docs/troubleshooting.md"].splitlines()
        if row.startswith("- `")
        for message in re.findall(r"`([^`]+)`", row)
        if " " in message
    ]
    assert len(messages) >= 20
    for message in messages:
        # Capitals and quoted words stand for the reader's own.
        parts = re.split(r"'[^']*'|\b[A-Z][A-Z:]*\b|\.\.\.|[(\[]\S*[)\]]", message)
        parts = [part.strip(" ;:,()") for part in parts]
        for fragment in [part for part in parts if " " in part] or parts:
            assert fragment in text, (message, fragment)


@pytest.mark.slow
def test_the_site_is_built(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason=f"{package}, of 'docs', is not installed")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"]
    built = subprocess.run(
        [*command, str(ROOT / "docs"), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    for page in PAGES:
        if page.startswith("docs/"):
            name = page.removeprefix("docs/").replace(".md", ".html")
            assert (tmp_path / name).exists(), name
