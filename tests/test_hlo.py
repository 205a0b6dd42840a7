"""What is read from the text of compiled programs: products, traffic, collectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from kdjax.preflight.hlo.collectives import Collective, collectives
from kdjax.preflight.hlo.flops import flops
from kdjax.preflight.hlo.kernels import kernels, longest_chain, step_by_kind
from kdjax.preflight.hlo.module import Array, Module, arrays
from kdjax.preflight.hlo.traffic import traffic


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().as_text()


def conv(x, kernel, strides=(1, 1), padding=((1, 1), (1, 1)), groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def products(x, kernel, strides, padding, groups=1):
    """Counts by going through every output, tap and input."""
    (batch, height, width, _), (rows, columns, depth, features) = x, kernel
    count = 0
    for top in range(-padding, height + padding - rows + 1, strides):
        for left in range(-padding, width + padding - columns + 1, strides):
            count += sum(
                0 <= top + i < height and 0 <= left + j < width
                for i in range(rows)
                for j in range(columns)
            )
    return 2 * batch * depth * features * count


@pytest.mark.parametrize(
    ("x", "kernel", "strides", "padding", "groups"),
    [
        ((4, 8, 8, 6), (3, 3, 6, 10), 1, 1, 1),
        ((4, 8, 6, 6), (3, 3, 6, 10), 2, 1, 1),
        ((4, 8, 8, 6), (1, 1, 6, 10), 2, 0, 1),
        ((4, 7, 7, 6), (5, 3, 6, 10), 1, 0, 1),
        ((4, 8, 8, 6), (3, 3, 1, 12), 1, 1, 6),
    ],
)
def test_convolutions_are_counted_without_their_padding(
    x, kernel, strides, padding, groups
):
    def run(image, weights):
        border = ((padding, padding),) * 2
        return conv(image, weights, (strides, strides), border, groups)

    found = flops(compiled(run, x, kernel))
    assert found == products(x, kernel, strides, padding)


@pytest.mark.parametrize("strides", [1, 2])
def test_the_gradients_of_a_convolution_take_as_much_as_itself(strides):
    # However XLA writes them: dilated, reversed, with operands exchanged.
    x, kernel = (4, 8, 8, 6), (3, 3, 6, 10)

    def loss(image, weights):
        return jnp.sum(jnp.tanh(conv(image, weights, (strides, strides))))

    once = products(x, kernel, strides, 1)
    assert flops(compiled(loss, x, kernel)) == once
    assert flops(compiled(jax.grad(loss, 1), x, kernel)) == 2 * once
    assert flops(compiled(jax.grad(loss, (0, 1)), x, kernel)) == 3 * once


def test_dot_products_are_counted_and_what_nobody_reads_is_not():
    def run(a, b):
        return jnp.einsum("bij,bjk->bik", a, b), (a[0] @ b[0]).sum() * jnp.zeros(())

    once = compiled(lambda a, b: run(a, b)[0], (3, 4, 5), (3, 5, 7))
    assert flops(once) == 2 * 3 * 4 * 5 * 7
    assert flops(compiled(lambda a, b: run(a, b)[1], (3, 4, 5), (3, 5, 7))) > 0


def test_loops_count_by_their_trips():
    def loop(trips):
        return lambda x, w: lax.fori_loop(0, trips, lambda i, x: jnp.tanh(x @ w), x)

    assert flops(compiled(loop(5), (16, 32), (32, 32))) == 5 * 2 * 16 * 32 * 32

    def until(x, w):
        return lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: jnp.tanh(x @ w), x)

    with pytest.raises(ValueError, match="loop of unknown length"):
        flops(compiled(until, (16, 32), (32, 32)))


def test_library_calls_and_other_texts_are_refused():
    hidden = """HloModule m
ENTRY %main (a: f32[2,2]) -> f32[2,2] {
  %a = f32[2,2]{1,0} parameter(0)
  ROOT %c = f32[2,2]{1,0} custom-call(%a, %a), custom_call_target="__cublas$gemm"
}
"""
    with pytest.raises(ValueError, match="may hide products"):
        flops(hidden)
    with pytest.raises(ValueError, match="no ENTRY"):
        flops("HloModule m\n")


CUDNN = """HloModule m
ENTRY %main {
  %x = f32[4,6,8,8]{3,2,1,0} parameter(0)
  %w = f32[10,6,3,3]{3,2,1,0} parameter(1)
  %dy = f32[4,10,4,4]{3,2,1,0} parameter(2)
  %call = CALL, custom_call_target="__cudnn$conv@"
}
"""


def cudnn(kind, call):
    window = "window={size=3x3 pad=1_1x1_1 stride=2x2}, dim_labels=bf01_oi01->bf01"
    return CUDNN.replace("CALL", f"{call}, {window}").replace("@", kind)


def test_library_calls_of_gpus_are_counted_like_the_convolutions_they_are():
    once = products((4, 8, 8, 6), (3, 3, 6, 10), 2, 1)
    out = "(f32[4,10,4,4]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w)"
    back = "(f32[4,6,8,8]{3,2,1,0}, u8[0]{0}) custom-call(%dy, %w)"
    weights = "(f32[10,6,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%x, %dy)"
    assert flops(cudnn("Forward", out)) == once
    assert flops(cudnn("BackwardInput", back)) == once
    assert flops(cudnn("BackwardFilter", weights)) == once


def test_arrays_of_a_type():
    text = "(f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/pred[], bf16[4]{0}, s4[3])"
    found = arrays(text)
    assert found == (
        Array("f32", (2, 3), 1),
        Array("pred", ()),
        Array("bf16", (4,)),
        Array("s4", (3,)),
    )
    assert [array.bytes for array in found] == [24, 1, 8, 2]


LOOPS = """HloModule m
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
%inner (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %r = f32[4]{0} all-reduce(%p), replica_groups=GROUPS, to_apply=%add
}
%outer (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %w = f32[4]{0} while(%p), body=%inner, backend_config=TRIPS
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %w = f32[4]{0} while(%p), body=%outer
}
""".replace("TRIPS", '{"known_trip_count":{"n":"3"}}')


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("{}", ()),
        ("[2,2]<=[4]", ((0, 1), (2, 3))),
        ("[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("[1,4]<=[4]", ((0, 1, 2, 3),)),
        ("mesh['x'=4,'y'=1] {'x'}", ((0, 1, 2, 3),)),
        ("mesh['x'=2,'y'=2] {'y'}", ((0, 1), (2, 3))),
        ("mesh['x'=2,'y'=2] {'x'}", ((0, 2), (1, 3))),
        ("mesh['x'=2,'y'=2] {'y','x'}", ((0, 2, 1, 3),)),
        ("mesh['x'=4] {'x':(1)2}", ((0, 2), (1, 3))),
        ("mesh['x'=4] {'x':(2)2}", ((0, 1), (2, 3))),
    ],
)
def test_collectives_count_by_loops_and_tell_their_groups(written, groups):
    text = LOOPS.replace("GROUPS", written)
    assert collectives(text) == [Collective("all-reduce", 3, 16, groups)]
    assert collectives(text, unknown=5)[0].times == 15
    assert Module.parse(text).runs(1)["add"] == 3


@pytest.mark.parametrize(
    ("groups", "crosses"),
    [
        (((0, 1), (2, 3)), False),
        (((0, 2), (1, 3)), True),
        ((), True),
        (((2, 3),), False),
    ],
)
def test_collectives_between_groups_of_devices(groups, crosses):
    one = Collective("all-reduce", 1, 4, groups)
    assert one.between([[0, 1], [2, 3]]) is crosses
    assert not one.between([[0, 1, 2, 3]])


def test_collectives_of_a_sharded_program():
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
    x = jax.ShapeDtypeStruct(
        (8, 5), jnp.float32, sharding=NamedSharding(mesh, P("data"))
    )
    sums = jax.jit(lambda x: jnp.sum(x, 0), out_shardings=NamedSharding(mesh, P()))
    (found,) = collectives(sums.lower(x).compile().as_text())
    assert (found.kind, found.times, found.bytes) == ("all-reduce", 1, 20)
    assert found.between([[0, 1], [2, 3]])
    alone = jax.jit(lambda x: 2 * x).lower(x).compile().as_text()
    assert collectives(alone) == []


def test_unknown_ways_of_writing_groups_are_refused():
    with pytest.raises(ValueError, match="unknown groups"):
        collectives(LOOPS.replace("GROUPS", "some['x'=4]"))
    groups = "mesh['x'=8] {'x':(1)2,'x':(4)2}"
    with pytest.raises(ValueError, match="two parts"):
        collectives(LOOPS.replace("GROUPS", groups))


def test_traffic_is_what_kernels_read_and_write():
    def sized(*shape):
        return 4 * int(np.prod(shape))

    # One fusion: two operands and a result.
    found = traffic(compiled(lambda a, b: jnp.tanh(a * b), (64, 64), (64, 64)))
    assert found == 3 * sized(64, 64)
    # A product after it: the result is written once and read once.
    found = traffic(compiled(lambda a, b: jnp.tanh(a) @ b, (64, 64), (64, 32)))
    assert found == 3 * sized(64, 64) + 2 * sized(64, 32)


TURNS = """HloModule m
%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %t = f32[8]{0} tanh(%p)
}
%body (a: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%a), index=0
  %x = f32[8]{0} get-tuple-element(%a), index=1
  %tanh_fusion.3 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
  %tanh_fusion.4.0 = f32[8]{0} fusion(%tanh_fusion.3), kind=kLoop, calls=%fused
  ROOT %r = (s32[], f32[8]{0}) tuple(%i, %tanh_fusion.4.0)
}
%condition (a: (s32[], f32[8])) -> pred[] {
  %a = (s32[], f32[8]{0}) parameter(0)
  ROOT %constant = pred[] constant(true)
}
ENTRY %main (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %copy.1 = (s32[], f32[8]{0}) copy(%p)
  ROOT %w = (s32[], f32[8]{0}) while(%copy.1), condition=%condition, body=%body, COUNT
}
"""


def test_kernels_are_counted_by_name_and_by_turn_of_a_loop():
    known = 'backend_config={"known_trip_count":{"n":"5"}}'
    expected = {"tanh_fusion": 10, "copy": 1}
    assert kernels(TURNS.replace("COUNT", known)) == expected
    assert kernels(TURNS.replace(", COUNT", ""), unknown=5) == expected


def test_a_step_s_kernels_are_told_by_kind_without_what_runs_once():
    text = TURNS.replace("COUNT", 'backend_config={"known_trip_count":{"n":"5"}}')
    text = text.replace("%tanh_fusion.4.0", "%loop_add_fusion")
    text = text.replace("%tanh_fusion.3", "%loop_tanh_fusion.3")
    moved = 2 * 4 * 8  # reads eight numbers and writes eight
    assert step_by_kind(text, 5) == {"elementwise": (2, 2 * moved)}
    scope = 'calls=%fused, metadata={op_name="jit(f)/while/body/update/add"}'
    text = text.replace("calls=%fused", scope, 1)
    assert step_by_kind(text, 5) == {
        "update": (1, moved),
        "elementwise": (1, moved),
    }


def test_the_longest_chain_leaves_out_what_could_run_beside_it():
    text = TURNS.replace("COUNT", 'backend_config={"known_trip_count":{"n":"5"}}')
    assert longest_chain(text, 5) == 2
    # Two kernels that read the same, and one that reads both.
    apart = text.replace("fusion(%tanh_fusion.3)", "fusion(%x)")
    assert longest_chain(apart, 5) == 1
    both = "  %both.1 = f32[8]{0} add(%tanh_fusion.3, %tanh_fusion.4.0)\n  ROOT %r"
    assert longest_chain(apart.replace("  ROOT %r", both, 1), 5) == 2
    # What is inside a fusion is one kernel, also if it runs once in a step.
    second = "fusion(%tanh_fusion.3), kind=kLoop, calls=%fused"
    once = text.replace(second, "copy(%tanh_fusion.3)")
    inside = "  %s = f32[8]{0} tanh(%p)\n  %u = f32[8]{0} tanh(%s)\n  ROOT %t"
    assert longest_chain(once.replace("  ROOT %t", inside, 1), 5) == 2


SLICED = """HloModule m
%fused (p: f32[1000,8], i: s32[]) -> f32[8,8] {
  %p = f32[1000,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %s = f32[8,8]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={8,8}
  ROOT %t = f32[8,8]{1,0} tanh(%s)
}
ENTRY %main (p: f32[1000,8], i: s32[]) -> f32[8,8] {
  %p = f32[1000,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %f = f32[8,8]{1,0} fusion(%p, %i), kind=kLoop, calls=%fused
  %near = f32[8,8]{1,0:S(1)} negate(%f)
  ROOT %u = f32[1000,8]{1,0} dynamic-update-slice(%p, %near, %i, %i)
}
"""


def test_traffic_of_slices_is_that_of_the_slices():
    block = 4 * 8 * 8
    # Read a block and the index, write one; read it; what is written into on-chip
    # memory and read from there is not counted.
    assert traffic(SLICED) == (block + 4 + block) + block + block
    assert (
        traffic(SLICED.replace(":S(1)", "")) == (2 * block + 4) + 2 * block + 2 * block
    )
