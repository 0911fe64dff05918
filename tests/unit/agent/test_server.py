"""The agent: what it holds, for how long, and for whom."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zkeep.agent import client
from zkeep.agent.server import Agent

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
        agent.answer({"do": "load", "pool": 1, "root": 2, "key": key.hex()})
    assert agent.answer({"do": "keys"}) == {"keys": [KEY[::-1].hex()]}
