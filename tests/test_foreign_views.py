"""How a teacher of PyTorch sees images, and the line that tells it."""

import own_images
import pytest

from kdjax import main as command
from kdjax.experiment import teacher_view
from kdjax.experiment.teacher_view import TeacherView
from kdjax.runtime.signals import Interrupt

pytest.importorskip("torch", reason="torch, of the torch extra, is not installed")

import torch
import torch_own
from torch_parts import needs_timm, needs_torchax

pytestmark = needs_torchax
SHAPE = (8, 8, 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRETRAINED = TeacherView((224, 224), MEAN, STD, "bicubic", "timm", "timm")


@pytest.mark.parametrize(
    ("view", "line"),
    [
        (
            TeacherView(),
            "sees images of 8x8 (as the student does), normalised by the data set's "
            "mean and deviation (as the student does); if it learned otherwise: "
            "teacher_size, teacher_mean, teacher_std",
        ),
        (
            PRETRAINED,
            "sees images of 224x224 (bicubic), normalised by mean 0.485/0.456/0.406 "
            "and deviation 0.229/0.224/0.225 (as timm tells of its pretrained "
            "weights); if it learned otherwise: teacher_size, teacher_mean, "
            "teacher_std",
        ),
        (
            teacher_view.of("nets:Net", (32,), (0.5,), (0.2,)),
            "sees images of 32x32 (bilinear; by teacher_size), normalised by mean 0.5 "
            "and deviation 0.2 (by teacher_mean, teacher_std)",
        ),
    ],
    ids=["student", "library", "arguments"],
)
def test_the_line_tells_what_is_seen_and_who_says_so(view, line):
    assert view.described("NAME", SHAPE) == f"teacher NAME {line}"


@needs_timm
def test_arguments_go_before_what_a_library_tells():
    assert teacher_view.of("timm:resnet18") == PRETRAINED
    view = teacher_view.of("timm:resnet18", (64, 32), (0.5,), (0.2,))
    assert (view.size, view.mean, view.std) == ((64, 32), (0.5,), (0.2,))
    assert view.interpolation == "bicubic"
    small = teacher_view.of("timm:vit_tiny_patch16_224(img_size=32, patch_size=4)")
    assert (small.size, small.size_by) == ((32, 32), "img_size")


def test_a_dry_run_and_a_run_tell_it(tmp_path, monkeypatch, capsys, request):
    """Of a teacher that takes another size than the data have, with levels."""
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr(Interrupt, "install", lambda self: None)
    monkeypatch.setattr("kdjax.runtime.backend.use_compilation_cache", lambda: None)
    own_images.write(tmp_path / "photos", own_images.splits(), size=(8, 8))
    torch.save(torch_own.Sized(3).state_dict(), tmp_path / "net.pth")
    arg = (
        f"data={tmp_path}/photos,teacher=torch_own:Sized,teacher_size=16,"
        f"teacher_weights={tmp_path}/net.pth,teacher_levels=conv,"
        "student=torch_own:Net(width=2),student_levels=conv,epochs=1,batch_size=8"
    )
    flags = f"--config=configs/own.py:{arg}", f"--workdir={tmp_path / 'run'}"
    line = "teacher torch_own:Sized sees images of 16x16 (bilinear; by teacher_size)"
    assert command.main(["kdjax", *flags, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert told.count(line) == 1
    assert "levels of torch_own:Sized: conv, head\n" in told
    assert command.main(["kdjax", *flags]) == 0
    assert capsys.readouterr().out.count(line) == 1
