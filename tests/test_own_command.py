"""`configs/own.py` on a command line: a folder of images and a teacher from a file."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny  # noqa: F401 (its networks)
from PIL import Image

from kdjax import main, models
from kdjax.experiment.config import parse_config
from kdjax.models import import_torch

ROOT = Path(__file__).parents[1]
CLASSES = ("cross", "disc", "square")


def picture(kind, rng):
    """An image of 12x12 with one of three shapes, on a noisy ground."""
    rows, columns = np.mgrid[:12, :12] - 5.5
    inside = {
        "cross": (abs(rows) < 1.5) | (abs(columns) < 1.5),
        "disc": rows**2 + columns**2 < 16,
        "square": (abs(abs(rows) - 4) < 1) | (abs(abs(columns) - 4) < 1),
    }[kind]
    pixels = rng.integers(0, 60, (12, 12, 3)) + 160 * inside[..., None]
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "photos"
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for kind in CLASSES:
            (folder / split / kind).mkdir(parents=True)
            for i in range(count):
                picture(kind, rng).save(folder / split / kind / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """PyTorch's tensors of a ResNet-8 of three classes, and the network itself."""
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is missing")
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    variables = models.init(jax.random.key(5), "resnet-8", 3, (12, 12, 3))
    layout = import_torch.layouts_of("resnet-8")[0].name
    numpy.save_file(import_torch.to_state_dict(variables, "resnet-8", layout), path)
    return path


def run(*args):
    return main.main(["kdjax.main", *map(str, args)])


def test_the_line_that_the_readme_shows(photos, teacher, tmp_path, capsys):
    arg = f"data={photos},teacher={teacher},teacher_model=resnet-8,student=tiny-6"
    arg += ",method=kd,epochs=2,batch_size=24,teacher_mean=0.5,teacher_std=0.25"
    command = f"--config=configs/own.py:{arg}", f"--workdir={tmp_path / 'run'}"
    assert run(*command) == 0
    out = capsys.readouterr().out
    assert "72 training and 24 test images of 3 classes, 12x12x3; 2 epochs" in out
    assert "teacher.safetensors: right for" in out
    assert (tmp_path / "run" / "results.json").exists()
    # Done already: nothing is trained again.
    assert run(*command) == 0
    assert "student seed 0  found in" in capsys.readouterr().out
    assert run(*command, "--dry-run") == 0
    assert "given" in capsys.readouterr().out
    # The file's tensors tell the network: the same stages.
    untold = command[0].replace(",teacher_model=resnet-8", "")
    assert untold != command[0]
    assert run(untold, command[1]) == 0
    assert "student seed 0  found in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("data=PHOTOS", ("student= is missing",)),
        ("data=nowhere,student=tiny-6", ("nowhere",)),
        ("data=PHOTOS,student=tiny-6", ("needs a teacher",)),
        ("data=PHOTOS,student=tiny-6,teacher=t.pth", ("t.pth",)),
        (
            "data=PHOTOS,student=tiny-6,teacher=UNKNOWN",
            ("teacher_model= must name", "it has no classifier"),
        ),
        (
            "data=PHOTOS,student=tiny-6,teacher=TEACHER,teacher_model=resnet-14",
            ("resnet-14", "resnet-8"),
        ),
        ("data=PHOTOS,student=nets_of_nobody:Net", ("nets_of_nobody",)),
        ("data=PHOTOS,student=tiny-6,teacher=tiny-8,method=nope", ("'nope'", "kd")),
        (
            "data=PHOTOS,student=own_nets:Tiny(width=4),teacher=tiny-8,method=at,"
            "student_levels=nowhere",
            ("nowhere", "conv"),
        ),
        ("data=PHOTOS,student=tiny-6,teacher=tiny-8,epohs=3", ("'epohs'", "epochs")),
        (
            "data=PHOTOS,student=tiny-6,teacher=TEACHER,teacher_model=resnet-8,"
            "teacher_mean=0.5/0.5,teacher_std=0.2",
            ("teacher_mean", "3 channels"),
        ),
        (
            "data=PHOTOS,student=tiny-6,teacher=TEACHER,teacher_model=resnet-8,"
            "teacher_mean=76,teacher_std=0.2",
            ("76", "scale 0 to 1"),
        ),
        (
            "data=PHOTOS,student=tiny-6,teacher=TEACHER,teacher_model=resnet-8,"
            "teacher_mean=0.5",
            ("teacher_std", "together"),
        ),
        (
            "data=PHOTOS,student=tiny-6,teacher=TEACHER,teacher_model=resnet-8,"
            "class_order=0/1/1",
            ("class_order",),
        ),
    ],
)
def test_mistakes_end_with_2_and_one_line(
    photos, teacher, tmp_path, capsys, arg, words
):
    unknown = tmp_path / "unknown.safetensors"
    if "UNKNOWN" in arg:
        numpy = pytest.importorskip("safetensors.numpy", reason="it is missing")
        numpy.save_file({"a.weight": np.ones(3, np.float32)}, unknown)
    for word, path in (("PHOTOS", photos), ("TEACHER", teacher), ("UNKNOWN", unknown)):
        arg = arg.replace(word, str(path))
    workdir = tmp_path / "run"
    assert run(f"--config=configs/own.py:{arg}", f"--workdir={workdir}") == 2
    err = capsys.readouterr().err
    assert err.startswith("kdjax: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not list(workdir.glob("stages/*"))


def test_the_config_of_the_page_on_pretrained_teachers(photos, monkeypatch):
    path = ROOT / "docs" / "examples" / "pretrained.py"
    spec = importlib.util.spec_from_file_location("pretrained", path)
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    students = {"resnet": "tiny-6", "mobilenet": "mobilenetv2-0.5"}
    monkeypatch.setattr(page, "STUDENTS", students)
    config = page.get_config(f"data={photos},teacher=tiny-8,epochs=2,seeds=1")
    stages = parse_config(config).stages
    taught = {name: tuple(stage.teachers) for name, stage in stages.items()}
    assert taught == {
        "teacher": (),
        "resnet_alone": (),
        "resnet": ("teacher",),
        "mobilenet_alone": (),
        "mobilenet": ("teacher",),
    }
    # A student learns with the same recipe alone and taught, the one that fits it.
    rates = {name: stage.recipe.learning_rate for name, stage in stages.items()}
    assert rates["resnet"] == rates["resnet_alone"] == 0.05
    assert rates["mobilenet"] == rates["mobilenet_alone"] == 0.01
