"""Modules of one's own, given in Python, come out and classify files."""

import api_parts
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from api_parts import Net
from PIL import Image

pytest.importorskip("onnxruntime", reason="onnxruntime, of 'export', is not installed")

import kdjax
from kdjax.export import sessions
from kdjax.predict import Model
from kdjax.runtime.errors import UserError


class Sorted(nn.Module):
    """A network with an operation that ONNX files of kdjax do not have."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(10)(jnp.sort(x.reshape(len(x), -1)))


@pytest.fixture(autouse=True)
def _measured_briefly(monkeypatch):
    monkeypatch.setattr(sessions, "_SECONDS", 0.01)


def distill(workdir, student, **options):
    train, test = api_parts.load()
    recipe = {"learning_rate": 0.01}
    return kdjax.distill(
        student=student,
        data=train,
        test=test,
        workdir=workdir,
        recipe=recipe,
        epochs=1,
        batch_size=32,
        **options,
    )


def test_a_linen_module_classifies_files(tmp_path):
    result = distill(tmp_path / "run", Net(width=8), teacher=Net())
    _, (images, _) = api_parts.load()
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    expected = result.student.logits(images[:5])
    for format, chosen in (
        ("onnx", {"int8": True, "calibration": 32}),
        ("stablehlo", {"uint8": True}),
    ):
        about = result.export(tmp_path / format, format=format, **chosen)
        assert about["model"] == "api_parts:Net(width=8)"
        model = Model(tmp_path / format)
        np.testing.assert_allclose(model.logits(paths), expected, atol=1e-4)
    narrow = Model(tmp_path / "onnx", int8=True).logits(paths)
    assert np.sqrt(np.mean((narrow - expected) ** 2)) < 0.3 * expected.std()


def test_what_has_no_counterpart_is_named_and_not_written(tmp_path):
    result = distill(tmp_path / "run", Sorted(), method="supervised")
    with pytest.raises(UserError, match=r"operation 'sort' \(.*test_export_own"):
        result.export(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    result.export(tmp_path / "out", format="stablehlo")
