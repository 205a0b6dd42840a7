"""What earlier versions left on users' disks is still found and resumed.

The files in tests/data were made by the version before the packages were rearranged:
fingerprints and target ids of the published configs' stages; and a working folder,
with `CONFIG`, whose last stage was stopped after 6 of its 12 steps, beside the results
that the same run reached without a stop. A change of them is a change of a `VERSION`.
"""

import copy
import hashlib
import json
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import (
    born_again,
    cifar100_benchmark,
    ctkd,
    ctkd_tables,
    dgkd,
    dgkd_tables,
    kd,
)
from kdjax import methods
from kdjax.data import sources
from kdjax.experiment.config import parse_config
from kdjax.experiment.run import Run
from kdjax.experiment.store import Store
from kdjax.runtime.signals import Interrupt
from kdjax.train import rounding
from kdjax.train.networks import Networks

DATA = Path(__file__).parent / "data"
OLD = json.loads((DATA / "fingerprints.json").read_text())
RESULTS = json.loads((DATA / "old-results.json").read_text())
CONFIGS = {
    "born_again.py": born_again,
    "cifar100_benchmark.py": cifar100_benchmark,
    "ctkd.py": ctkd,
    "ctkd_tables.py": ctkd_tables,
    "dgkd.py": dgkd,
    "dgkd_tables.py": dgkd_tables,
    "kd.py": kd,
}
LATER = {"nkd", "wttm"}
"""Methods that came since: `kd.py:all` has a stage of each."""
CHANGED = {
    "ab",  # its first phase leaves the BatchNorm behind a Wide ResNet's last stage
    "reviewkd",  # the student's maps after the activations, as published for CIFAR
    "simkd",  # a MobileNetV2's linear map as it is
}
"""Methods whose numbers, in the published configs, were others. The benchmark's Wide
ResNets start by fan out, and so have another name."""
WEIGHTS = {
    ("dkd", "resnet-110", "resnet-32"),
    ("dkd", "vgg-13", "mobilenetv2-0.5"),
}
"""Pairs that had another weight than the published one."""
CONFIG = {
    "data": {
        "name": "digits",
        "dir": None,
        "train_size": 64,
        "test_size": 20,
        "augment": {"crop": 1, "flip": True},
    },
    "recipe": {
        "epochs": 3,
        "batch_size": 16,
        "learning_rate": 0.05,
        "milestones": (0.5,),
    },
    "seeds": 1,
    "precision": "float32",
    "saving": {"every_s": 0.0},
    "stages": {
        "expert": {"model": "tiny-4"},
        "assistant": {"model": "tiny-3", "method": "kd", "teachers": ("expert",)},
        "replay": {
            "model": "tiny-2",
            "method": "ctkd",
            "teachers": ("expert",),
            "ctkd": {"scratch": "tiny-4", "replay": True},
        },
        "student": {
            "model": "tiny-2",
            "method": "dgkd",
            "teachers": ("expert", "assistant"),
            "dgkd": {"survival": 0.75},
        },
    },
}


class Described:
    """A data set that is known, but not there."""

    version, content = "1", "0"

    def __init__(self, data):
        source = sources.expected(**data)
        self.name, self.num_classes = data["name"], source.num_classes
        self.image_shape, self.mean, self.std = (
            source.image_shape,
            source.mean,
            source.std,
        )
        self.train_size, self.test_size = source.train_size, source.test_size


@pytest.mark.parametrize("name", OLD["fingerprints"])
def test_published_configs_have_the_fingerprints_they_had(name):
    config, _, arg = name.partition(":")
    parsed = parse_config(CONFIGS[config].get_config(arg).to_dict())
    store = Store(parsed, Described(parsed.data), Path("nowhere"))
    old = OLD["fingerprints"][name]
    assert parsed.stages.keys() - LATER == old.keys()
    for stage, fingerprint in old.items():
        found = store.fingerprint(stage, 0)
        assert (found != fingerprint) == changed(stage, parsed.stages), stage


def changed(name, stages):
    """Whether a stage's numbers were changed on purpose, or those of its teachers."""
    stage = stages[name]
    teachers = [stages[teacher].model for teacher in stage.teachers]
    networks = (*teachers, *stage.method.roles(stage.model).values())
    unread = stage.method_name == "ctkd" and not stage.method.beta
    return (
        # Targets are rounded as the bank stores them, and computed otherwise.
        bool(stage.teachers and not unread)
        or bool(CHANGED & set(stage.method_name.split("+")))
        or any(network.endswith("-fan_out") for network in networks)
        or (stage.method_name, *teachers, stage.model) in WEIGHTS
        or any(changed(teacher, stages) for teacher in stage.teachers)
    )


def test_every_published_config_is_among_them():
    folder = Path(__file__).parents[1] / "configs"
    # One's own data have no fixed fingerprint: it is their content's.
    others = {"common.py", "own.py"}
    published = {path.name for path in folder.glob("*.py")} - others
    assert {name.partition(":")[0] for name in OLD["fingerprints"]} == published


@pytest.mark.skipif(
    jax.__version__ != OLD["jax"],
    reason=f"jax {jax.__version__} prints programs otherwise than {OLD['jax']}",
)
@pytest.mark.parametrize("name", OLD["target_ids"])
def test_targets_have_the_ids_they_had(name):
    method = methods.create(name, {})
    few = ("expert", "assistant")[: method.num_teachers or 2]
    teachers = dict.fromkeys(few, tiny.TEACHER)
    student = method.network(tiny.STUDENT, list(teachers.values())[:1])
    networks = Networks(method, student, teachers, tiny.CLASSES, tiny.SHAPE)
    assert networks.target_id("expert") == OLD["target_ids"][name]


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The earlier version's working folder, before it is resumed."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(DATA / "old-workdir.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def structure(tree):
    """A tree's keys, and the types of its values."""
    if isinstance(tree, dict):
        return {key: structure(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [structure(value) for value in tree]
    return type(tree).__name__


def processor():
    """A hash of the instructions that XLA may use; others round otherwise."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    (flags,) = {line for line in lines if line.startswith(("flags", "Features"))}
    return hashlib.sha256(flags.encode()).hexdigest()[:12]


def test_an_old_folder_is_found_and_its_stopped_stage_ends_in_the_same_bits(
    old, capsys, monkeypatch
):
    # As if fingerprints and the bank did not tell that targets have changed since: the
    # student's are all in the old bank.
    monkeypatch.setattr(Store, "_targets", lambda store, name: {})
    for folder in list((old / "bank").iterdir()):
        folder.rename(f"{folder}-{rounding.VERSION}")
    finished = {path: path.read_bytes() for path in sorted(old.rglob("*/result.json"))}
    assert len(finished) == 3
    observed = []
    run = Run(
        parse_config(copy.deepcopy(CONFIG)),
        old,
        Interrupt(),
        lambda *epoch: observed.append(epoch),
    )
    summary = run.run()
    assert {path: path.read_bytes() for path in finished} == finished
    out = capsys.readouterr().out
    for name in ("expert", "assistant", "replay"):
        assert f"{name} seed 0  found in" in out
    # Its first epoch was over, its second was not.
    assert [(stage, record["epoch"]) for stage, _, record in observed] == [
        ("student", 2),
        ("student", 3),
    ]
    # The teacher's targets of the epochs that were left are in the old bank.
    assert run._bank.passes == 0 or jax.__version__ != OLD["jax"]
    written = json.loads((old / "results.json").read_text())
    added = {"data": {"train_size": "int", "test_size": "int"}}
    assert structure(written) == {**structure(RESULTS), **added}
    ours, theirs = summary["stages"]["student"], RESULTS["stages"]["student"]
    assert ours["fingerprint"] == theirs["fingerprint"]
    np.testing.assert_allclose(ours["test_loss"], theirs["test_loss"], rtol=1e-4)
    if processor() == OLD["processor"] and jax.__version__ == OLD["jax"]:
        assert ours["digest"] == theirs["digest"]


def test_stages_that_read_a_teacher_are_not_taken_for_those_of_old(old, capsys):
    run = Run(parse_config(copy.deepcopy(CONFIG)), old, Interrupt())
    found = {name for name in CONFIG["stages"] if run._store.result(name, 0)}
    assert found == {"expert"}


def test_a_recording_stage_has_the_keys_that_its_checkpoints_had():
    totals = tiny.program(record=True, dtype=jnp.float32).zero_metrics()
    assert totals.keys() == {"sums", "bad", "said"}
