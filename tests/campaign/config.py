"""Tiny runs of five kinds, for the campaign: `config.py:KIND`."""

from ml_collections import ConfigDict

from kdjax.runtime.errors import unknown

_STUDENT = {"model": "plain-2"}
_STAGES = {
    "supervised": {"expert": {"model": "plain-2"}},
    # The second student reads what was recorded of the expert.
    "ctkd": {
        "expert": {"model": "plain-4"},
        "student": {
            **_STUDENT,
            "method": "ctkd",
            "teachers": ("expert",),
            "ctkd": {"scratch": "plain-4"},
        },
        "replay": {
            **_STUDENT,
            "method": "ctkd",
            "teachers": ("expert",),
            "ctkd": {"scratch": "plain-4", "replay": True},
        },
    },
    # The expert teaches two stages: its targets are banked.
    "chain": {
        "expert": {"model": "plain-4"},
        "assistant": {"model": "plain-2", "method": "kd", "teachers": ("expert",)},
        "student": {
            "model": "plain-2",
            "method": "dgkd",
            "teachers": ("expert", "assistant"),
        },
    },
    "replicas": {
        "expert": {"model": "plain-2"},
        "student": {**_STUDENT, "method": "kd", "teachers": ("expert",)},
    },
}


def get_config(arg: str = "supervised") -> ConfigDict:
    """Returns the config of a kind."""
    if arg not in _STAGES:
        raise unknown("kind", arg, _STAGES)
    return ConfigDict(
        {
            "data": {
                "name": "digits",
                "dir": None,
                "train_size": 64,
                "test_size": 20,
                "augment": {"crop": 1, "flip": False},
            },
            "recipe": {
                "epochs": 3,
                "batch_size": 16,
                "learning_rate": 0.05,
                "milestones": (0.5,),
            },
            "seeds": 2 if arg == "replicas" else 1,
            "precision": "float32",
            "saving": {"every_s": 0.0, "best": arg == "supervised"},
            "bank": {"use": True, "max_gb": 1.0},
            "stages": _STAGES[arg],
        }
    )
