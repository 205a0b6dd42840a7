"""The Python interface: what it refuses, and where it takes no signals."""

import signal
import subprocess
import sys
import threading

import api_parts
import numpy as np
import pytest
import tiny  # noqa: F401 (its networks)
from api_parts import Net

import kdjax
from configs import own


@pytest.fixture(scope="module")
def digits():
    return api_parts.load()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "nope"}, ("'nope'", "kd")),
        ({"student": "resnet-9"}, ("resnet-9",)),
        ({"student": "nowhere.nets:Net"}, ("nowhere",)),
        ({"student": ""}, ("student= is missing",)),
        ({"student": Net(num_classes=7)}, ("7", "10")),
        ({"teacher": None}, ("needs a teacher",)),
        ({"teacher": "teacher.pth"}, ("teacher.pth",)),
        ({"teacher": (1, 2, 3)}, ("3 entries",)),
        ({"teacher": np.zeros((5, 10))}, ("(5, 10)", "(384, 10)")),
        ({"teacher_mean": (0.5,)}, ("teacher_mean",)),
        ({"options": {"temprature": 3.0}}, ("temprature", "temperature")),
        ({"recipe": {"lr": 3.0}}, ("'lr'", "learning_rate")),
        ({"recipe": {"optimizer": "adamm"}}, ("'adamm'", "adamw")),
        ({"epochs": "ten"}, ("'ten'", "whole number")),
        ({"teacher": "runs/mein:student"}, ("no such folder", "runs/mein")),
        ({"data": [1, 2], "test": None}, ("list", "tuple")),
        ({"augment": "mirror"}, ("'mirror'", "default")),
        ({"start": "nothing.pth"}, ("nothing.pth",)),
        ({"batch_size": 1000}, ("batch_size=1000", "384")),
        ({"test": None, "data": "nowhere"}, ("nowhere",)),
        ({"data": "nowhere"}, ("test= goes with arrays",)),
    ],
)
def test_mistakes_are_told_in_one_line(digits, tmp_path, changes, words):
    train, test = digits
    given = {
        "student": Net(width=4),
        "teacher": Net(),
        "data": train,
        "test": test,
        "workdir": tmp_path / "run",
        "epochs": 1,
        **changes,
    }
    with pytest.raises(kdjax.UserError) as error:
        kdjax.distill(**given)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert not list((tmp_path / "run").glob("stages/*"))


def test_outside_of_the_main_thread_no_signal_is_taken(digits, tmp_path):
    train, test = digits
    found = []

    def train_in_thread():
        result = kdjax.distill(
            student=Net(width=4),
            data=train,
            test=test,
            method="supervised",
            workdir=tmp_path,
            epochs=1,
            batch_size=64,
        )
        found.append(result.accuracy)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=train_in_thread)
    thread.start()
    thread.join()
    assert found
    assert signal.getsignal(signal.SIGINT) is before


def test_the_losses_need_none_of_it():
    code = (
        "import sys; from kdjax import losses; "
        "print(sorted(n for n in sys.modules if n.startswith('kdjax.')))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "kdjax.api" not in out
    assert "kdjax.experiment" not in out


def test_the_config_names_every_argument():
    for name in own.ARGUMENTS:
        known = name in own.__doc__ or name in own._RECIPE
        assert known, name
