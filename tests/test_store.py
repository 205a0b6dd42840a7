"""Fingerprints: everything that decides a replica is in them, and nothing else."""

import copy

import pytest
import tiny

import kdjax
from configs import ctkd
from kdjax.experiment.config import parse_config
from kdjax.experiment.store import Store
from kdjax.runtime.errors import UserError
from kdjax.train import rounding


def config():
    return ctkd.get_config("cifar10,seeds=2").to_dict()


def prints(settings, folder, data=None):
    """Fingerprints of all replicas, by stage and seed."""
    experiment = parse_config(settings)
    store = Store(experiment, data or tiny.dataset(), folder)
    return {
        (name, seed): store.fingerprint(name, seed)
        for name, stage in experiment.stages.items()
        for seed in range(stage.seeds)
    }


def changed(path, value):
    settings = copy.deepcopy(config())
    inner = settings
    for key in path[:-1]:
        inner = inner[key]
    assert path[-1] in inner or path[-1] == "copy"
    inner[path[-1]] = value
    return settings


def test_seeds_and_stages_differ_and_calls_agree(tmp_path):
    first = prints(config(), tmp_path)
    assert len(set(first.values())) == len(first) == 4
    assert prints(config(), tmp_path / "elsewhere") == first


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("data", "dir"), "/elsewhere"),
        (("saving", "every_s"), 1.0),
        (("saving", "best"), True),
        (("bank", "use"), False),
    ],
)
def test_where_and_how_often_do_not_count(path, value, tmp_path):
    assert prints(changed(path, value), tmp_path) == prints(config(), tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("recipe", "epochs"), 7),
        (("recipe", "nesterov"), True),
        (("data", "augment", "flip"), False),
        (("precision",), "float64"),
        (("stages", "expert", "model"), "wrn-28-1"),
        (("stages", "expert", "copy"), 1),
    ],
)
def test_what_decides_the_expert_retrains_all(path, value, tmp_path):
    ours, theirs = prints(changed(path, value), tmp_path), prints(config(), tmp_path)
    assert all(ours[replica] != theirs[replica] for replica in theirs)


@pytest.mark.parametrize(
    ("key", "value"), [("beta", 5.0), ("norm", "l2"), ("scratch", "wrn-22-1")]
)
def test_a_students_setting_retrains_the_student_alone(key, value, tmp_path):
    ours = prints(changed(("stages", "student", "ctkd", key), value), tmp_path)
    for replica, theirs in prints(config(), tmp_path).items():
        assert (ours[replica] == theirs) == (replica[0] == "expert")


def test_other_images_are_another_data_set(tmp_path):
    first = set(prints(config(), tmp_path).values())
    for split in ("train", "test"):
        other = tiny.dataset()
        getattr(other, split).images[0, 0, 0, 0] ^= 1
        assert not first & set(prints(config(), tmp_path, other).values())


def test_the_version_of_targets_is_in_the_fingerprint(tmp_path, monkeypatch):
    """Of stages that read any: not of the expert, nor of one without attention."""
    settings = config()
    stages = settings["stages"]
    student = stages["student"]
    stages["blind"] = {**student, "ctkd": {**student["ctkd"], "beta": 0.0}}
    stages["inside"] = {
        "model": "wrn-16-1",
        "method": "sskd",
        "teachers": ("expert",),
    }
    before = prints(copy.deepcopy(settings), tmp_path)
    monkeypatch.setattr(rounding, "VERSION", rounding.VERSION + 1)
    after = prints(settings, tmp_path)
    found = {key[0] for key, value in before.items() if value != after[key]}
    assert found == {"student", "inside"}


def test_the_first_method_is_told_from_the_second(tmp_path):
    settings = config()
    student = settings["stages"]["student"]
    del student["ctkd"]
    student["method"] = "rocket+kd"
    ours = prints(settings, tmp_path)
    student["method"] = "kd+rocket"
    assert prints(settings, tmp_path)["student", 0] != ours["student", 0]


def test_another_name_finds_the_same_folder(tmp_path):
    settings = config()
    store = Store(parse_config(settings), tiny.dataset(), tmp_path)
    with store.open("expert", 0) as folder:
        assert (folder / "stage.json").exists()
    settings["stages"]["teacher"] = settings["stages"].pop("expert")
    settings["stages"]["student"]["teachers"] = ("teacher",)
    renamed = Store(parse_config(settings), tiny.dataset(), tmp_path)
    assert renamed.folder("teacher", 0) == folder


def test_two_processes_do_not_train_one_replica(tmp_path):
    store = Store(parse_config(config()), tiny.dataset(), tmp_path)
    with (
        store.open("expert", 0),
        pytest.raises(UserError, match="another process"),
        store.open("expert", 0),
    ):
        pass
    with store.open("expert", 0):
        pass


def test_a_damaged_result_is_one_clear_error(tmp_path):
    store = Store(parse_config(config()), tiny.dataset(), tmp_path)
    assert store.result("expert", 0) is None
    with store.open("expert", 0) as folder:
        (folder / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json is damaged.*delete"):
        store.result("expert", 0)


def test_another_version_is_told(tmp_path, monkeypatch):
    made = Store(parse_config(config()), tiny.dataset(), tmp_path)
    assert made.other_versions("expert", 0) == {}
    with made.open("expert", 0):
        assert made.other_versions("expert", 0) == {}
    ours = kdjax.__version__
    monkeypatch.setattr(kdjax, "__version__", "9.9")
    assert made.other_versions("expert", 0) == {"kdjax": (ours, "9.9")}
    assert made.other_versions("expert", 1) == {}


def test_another_version_of_a_networks_package_is_told(tmp_path, monkeypatch):
    made = Store(parse_config(config()), tiny.dataset(), tmp_path)
    monkeypatch.setattr("kdjax.models.packages", lambda name: {"nets": "1.0"})
    with made.open("expert", 0):
        assert made.other_versions("expert", 0) == {}
    monkeypatch.setattr("kdjax.models.packages", lambda name: {"nets": "1.1"})
    assert made.other_versions("expert", 0) == {"nets": ("1.0", "1.1")}
