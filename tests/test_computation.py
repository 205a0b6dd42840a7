"""The hash of what is read of a teacher tells apart what is computed."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from kdjax.methods.logits import KD
from kdjax.runtime.computation import computation_id
from kdjax.train.networks import Networks

X = jax.ShapeDtypeStruct((3,), jnp.float32)
RAMP = np.arange(3, dtype=np.float32)


def plain(constant):
    return lambda x: x * constant


def placed(constant):
    array = jnp.asarray(constant)
    return lambda x: x * array


def inside_jit(constant):
    return jax.jit(lambda x: x * constant)


def inside_two_jits(constant):
    return lambda x: jax.jit(lambda y: 2 * jax.jit(lambda z: z * constant)(y))(x)


def inside_custom_vjp(constant):
    @jax.custom_vjp
    def times(x):
        return x * constant

    times.defvjp(lambda x: (times(x), None), lambda _, grad: (grad * constant,))
    return times


def inside_jit_inside_custom_vjp(constant):
    inner = jax.jit(lambda x: x * constant)
    outer = jax.custom_vjp(inner)
    outer.defvjp(lambda x: (inner(x), None), lambda _, grad: (grad,))
    return outer


def inside_custom_jvp(constant):
    inner = jax.custom_jvp(lambda x: x * constant)
    inner.defjvp(lambda primals, tangents: (inner(*primals), tangents[0] * constant))
    return inner


def inside_cond(constant):
    return lambda x: jax.lax.cond(x[0] > 0, lambda y: y * constant, lambda y: y, x)


def inside_scan(constant):
    def body(carry, x):
        return carry + jnp.sum(x * constant), x

    return lambda x: jax.lax.scan(body, 0.0, x)


def inside_checkpoint(constant):
    return jax.checkpoint(lambda x: jnp.sin(x * constant))


def inside_vmap(constant):
    return jax.vmap(lambda x: x * constant)


def as_index(constant):
    return lambda x: x[np.asarray(constant, np.int32)]


EVERYWHERE = [
    plain,
    placed,
    inside_jit,
    inside_two_jits,
    inside_custom_vjp,
    inside_jit_inside_custom_vjp,
    inside_custom_jvp,
    inside_cond,
    inside_scan,
    inside_checkpoint,
    inside_vmap,
    as_index,
]


@pytest.mark.parametrize("place", EVERYWHERE, ids=lambda place: place.__name__)
def test_constant_arrays_count_wherever_a_function_holds_them(place):
    other = RAMP[::-1].copy()
    assert computation_id(place(RAMP), X) == computation_id(place(RAMP.copy()), X)
    assert computation_id(place(RAMP), X) != computation_id(place(other), X)


@pytest.mark.parametrize("place", [plain, inside_jit, inside_custom_vjp])
@pytest.mark.parametrize("scalar", [np.float32, float, jnp.float32])
def test_numbers_count_to_the_last_bit(place, scalar):
    third = np.float32(1 / 3)
    numbers = [third, np.nextafter(third, np.float32(1)), np.float32(2)]
    hashes = {computation_id(place(scalar(number)), X) for number in numbers}
    assert len(hashes) == 3


def test_a_single_bit_of_one_element_counts():
    zeros = np.zeros(3, np.float32)
    negative = np.array([0, 0, -0.0], np.float32)
    assert computation_id(plain(zeros), X) != computation_id(plain(negative), X)


def test_which_of_two_arrays_comes_first_counts():
    one, two = np.float32([1, 2, 3]), np.float32([4, 5, 6])
    first = computation_id(lambda x: x * one - two, X)
    second = computation_id(lambda x: x * two - one, X)
    assert first != second


def test_a_large_array_counts_beyond_what_is_printed():
    large, changed = np.zeros((2, 5000), np.float32)
    changed[2500] = 1
    x = jax.ShapeDtypeStruct((5000,), jnp.float32)
    assert computation_id(plain(large), x) != computation_id(plain(changed), x)


def test_random_keys_count():
    def noisy(seed):
        key = jax.random.key(seed)
        return lambda x: x + jax.random.normal(key, x.shape)

    assert computation_id(noisy(1), X) == computation_id(noisy(1), X)
    assert computation_id(noisy(1), X) != computation_id(noisy(2), X)


def test_without_arrays_it_is_the_hash_of_the_text_as_in_earlier_versions():
    def function(x):
        return jax.jit(lambda y: 2 * y)(x) + np.float32(3)

    text = str(jax.make_jaxpr(function)(X))
    expected = hashlib.sha256(text.encode()).hexdigest()[:8]
    assert computation_id(function, X) == expected


@dataclasses.dataclass(frozen=True)
class Weighted(KD):
    """Reads a teacher's logits times a fixed weight of every class."""

    classes: tuple[float, ...] = ()
    jitted: bool = False

    def teacher_targets(self, outputs):
        weights = np.asarray([self.classes], np.float32)

        def weigh(logits):
            return logits * weights

        return (jax.jit(weigh) if self.jitted else weigh)(outputs.logits)


@pytest.mark.parametrize("jitted", [False, True])
def test_two_methods_with_other_constants_share_no_bank(jitted):
    def target_id(*weights):
        method = Weighted(classes=weights, jitted=jitted)
        teachers = {"expert": tiny.TEACHER}
        networks = Networks(method, tiny.STUDENT, teachers, tiny.CLASSES, tiny.SHAPE)
        return networks.target_id("expert")

    assert target_id(1, 2, 3, 4, 5) == target_id(1, 2, 3, 4, 5)
    assert target_id(1, 2, 3, 4, 5) != target_id(1, 2, 3, 4, 6)
