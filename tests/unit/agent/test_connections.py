"""Many connections, agents that say nothing, agents that start and end: no key is lost, and none waits for another."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from zkeep.agent import client, connections, server
from zkeep.agent.listener import Listener, accepts
from zkeep.errors import Refused, TryAgain

KEY = bytes(range(32))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "own" / "agent"
    path.parent.mkdir(mode=0o700)
    monkeypatch.setenv("ZKEEP_AGENT", str(path))
    yield path
    monkeypatch.undo()
    monkeypatch.setenv("ZKEEP_AGENT", str(path))
    for root in client.roots(1):
        client.unload(1, root)


@contextmanager
def silent(path: Path) -> Iterator[socket.socket]:
    """Somebody who accepts connections, and does no more."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        yield listener
    path.unlink(missing_ok=True)


def idle(path: Path, stack: ExitStack, count: int) -> None:
    for _ in range(count):
        caller = stack.enter_context(socket.socket(socket.AF_UNIX))
        caller.connect(str(path))


def serving(path: Path) -> list[int]:
    """The processes that serve a path, or are about to."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(path) in words and b"zkeep.agent.server" in words:
            found.append(int(line.parent.name))
    return found


def test_who_does_not_answer_is_not_nobody(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWERING", 0.2)
    with silent(place):
        before = place.lstat().st_ino
        for ask in (
            lambda: client.load(1, 7, KEY),
            lambda: client.unload(1, 7),
            lambda: client.roots(1),
            lambda: list(client.keys()),
        ):
            with pytest.raises(TryAgain, match="does not answer"):
                ask()
        assert place.lstat().st_ino == before


def test_a_full_queue_is_not_nobody(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWERING", 0.2)
    with silent(place), ExitStack() as stack:
        idle(place, stack, 2)
        assert accepts(str(place))
        with pytest.raises(TryAgain):
            client.roots(1)


def test_who_refuses_is_nobody(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
    assert client.roots(1) == set()
    assert not client.unload(1, 7)
    client.load(1, 7, KEY)
    assert client.roots(1) == {7}


def test_who_hangs_up_is_asked_again(place: Path) -> None:
    """An agent that ends hangs up; another one takes its place."""

    def hang_up(listener: socket.socket) -> None:
        listener.accept()[0].close()
        listener.close()

    with silent(place) as listener:
        thread = threading.Thread(target=hang_up, args=(listener,))
        thread.start()
        client.load(1, 7, KEY)
        thread.join()
        assert client.roots(1) == {7}
        assert client.unload(1, 7)


def test_a_stopped_agent_keeps_its_socket_and_its_keys(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client.load(1, 7, KEY)
    (process,) = serving(place)
    os.kill(process, signal.SIGSTOP)
    try:
        monkeypatch.setattr(client, "ANSWERING", 0.2)
        with pytest.raises(TryAgain):
            client.load(1, 8, KEY)
        with pytest.raises(TryAgain):
            client.unload(1, 9)
    finally:
        os.kill(process, signal.SIGCONT)
    monkeypatch.setattr(client, "ANSWERING", 10.0)
    assert 7 in client.roots(1)
    assert serving(place) == [process]


def test_a_second_agent_leaves_the_first_one_its_place(place: Path) -> None:
    client.load(1, 7, KEY)
    before = place.lstat().st_ino
    command = [sys.executable, "-m", "zkeep.agent.server", str(place)]
    assert subprocess.run(command, timeout=20, check=False).returncode == 0
    assert place.lstat().st_ino == before
    assert client.roots(1) == {7}


def test_keys_that_are_loaded_at_once_are_all_held(place: Path) -> None:
    with ThreadPoolExecutor(8) as crew:
        list(crew.map(lambda root: client.load(1, root, KEY), range(8)))
    assert client.roots(1) == set(range(8))


def test_what_is_no_socket_is_not_replaced(place: Path) -> None:
    place.write_text("mine")
    with pytest.raises(Refused, match="no socket"):
        client.load(1, 7, KEY)
    assert place.read_text() == "mine"
    place.unlink()


def test_an_agent_that_ends_takes_only_its_own_socket_away(tmp_path: Path) -> None:
    path = tmp_path / "agent"
    listener = Listener.at(str(path))
    assert listener
    with listener:
        path.unlink()
        other = Listener.at(str(path))
        assert other
    assert accepts(str(path))
    with other:
        pass
    assert not path.exists()


def test_where_somebody_accepts_no_other_door_is_made(tmp_path: Path) -> None:
    path = str(tmp_path / "agent")
    with Listener.at(path) or pytest.fail("nobody was there"):
        assert Listener.at(path) is None


def test_nobody_waits_for_those_who_say_nothing(place: Path) -> None:
    client.load(1, 7, KEY)
    with ExitStack() as stack:
        idle(place, stack, 6)
        start = time.monotonic()
        client.load(1, 8, KEY)
        assert client.roots(1) == {7, 8}
        assert time.monotonic() - start < connections.PATIENCE / 2


def test_more_idle_callers_than_there_are_places_keep_nobody_out(place: Path) -> None:
    client.load(1, 7, KEY)
    with ExitStack() as stack:
        idle(place, stack, connections.MOST + 10)
        start = time.monotonic()
        assert client.roots(1) == {7}
        assert time.monotonic() - start < connections.PATIENCE / 2


def pieces(answer: Callable[[bytes], bytes | None], received: memoryview) -> connections.Answer | None:
    found = answer(bytes(received))
    return None if found is None else [memoryview(found)]


@contextmanager
def served(
    path: Path, answer: Callable[[bytes], bytes | None]
) -> Iterator[tuple[connections.Connections, socket.socket]]:
    """Connections, and one of them."""
    with ExitStack() as stack:
        listener = stack.enter_context(Listener.at(str(path)) or pytest.fail("nobody was there"))
        all_ = stack.enter_context(connections.Connections(listener.socket, partial(pieces, answer)))
        caller = stack.enter_context(socket.socket(socket.AF_UNIX))
        caller.connect(str(path))
        all_.serve(1)
        assert len(all_) == 1
        yield all_, caller


def test_a_line_may_come_in_pieces_and_long_answers_go_out(tmp_path: Path) -> None:
    long = b"x" * 5_000_000 + b"\n"
    with served(tmp_path / "agent", lambda line: long if line == b"ask\n" else None) as (all_, caller):
        for piece in (b"a", b"sk", b"\n"):
            caller.sendall(piece)
            all_.serve(1)
        answer = b""
        while len(answer) < len(long):
            all_.serve(0.1)
            answer += caller.recv(1 << 20)
        assert answer == long
        assert not all_


def test_who_takes_too_long_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.1)
    with served(tmp_path / "agent", lambda line: None) as (all_, caller):
        all_.serve(1)
        assert not all_
        assert caller.recv(1) == b""


def test_an_agent_without_keys_does_not_spin_while_somebody_is_idle() -> None:
    agent = server.Agent()
    assert 0 < agent.next_end() <= server.EMPTY_FOR
    agent.answer({"do": "load", "pool": 1, "root": 2}, memoryview(KEY))
    agent.answer({"do": "unload", "pool": 1, "root": 2})
    assert agent.is_done()
    assert agent.next_end() > server.EMPTY_FOR


LOAD = b'{"do":"load","pool":1,"root":2,"seconds":%s}\n'


@pytest.mark.parametrize("line", [b"\n", b"[]\n", b"[" * 4000 + b"\n", b"\xff\n", b"1" * 4000 + b"\n"])
def test_nonsense_is_told_to_be_nonsense(line: bytes) -> None:
    answer = server.answered(server.Agent(), memoryview(line))
    assert answer
    assert b"error" in bytes(answer[0])


@pytest.mark.parametrize("seconds", [b"9" * 400, b"1e400", b"NaN", b"-1", b"true", b'"8h"', b"[]", b"Infinity"])
def test_a_lifetime_that_is_none_costs_nobody_a_key(seconds: bytes) -> None:
    agent = server.Agent()
    agent.answer({"do": "load", "pool": 1, "root": 1}, memoryview(KEY))
    answer = server.answered(agent, memoryview(LOAD % seconds + KEY))
    assert answer
    assert b"error" in bytes(answer[0])
    assert agent.next_end() > 0
    assert agent.keys() == [KEY]


@pytest.mark.parametrize("field", ["pool", "root"])
def test_numbers_of_any_size_are_numbers(field: str) -> None:
    agent = server.Agent()
    agent.answer({"do": "load", "pool": 1, "root": 1, field: 10**400}, memoryview(KEY))
    assert agent.answer({"do": "roots", "pool": 1})["roots"] in ([], [10**400])


def test_a_request_is_complete_with_the_last_byte_of_its_key() -> None:
    agent = server.Agent()
    request = LOAD % b"1" + KEY
    for size in (0, 5, len(request) - 32, len(request) - 1):
        assert server.answered(agent, memoryview(request[:size])) is None
    assert server.answered(agent, memoryview(request)) is not None
    assert len(agent.entries) == 1
