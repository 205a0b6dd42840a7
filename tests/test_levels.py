"""Which features student and teacher are compared at: by default, and by choice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict
from term_cases import EXPERT, STUDENT, B, C, outputs, terms

from kdjax import methods, models
from kdjax.methods.levels import OneLevel, SeveralLevels
from kdjax.models import Outputs
from kdjax.runtime.computation import used_inputs
from kdjax.runtime.errors import UserError
from kdjax.train.networks import Networks
from kdjax.train.step import Step

pytestmark = pytest.mark.usefixtures("x64")

THREE, FOUR = (tuple(f"stage{i}" for i in range(1, n + 1)) for n in (3, 4))


def pre(levels):
    return tuple(f"{level}_pre" for level in levels)


def fitted(name, student, teacher, **options):
    method = methods.create(name, {name: options})
    teachers = {"expert": teacher} if method.num_teachers else {}
    return Networks(method, student, teachers, C, (32, 32, 3)).method


DEFAULTS = {
    **dict.fromkeys(("at", "nst", "kdsvd", "vid"), lambda all_: all_),
    **dict.fromkeys(("ab", "ofd"), pre),
    "fsp": lambda all_: ("stem", *all_),
    "reviewkd": lambda all_: (*pre(all_), "pooled"),
}
LAST = {"sp", "ft"}
"""What compares the last map."""


@pytest.mark.parametrize(
    ("student", "teacher", "levels"),
    [
        ("vgg-8", "vgg-13", FOUR),
        ("mobilenetv2-0.5", "vgg-13", FOUR),
        ("imagenet_resnet-18", "imagenet_resnet-34", FOUR),
        ("resnet-8", "vgg-13", THREE),
        ("vgg-8", "resnet-8", THREE),
        ("wrn-10-1", "resnet-8", THREE),
        ("plain-4", "resnet-8", ("stage1", "stage2")),
    ],
)
def test_levels_are_all_that_both_networks_have(student, teacher, levels):
    for name, made in DEFAULTS.items():
        assert fitted(name, student, teacher).levels == made(levels), name
    for name in LAST:
        assert fitted(name, student, teacher).level == levels[-1], name
    # Fitted once, they are named.
    method = fitted("at", student, teacher)
    assert method.fit({}, {}) is method


def test_every_method_with_levels_is_tried():
    """CTKD is tried below; CC, RKD, PKT and FitNet name one level."""
    named = {"cc", "rkd", "pkt", "fitnet"}
    comparing = {
        name
        for name in methods.METHODS
        if issubclass(methods.METHODS[name], OneLevel | SeveralLevels)
    }
    assert comparing - set(methods.METHODS.outside()) == {*DEFAULTS, *LAST, *named}


def test_ctkd_compares_the_network_that_it_guides():
    options = {"scratch": "resnet-8"}
    assert fitted("ctkd", "vgg-8", "vgg-13", **options).levels == FOUR
    options["attention_target"] = "scratch"
    assert fitted("ctkd", "vgg-8", "vgg-13", **options).levels == THREE
    # Without the attention term any networks do.
    assert fitted("ctkd", "vgg-8", "vgg-13", beta=0.0).levels == THREE


def test_one_shares_all_stages_but_the_last():
    assert fitted("one", "vgg-8", "").trunk == "stage3"
    assert fitted("one", "resnet-8", "").trunk == "stage2"
    assert fitted("one", "resnet-8", "", trunk="stem").trunk == "stem"


def test_parts_of_a_combined_method_are_fitted():
    method = methods.create("at+sp", {})
    teachers = {"expert": "vgg-13"}
    found = Networks(method, "vgg-8", teachers, C, (32, 32, 3)).method
    assert found.methods["at"].levels == FOUR
    assert found.methods["sp"].level == "stage4"


def test_named_levels_and_those_found_have_one_fingerprint():
    for name in ("at", "sp", "one"):
        found = methods.options(fitted(name, "resnet-8", "resnet-14"))
        written = {
            "at": {"levels": THREE},
            "sp": {"level": "stage3"},
            "one": {"trunk": "stage2"},
        }[name]
        method = methods.create(name, {name: written})
        assert methods.options(method) == found
    # Hashed only where they are given: older stages are found again.
    assert "teacher_levels" not in methods.options(methods.create("at", {}))["at"]
    other = methods.create(
        "at", {"at": {"levels": THREE, "teacher_levels": pre(THREE)}}
    )
    assert methods.options(other)["at"]["teacher_levels"] == pre(THREE)


def renamed(teacher, levels):
    """A teacher whose features of other names have the student's."""
    features = {**teacher.features}
    for ours, theirs in levels.items():
        features[ours] = teacher.features[theirs]
    return Outputs(teacher.logits, features)


TERMS = {
    "at": (),
    "nst": (),
    "kdsvd": (),
    "fsp": (),
    "sp": ("stage2",),
    "rkd": ("stage2",),
    "pkt": ("stage2",),
    "ctkd": (),
}


@pytest.mark.parametrize("name", TERMS)
def test_the_teachers_levels_may_be_others(name):
    # As wide as the student, for those that want that.
    teacher = outputs(11, 2, 2)
    roles = {"student": STUDENT, "scratch": STUDENT} if name == "ctkd" else None
    if TERMS[name]:
        mine = {"level": "stage2"}
        options = {**mine, "teacher_level": "stage1_pre"}
        pairs = {"stage2": "stage1_pre"}
    else:
        mine = {"levels": ("stage1", "stage3")}
        options = {**mine, "teacher_levels": ("stage3_pre", "stage1")}
        pairs = {"stage1": "stage3_pre", "stage3": "stage1"}
    found, _, _ = terms(name, options, roles=roles, teacher=teacher)
    expected, _, _ = terms(name, mine, roles=roles, teacher=renamed(teacher, pairs))
    assert found == expected
    assert found != terms(name, mine, roles=roles, teacher=teacher)[0]


@pytest.mark.parametrize("name", ["vid", "ab", "ofd", "reviewkd", "fitnet", "cc", "ft"])
def test_adapters_lead_to_the_teachers_other_levels(name):
    """Shapes of trained modules are those of the teacher's chosen features."""
    one = name in ("fitnet", "cc", "ft")
    options = (
        {"level": "stage2", "teacher_level": "stage3_pre"}
        if one
        else {
            "levels": ("stage1", "stage2"),
            "teacher_levels": ("stage2", "stage3_pre"),
        }
    )
    method = methods.create(name, {name: options})
    teacher = jax.tree.map(
        lambda x: jnp.ones((*x.shape[:-1], 2 * x.shape[-1])),
        jax.tree.map(jnp.asarray, EXPERT),
    )
    wide = jnp.ones((B, 2, 2, 5))
    teacher.features["stage3_pre"] = wide
    targets = {"expert": method.teacher_targets(teacher)}
    roles = {"student": jax.tree.map(jnp.asarray, STUDENT)}
    last = targets["expert"] if one else targets["expert"]["stage2"]
    assert last.shape == wide.shape
    for adapter in method.adapters(roles, targets).values():
        adapter.init_with_output(jax.random.key(0), roles, targets, train=True)


def test_ofds_margins_are_those_of_the_teachers_levels():
    levels = {"levels": ("stage1",), "teacher_levels": ("stage3_pre",)}
    own = methods.create("ofd", {"ofd": levels})
    same = methods.create("ofd", {"ofd": {"levels": ("stage3_pre",)}})
    frozen = tiny.frozen(("expert",))
    init = methods.MemoryInit(
        None, None, tiny.CLASSES, {}, {}, {"expert": tiny.TEACHER}, frozen
    )
    (found,) = own.init_memory(init).values()
    (expected,) = same.init_memory(init).values()
    np.testing.assert_array_equal(found, expected)


def test_patterns_of_both_networks_stand_for_the_same_stages():
    method = fitted(
        "reviewkd",
        "resnet-8",
        "vgg-13",
        levels=("stage*", "pooled"),
        teacher_levels=("stage*_pre", "pooled"),
    )
    assert method.levels == (*THREE, "pooled")
    assert method.teacher_levels == (*pre(THREE), "pooled")
    found = fitted(
        "sp", "resnet-8", "vgg-13", level="stage*", teacher_level="stage*_pre"
    )
    assert (found.level, found.teacher_level) == ("stage3", "stage3_pre")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("at", {"levels": ("nope*",)}, r"at: .* no level nope\* and nope\* in common"),
        ("kdsvd", {"levels": ("stage*_no",)}, r"kdsvd: .* no level stage\*_no"),
        (
            "at",
            {"levels": ("stage1", "stage2"), "teacher_levels": ("stage1",)},
            r"at: 2 levels \(stage1, stage2\), but 1 teacher_levels \(stage1\)",
        ),
        (
            "ctkd",
            {"levels": ("stage*",), "teacher_levels": ("stage1",)},
            r"3 levels \(.*\), but 1 teacher_levels \(stage1\)",
        ),
        (
            "nst",
            {"levels": ("stage1",) * 2, "teacher_levels": ("stage1", "stage2")},
            "nst: levels= names a level twice: stage1, stage1",
        ),
        ("vid", {"teacher_levels": (3,)}, r"teacher_levels \(3,\) are not all names"),
    ],
)
def test_mistakes_are_told(name, options, message):
    with pytest.raises(UserError, match=message):
        fitted(name, "resnet-8", "resnet-14", **options)


def test_too_few_stages_are_told():
    features = {"stage1": jnp.ones((2, 2, 2, 2))}
    one = Outputs(jnp.ones((2, C)), features)
    method = methods.create("kdsvd", {})
    with pytest.raises(UserError, match=r"kdsvd: levels \('stage1',\) are too few"):
        method.fit({"student": one}, {"expert": one})
    none = Outputs(jnp.ones((2, C)), {})
    with pytest.raises(UserError, match=r"in common; they have .* student_levels="):
        methods.create("sp", {}).fit({"student": none}, {"expert": one})


def test_open_levels_are_told_in_loops_of_ones_own():
    with pytest.raises(UserError, match=r"level 'stage\*' is named by Method.fit"):
        methods.create("at", {}).teacher_targets(EXPERT)


def fixed_first(name, student, **options):
    """Layers of the student that a method's first phase does not train."""
    method = methods.create(name, {name: options})
    step = Step(method, student, {"expert": student}, C, (32, 32, 3), phase=0)
    return {
        path[0]
        for part in step.shapes()["student"].values()
        for path in flatten_dict(part)
        if not step.trains(("student", *path))
    }


@pytest.mark.parametrize("name", ["ab", "fsp"])
@pytest.mark.parametrize(
    ("student", "fixed"),
    [
        # `get_feat_modules` of the published networks has none of these.
        ("wrn-10-1", {"bn", "head"}),
        ("resnet-8", {"head"}),
        ("mobilenetv2-0.5", {"last", "head"}),
        ("shufflenetv2", {"last", "head"}),
        ("plain-8", {"dense", "head"}),
    ],
)
def test_the_first_phase_trains_what_the_stages_are_computed_from(name, student, fixed):
    assert fixed_first(name, student) == fixed


def test_the_first_phase_knows_the_classifiers_of_ones_own_networks():
    student = models.with_levels("own_nets:Trunk", ("first", "second"))
    assert fixed_first("ab", student, levels=("stage1",)) == {"fc1", "fc2"}


def test_used_inputs_are_those_that_results_depend_on():
    tree = {"a": jnp.ones(3), "b": jnp.ones(3), "c": jnp.ones(3), "d": jnp.ones(3)}

    @jax.jit
    def inner(x, y):
        return x + 1, jax.checkpoint(lambda z: (z * 2, 3.0))(y)[0]

    def function(tree):
        first, second = inner(tree["a"], tree["b"])
        unused = second + tree["c"]
        del unused
        return first, jax.lax.fori_loop(0, 2, lambda i, x: x + tree["d"], first)

    assert used_inputs(function, tree) == {"a": True, "b": False, "c": False, "d": True}
    assert used_inputs(lambda tree: 1.0, tree) == dict.fromkeys(tree, False)
