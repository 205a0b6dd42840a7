"""Options of methods: ranges and choices, and the errors that name them."""

import dataclasses
import re

import pytest

from kdjax import methods
from kdjax.methods import ranges
from kdjax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("x64")


def test_methods_bear_the_names_of_their_rows():
    assert {name: cls.NAME for name, cls in methods.METHODS.items()} == {
        name: name for name in methods.METHODS
    }


@pytest.mark.parametrize(
    ("method", "option", "problem"),
    [
        ("dkd", {"warmup_steps": -1}, "is outside 0..2,147,483,647"),
        ("dkd", {"temperature": 0.0}, "is not positive"),
        ("dist", {"temperature": -1.0}, "is not positive"),
        ("nkd", {"temperature": 0.0}, "is not positive"),
        ("wttm", {"power": -0.2}, "is not positive"),
        ("label_smoothing", {"smoothing": 1.5}, "is outside 0..1"),
        ("at", {"power": 1.0}, "is not above 1"),
        ("ft", {"rate": 0.0}, r"is outside \(0, 1\]"),
        ("ft", {"init_epochs": 0}, "is outside 1..1,000,000"),
        ("one", {"branches": 1}, "is outside 2..100"),
        ("dml", {"peers": ()}, "are too few; choices: 1 or more"),
    ],
)
def test_options_out_of_range_are_told(method, option, problem):
    ((name, value),) = option.items()
    message = f"^{method}: {name} {re.escape(str(value))} {problem}$"
    with pytest.raises(UserError, match=message):
        methods.create(method, {method: option})


def test_every_integer_option_has_an_upper_bound():
    tried = 0
    for name, cls in methods.METHODS.items():
        for field in dataclasses.fields(cls):
            if type(field.default) is int and cls.__module__.startswith("kdjax."):
                with pytest.raises(UserError, match=rf"{field.name} 2147483648 is out"):
                    methods.create(name, {name: {field.name: 2**31}})
                tried += 1
    assert tried > 10


def test_numbers_that_are_none_are_out_of_range():
    with pytest.raises(UserError, match="kd: temperature nan is not positive"):
        methods.METHODS["kd"](temperature=float("nan"))


@pytest.mark.parametrize(
    ("method", "name", "choices"),
    [
        ("kd", "form", "weighted, added"),
        ("at", "norm", "mean_square, l2"),
        ("rocket", "tied", "none, lower, all"),
        ("ctkd", "attention_target", "student, scratch"),
        ("crd", "mode", "exact, relax"),
    ],
)
def test_unknown_choices_are_told_with_those_there_are(method, name, choices):
    message = f"^unknown {name} of {method} 'nope'; choices: {choices}$"
    with pytest.raises(UserError, match=message):
        methods.create(method, {method: {name: "nope"}})


def test_a_method_of_ones_own_is_checked_as_well():
    @dataclasses.dataclass(frozen=True)
    class Mine(methods.Method):
        rate: ranges.Share = 0.5

    assert Mine(rate=1.0).NAME == "mine"
    with pytest.raises(UserError, match=r"mine: rate 2\.0 is outside 0\.\.1"):
        Mine(rate=2.0)
