"""Networks of PyTorch in whole experiments: as teacher and student, out again."""

import importlib.util
import json

import jax
import numpy as np
import own_images
import pytest

import kdjax
from kdjax import models
from kdjax.experiment import own
from kdjax.experiment.teachers import Teacher
from kdjax.runtime.errors import UserError

pytest.importorskip("torch", reason="torch, of the torch extra, is not installed")

import torch
import torch_own
from torch_parts import needs_timm, needs_torchax

from kdjax.models.foreign import weights, zoo

pytestmark = needs_torchax
CLASSES, SIDE = 3, 8


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = np.arange(24) % CLASSES
    noise = rng.integers(0, 100, (24, SIDE, SIDE, 3))
    images = (noise + 50 * labels[:, None, None, None]).astype(np.uint8)
    return images, labels


def distill(data, folder, **options):
    common = {"epochs": 2, "batch_size": 8, "data": data, "test": data}
    return kdjax.distill(workdir=folder, **{**common, **options})


def module(width=2, classes=CLASSES):
    torch.manual_seed(0)
    return torch_own.Net(width, classes)


def seen_by(made, images, mean, std):
    """What a module itself says of images as they are stored."""
    pixels = (images / 255.0 - np.array(mean)) / np.array(std)
    pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
    return made.eval()(pixels).detach().numpy()


def test_module_teaches_module_and_the_student_goes_back(data, tmp_path):
    teacher = module()
    result = distill(
        data, tmp_path / "run", teacher=teacher, student="torch_own:Net(width=3)"
    )
    expert = result.network("teacher")
    mean, std = expert.mean, expert.std
    # It teaches with its own values, and sees images as the student does.
    np.testing.assert_allclose(
        expert.logits(data[0]), seen_by(teacher, data[0], mean, std), atol=1e-5
    )
    student = torch_own.Net(3, CLASSES)
    student.load_state_dict(result.torch(), strict=True)
    ours = result.student.logits(data[0])
    np.testing.assert_allclose(ours, seen_by(student, data[0], mean, std), atol=1e-5)
    result.export(tmp_path / "out", format="torch")
    state = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    student.load_state_dict(state, strict=True)
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert about["layout"] == "module"
    for key, value in result.torch().items():
        assert torch.equal(state[key], value)
    safetensors = pytest.importorskip("safetensors.torch")
    result.export(tmp_path / "safe", format="safetensors")
    found = safetensors.load_file(tmp_path / "safe" / "model.safetensors")
    student.load_state_dict(found, strict=True)
    assert torch.equal(found["conv.weight"], state["conv.weight"])


def test_weights_in_a_file_and_methods_on_features(data, tmp_path):
    teacher = module()
    torch.save(teacher.state_dict(), tmp_path / "net.pth")
    options = {
        "teacher": "torch_own:Net(width=2)",
        "teacher_weights": tmp_path / "net.pth",
        "teacher_levels": ["bn"],
        "student": "torch_own:Padded",
        "student_levels": ["stem"],
        "method": "at",
        "seeds": 2,
    }
    first = distill(data, tmp_path / "run", **options)
    stages = first.summary["stages"]
    assert stages["teacher"]["given"] == [str(tmp_path / "net.pth")]
    assert len(set(stages["student"]["fingerprint"])) == 2
    again = distill(data, tmp_path / "run", **options)
    assert (
        again.summary["stages"]["student"]["fingerprint"]
        == (stages["student"]["fingerprint"])
    )


@pytest.mark.parametrize("how", ["head", "all"])
def test_a_teacher_of_other_classes_gets_a_new_head(data, tmp_path, how):
    teacher = module(2, 7)
    torch.save(teacher.state_dict(), tmp_path / "net.pth")
    result = distill(
        data,
        tmp_path / "run",
        teacher="torch_own:Net(width=2)",
        teacher_weights=tmp_path / "net.pth",
        teacher_train=how,
        student="torch_own:Net(width=2)",
        epochs=1,
    )
    learned = result.network("teacher").torch()
    fixed = ("conv.weight", "bn.weight", "bn.running_mean")
    same = [torch.equal(learned[key], teacher.state_dict()[key]) for key in fixed]
    assert all(same) if how == "head" else not any(same)
    assert learned["head.weight"].shape == (CLASSES, 2)
    row = result.summary["stages"]["teacher"]
    assert row["method"] == "supervised"
    assert len(row["test_accuracy"]["final"]) == 1
    # It teaches in other working folders as it is.
    other = distill(
        data,
        tmp_path / "other",
        teacher=f"{tmp_path / 'run'}:teacher",
        student="resnet-8",
        epochs=1,
    )
    again = other.network("teacher").torch()
    assert all(torch.equal(again[key], value) for key, value in learned.items())


def test_an_object_of_other_classes_gets_a_new_head_too():
    name = models.with_new_head(models.register(module(2, 7)))
    found = models.init(jax.random.key(0), name, CLASSES, (SIDE, SIDE, 3))["params"]
    assert found["head.weight"].shape == (CLASSES, 2)
    theirs = module(2, 7).conv.weight.detach().numpy()
    np.testing.assert_array_equal(found["conv.weight"], theirs)


@needs_timm
def test_a_teacher_of_timm_sees_what_it_learned_from():
    state = models.create("timm:resnet18", 5).module.state_dict()
    made = Teacher(source="timm:resnet18", weights="w.pth")._view("timm:resnet18")
    assert made.mean == (0.485, 0.456, 0.406)
    assert (made.size, made.interpolation) == ((224, 224), "bicubic")
    assert "fc.weight" in state
    asked = Teacher(source="timm:resnet18", mean=(0.5,), std=(0.2,), size=(32,))
    view = asked._view("timm:resnet18")
    assert (view.mean, view.std, view.size) == ((0.5,), (0.2,), (32, 32))
    assert view.interpolation == "bicubic"
    small = "timm:vit_tiny_patch16_224(img_size=32, patch_size=4)"
    assert Teacher(source=small)._view(small).size == (32, 32)


def test_resized_images_are_those_of_pytorch():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    from kdjax.models.foreign.views import Resized

    for method in ("bilinear", "bicubic"):
        ours = Resized(
            "torch_own:Net", num_classes=3, size=(20, 20), method=method
        ).before(images)
        theirs = torch.nn.functional.interpolate(
            torch.from_numpy(images.transpose(0, 3, 1, 2)),
            size=(20, 20),
            mode=method,
            antialias=True,
        )
        expected = theirs.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_weights_of_another_network_are_told(tmp_path):
    torch.save(torch_own.Padded(3).state_dict(), tmp_path / "other.pth")
    network = models.create("torch_own:Net", 3)
    with pytest.raises(UserError, match=r"conv\.weight is missing; bn\.weight is"):
        weights.load(str(tmp_path / "other.pth"), network)
    torch.save(module(4).state_dict(), tmp_path / "wide.pth")
    network = models.create("torch_own:Net(width=2)", 3)
    with pytest.raises(UserError, match=r"is \[4, 3, 3, 3\], not \[2, 3, 3, 3\]"):
        weights.load(str(tmp_path / "wide.pth"), network)


@pytest.mark.parametrize("missing", ["timm", "torchvision"])
def test_a_library_that_is_missing_is_named(monkeypatch, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == missing else found(name, *rest),
    )
    with pytest.raises(UserError, match=rf"{missing}, .* pip install {missing}"):
        zoo.load("timm")


@needs_timm
def test_unknown_networks_are_told_with_near_ones():
    with pytest.raises(UserError, match="choices: resnet18, "):
        models.create("timm:resnt18", 3)


def test_mistakes_of_a_teacher_are_told():
    with pytest.raises(UserError, match="teacher_train 'body'"):
        Teacher(source="timm:resnet18", train="body")
    with pytest.raises(UserError, match=r"teacher_weights=w\.pth goes with teacher="):
        Teacher(weights="w.pth")
    with pytest.raises(UserError, match="teacher_size"):
        Teacher(source="timm:resnet18", size=(0,))


def test_a_folder_of_images_by_the_config(tmp_path):
    own_images.write(tmp_path / "photos", own_images.splits(), size=(8, 8))
    torch.save(module().state_dict(), tmp_path / "net.pth")
    made = own.config(
        own.Request(
            data=str(tmp_path / "photos"),
            student="torch_own:Padded",
            teacher=Teacher(
                source="torch_own:Net(width=2)", weights=str(tmp_path / "net.pth")
            ),
        )
    )
    assert made.stages.teacher.model == "torch_own:Net(width=2)"
    assert made.stages.teacher.given == str(tmp_path / "net.pth")


@needs_timm
@pytest.mark.slow
def test_a_student_of_timm_goes_back_to_timm(data, tmp_path):
    timm = pytest.importorskip("timm")
    name = "mobilenetv3_small_050"
    result = distill(
        data,
        tmp_path / "run",
        teacher=module(),
        student=f"timm:{name}",
        epochs=1,
    )
    result.export(tmp_path / "out", format="torch")
    state = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    student = timm.create_model(name, num_classes=CLASSES)
    student.load_state_dict(state, strict=True)
    network = result.student
    theirs = seen_by(student, data[0], network.mean, network.std)
    np.testing.assert_allclose(
        network.logits(data[0]), theirs, atol=1e-5 * max(1, np.abs(theirs).max())
    )


def test_a_student_is_exported_as_onnx_and_in_8_bits(data, tmp_path):
    pytest.importorskip("onnx", reason="onnx, of the export extra, is not installed")
    from kdjax.predict import Model

    result = distill(
        data,
        tmp_path / "run",
        student="torch_own:Padded",
        method="supervised",
        epochs=1,
    )
    about = result.export(tmp_path / "out", format="onnx", int8=True, calibration=8)
    assert set(about["files"]) == {"float32", "int8"}
    logits = Model(tmp_path / "out").logits(list(data[0]))
    np.testing.assert_allclose(logits, result.student.logits(data[0]), atol=1e-4)


def test_another_forward_is_another_stage(data, tmp_path, monkeypatch):
    def fingerprint():
        result = distill(
            data,
            tmp_path / "run",
            student="torch_own:Net(width=2)",
            method="supervised",
            epochs=1,
        )
        return result.summary["stages"]["student"]["fingerprint"]

    first, forward = fingerprint(), torch_own.Net.forward
    assert fingerprint() == first
    monkeypatch.setattr(torch_own.Net, "forward", lambda self, x: 2 * forward(self, x))
    assert fingerprint() != first
