"""zkeep encrypt into a dataset with contents=metadata: the stream leaves in steps, and only metadata stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zkeep.cli.demo.shell import Outcome, call
from zkeep.cli.main import run
from zkeep.format.records import RecordType

sys.path.append(str(Path(__file__).parents[1] / "badinput"))
from badkit import stamped, taken_apart

STORY = Path(__file__).parent.parent / "data" / "opened" / "story"
YEARS = ("2018", "2019", "2020", "migration")
STEP = "8192"


class Box:
    """A pool `v` with an encrypted dataset v/enc, and a blind one, `far`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "key"
        self.key.touch(0o600)
        self.key.write_bytes(bytes(range(32)))

    def run(self, line: str, given: bytes = b"", step: str = STEP) -> Outcome:
        os.environ["ZKEEP_STEP"] = step
        return call(line, given)

    def __call__(self, line: str, given: bytes = b"", step: str = STEP) -> bytes:
        done = self.run(line, given, step)
        assert (done.status, done.err) == (0, "")
        return done.out

    def names(self, dataset: str) -> list[str]:
        return self(f"list -H -o name -t snapshot -r {dataset}").decode().split()

    def stored(self, pool: str) -> int:
        """Bytes of segments."""
        return sum(path.stat().st_size for path in (self.folder / pool / "segments").rglob("*.seg"))


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_STEP", STEP)
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "run" / "agent"))
    made = Box(tmp_path)
    for name in ("v", "far"):
        assert run(["pool", "create", name, str(tmp_path / name)]) == 0
    options = ("encryption=on", "keyformat=raw", f"keylocation=file://{made.key}")
    assert run(["create", *(word for option in options for word in ("-o", option)), "v/enc"]) == 0
    yield made
    assert run(["unload-key", "-a"]) == 0


def plain(year: str) -> bytes:
    """A stream of one snapshot; the first one lies in a package."""
    records = taken_apart((STORY / f"plain-blanc-{year}.zfs").read_bytes())
    return stamped(records[2:-1] if records[1].rtype == RecordType.END else records)


def test_a_stream_leaves_in_steps_that_are_gone_in_the_end(box: Box) -> None:
    for at, year in enumerate(YEARS[:3]):
        option = "-o contents=metadata " if not at else ""
        made = box(f"encrypt {option}v/enc/ds", plain(year))
        assert b"ledger.csv" not in made
        assert made.count(b"@step-") > 2
        box("receive far/ds", made)
        wanted = list(YEARS[: at + 1])
        assert box.names("far/ds") == [f"far/ds@{name}" for name in wanted]
        assert box.names("v/enc/ds") == [f"v/enc/ds@{name}" for name in wanted]
        box(f"verify -L file://{box.key} far/ds@{year}")
    # The contents are there, and not here.
    assert box.stored("v") * 2 < box.stored("far")
    gone = box.run("cat v/enc/ds@2018 jambons/2018/scan.raw")
    assert (gone.status, "contents=metadata" in gone.err) == (1, True)
    assert box("pool scrub far") is not None
    there = box.run(f"cat -L file://{box.key} far/ds@2018 jambons/2018/scan.raw")
    assert len(there.out) > 10_000


def test_it_is_a_stream_of_one_snapshot_where_a_step_is_enough(box: Box) -> None:
    made = box("encrypt -o contents=metadata v/enc/ds", plain("2018"), step=str(1 << 30))
    assert b"@step-" not in made
    box("receive far/ds", made)
    again = box.run("encrypt v/enc/ds", plain("2018"))
    assert (again.status, again.out) == (1, b"")
    assert again.err.count("\n") == 1
    assert "zkeep destroy -r v/enc/ds" in again.err
    # The other end lost it.
    box("destroy -r far/ds")
    box("destroy -r v/enc/ds")
    box("receive far/ds", box("encrypt -o contents=metadata v/enc/ds", plain("2018")))
    box("encrypt v/enc/ds", plain("2019"))
    again = box.run("encrypt v/enc/ds", plain("2019"))
    assert "zkeep rollback -r v/enc/ds@2018" in again.err
    box("rollback -r v/enc/ds@2018")
    made = box("encrypt v/enc/ds", plain("2019"))
    box("receive far/ds", made)
    box(f"verify -L file://{box.key} far/ds@2019")


@pytest.mark.parametrize("first", [True, False], ids=["full", "increment"])
def test_what_breaks_off_is_run_again(box: Box, first: bool) -> None:
    """Cut on the way in, or on the way out: nothing stays here, and the other end gives up the steps that it has."""
    names: list[str] = []
    year = "2018"
    if not first:
        box("receive far/ds", box("encrypt -o contents=metadata v/enc/ds", plain(year)))
        names, year = ["2018"], "2019"
    else:
        box("create -o contents=metadata v/enc/ds")
    cut = box.run("encrypt v/enc/ds", plain(year)[:40000])
    assert cut.status == 1
    assert cut.out
    assert box.names("v/enc/ds") == [f"v/enc/ds@{name}" for name in names]
    broken = box.run("receive far/ds", cut.out)
    assert broken.status == 1
    assert len(box.names("far/ds")) == len(names) + 1
    whole = box("encrypt v/enc/ds", plain(year))
    box("receive far/ds", whole)
    assert box.names("far/ds") == [f"far/ds@{name}" for name in [*names, year]]
    box(f"verify -L file://{box.key} far/ds@{year}")


def test_nobody_reads_it(box: Box) -> None:
    """The reader goes when the first step was there; the rest of the stream comes in after that."""
    box("create -o contents=metadata v/enc/ds")
    stream, streams = plain("2018"), {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-m", "zkeep", "encrypt", "v/enc/ds"], **streams) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdin.write(stream[: len(stream) // 2])
        running.stdin.flush()
        assert running.stdout.read(1)
        running.stdout.close()
        running.stdin.write(stream[len(stream) // 2 :])
        running.stdin.close()
        said = running.stderr.read()
        assert (running.wait(), said.count(b"\n")) == (5, 1)
    assert b"nothing is kept: run it again" in said
    assert box.names("v/enc/ds") == []
    box("receive far/ds", box("encrypt v/enc/ds", plain("2018")))


@pytest.mark.parametrize("step", [STEP, str(1 << 30)], ids=["steps", "one"])
@pytest.mark.parametrize("first", [True, False], ids=["full", "increment"])
def test_it_cannot_be_written(box: Box, first: bool, step: str) -> None:
    """Nothing stays, nor does the dataset that was made for what came, however many steps that had."""
    year = "2018"
    if not first:
        box("encrypt -o contents=metadata v/enc/ds", plain(year))
        year = "2019"
    before = box("list -H -o name -t all -r v")
    words = [sys.executable, "-m", "zkeep", "encrypt", "-o", "contents=metadata", "v/enc/ds"]
    with Path("/dev/full").open("wb") as full:
        env = {**os.environ, "ZKEEP_STEP": step}
        done = subprocess.run(words, input=plain(year), stdout=full, stderr=subprocess.PIPE, env=env, check=False)
    assert b"nothing is kept: run it again" in done.stderr
    assert done.returncode == 1
    assert box("list -H -o name -t all -r v") == before
    box("receive far/ds", box("encrypt -o contents=metadata v/enc/new", plain("2018"), step))


def test_it_is_killed(box: Box) -> None:
    """Between the first step that left and the end of what came; then it is run again."""
    box("create -o contents=metadata v/enc/ds")
    stream, env = plain("2018"), {**os.environ, "ZKEEP_STEP": STEP}
    command = [sys.executable, "-m", "zkeep", "encrypt", "v/enc/ds"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(stream[: len(stream) // 2])
        running.stdin.flush()
        assert running.stdout.read(1)
        running.kill()
    assert not [path for path in (box.folder / "v").rglob("*") if path.is_file() and b"ledger.csv" in path.read_bytes()]
    box("receive far/ds", box("encrypt v/enc/ds", stream))
    assert box.names("v/enc/ds") == ["v/enc/ds@2018"]
    box(f"verify -L file://{box.key} far/ds@2018")
