"""Chains, ensembles and the bank with networks of PyTorch; stopped and continued."""

import json
import shutil

import numpy as np
import pytest

from kdjax.data import own as own_data
from kdjax.experiment import builders, own
from kdjax.experiment.config import parse_config
from kdjax.experiment.run import Run
from kdjax.experiment.teachers import Teacher
from kdjax.runtime.signals import Interrupt

pytest.importorskip("torch", reason="torch, of the torch extra, is not installed")

import torch
import torch_own
from torch_parts import needs_torchax

pytestmark = [pytest.mark.slow, needs_torchax]
CLASSES, SIDE = 3, 8
TEACHER = "torch_own:Net(width=2, rate=0.1)"
CHAIN = {"method": "dgkd", "chain": ("torch_own:Padded",), "student": "torch_own:Makes"}
PAIR = {"method": "kd", "student": "torch_own:Net(width=3, rate=0.3)"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of the teacher's weights, by the number of its classes."""
    folder, files = tmp_path_factory.mktemp("weights"), {}
    for classes in (CLASSES, 7):
        torch.manual_seed(classes)
        files[classes] = str(folder / f"net{classes}.pth")
        torch.save(torch_own.Net(2, classes).state_dict(), files[classes])
    return files


def config(file, train="head", bank=True, **options):
    rng = np.random.default_rng(0)
    labels = np.arange(24) % CLASSES
    noise = rng.integers(0, 100, (24, SIDE, SIDE, 3))
    images = (noise + 50 * labels[:, None, None, None]).astype(np.uint8)
    request = own.Request(
        data=own_data.register_arrays(images, labels, images, labels),
        kind="arrays",
        teacher=Teacher(source=TEACHER, weights=file, train=train),
        epochs=2,
        batch_size=8,
        settings={
            "saving": {"every_s": 0.0, "best": False, "evaluate_every": 1},
            "bank": {"use": bank, "max_gb": 1.0},
        },
        **options,
    )
    return own.config(request).to_dict()


def run(made, folder, observe=lambda stage, seed, record: None):
    """Returns the summary, and the replicas' results by stage."""
    summary = Run(parse_config(made), folder, Interrupt(), observe).run()
    results = {
        path.parent.name.partition("-")[0]: json.loads(path.read_text())
        for path in folder.glob("stages/*/result.json")
    }
    return summary, results


def snapshot(folder, copy, tries=20):
    """Copies a folder in which a checkpoint may be written at the same time."""
    for left in reversed(range(tries)):
        try:
            shutil.copytree(folder, copy)
        except shutil.Error:  # what was listed has its final name by now
            shutil.rmtree(copy)
            if not left:
                raise
        else:
            return


@pytest.mark.parametrize("train", ["head", "all"])
def test_a_new_head_that_is_stopped_ends_in_the_same_bits(
    weights, tmp_path, capsys, train
):
    made = config(weights[7], train, **PAIR)
    copy = tmp_path / "copy"

    def killed(stage, seed, record):
        """What a kill in the middle of the new head's stage would leave behind."""
        if stage == "teacher" and record["epoch"] == 5:
            snapshot(tmp_path / "whole", copy)

    summary, whole = run(made, tmp_path / "whole", killed)
    # The stage of the new head is one like any other.
    row = summary["stages"]["teacher"]
    assert (row["method"], len(row["test_accuracy"]["final"])) == ("supervised", 1)
    written = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert written["stages"]["teacher"]["fingerprint"] == row["fingerprint"]
    table = capsys.readouterr().out.rpartition("Test accuracy")[2]
    assert "│ teacher │ supervised │" in table

    assert not list(copy.glob("stages/*/result.json"))
    epochs = []

    def again(stage, seed, record):
        if stage == "teacher":
            epochs.append(record["epoch"])

    _, continued = run(made, copy, again)
    assert epochs[0] > 1  # it went on
    assert epochs[-1] == 10
    digests = {name: result["digest"] for name, result in whole.items()}
    assert digests.keys() == made["stages"].keys()
    assert {name: result["digest"] for name, result in continued.items()} == digests


def test_a_chain_with_and_without_the_bank(weights, tmp_path):
    """The teacher's new head, an assistant and a student: all of PyTorch."""
    found = {}
    for bank in (True, False):
        made = config(weights[7], bank=bank, **CHAIN)
        found[bank] = run(made, tmp_path / str(bank))[1]
    passes = {bank: found[bank]["student"]["teacher_passes"] for bank in found}
    # Two epochs of two teachers; the bank has the first one's from the assistant's.
    assert passes == {True: 2, False: 4}
    for name, result in found[True].items():
        for ours, theirs in zip(
            result["history"], found[False][name]["history"], strict=True
        ):
            np.testing.assert_allclose(ours["train/loss"], theirs["train/loss"], 2e-3)


def test_an_ensemble_with_a_member_of_pytorch_in_bf16(weights, tmp_path):
    made = config(weights[CLASSES], **{**PAIR, "method": "ensemble"})
    made["precision"] = "bf16"
    made["stages"]["second"] = builders.stage("plain-2")
    student = made["stages"].pop("student")
    made["stages"]["student"] = {**student, "teachers": ("teacher", "second")}
    summary, results = run(made, tmp_path)
    assert summary["stages"]["teacher"]["given"] == [weights[CLASSES]]
    assert len(results["student"]["history"]) == 2
    assert "train/kd/ensemble" in results["student"]["history"][0]
