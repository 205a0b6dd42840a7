"""A built wheel far from the checkout: the command, its configs, what imports load."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import compiled
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from quick import QUICK

import kdjax
from configs import ctkd
from kdjax.experiment.build import open_data
from kdjax.experiment.config import parse_config
from kdjax.experiment.flags import parse_flags
from kdjax.experiment.store import Store
from kdjax.runtime.errors import DEPENDENCIES

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py"))
SMALL = "digits,epochs=1,batch_size=16,train_size=32,test_size=16"
TINY = [
    "--config.stages.expert.model=wrn-10-1",
    "--config.stages.student.model=wrn-10-1",
    "--config.stages.student.ctkd.scratch=wrn-10-1",
]


@dataclasses.dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel, and a folder where nothing lies."""

    wheel: Path
    python: Path
    folder: Path

    def run(self, *line: object, code: int = 0) -> subprocess.CompletedProcess:
        env = {key: os.environ[key] for key in os.environ if key[:6] != "PYTHON"}
        env |= {"JAX_PLATFORMS": "cpu", **compiled.ANYWHERE}
        env |= {"KDJAX_CACHE": str(self.folder.parent / "cache")}
        env |= {"XLA_FLAGS": f"--xla_backend_optimization_level=0 {QUICK}"}
        done = subprocess.run(
            [self.python.parent / str(line[0]), *map(str, line[1:])],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    top = tmp_path_factory.mktemp("installed")
    (folder := top / "empty").mkdir()

    def python(executable, *line):
        line = [executable, *map(str, line)]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout, done.stderr)

    python(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", top)
    (wheel,) = top.glob("*.whl")
    python(sys.executable, "-m", "venv", "--without-pip", top / "venv")
    own = top / "venv" / "bin" / "python"
    # Packages of this environment are seen, but not what it has by way of .pth files:
    # a checkout that is installed for editing.
    ends = ("site-packages", "dist-packages")
    (place,) = (top / "venv").glob("lib/python*/site-packages")
    lines = [path for path in sys.path if path.endswith(ends)]
    (place / "environment.pth").write_text("\n".join(lines))
    pip = ("-m", "pip", "--disable-pip-version-check", "--python", own, "install")
    python(sys.executable, *pip, "--no-deps", "--no-compile", "--no-index", wheel)
    return Installed(wheel, own, folder)


def test_the_wheel_has_package_and_configs_alone(installed):
    with zipfile.ZipFile(installed.wheel) as file:
        names = file.namelist()
    assert {name.split("/")[0] for name in names} == {
        "kdjax",
        f"kdjax-{kdjax.__version__}.dist-info",
    }
    published = [name for name in names if name.startswith("kdjax/published/")]
    assert sorted(published) == [f"kdjax/published/{name}" for name in CONFIGS]
    package = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("kdjax/**/*.py")}
    assert package <= set(names)
    assert "kdjax/data/builders/checksums.tsv" in names


def test_the_command_runs_a_published_config(installed):
    programs = installed.folder.parent / "cache" / "xla"
    compiled.take(programs, "commands")
    line = f"configs/ctkd.py:{SMALL}"
    installed.run("kdjax", "--config", line, *TINY, "--workdir", "w")
    compiled.give(programs, "commands")
    # No other folder has come, and nothing of the checkout was needed.
    assert [path.name for path in installed.folder.iterdir()] == ["w"]
    results = json.loads((installed.folder / "w" / "results.json").read_text())
    # A small student out, and at work.
    export = "kdjax.export w --stage student --format onnx --int8 --out student/"
    printed = installed.run("python", "-m", *export.split()).stdout
    assert [word in printed for word in ("teacher", "float32", "int8")] == [True] * 3
    Image.new("L", (9, 8), 77).save(installed.folder / "image.png")
    (installed.folder / "more").mkdir()
    (installed.folder / "more" / "broken.png").touch()
    Image.new("RGB", (20, 30), "red").save(installed.folder / "more" / "fine.png")
    images = ("image.png", "more/broken.png", "more/fine.png")  # more/*.png
    for options in ((), ("--int8",)):
        predict = ("python", "-m", "kdjax.predict", "student/", *images, *options)
        answers = installed.run(*predict, "--json")
        named = [json.loads(answer) for answer in answers.stdout.splitlines()]
        assert [answer["image"] for answer in named] == [images[0], images[2]]
        for answer in named:
            shares = [one["probability"] for one in answer["classes"]]
            assert len(shares) == 5
            assert shares == sorted(shares, reverse=True)
        assert answers.stderr.count("\n") == 1
        assert "more/broken.png cannot be read" in answers.stderr
        lines = installed.run(*predict).stdout.splitlines()
        told = [text.split(": ") for text in lines]
        for (name, words), answer in zip(told, named, strict=True):
            assert name == answer["image"]
            assert words.count("%") == 5
    installed.run("python", "-m", "kdjax.predict", "student/", images[1], code=2)
    for path in installed.folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert list(results["stages"]) == ["expert", "student"]
    # Exactly what the checkout's config means.
    argv = ["kdjax", f"--config={ROOT / line}", *TINY, "--workdir=w"]
    parsed = parse_config(parse_flags(argv).config)
    store = Store(parsed, open_data(parsed), installed.folder / "w")
    for name, stage in results["stages"].items():
        assert stage["fingerprint"] == [store.fingerprint(name, 0)]


def test_the_list(installed):
    out = installed.run("kdjax", "--list").stdout
    listed = [line.split()[0] for line in out.splitlines() if line[:10] == "  configs/"]
    assert listed == [name for name in CONFIGS if name != "configs/common.py"]
    assert str(ctkd.__doc__).splitlines()[0] in out
    assert "kdjax --config configs/ctkd.py:digits" in out


def test_an_unknown_config_names_those_that_there_are(installed):
    line = ("kdjax", "--config=configs/nope.py", "--workdir=w")
    err = installed.run(*line, code=2).stderr
    assert err.count("\n") == 1
    for name in ("'configs/nope.py'", "configs/ctkd.py", "configs/dgkd_tables.py"):
        assert name in err


def test_modules_that_lie_here_are_found(installed):
    """As with `python -m`: a script's own folder would be searched in their place."""
    here = installed.folder.parent / "here"
    (here / "lib").mkdir(parents=True)
    (here / "lib" / "text.py").write_text("TEXT = 'found it'")
    (here / "mine.py").write_text("from lib import text\nraise OSError(text.TEXT)")
    line = ("kdjax", "--config=mine.py", "--workdir=w")
    err = dataclasses.replace(installed, folder=here).run(*line, code=2).stderr
    assert err == "kdjax: config: mine.py: found it\n"


def test_what_losses_do_not_need_is_missed_in_one_line(installed):
    """Installed with --no-deps beside jax and optax, for the losses."""
    code = "import sys; sys.modules['ml_collections'] = None; sys.argv = ['', '--list']"
    code += "; from kdjax.main import script; sys.exit(script())"
    err = installed.run("python", "-c", code, code=2).stderr
    assert err.startswith("kdjax: ml_collections is missing: pip install kdjax")
    assert err.count("\n") == 1


def test_every_dependency_is_known_by_its_module():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [re.split(r"[<>=]", line)[0] for line in project["dependencies"]]
    packages = metadata.packages_distributions()
    known = {name for module in DEPENDENCIES for name in packages[module]}
    known = {re.sub(r"[-_.]+", "-", name) for name in known}
    for name in set(wanted) - {"jax", "optax"}:
        assert re.sub(r"[-_.]+", "-", name) in known, name
    assert len(DEPENDENCIES) == len(wanted) - 2


def test_extras_bring_no_package_that_the_core_does_not_fit():
    """What is installed here, with which all tests pass, is what each of them wants."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    left = [*project["dependencies"], *extras["export"], *extras["torch"]]
    seen = set()
    while left:
        wanted = Requirement(left.pop())
        if wanted in seen or (wanted.marker and not wanted.marker.evaluate()):
            continue
        seen.add(wanted)
        try:
            there = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        assert wanted.specifier.contains(there.version, prereleases=True), wanted
        left += [text for text in there.requires or () if "extra ==" not in text]
    names = {canonicalize_name(wanted.name) for wanted in seen}
    assert {"jax", "orbax-checkpoint", "onnxruntime", "safetensors", "torch"} <= names
    assert not names & {"tensorflow", "jax2onnx", "keras"}


IMPORTS = """
import json, sys
before = {name.partition(".")[0] for name in sys.modules}
FIRST
needed = {name.partition(".")[0] for name in sys.modules}
SECOND
loaded = {name.partition(".")[0] for name in sys.modules}
print(json.dumps([sorted(loaded - needed - before), kdjax.__file__]))
"""


@pytest.mark.parametrize(
    "line", ["import kdjax", "import kdjax; from kdjax import losses"]
)
def test_losses_load_jax_and_optax_alone(installed, line):
    first = "import jax, optax" if "losses" in line else ""
    code = IMPORTS.replace("FIRST", first).replace("SECOND", line)
    loaded, file = json.loads(installed.run("python", "-c", code).stdout)
    assert Path(file).is_relative_to(installed.python.parents[1])
    assert [name for name in loaded if name not in sys.stdlib_module_names] == ["kdjax"]


def test_nothing_else_is_importable(installed):
    code = "import importlib.util as i; print(*map(i.find_spec, ('configs', 'tests')))"
    assert installed.run("python", "-c", code).stdout.split() == ["None", "None"]
