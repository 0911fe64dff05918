"""zkeep extract: what is said of what could not be restored, and the status with which it ends."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import keykit
from zkeep.cli.common import extraction
from zkeep.cli.main import run
from zkeep.errors import Damaged, NotAuthentic, Refused, ZkeepError
from zkeep.restore.files.report import NotTaken, RestoreReport

STORY = Path(__file__).parent.parent / "data" / "opened" / "story"
KEY = keykit.location(STORY / "jambon-zfs-key")
BLANC = [str(STORY / "full-Rw.zfs"), "blanc@to-remote-server", "-L", KEY]
Output = pytest.CaptureFixture[str]


def concluded(report: RestoreReport, *, verbose: bool = False) -> ZkeepError | None:
    try:
        extraction._conclude(report, "", verbose=verbose)
    except ZkeepError as error:
        return error
    return None


def test_what_holds_no_data_is_counted_and_all_is_well(capsys: Output) -> None:
    report = RestoreReport()
    for kind in ("owners", "owners", "devices"):
        report.add(kind)
    assert concluded(report) is None
    assert capsys.readouterr().err == "zkeep: could not be made here: 1 devices, 2 owners\n"


@pytest.mark.parametrize(("verbose", "named"), [(False, 0), (True, 2)])
def test_lost_attributes_of_the_users_are_a_failure(verbose: bool, named: int, capsys: Output) -> None:
    report = RestoreReport()
    for path in (b"a", b"b\x1b[31m"):
        report.lacks(path, b"user.note", NotTaken("extended attribute user.note: No space left on device"))
    error = concluded(report, verbose=verbose)
    assert isinstance(error, Refused)
    assert str(error).startswith("2 extended attributes with data could not be extracted")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == named
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("kind", [Refused, Damaged, NotAuthentic])
def test_the_worst_gives_the_status(kind: type[ZkeepError], capsys: Output) -> None:
    """What cannot be read of an attribute is always named."""
    report = RestoreReport()
    report.failed.append((b"a", NotTaken("File too large")))
    report.lost.append((b"b", kind("bad")))
    error = concluded(report)
    assert error is not None
    assert error.status == kind.status
    shown = capsys.readouterr().err
    assert "zkeep: a: File too large\n" in shown
    assert ("zkeep: b: bad\n" in shown) == (kind is not Refused)


def no_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchown", refused)


@pytest.mark.parametrize("verbose", [False, True])
def test_what_could_not_be_set_is_named_when_asked_for(
    verbose: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Output
) -> None:
    no_owners(monkeypatch)
    assert run(["extract", *BLANC, *["-v"][: int(verbose)], "-C", str(tmp_path / "out"), "jambons"]) == 0
    lines = capfd.readouterr().err.splitlines()
    named = [line for line in lines if line.endswith(": could not be made here: owners")]
    assert ("jambons/notes.txt: could not be made here: owners" in named) == verbose
    count = next(line for line in lines if line.startswith("zkeep: could not be made here: "))
    assert not verbose or count == f"zkeep: could not be made here: {len(named)} owners"


def test_a_call_is_repeated_and_repeated_with_force(tmp_path: Path, capfd: Output) -> None:
    for words in ([], [], ["--force"]):
        assert run(["extract", *BLANC, "-C", str(tmp_path / "out"), *words]) == 0
    (tmp_path / "out" / "jambons" / "notes.txt").write_text("mine")
    capfd.readouterr()
    assert run(["extract", *BLANC, "-C", str(tmp_path / "out")]) == 1
    shown = capfd.readouterr().err
    assert "zkeep: jambons/notes.txt: it is there already; --force overwrites\n" in shown
    assert shown.endswith("zkeep: one file could not be extracted\n")
    assert (tmp_path / "out" / "jambons" / "notes.txt").read_text() == "mine"
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".zkeep")]


def test_a_target_that_cannot_be_is_told_of_in_one_line(tmp_path: Path, capfd: Output) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        assert run(["extract", *BLANC, "-C", str(target)]) == 1
        shown = capfd.readouterr().err
        assert shown.startswith(f"zkeep: cannot extract into {target}: ")
        assert shown.count("\n") == 1
