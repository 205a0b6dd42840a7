"""The bank: stored targets are the teachers', kept, recomputed, forgotten rightly."""

import dataclasses
import errno
import functools
import types

import jax
import numpy as np
import pytest
import tiny

from kdjax.data.augment import Augment
from kdjax.experiment import bank as bank_module
from kdjax.experiment.bank import Bank
from kdjax.experiment.bank_plan import BankEntry, Plan
from kdjax.experiment.load_targets import TargetLoader
from kdjax.runtime.errors import UserError
from kdjax.runtime.signals import Interrupt, Interrupted
from kdjax.train import rounding

pytestmark = pytest.mark.usefixtures("x64")

TEACHERS = ("large", "middle")
STAGES = ("first", "second")


@functools.cache
def program(banked=TEACHERS, varies=True):
    """A DGKD stage with two guides of the student's architecture."""
    augment = tiny.AUGMENT if varies else Augment()
    return tiny.program("dgkd", teachers=TEACHERS, banked=banked, augment=augment)


class FakeStore:
    """Stages that are finished once they are said to be."""

    def __init__(self):
        self.data = {"content": "0123"}
        self.done = set()

    def fingerprint(self, name, seed):
        return f"{name}{seed}"

    def result(self, name, seed):
        return {} if (name, seed) in self.done else None


def make(folder, store=None, *, varies=True):
    """A bank of two stages, each of one seed, that read both teachers."""
    prog = program(varies=varies)
    entries = {
        (stage, 0, teacher): BankEntry(
            teacher, 0, 0 if varies else None, prog.step.target_id(teacher)
        )
        for stage in STAGES
        for teacher in TEACHERS
    }
    sizes = dict.fromkeys(entries.values(), 2 * tiny.CLASSES * tiny.SIZE)
    plan = Plan(
        banked=dict.fromkeys(STAGES, TEACHERS),
        entries=entries,
        epochs=dict.fromkeys(sizes, 2),
        bytes_per_epoch=sizes,
        too_large=(),
    )
    return Bank(folder, plan, store or FakeStore())


def reader(bank, stage="first", *, varies=True, interrupt=None):
    prog = program(varies=varies)
    replica = types.SimpleNamespace(seed=0, frozen=tiny.frozen(TEACHERS))
    interrupt = interrupt or Interrupt()
    return TargetLoader(bank, None, stage, prog, [replica], interrupt)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("epoch-*"))


def equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("varies", [True, False])
def test_tables_are_what_the_step_would_compute(tmp_path, varies):
    prog = program(varies=varies)
    frozen = tiny.frozen(TEACHERS)
    read = reader(make(tmp_path, varies=varies), varies=varies)
    for number, batch in enumerate(tiny.batches(prog, 5)):
        epoch = number // prog.feed.stream.steps  # of two, with three steps each
        computed = prog.step.targets(frozen, batch.images)
        for teacher, table in read(epoch).targets.items():
            assert table.dtype == np.float64  # float32's are rounded to float16
            stored = np.asarray(table)[0, np.asarray(batch.index)]
            np.testing.assert_allclose(stored, computed[teacher], rtol=1e-9)


def test_three_steps_equal_those_with_teachers_in_the_step(tmp_path):
    read = reader(make(tmp_path))
    frozen = tiny.frozen(TEACHERS)
    _, stored = tiny.many_steps(program(), 3, [0], frozen, read)[0]
    _, computed = tiny.many_steps(program(banked=()), 3, [0], frozen)[0]
    for name in computed["sums"]:
        np.testing.assert_allclose(
            stored["sums"][name], computed["sums"][name], rtol=1e-9, err_msg=name
        )


def test_targets_of_another_dtype_are_computed_again(tmp_path):
    """Earlier versions stored float16 for float64 runs."""
    stored = reader(make(tmp_path))(0)
    file = tmp_path / files(tmp_path)[0]
    with np.load(file) as arrays:
        halves = [arrays["arr_0"].astype(np.float16)]
    np.savez(file, *halves)
    bank = make(tmp_path)
    equal(reader(bank)(0), stored)
    assert bank.passes == 1


def test_every_epoch_is_computed_once_and_gone_after_its_last_reader(tmp_path):
    bank = make(tmp_path)
    read = reader(bank)
    first = [read(0), read(1)]
    assert bank.passes == 4
    assert len(files(tmp_path)) == 4
    bank.finished("first", 0)
    again = reader(bank, "second")
    equal(again(0), first[0])
    equal(again(1), first[1])
    assert bank.passes == 4
    assert {name.split("/")[1] for name in files(tmp_path)} == {"epoch-0001.npz"}
    bank.finished("second", 0)
    assert not list(tmp_path.iterdir())


def test_the_last_reader_writes_nothing(tmp_path):
    store = FakeStore()
    store.done.add(("second", 0))
    reader(make(tmp_path, store))(0)
    assert not files(tmp_path)


def test_without_augmentation_one_table_serves_all_epochs(tmp_path):
    bank = make(tmp_path, varies=False)
    read = reader(bank, varies=False)
    equal(read(0), read(1))
    assert bank.passes == 2
    assert len(files(tmp_path)) == 2


def test_another_run_finds_what_is_whole_and_repeats_what_is_not(tmp_path):
    stored = reader(make(tmp_path))(0)
    for damage in (b"", b"PK", None):
        path = tmp_path / files(tmp_path)[0]
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF  # where damage is None: one byte
        path.write_bytes(bytes(content) if damage is None else damage)
        bank = make(tmp_path)
        equal(reader(bank)(0), stored)
        assert bank.passes == 1
    # Killed while it wrote: the file has another name.
    bank = make(tmp_path)
    (tmp_path / files(tmp_path)[0]).rename(tmp_path / "epoch-0000.npz.1.tmp")
    equal(reader(bank)(0), stored)
    assert bank.passes == 1


@pytest.mark.parametrize("name", ["epoch-0000.npz", "epoch-0001.npz", "bank.json"])
def test_a_folder_in_place_of_a_file_is_computed_again(tmp_path, name):
    read = reader(make(tmp_path))
    stored = [read(0), read(1)]
    place = next(tmp_path.iterdir()) / name
    place.unlink()
    (place / "inside").mkdir(parents=True)
    read = reader(make(tmp_path))
    equal([read(0), read(1)], stored)
    assert place.is_file()
    # The last reader removes what it has read.
    place.unlink()
    place.mkdir()
    bank = make(tmp_path)
    bank.finished("first", 0)
    last = reader(bank, "second")
    equal([last(0), last(1)], stored)


def test_a_bank_of_other_data_is_refused(tmp_path):
    reader(make(tmp_path))(0)
    store = FakeStore()
    store.data = {"content": "4567"}
    with pytest.raises(UserError, match=r"of another data: .*0123.*delete that folder"):
        reader(make(tmp_path, store))(0)
    assert len(files(tmp_path)) == 2


def test_what_another_version_stored_is_replaced(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(rounding, "VERSION", 2)
        reader(make(tmp_path))(0)
    old = files(tmp_path)
    # The first version's name has no number.
    (tmp_path / old[0].replace("-2/", "/")).parent.mkdir()
    (tmp_path / "expert0-0-01234567-2").mkdir()  # of a teacher that nobody asks for
    bank = make(tmp_path)
    assert not files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["expert0-0-01234567-2"]
    reader(bank)(0)
    assert bank.passes == 2
    assert set(files(tmp_path)).isdisjoint(old)
    # Its own stay.
    again = make(tmp_path)
    reader(again)(0)
    assert again.passes == 0


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    bank = make(tmp_path / "bank")
    prog = program()
    whole = tiny.training(prog, tmp_path / "whole", load_targets=reader(bank)).run()

    def full(file, *leaves):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    fresh = make(tmp_path / "other")
    read = reader(fresh)
    with monkeypatch.context() as patch:

        def second_epoch_fails(epoch):
            if epoch == 1:
                patch.setattr(bank_module.np, "savez", full)
            return read(epoch)

        cut = tiny.training(prog, tmp_path / "cut", load_targets=second_epoch_fails)
        with pytest.raises(UserError, match=r"No space left.*bank\.max_gb"):
            cut.run()
    assert {name.split("/")[1] for name in files(tmp_path / "other")} == {
        "epoch-0000.npz"
    }
    # The same command again continues from the end of the first epoch.
    resumed = tiny.training(prog, tmp_path / "cut", load_targets=reader(fresh))
    assert resumed.training._step == prog.feed.stream.steps
    assert resumed.run()["digest"] == whole["digest"]


def test_a_signal_while_the_bank_computes_saves_a_checkpoint(tmp_path):
    prog = program()
    whole = tiny.training(
        prog, tmp_path / "whole", load_targets=reader(make(tmp_path))
    ).run()
    interrupt = tiny.InterruptAfter(15, 0)
    load = reader(make(tmp_path / "bank"), interrupt=interrupt)
    with pytest.raises(Interrupted):
        tiny.training(
            prog, tmp_path / "cut", load_targets=load, interrupt=interrupt
        ).run()
    assert not files(tmp_path / "bank")
    bank = make(tmp_path / "bank")
    resumed = tiny.training(prog, tmp_path / "cut", load_targets=reader(bank)).run()
    assert resumed["digest"] == whole["digest"]


def test_a_replica_reads_its_own_stream(tmp_path):
    bank = make(tmp_path)
    one = reader(bank)(0)
    other = dataclasses.replace(next(iter(bank._plan.entries.values())), stream=1)
    plan = dataclasses.replace(
        bank._plan, entries={("first", 0, "large"): other, **_second(bank)}
    )
    two = Bank(tmp_path, plan, FakeStore())
    large = reader(two)(0).targets["large"]
    assert np.any(np.asarray(large) != np.asarray(one.targets["large"]))


def _second(bank):
    return {k: v for k, v in bank._plan.entries.items() if k[2] == "middle"}
