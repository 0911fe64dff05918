"""A disk that fails at any call of a mounted dataset's commit: what is open goes on, and nothing of it is lost.

A program's fsync fails where the commit did. The next commit has all of it, or says that the mount must end; what is
then stored is as one of the two commits left it. ZKEEP_FAULTS says how many faults are tried (see faultkit).
"""

from __future__ import annotations

import shutil
import stat
import sys
from pathlib import Path

import pytest
from faultkit import STOP, Faults, failing

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "live"))
from livekit import OWNER, ByPath, listing, live

import keykit
from zkeep.cli.main import run
from zkeep.errors import ZkeepError


@pytest.fixture
def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "run" / "agent"))
    monkeypatch.setenv("ZKEEP_WAIT", "0.05")
    place = tmp_path / "template"
    place.mkdir()
    key = keykit.write(place / "key", bytes(range(32)))
    assert run(["pool", "create", "v", str(place / "pool")]) == 0
    options = ("encryption=on", "keyformat=raw", f"keylocation={key}", "recordsize=16k")
    assert run(["create", *(word for option in options for word in ("-o", option)), "v/home"]) == 0
    with live(place) as files:
        change(files, 1)
    return place


def change(files: ByPath, number: int) -> None:
    for name in (b"same", b"new-%d" % number):
        try:
            inode = files.lookup(name)
        except OSError:
            inode = files.make(name, stat.S_IFREG | 0o644, OWNER)
        files.write(inode, b"%d" % number * 30_000, 0)


def stored(place: Path) -> dict[bytes, tuple[object, ...]]:
    with live(place) as files:
        return listing(files)


def test_p3_a_commit_that_fails_loses_nothing(template: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"

    def play(faults: Faults) -> str:
        """What a commit in a fresh copy did, `done` or `failed`; and what the next one said, if that failed.

        `ended`: the first failed where nobody could say any more whether it was made (its line could neither be synced
        nor taken back), and it was: then the mount ends.
        """
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(template, place)
        with live(place) as files:
            change(files, 2)
            outcome = "done"
            with failing(faults):
                try:
                    files.dataset.commit()
                except (ZkeepError, OSError):
                    outcome = "failed"
            try:
                change(files, 3)
                files.dataset.commit()
            except (ZkeepError, OSError) as error:
                files.dataset.changed.clear()
                return "ended" if outcome == "failed" and files.dataset.is_stale else f"{outcome}, then {error}"
        return outcome

    counting = Faults(room="zkeep.")
    before = stored(template)
    shutil.copytree(template, place)
    with live(place) as files:
        change(files, 2)
    first_alone = stored(place)
    assert play(counting) == "done"
    after = stored(place)
    wrong = []
    for first, count, number in counting.moments():
        if number == STOP:  # a mount takes signals between two requests only
            continue
        outcome = play(Faults(first, count, number, "zkeep."))
        found = stored(place)
        if ", then" in outcome or found != (first_alone if outcome == "ended" else after):
            wrong.append(f"call {first} x{count} {number}: {outcome}, before: {found == before}, {sorted(found)}")
    assert run(["pool", "import", str(place / "pool"), "again"]) == 0
    assert run(["pool", "scrub", "again"]) == 0
    assert not wrong, "\n".join(wrong)
