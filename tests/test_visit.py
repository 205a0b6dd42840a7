"""visit.sh: a run that is stopped on one machine and continues on the next."""

import shutil
import signal
import subprocess

import pytest
from command import Command

from tests import processes

SCRIPT = processes.ROOT / "launch" / "visit.sh"
ARG = "digits,epochs=2,batch_size=32,train_size=200,test_size=64,seeds=1,scratch=replay"
SMALL = tuple(
    f"--config.stages.{part}=resnet-8"
    for part in ("expert.model", "student.model", "student.ctkd.scratch")
)


def visit(*args, **variables) -> subprocess.CompletedProcess:
    return subprocess.run(
        [SCRIPT, *map(str, args)],
        capture_output=True,
        text=True,
        env={"PATH": processes.os.environ["PATH"], **variables},
    )


def fails(*args) -> str:
    """Returns the one line of a call that must end with exit code 2."""
    ended = visit(*args)
    assert ended.returncode == 2, ended
    assert ended.stderr.count("\n") == 1
    return ended.stderr


@pytest.fixture
def workdir(tmp_path):
    """A folder like a run's, with large files and files that stay behind."""
    folder = tmp_path / "run"
    for name, size in (
        ("stages/expert-01/networks/student/3/tree", 70_000),
        ("stages/expert-01/recording/epoch-0000.npz", 90_000),
        ("stages/student-02/checkpoints/6/meta", 100),
        ("stages/student-02/checkpoints/9.orbax-checkpoint-tmp/meta", 100),
        ("stages/student-02/result.json.host.1.tmp", 10),
        ("bank/expert-s-0/epoch-0000.npz", 10_000),
        ("results.json", 10),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(i * i % 251 for i in range(size)))
    return folder


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_parts_are_small_and_hold_all_but_what_is_made_again(workdir, tmp_path):
    packed, there = tmp_path / "packed", tmp_path / "there"
    for _ in range(2):  # a second visit packs over the first
        assert visit("pack", workdir, packed, BYTES="50000").returncode == 0
    sizes = [path.stat().st_size for path in packed.glob("*.part")]
    assert len(sizes) >= 4
    assert max(sizes) <= 50_000
    assert visit("unpack", packed, f"{there}/").returncode == 0
    left_out = ("bank/", ".tmp", "-tmp")
    expected = {
        name: data
        for name, data in content(workdir).items()
        if not any(word in name for word in left_out)
    }
    assert content(there) == expected
    assert len(expected) == 4


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_what_did_not_arrive_whole_is_refused(workdir, tmp_path, damage):
    packed, there = tmp_path / "packed", tmp_path / "there"
    visit("pack", workdir, packed, BYTES="50000")
    part = sorted(packed.glob("*.part"))[1]
    data = bytearray(part.read_bytes())
    if damage == "missing":
        part.unlink()
    else:
        data[7] ^= 1
        part.write_bytes(data if damage == "changed" else data[:-1])
    assert "misses parts or has damaged ones" in fails("unpack", packed, there)
    assert not there.exists()


def test_misuse_ends_with_one_line(workdir, tmp_path):
    assert "holds no stages" in fails("pack", tmp_path, tmp_path / "packed")
    assert "holds no SHA256SUMS" in fails("unpack", tmp_path, tmp_path / "there")
    visit("pack", workdir, tmp_path / "packed")
    assert "is not empty" in fails("unpack", tmp_path / "packed", workdir)
    assert visit("pack", workdir).returncode == 2
    assert "unpack PACKED WORKDIR" in visit("mail", workdir, tmp_path).stderr


@pytest.mark.slow
def test_a_run_goes_on_elsewhere_and_ends_in_the_same_bits(tmp_path):
    """Stopped within the student's second epoch, after the expert's recording."""
    cache = tmp_path / "cache"

    def command(name, *more) -> Command:
        args = (f"--config=configs/ctkd.py:{ARG}", *SMALL, *more)
        return Command(tmp_path / name, args, cache)

    straight = command("straight")
    straight.run()
    here = command("here", "--config.saving.every_s=0")

    def ready():
        return any(step > 7 for step in here.saved_steps("student"))

    here.end_when(ready, signal.SIGTERM, 128 + signal.SIGTERM)
    assert here.saved_steps("student")[-1] < 12
    assert visit("pack", here.workdir, tmp_path / "packed").returncode == 0
    there = command("there")
    assert visit("unpack", tmp_path / "packed", there.workdir).returncode == 0
    shutil.rmtree(here.workdir)  # nothing of the next run reads it
    there.run()
    assert there.digests() == straight.digests()
    expert = there.folder("expert") / "result.json"
    assert expert.stat().st_mtime < (tmp_path / "packed/SHA256SUMS").stat().st_mtime
