"""Networks and predictions that come from elsewhere teach as trained stages do."""

import json

import jax
import numpy as np
import pytest
import tiny

from configs import kd
from kdjax import methods, models
from kdjax.experiment import finished, given, given_contents, predictions
from kdjax.experiment.build import open_data
from kdjax.experiment.config import parse_config
from kdjax.experiment.given_stages import with_images
from kdjax.experiment.run import Run
from kdjax.models.table import NAME as TABLE
from kdjax.runtime.errors import UserError
from kdjax.runtime.signals import Interrupt

SIZES = "epochs=2,batch_size=32,train_size=192,test_size=64,seeds=1"


def config(method="kd", **changes):
    """Returns a pair of tiny networks on digits, without augmentation."""
    arg = f"{method},dataset=digits,teacher=tiny-4,student=tiny-4,{SIZES}"
    made = kd.get_config(arg).to_dict()
    made["data"]["augment"] = {}
    made["stages"]["student"]["copy"] = 1  # or it would start as its teacher did
    for key, value in changes.items():
        made[key] = value
    return made


def run(made, workdir):
    return Run(parse_config(made), workdir, Interrupt()).run()["stages"]


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A workdir in which the teacher was trained, and what it ended in."""
    workdir = tmp_path_factory.mktemp("before")
    return workdir, run(config(), workdir)


def with_given(source, model="tiny-4", **more):
    made = config()
    made["stages"]["teacher"] = {"model": model, "given": source, **more}
    return made


def test_another_runs_stage_teaches_as_in_its_own_run(before, tmp_path):
    workdir, stages = before
    there = run(with_given(f"{workdir}:teacher"), tmp_path)

    assert there["student"]["digest"] == stages["student"]["digest"]
    figures = "test_accuracy", "test_top5", "test_loss"
    for figure in figures:
        assert there["teacher"][figure] == stages["teacher"][figure]
    assert there["teacher"]["given"] == [f"{workdir}:teacher"]
    # Found again, and a change of the given network would be another student.
    folders = {path.name for path in (tmp_path / "stages").iterdir()}
    assert run(with_given(f"{workdir}:teacher"), tmp_path) == there
    assert {path.name for path in (tmp_path / "stages").iterdir()} == folders


def logits_of(workdir, made):
    """The teacher's logits of the plain training images."""
    about = finished.find(workdir, "teacher")
    data = open_data(parse_config(made))
    images = (data.train.images / 255 - np.array(data.mean)) / np.array(data.std)
    net = models.create(about.model, data.num_classes)
    return np.asarray(
        net.apply(about.variables(), images.astype(np.float32), train=False).logits
    )


def last_loss(workdir):
    """The student's mean loss in the last epoch, its distance to the teacher in it."""
    return finished.find(workdir, "student").result["history"][-1]["train/loss"]


def test_predictions_teach_as_the_network_that_made_them(before, tmp_path):
    workdir, _ = before
    table = logits_of(workdir, config())
    np.save(tmp_path / "logits.npy", table)
    made = with_given(str(tmp_path / "logits.npy"), model=TABLE)
    there = run(made, tmp_path / "run")

    want = last_loss(workdir)
    assert last_loss(tmp_path / "run") == pytest.approx(want, rel=1e-4)
    assert there["teacher"]["test_accuracy"]["median"] is None
    # Wrong predictions teach something else.
    np.save(tmp_path / "logits.npy", table[::-1])
    other = run(made, tmp_path / "run")
    assert other["student"]["fingerprint"] != there["student"]["fingerprint"]
    assert last_loss(tmp_path / "run") != pytest.approx(want, rel=1e-2)


def test_a_student_starts_from_given_weights(before, tmp_path):
    workdir, _ = before
    made = config("supervised")
    made["stages"]["student"]["start"] = f"{workdir}:teacher"
    made["recipe"]["learning_rate"] = 1e-9
    there = run(made, tmp_path)
    source = finished.find(workdir, "teacher").variables()
    trained = finished.find(tmp_path, "student").variables()
    for want, got in zip(
        jax.tree.leaves(source["params"]),
        jax.tree.leaves(trained["params"]),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert there["student"]["digest"]


def test_another_number_of_classes_replaces_the_head(before, capsys):
    workdir, _ = before
    start = finished.find(workdir, "teacher").variables()
    own = models.init(jax.random.key(3), "tiny-4", 7, (8, 8, 1))
    started = given_contents.with_start("student", own, start)
    head = models.init(jax.random.key(3), "tiny-4", 7, (8, 8, 1))["params"]["head"]
    np.testing.assert_array_equal(started["params"]["head"]["kernel"], head["kernel"])
    rest = [name for name in own["params"] if name != "head"]
    assert rest
    for name in rest:
        jax.tree.map(
            np.testing.assert_array_equal,
            started["params"][name],
            start["params"][name],
        )
    assert "head/kernel" in capsys.readouterr().out


def ensemble(tables):
    probabilities = [np.exp(t - t.max(1, keepdims=True)) for t in tables]
    probabilities = [p / p.sum(1, keepdims=True) for p in probabilities]
    return np.log(np.mean(probabilities, axis=0))


def test_several_files_are_an_ensemble(tmp_path):
    rng = np.random.default_rng(0)
    tables = [rng.normal(0, 3, (6, 4)) for _ in range(3)]
    paths = [str(tmp_path / f"{i}.npy") for i in range(3)]
    for path, table in zip(paths, tables, strict=True):
        np.save(path, table)
    found = predictions.load_table(paths, 4, 6)
    np.testing.assert_allclose(found, ensemble(tables), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        predictions.load_table(paths[:1], 4, 6), tables[0], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (np.zeros((5, 4)), ("(5, 4)", "(6, 4)")),
        (np.zeros((6, 3)), ("(6, 3)", "(6, 4)")),
        (np.full((6, 4), np.nan), ("row 0", "not finite")),
        (np.full((6, 4), 1e5), ("too large",)),
        (np.array(["a"] * 24).reshape(6, 4), ("no array of numbers",)),
        (np.array([{}] * 24, object).reshape(6, 4), ("cannot be read",)),
    ],
)
def test_predictions_that_do_not_fit(tmp_path, table, words):
    path = tmp_path / "logits.npy"
    np.save(path, table, allow_pickle=True)
    with pytest.raises(UserError) as error:
        predictions.load_table([str(path)], 4, 6)
    for word in (str(path), *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "model", "words"),
    [
        ("nothing.pth", "tiny-4", ("nothing.pth not found",)),
        ("nothing.npy", TABLE, ("nothing.npy not found",)),
        ("nowhere:teacher", "tiny-4", ("nowhere:teacher", "WORKDIR:STAGE")),
        ("WORKDIR:nobody", "tiny-4", ("'nobody'", "teacher, student")),
        ("WORKDIR:teacher:4", "tiny-4", ("seed", "4")),
        ("WORKDIR:teacher", "tiny-6", ("tiny-6", "is")),
        ("variables-00", "tiny-4", ("another process",)),
    ],
)
def test_what_is_not_there_or_of_another_network(
    before, tmp_path, source, model, words
):
    made = with_given(source.replace("WORKDIR", str(before[0])), model=model)
    with pytest.raises(UserError) as error:
        run(made, tmp_path)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


READ_LOGITS = {"kd", "dkd", "dist", "dgkd", "ensemble", "nkd", "wttm"}


TAUGHT = [name for name, made in methods.METHODS.items() if made.num_teachers != 0]


@pytest.mark.parametrize("method", TAUGHT)
def test_predictions_serve_every_method_of_logits(tmp_path, method):
    np.save(tmp_path / "logits.npy", np.zeros((192, 10)))
    made = config(method)
    made["stages"]["teacher"] = {"model": TABLE, "given": str(tmp_path / "logits.npy")}
    parsed = parse_config(made)
    if method in READ_LOGITS:
        assert with_images(parsed, open_data(parsed)).stages["teacher"].given
        return
    with pytest.raises(UserError) as error:
        with_images(parsed, open_data(parsed))
    assert method in str(error.value)
    assert "choices" in str(error.value)


def test_variables_of_this_process(before, tmp_path):
    workdir, stages = before
    name = given.register(finished.find(workdir, "teacher").variables())
    there = run(with_given(name), tmp_path)
    assert there["student"]["digest"] == stages["student"]["digest"]


def test_a_teacher_that_saw_other_values_sees_them_again(before, tmp_path):
    workdir, stages = before
    made = with_given(f"{workdir}:teacher")
    made["data"]["normalise"] = False
    there = run(made, tmp_path)
    accuracy = stages["teacher"]["test_accuracy"]["final"]
    assert there["teacher"]["test_accuracy"]["final"] == accuracy
    loss = stages["teacher"]["test_loss"][0]
    assert there["teacher"]["test_loss"][0] == pytest.approx(loss, rel=1e-4)


def test_a_hopeless_teacher_is_told(before, tmp_path, capsys):
    workdir, _ = before
    made = with_given(f"{workdir}:teacher", order=(1, 2, 3, 4, 5, 6, 7, 8, 9, 0))
    there = run(made, tmp_path)
    assert there["teacher"]["test_accuracy"]["median"] < 0.2
    assert "hardly better than chance (1 in 10)" in capsys.readouterr().out


def test_results_are_plain_json(before):
    workdir, _ = before
    assert json.loads((workdir / "results.json").read_text())
    assert tiny.STUDENT == "tiny-4"
