"""Processes find each other, and a dead one ends the others with one clear line."""

import socket
import time

import jax
import pytest

from kdjax import main as command
from kdjax.runtime import distributed
from kdjax.runtime.errors import UserError
from tests import processes


def pair(task: str) -> tuple[list[int], list[str], list[str], float]:
    """Runs two processes; returns codes, outputs, errors, and the seconds."""
    port = processes.free_port()
    begin = time.monotonic()
    both = [
        processes.start(*processes.together(port, process), TASK=task)
        for process in range(2)
    ]
    said = [process.communicate(timeout=100) for process in both]
    seconds = time.monotonic() - begin
    out, err = zip(*said, strict=True)
    return [process.returncode for process in both], list(out), list(err), seconds


def last_line(err: str) -> str:
    return err.strip().splitlines()[-1]


@pytest.mark.parametrize("dead", [0, 1])
def test_a_survivor_says_what_happened(dead):
    """The coordinator's death aborts the other; another's is an error in a sum."""
    codes, out, err, seconds = pair(f"die {dead}")
    for process in range(2):
        assert f"sum 3.0 {process == 0} 2" in out[process]
    assert codes[dead] == -9
    assert codes[1 - dead] == 1
    lines = err[1 - dead].splitlines()
    assert lines.count(f"kdjax: {distributed.LOST}") == 1
    assert lines[-1] == f"kdjax: {distributed.LOST}"
    assert seconds < 60


def test_an_error_of_one_process_ends_all():
    codes, _, err, seconds = pair("fail")
    assert codes[1] == 2
    assert "kdjax: only here" in err[1].splitlines()
    assert codes[0] == 1
    assert last_line(err[0]) == f"kdjax: {distributed.LOST}"
    assert seconds < 60


def test_others_that_do_not_come():
    port = processes.free_port()
    flags = [*processes.together(port, 0)[:-1], "--wait=2"]
    alone = processes.start(*flags)
    _, err = alone.communicate(timeout=60)
    assert alone.returncode == 1
    assert last_line(err).startswith("kdjax: the processes did not come together at")
    assert f"127.0.0.1:{port} within 2 s" in last_line(err)


def test_the_coordinator_is_not_there():
    address = f"127.0.0.1:{processes.free_port()}"
    with pytest.raises(UserError, match=f"{address} is not reached within 1 s: .*re"):
        distributed.start(address, 2, 1, wait=1)
    with pytest.raises(UserError, match=r"no\.where\.invalid:80 is not reached"):
        distributed.start("no.where.invalid:80", 2, 1, wait=1)


def test_the_coordinators_port_is_taken():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f":{port}: cannot listen there: Address"):
            distributed.start(f"127.0.0.1:{port}", 2, 0, wait=1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--processes=2"], "--coordinator, --processes and --process go together"),
        (["--coordinator=a:1", "--process=0"], "go together"),
        (["--coordinator=a:1", "--processes=2", "--process=2"], "0 to 1"),
        (["--coordinator=a:1", "--processes=2", "--process=-1"], "process=-1"),
        (["--coordinator=a:1", "--processes=0", "--process=0"], "processes=0"),
        (["--coordinator=a", "--processes=2", "--process=0"], "'a' is not HOST:PORT"),
        (["--coordinator=:1", "--processes=2", "--process=0"], "':1' is not HOST"),
        (["--coordinator=a:0", "--processes=2", "--process=0"], "'a:0' is not"),
        (["--coordinator=a:b", "--processes=2", "--process=0"], "'a:b' is not"),
        (["--coordinator=a:65536", "--processes=2", "--process=0"], "65536"),
        (["--coordinator=a:1", "--processes=x", "--process=0"], "x"),
        (["--wait=0"], "wait"),
    ],
)
def test_wrong_flags(capsys, monkeypatch, request, flags, words):
    monkeypatch.chdir(request.config.rootpath)
    assert command.main(["kdjax", *processes.FLAGS, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kdjax: ")
    assert err.count("\n") == 1
    assert words in err


def test_one_process_joins_nobody():
    distributed.start("127.0.0.1:1", 1, 0)
    assert not distributed.several()
    assert distributed.leave(2) == 2


def test_an_error_alone_is_no_lost_peer():
    assert not distributed.lost_peer(ValueError("Gloo: Connection closed by peer"))


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), True),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: coordination service"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: Task 1 heartbeat timeout"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), False),
        (ValueError("shapes differ"), False),
        (UserError("gloo"), False),
        (OSError("Connection reset by peer"), False),
    ],
)
def test_which_errors_are_a_lost_peers(monkeypatch, error, lost):
    monkeypatch.setattr(distributed, "several", lambda: True)
    assert distributed.lost_peer(error) is lost
