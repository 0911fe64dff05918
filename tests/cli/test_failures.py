"""Whatever goes wrong is one line on standard error and the right exit status, never a traceback."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zkeep.cli.main import run
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.registry import Registry
from zkeep.pool.store.catalog import INDEX
from zkeep.pool.store.files import LocalStore


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_WAIT", "0.1")
    monkeypatch.delenv("ZKEEP_DEBUG", raising=False)
    Pool.create(tmp_path / "vault", "vault").close()
    Registry(tmp_path / "home").add("vault", tmp_path / "vault")
    return tmp_path


def zkeep(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zkeep", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False, **options
    )  # type: ignore[call-overload, no-any-return]


def refused(status: int, why: str, *arguments: str) -> None:
    answer = zkeep(*arguments)
    assert answer.returncode == status, answer
    check_line(answer.stderr, why)


def check_line(err: str, why: str) -> None:
    assert err.startswith("zkeep: ")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert why in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["list", "--nonsense"],
        ["list", "-d", "x"],
        ["list", "-d", "-1"],
        ["list", "-o", "nonsense"],
        ["list", "-s", "nonsense"],
        ["list", "-t", "nonsense"],
        ["get", "-o", "nonsense", "all"],
        ["get", "-s", "nonsense", "all"],
        ["get", "nonsense", "vault"],
        ["set", "vault"],
        ["set", "a=b"],
        ["create"],
        ["create", "-o", "quota", "vault/a"],
        ["create", "-o", "quota=1", "-o", "quota=2", "vault/a"],
        ["rename", "vault/a"],
        ["rename", "-r", "vault/a", "vault/b"],
        ["destroy"],
        ["destroy", "-d", "vault"],
        ["hold", "tag"],
        ["pool", "nonsense"],
        ["pool", "create", "a"],
        ["send"],
        ["send", "-i", "@a", "-I", "@b", "vault@c"],
        ["receive", "-d", "-e", "vault"],
    ],
)
def test_wrong_usage_is_2(home: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    check_line(capsys.readouterr().err, "")


@pytest.mark.parametrize(
    "name", ["vault/..", "vault//a", "/vault", "vault/a%b", "vault/\x1b[2J", "vault/" + "x" * 5000]
)
@pytest.mark.parametrize("verb", [["list"], ["create"], ["get", "all"], ["destroy"], ["set", "a:b=c"], ["hold", "t"]])
def test_hostile_names_are_refused(home: Path, verb: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*verb, name]) == 1
    check_line(capsys.readouterr().err, "bad ")


def test_a_busy_catalog_is_5(home: Path) -> None:
    with LocalStore(home / "vault").lock("catalog"):
        refused(5, "busy", "create", "vault/a")
        assert zkeep("list").returncode == 0


def test_a_catalog_that_another_program_holds_is_5(home: Path) -> None:
    db = sqlite3.connect(home / "vault" / INDEX, isolation_level=None)
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    db.execute("BEGIN EXCLUSIVE")
    db.execute("CREATE TABLE foreign_matter (x)")
    refused(5, "busy", "create", "vault/a")
    db.execute("ROLLBACK")
    db.close()


def test_a_damaged_catalog_is_3(home: Path) -> None:
    (home / "vault" / INDEX).write_bytes(b"garbage" * 1000)
    for suffix in ("-wal", "-shm"):
        (home / "vault" / (INDEX + suffix)).unlink(missing_ok=True)
    refused(3, "scrub --rebuild-catalog", "list")


def test_a_damaged_row_is_3(home: Path) -> None:
    db = sqlite3.connect(home / "vault" / INDEX)
    db.execute("UPDATE doc SET sum = sum + 1")
    db.commit()
    db.close()
    refused(3, "not what was stored", "list")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format":1,"guid":1,"name":"../x"}', b"\xff"])
def test_a_damaged_identity_is_3(home: Path, content: bytes) -> None:
    (home / "vault" / "POOL").write_bytes(content)
    refused(3, "POOL is not what was stored", "list")


def test_a_newer_format_is_refused(home: Path) -> None:
    (home / "vault" / "POOL").write_text('{"format":99,"guid":1,"name":"vault"}')
    refused(1, "format 99", "list")


def test_another_pools_catalog_is_3(home: Path) -> None:
    (home / "vault" / "POOL").write_text('{"format":1,"guid":1,"name":"vault"}')
    refused(3, "not of this pool", "list")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a/b": "x"}', '{"a": 3}'])
def test_a_damaged_registry_is_3(home: Path, content: str) -> None:
    (home / "home" / "pools.json").write_text(content)
    refused(3, "pools.json is not what was stored", "list")


def test_a_reader_that_goes_away_is_no_traceback(home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "zkeep", "get", "all"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    assert process.wait() in (0, 5)
    process.stderr.close()


def test_an_interrupt_is_5(home: Path) -> None:
    script = "import time, zkeep.cli.list as m; "
    script += "m.Selection.items = lambda self: (print(1, flush=True), time.sleep(30)); "
    script += "from zkeep.cli.main import main; main(['list'])"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (5, "zkeep: interrupted\n")


def test_an_unforeseen_error_is_one_line(home: Path) -> None:
    script = "import zkeep.cli.list as m; m.Selection.items = lambda self: {}[1]; "
    script += "from zkeep.cli.main import main; main(['list'])"
    environment = {**os.environ, "ZKEEP_DEBUG": ""}
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert answer.returncode == 1
    assert answer.stderr == "zkeep: unexpected KeyError: 1; ZKEEP_DEBUG=1 shows where\n"
    environment["ZKEEP_DEBUG"] = "1"
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert "Traceback" in answer.stderr


def test_a_read_only_home_still_lists(home: Path) -> None:
    assert zkeep("list", "-H", "-o", "name").stdout == "vault\n"


def test_list_loads_nothing_heavy(home: Path) -> None:
    script = "import sys; from zkeep.cli.main import run; run(['list', '-t', 'all']); "
    script += (
        "print([m for m in ('numpy', 'rich', 'cryptography', 'zkeep.format') if m in sys.modules], file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stderr == "[]\n"


def test_names_are_made_once_by_many_at_a_time(home: Path) -> None:
    """Eight processes want the same ten names: each is made by one of them, the others are told."""
    script = "import sys; from zkeep.cli.main import run; print([run(['create', f'vault/{n}']) for n in range(10)])"
    environment = {**os.environ, "ZKEEP_WAIT": "60"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        for _ in range(8)
    ]
    outcomes = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [sorted(column) for column in zip(*outcomes, strict=True)] == [[0] + [1] * 7] * 10
    with Pool.open(home / "vault") as pool:
        assert pool.catalog.verify() == []
        assert sorted(d.id for d in pool.tree().by_id.values()) == list(range(1, 12))


def test_kill_in_the_middle_of_renames_and_destroys(home: Path) -> None:
    """Whatever moment it is: all of a tree has the old name or the new one, or all of it is gone."""
    script = """
from zkeep.cli.main import run
print(flush=True)
for n in range(1000):
    for name in ("vault/a", "vault/a/b", "vault/a/b/c"):
        run(["create", name])
    run(["rename", "vault/a", "vault/z"])
    run(["destroy", "-r", "vault/z"])
"""
    for seed in range(12):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout
        process.stdout.readline()
        time.sleep(random.Random(seed).uniform(0, 0.25))
        process.kill()
        process.wait()
        process.stdout.close()
        with Pool.open(home / "vault") as pool:
            assert pool.catalog.verify() == []
            names = [n.partition("/")[2] for n in pool.tree().by_name if n != "vault"]
        assert names in ([], ["a"], ["a", "a/b"], ["a", "a/b", "a/b/c"], ["z", "z/b", "z/b/c"])
        if "z" in names:
            assert zkeep("destroy", "-r", "vault/z").returncode == 0
