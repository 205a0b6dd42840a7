"""kdjax from Python: distill, run, load, on small arrays and folders."""

import json
import sys
import types

import api_parts
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny  # noqa: F401 (its networks)
from api_parts import Net

import kdjax
from kdjax import models
from kdjax.experiment import own as experiment_own
from kdjax.experiment.build import open_data
from kdjax.experiment.config import parse_config
from kdjax.experiment.store import Store
from kdjax.experiment.teachers import Teacher

SMALL = {"epochs": 4, "batch_size": 32}


@pytest.fixture(scope="module")
def digits():
    return api_parts.load()


@pytest.fixture(scope="module")
def distilled(digits, tmp_path_factory):
    """A student of one's own, taught by another one that is trained first."""
    train, test = digits
    workdir = tmp_path_factory.mktemp("distilled")
    result = kdjax.distill(
        student=Net(width=8),
        teacher=Net(),
        data=train,
        test=test,
        workdir=workdir,
        recipe={"learning_rate": 0.01},
        epochs=12,
        batch_size=32,
    )
    return result


def test_a_student_of_ones_own_learns(distilled, digits):
    _, (images, labels) = digits
    assert distilled.accuracy > 0.6
    assert distilled.accuracies == [distilled.accuracy]
    probabilities = distilled.predict(images)
    assert probabilities.shape == (128, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    hits = np.mean(probabilities.argmax(axis=1) == labels)
    assert hits == pytest.approx(distilled.accuracy)
    figures = distilled.evaluate(images, labels)
    stage = distilled.summary["stages"]["student"]
    assert figures["accuracy"] == pytest.approx(distilled.accuracy)
    assert figures["loss"] == pytest.approx(stage["test_loss"][0], rel=1e-4)
    assert figures["top5"] == pytest.approx(stage["test_top5"]["final"][0])


def test_its_variables_are_the_modules_own(distilled, digits):
    _, (images, _) = digits
    about = distilled.student
    pixels = (images[..., None] / 255 - np.array(about.mean)) / np.array(about.std)
    logits = Net(width=8).apply(
        distilled.variables, jnp.asarray(pixels, jnp.float32), train=False
    )
    np.testing.assert_allclose(about.logits(images), logits, rtol=1e-4, atol=1e-4)


def test_what_is_there_is_not_trained_again(distilled, digits, capsys):
    train, test = digits
    again = kdjax.distill(
        student=Net(width=8),
        teacher=Net(),
        data=train,
        test=test,
        workdir=distilled.workdir,
        recipe={"learning_rate": 0.01},
        epochs=12,
        batch_size=32,
    )
    out = capsys.readouterr().out
    assert "student seed 0  found in" in out
    assert "epoch" not in out.replace("12 epochs of", "").replace("last epoch", "")
    assert (
        again.summary["stages"]["student"]["digest"]
        == (distilled.summary["stages"]["student"]["digest"])
    )


def test_the_doors_below(distilled, digits, tmp_path):
    _, (images, _) = digits
    loaded = kdjax.load(distilled.workdir, "student")
    np.testing.assert_array_equal(
        loaded.predict(images[:3]), distilled.predict(images[:3])
    )
    assert loaded.accuracy == distilled.accuracy
    assert loaded.num_classes == 10
    config = json.loads((distilled.workdir / "results.json").read_text())["config"]
    run = kdjax.run(config, distilled.workdir, stages=["teacher"])
    assert list(run.summary["stages"]) == ["teacher"]
    assert (
        run.accuracy
        == distilled.summary["stages"]["teacher"]["test_accuracy"]["median"]
    )


@pytest.mark.parametrize("module", ["__main__", "nets_of_a_package"])
def test_an_edited_class_is_trained_again(digits, tmp_path, monkeypatch, module):
    train, test = digits

    def prints(body, width):
        class Edited(Net):
            @nn.compact
            def __call__(self, x: jax.Array, train: bool) -> jax.Array:
                x = nn.Conv(width, (3, 3), 2, name="conv")(x)
                return nn.Dense(self.num_classes, name="head")(body(x).mean((1, 2)))

        Edited.__module__, Edited.__qualname__ = module, "Edited"
        place = types.ModuleType(module)
        place.Edited = Edited
        monkeypatch.setitem(sys.modules, module, place)
        request = experiment_own.Request(
            data=experiment_own.own_data.register_arrays(*train, *test),
            kind="arrays",
            student=models.register(Edited()),
            method="supervised",
        )
        parsed = parse_config(experiment_own.config(request).to_dict())
        return Store(parsed, open_data(parsed), tmp_path).fingerprint("student", 0)

    first = prints(nn.relu, 4)
    assert prints(nn.relu, 4) == first
    assert prints(nn.relu, 6) != first
    # An edit that keeps all shapes shows in a notebook's or script's own class.
    assert (prints(nn.tanh, 4) != first) == (module == "__main__")


def accuracy_of(distilled):
    return distilled.summary["stages"]["teacher"]["test_accuracy"]["final"]


@pytest.mark.parametrize("form", ["network", "path", "variables", "function", "logits"])
def test_a_teacher_in_any_form(distilled, digits, tmp_path, form):
    train, test = digits
    network = distilled.network("teacher")

    def function(variables, images):
        return Net().apply(variables, images, train=False)

    logits = network.logits(
        kdjax.open_data(
            experiment_own.own_data.register_arrays(*train, *test), kind="arrays"
        ).train.images
    )
    teachers = {
        "network": network,
        "path": f"{distilled.workdir}:teacher",
        "variables": (Net(), network.variables),
        "function": (function, network.variables),
        "logits": np.asarray(logits),
    }
    result = kdjax.distill(
        student=Net(width=8),
        teacher=teachers[form],
        data=train,
        test=test,
        workdir=tmp_path,
        recipe={"learning_rate": 0.01},
        augment="none",
        **SMALL,
    )
    stage = result.summary["stages"]["teacher"]
    if form == "logits":
        assert stage["test_accuracy"]["final"] == [None]
    else:
        assert stage["test_accuracy"]["final"] == accuracy_of(distilled)
    # Which form it has decides nothing of what is learned.
    loss = kdjax.load(tmp_path, "student")._about.result["history"][-1]["train/loss"]
    LOSSES.setdefault("loss", loss)
    assert loss == pytest.approx(LOSSES["loss"], rel=2e-3)
    if form != "logits":
        images = test[0][:3]
        np.testing.assert_allclose(
            result.network("teacher").predict(images),
            network.predict(images),
            rtol=1e-4,
            atol=1e-6,
        )


LOSSES: dict[str, float] = {}


@pytest.mark.parametrize(
    ("method", "student"),
    [
        ("dgkd", ["teacher", "assistant1", "assistant2"]),
        ("dgkd_stochastic", ["teacher", "assistant1", "assistant2"]),
        ("takd", ["assistant2"]),
        ("kd", ["assistant2"]),
    ],
)
def test_a_chain_of_assistants(digits, method, student):
    train, test = digits
    request = experiment_own.Request(
        data=experiment_own.own_data.register_arrays(*train, *test),
        kind="arrays",
        student="tiny-3",
        chain=("tiny-5", "tiny-4"),
        teacher=Teacher(source="tiny-6"),
        method=method,
    )
    parsed = parse_config(experiment_own.config(request).to_dict())
    dense = method.startswith("dgkd")
    assert {name: list(stage.teachers) for name, stage in parsed.stages.items()} == {
        "teacher": [],
        "assistant1": ["teacher"],
        "assistant2": ["teacher", "assistant1"] if dense else ["assistant1"],
        "student": student,
    }
    assert [stage.model for stage in parsed.stages.values()] == [
        "tiny-6",
        "tiny-5",
        "tiny-4",
        "tiny-3",
    ]


def test_ctkd_trains_expert_and_scratch_teacher(digits, tmp_path):
    train, test = digits
    result = kdjax.distill(
        student="tiny-3",
        teacher="tiny-4",
        data=train,
        test=test,
        method="ctkd",
        workdir=tmp_path,
        epochs=1,
        batch_size=64,
    )
    stages = result.summary["stages"]
    assert stages["teacher"]["model"] == "tiny-4"
    assert stages["student"]["others"]["scratch"]["model"] == "tiny-4"


def test_levels_by_module_path(digits, tmp_path):
    train, test = digits
    common = {"data": train, "test": test, "epochs": 1, "batch_size": 64}
    with pytest.raises(kdjax.UserError) as error:
        kdjax.distill(
            student=Net(width=8), teacher=Net(), method="at", workdir=tmp_path, **common
        )
    assert "student_levels" in str(error.value)
    result = kdjax.distill(
        student=Net(width=8),
        teacher=Net(),
        method="at",
        student_levels=["conv", "deep"],
        teacher_levels=["conv", "deep"],
        workdir=tmp_path,
        **common,
    )
    assert result.summary["config"]["stages"]["student"]["at"]["levels"] == ("stage*",)
    (folder,) = tmp_path.glob("stages/student-*")
    stage = json.loads((folder / "stage.json").read_text())
    assert stage["method"]["at"]["levels"] == ["stage1", "stage2"]


@pytest.mark.parametrize("form", ["mapping", "list"])
def test_a_function_has_a_tree_of_its_own(digits, tmp_path, form):
    train, test = digits
    kernel = jax.random.normal(jax.random.key(0), (64, 10)) / 8
    variables = {"mapping": {"w": kernel}, "list": [kernel]}[form]
    key = {"mapping": "w", "list": 0}[form]

    def linear(variables, images):
        return images.reshape(len(images), -1) @ variables[key]

    result = kdjax.distill(
        student="tiny-3",
        teacher=(linear, variables),
        data=train,
        test=test,
        workdir=tmp_path,
        epochs=1,
        batch_size=64,
    )
    teacher = result.network("teacher")
    pixels = (test[0][..., None] / 255 - teacher.mean[0]) / teacher.std[0]
    np.testing.assert_allclose(
        teacher.logits(test[0]),
        pixels.reshape(128, -1) @ np.asarray(kernel),
        rtol=1e-3,
        atol=1e-4,
    )
