"""The agent: what it holds, for how long, and for whom."""

from __future__ import annotations

import os
import socket as sockets
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zkeep.agent import client
from zkeep.agent.memory import KeyMemory
from zkeep.agent.server import Agent
from zkeep.errors import Refused

KEY = bytes(range(32))


@pytest.fixture
def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "own" / "agent"
    monkeypatch.setenv("ZKEEP_AGENT", str(path))
    yield path
    for root in client.roots(1):
        client.unload(1, root)


def gone(path: Path) -> bool:
    end = time.monotonic() + 10
    while path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return not path.exists()


def test_a_key_is_held_until_it_is_unloaded_and_then_the_agent_ends(socket: Path) -> None:
    client.load(1, 7, KEY)
    assert client.roots(1) == {7}
    assert client.roots(2) == set()
    assert list(client.keys()) == [KEY]
    assert client.unload(1, 7)
    assert gone(socket)
    assert not client.unload(1, 7)
    assert list(client.keys()) == []


def test_a_key_becomes_another_roots(socket: Path) -> None:
    other = bytes(reversed(KEY))
    client.load(1, 7, KEY)
    client.load(1, 8, other)
    assert client.hand_over(1, 7, 8)
    assert client.roots(1) == {8}
    assert list(client.keys()) == [KEY]
    assert not client.hand_over(1, 7, 8)
    assert client.unload(1, 8)


def test_only_its_user_can_reach_the_socket(socket: Path) -> None:
    client.load(1, 7, KEY)
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700


def test_a_folder_that_is_open_to_others_is_not_trusted(socket: Path) -> None:
    client.load(1, 7, KEY)
    socket.parent.chmod(0o777)
    assert client.roots(1) == set()
    socket.parent.chmod(0o700)
    assert client.roots(1) == {7}


def test_a_lifetime_ends(socket: Path) -> None:
    client.load(1, 7, KEY, seconds=0.3)
    assert gone(socket)
    assert client.roots(1) == set()


def test_the_key_is_in_no_process_list(socket: Path) -> None:
    client.load(1, 7, KEY)
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert any(str(socket).encode() in line for line in lines) or not lines
    assert not any(KEY.hex().encode() in line or KEY in line for line in lines)


@pytest.mark.parametrize("request_", [{}, {"do": "load"}, {"do": "load", "pool": "x", "root": 1, "key": ""}, {"do": 3}])
def test_nonsense_is_answered_with_an_error(request_: dict[str, object]) -> None:
    agent = Agent()
    assert "error" in agent.answer(request_)
    assert agent.entries == []


def test_loading_anew_replaces() -> None:
    agent = Agent()
    for key in (KEY, KEY[::-1]):
        agent.answer({"do": "load", "pool": 1, "root": 2}, memoryview(key))
    assert agent.answer({"do": "keys"}) == {"keys": 1}
    assert agent.keys() == [KEY[::-1]]


# Where keys are in memory

SERVE = "import sys; from zkeep.agent import server; server.keep_secret = lambda: None; server.run(sys.argv[1])"
"An agent whose memory its own user may look into, as root may into any."


@pytest.fixture
def open_agent(socket: Path) -> Iterator[int]:
    """The process of an agent that we can look into, and that holds a key throughout."""
    socket.parent.mkdir(mode=0o700)
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(socket)])
    while not socket.exists():
        time.sleep(0.01)
    client.load(1, 99, os.urandom(32))
    yield process.pid
    for root in client.roots(1):
        client.unload(1, root)
    assert process.wait(10) == 0


def copies(process: int, key: bytes) -> int:
    """How often a key is in a process's memory, as it is or in hexadecimal digits."""
    found = 0
    with open(f"/proc/{process}/maps") as maps, open(f"/proc/{process}/mem", "rb", 0) as memory:
        for line in maps:
            start, end = (int(text, 16) for text in line.split()[0].split("-"))
            if line.split()[1][0] == "r" and "[v" not in line:
                memory.seek(start)
                content = memory.read(end - start)
                found += content.count(key) + content.lower().count(key.hex().encode())
    return found


def unloaded(key: bytes) -> None:
    client.load(1, 7, key)
    client.unload(1, 7)


def replaced(key: bytes) -> None:
    client.load(1, 7, key)
    client.load(1, 7, os.urandom(32))


def run_out(key: bytes) -> None:
    client.load(1, 7, key, seconds=0)
    client.roots(1)


def asked_for(key: bytes) -> None:
    client.load(1, 7, key)
    assert key in list(client.keys())
    client.unload(1, 7)


def refused(key: bytes) -> None:
    with pytest.raises(Refused):
        client.load(1, 7, key, seconds=10**30)


def cut_off(key: bytes) -> None:
    with sockets.socket(sockets.AF_UNIX) as caller:
        caller.connect(str(client.path()))
        caller.sendall(b'{"do":"load","pool":1,"root":7}\n' + key[:31])
    client.roots(1)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="this system has no /proc/PID/mem")
@pytest.mark.parametrize("way", [unloaded, replaced, run_out, asked_for, refused, cut_off])
def test_p1_a_key_that_went_is_nowhere_in_memory(open_agent: int, way: Callable[[bytes], None]) -> None:
    key = os.urandom(32)
    way(key)
    client.roots(1)
    assert copies(open_agent, key[:31]) == 0


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="this system has no /proc/PID/mem")
def test_a_key_that_is_held_is_there_once(open_agent: int) -> None:
    key = os.urandom(32)
    client.load(1, 7, key)
    assert key in list(client.keys())
    assert copies(open_agent, key) == 1


def test_an_agent_holds_so_many_keys_and_no_more() -> None:
    memory = KeyMemory(2)
    slots = [memory.put(memoryview(KEY)), memory.put(memoryview(KEY))]
    assert memory.put(memoryview(KEY)) is None
    memory.drop(slots[0] or 0)
    assert memory[slots[0] or 0] == bytes(32)
    assert memory.put(memoryview(KEY)) == slots[0]
