"""The verbs that open a snapshot, on a backup that real OpenZFS sent."""

from __future__ import annotations

from pathlib import Path

import pytest

import keykit
from zkeep.cli.main import run

STORY = Path(__file__).parents[2] / "data" / "opened" / "story"
KEY = keykit.location(STORY / "jambon-zfs-key")
STREAMS = [str(STORY / "full-Rw.zfs"), str(STORY / "inc-w.zfs")]


def test_streams_are_listed_with_their_key(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(["ls", *STREAMS, "blanc@work-of-the-day", "-L", KEY]) == 0
    assert b"another-file" in capfdbinary.readouterr().out


def test_all_is_authentic(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(["verify", "-v", *STREAMS, "-L", KEY]) == 0
    assert b"blanc@work-of-the-day: authentic" in capfdbinary.readouterr().out


def test_a_diff_tells_of_the_new_file(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    snapshots = ["blanc@to-remote-server", "blanc@work-of-the-day"]
    assert run(["diff", "-FH", *STREAMS, *snapshots, "-L", KEY]) == 0
    assert b"+\tF\t/another-file\n" in capfdbinary.readouterr().out


def test_a_wrong_key_is_refused_in_one_line(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    keykit.write(tmp_path / "key", bytes(32))
    assert run(["ls", STREAMS[0], "-L", f"file://{tmp_path}/key"]) == 1
    assert capfdbinary.readouterr().err.count(b"\n") == 1


def test_files_are_extracted_and_an_archive_is_made(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    assert run(["extract", "-C", str(tmp_path / "x"), STREAMS[0], "blanc@2018", "-L", KEY]) == 0
    assert list((tmp_path / "x").iterdir())
    capfdbinary.readouterr()
    assert run(["extract", "--stdout", STREAMS[0], "blanc@2018", "-L", KEY]) == 0
    import io
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(capfdbinary.readouterr().out)) as archive:
        assert len(archive.getnames()) > 1
