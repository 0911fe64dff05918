"""Portions of work are done in other processes, and what goes wrong there is raised here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zkeep.errors import TryAgain
from zkeep.restore.workers import WorkerPool
from zkeep.snapshot.errors import Forgery

Tell = Callable[[Any], object]


def squares(portion: list[int], tell: Tell) -> None:
    for number in portion:
        tell((os.getpid(), number * number))


def test_all_portions_are_done_by_several_processes() -> None:
    results: list[tuple[int, int]] = []
    with WorkerPool(squares, results.append) as workers:
        for first in range(0, 1000, 10):
            workers.submit(list(range(first, first + 10)))
        workers.finish()
    assert sorted(square for _, square in results) == [number * number for number in range(1000)]
    processes = {process for process, _ in results}
    assert os.getpid() not in processes
    assert len(processes) == (os.cpu_count() or 1)
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def echo(portion: bytes, tell: Tell) -> None:
    for _ in range(4):
        tell(portion)


def test_nobody_waits_for_somebody_who_waits_for_him() -> None:
    """However much is given and told at the same time: more than any pipe holds."""
    results: list[bytes] = []
    with WorkerPool(echo, results.append) as workers:
        for number in range(12):
            workers.submit(bytes([number]) * (4 << 20))
        workers.finish()
    assert sorted(echoed[0] for echoed in results) == sorted(4 * list(range(12)))


def test_nothing_is_forked_for_nothing() -> None:
    with WorkerPool(squares, print) as workers:
        workers.finish()
        assert not workers._workers


def forge(portion: int, tell: Tell) -> None:
    if portion == 3:
        raise Forgery("pool/fs@a", "the MAC of the block does not verify", 7, 4096)


def do(work: Callable[[int, Tell], None]) -> None:
    with WorkerPool(work, print) as workers:
        for portion in range(100):
            workers.submit(portion)
        workers.finish()


def test_an_error_comes_over_as_it_was_raised() -> None:
    with pytest.raises(Forgery, match="object 7, offset 4096") as caught:
        do(forge)
    assert (caught.value.status, caught.value.object, caught.value.offset) == (4, 7, 4096)


def die(portion: int, tell: Tell) -> None:
    if portion == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_was_killed_is_missed() -> None:
    with pytest.raises(TryAgain, match="has ended before it was done"):
        do(die)


def linger(portion: Path, tell: Tell) -> None:
    portion.with_suffix(f".{os.getpid()}").touch()
    time.sleep(1)


def test_they_end_when_who_gave_the_work_was_killed(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        with WorkerPool(linger, print) as workers:
            for _ in range(4):
                workers.submit(tmp_path / "worker")
            workers.finish()
        os._exit(0)
    deadline = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < (os.cpu_count() or 1) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    hands = [int(path.suffix[1:]) for path in tmp_path.iterdir()]
    assert hands
    while any(Path(f"/proc/{worker}").exists() for worker in hands) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() for worker in hands)


BUSY = """
import signal, time
from zkeep.restore.workers import WorkerPool

def interrupted(number, frame):
    raise KeyboardInterrupt

def work(portion, tell):
    until = time.monotonic() + 0.0005
    while time.monotonic() < until:
        tell(portion)

signal.signal(signal.SIGTERM, interrupted)
signal.signal(signal.SIGINT, interrupted)  # a shell that runs this in the background ignores it
try:
    with WorkerPool(work, lambda told: None) as workers:
        print("begun", flush=True)
        while True:
            workers.submit(1)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("turn", range(12))
def test_an_interrupt_is_one_persons_to_tell(turn: int) -> None:
    """A terminal interrupts all processes, and the one that gave the work ends the others besides."""
    command = [sys.executable, "-c", BUSY]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as busy:
        assert busy.stdout is not None
        assert busy.stdout.readline() == "begun\n"
        time.sleep(0.02 * turn)
        os.killpg(busy.pid, signal.SIGINT)
        try:
            out, err = busy.communicate(timeout=30)
        finally:
            busy.kill()
    assert (out, err, busy.returncode) == ("interrupted\n", "", 0)
