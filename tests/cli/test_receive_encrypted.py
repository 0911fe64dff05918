"""zkeep receive of plain streams below an encrypted dataset: they become encrypted, with its key or a new one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commandkit import create_encrypted, own_state
from zkeep.cli.main import run

DATA = Path(__file__).parent.parent / "data"
STORY = DATA / "opened" / "story"
PLAIN_2018, PLAIN_2019 = STORY / "plain-blanc-2018.zfs", STORY / "plain-blanc-2019.zfs"
RAW = DATA / "streams" / "full-Rw.zfs"


class Session:
    """A pool `v`, an encrypted dataset v/enc, and the command in a process of its own when a stream goes in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "key"

    def __call__(self, *words: str) -> int:
        return run(list(words))

    def receive(
        self, stream: Path | bytes, *words: str, verb: str = "receive"
    ) -> subprocess.CompletedProcess[str]:
        content = stream if isinstance(stream, bytes) else stream.read_bytes()
        path = self.folder / "stream"
        path.write_bytes(content)
        command = [sys.executable, "-m", "zkeep", verb, *words]
        with path.open("rb") as source:
            done = subprocess.run(command, stdin=source, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") <= 1 or done.returncode == 0
        return done

    def values(self, capsys: pytest.CaptureFixture[str], name: str, *properties: str) -> list[str]:
        capsys.readouterr()
        assert self("get", "-H", "-p", "-o", "value", ",".join(properties), name) == 0
        return capsys.readouterr().out.split("\n")[:-1]


@pytest.fixture
def zkeep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    own_state(tmp_path, monkeypatch)
    create_encrypted(tmp_path, "v/enc")
    session = Session(tmp_path)
    yield session
    session("unload-key", "-a")


Capture = pytest.CaptureFixture[str]


def test_a_snapshot_of_what_is_encrypted_on_arrival_is_refused_and_says_why(
    zkeep: Session, tmp_path: Path, capsys: Capture
) -> None:
    assert zkeep.receive(PLAIN_2018, "v/enc/ds").returncode == 0
    for words in ((), ("--from", str(tmp_path))):
        capsys.readouterr()
        assert zkeep("snapshot", *words, "v/enc/ds@now") == 1
        said = capsys.readouterr().err
        assert "it is encrypted here as it is received, and nothing else is written to it; take" in said


@pytest.mark.parametrize("letters", [["-x", "encryption"], [], ["-o", "encryption=aes-128-ccm"]])
def test_a_plain_stream_below_an_encrypted_dataset_becomes_encrypted(
    zkeep: Session, letters: list[str], capsys: Capture
) -> None:
    assert zkeep.receive(PLAIN_2018, *letters, "v/enc/ds").returncode == 0
    suite = "aes-128-ccm" if "-o" in letters else "aes-256-gcm"
    asked = ("encryption", "encryptionroot", "keystatus", "keyformat")
    assert zkeep.values(capsys, "v/enc/ds", *asked) == [suite, "v/enc", "available", "raw"]
    assert zkeep("verify", "v/enc/ds@2018") == 0
    assert zkeep.receive(PLAIN_2019, *letters[:1], *letters[1:], "v/enc/ds").returncode == 0
    assert zkeep("verify", "v/enc/ds@2019") == 0


def test_guid_and_creation_time_stay_those_of_the_sender(zkeep: Session, capsys: Capture) -> None:
    assert zkeep("set", "blind=off", "v") == 0
    assert zkeep.receive(PLAIN_2018, "v/plain").returncode == 0
    assert zkeep.receive(PLAIN_2018, "v/enc/ds").returncode == 0
    told = [zkeep.values(capsys, f"{name}@2018", "guid", "creation") for name in ("v/plain", "v/enc/ds")]
    assert told[0] == told[1]


def test_p1_nothing_of_it_is_in_clear_below_the_pools_folder(zkeep: Session) -> None:
    """Whole words of the files, which the stream has in clear."""
    assert zkeep.receive(PLAIN_2018, "v/enc/ds").returncode == 0
    content = PLAIN_2018.read_bytes()
    assert zkeep("cat", "v/enc/ds@2018", "jambons/2018/ledger.csv") == 0
    for word in (b"ledger.csv", b"jambons"):
        assert word in content
        assert not holds(zkeep.folder / "pool", word)


def holds(folder: Path, word: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and word in path.read_bytes()]


def test_the_key_must_be_loaded_and_nothing_is_changed_without_it(zkeep: Session, capsys: Capture) -> None:
    assert zkeep("unload-key", "v/enc") == 0
    for letters in (["-x", "encryption"], []):
        done = zkeep.receive(PLAIN_2018, *letters, "v/enc/ds")
        assert done.returncode == 1
        assert "the key of 'v/enc', which it inherits, is not loaded: zkeep load-key v/enc" in done.stderr
    assert zkeep("list", "v/enc/ds") == 1
    # With -x encryption that is said before a byte of the stream is read.
    assert zkeep.receive(b"no stream", "-x", "encryption", "v/enc/ds").stderr.count("is not loaded") == 1


def test_a_new_root_gets_a_key_of_its_own(zkeep: Session, capsys: Capture) -> None:
    other = zkeep.folder / "other"
    other.write_text("ab" * 32)
    options = ["-o", "encryption=on", "-o", "keyformat=hex", "-o", f"keylocation=file://{other}"]
    assert zkeep.receive(PLAIN_2018, *options, "v/root").returncode == 0
    told = zkeep.values(capsys, "v/root", "encryption", "encryptionroot", "keyformat", "keystatus", "keylocation")
    assert told == ["aes-256-gcm", "v/root", "hex", "available", f"file://{other}"]
    assert zkeep.receive(PLAIN_2019, "v/root").returncode == 0
    assert zkeep("unload-key", "v/root") == 0
    assert zkeep("load-key", "v/root") == 0
    assert zkeep("verify", "v/root@2019") == 0
    assert os.listdir(zkeep.folder / "pool" / "tmp") == []


@pytest.mark.parametrize(
    ("letters", "status", "why"),
    [
        (["-o", "encryption=off"], 1, "what lies below an encrypted dataset is encrypted"),
        (["-o", "encryption=rot13"], 1, "'encryption' must be one of"),
        (["-o", "keyformat=raw"], 2, "name its file with -o keylocation=file:///path"),
        (["-o", "encryption=on", "-x", "encryption"], 2, "specified multiple times"),
        (["-o", "pbkdf2iters=350000"], 1, "Keyformat required for new encryption root"),
    ],
)
def test_options_that_cannot_be(zkeep: Session, letters: list[str], status: int, why: str) -> None:
    done = zkeep.receive(PLAIN_2018, *letters, "v/enc/ds")
    assert (done.returncode, why in done.stderr) == (status, True), done.stderr
    assert zkeep("list", "v/enc/ds") == 1


@pytest.mark.parametrize("letters", [["-x", "encryption"], ["-o", "encryption=on"]])
def test_no_such_option_goes_with_a_raw_stream(zkeep: Session, letters: list[str]) -> None:
    done = zkeep.receive(RAW, *letters, "v/enc/raw")
    assert done.returncode == 1
    assert "encryption property 'encryption' cannot be set or excluded for raw streams" in done.stderr


def test_where_the_key_of_a_raw_stream_is_may_be_said(zkeep: Session, tmp_path: Path, capsys: Capture) -> None:
    """A tool that keeps local properties of its source sends it (syncoid --preserve-properties), and zfs takes it."""
    location = f"file://{tmp_path}/elsewhere"
    assert zkeep.receive(RAW, "-o", f"keylocation={location}", "v/raw").returncode == 0
    assert zkeep.values(capsys, "v/raw", "keylocation") == [location]
    both = ["-o", f"keylocation={location}", "-o", "atime=off"]
    for words in (["-x", "keylocation"], ["-o", "keylocation=prompt"], both):
        name = f"v/raw{len(words[-1])}"
        assert zkeep.receive(RAW, *words, name).returncode == 0
        shown = location if len(words) > 2 else "prompt"
        assert zkeep.values(capsys, name, "keylocation") == [shown]
    for bad in ("elsewhere", "file://x"):
        done = zkeep.receive(RAW, "-o", f"keylocation={bad}", "v/bad")
        assert (done.returncode, "must be prompt or file:///path" in done.stderr) == (1, True)
    done = zkeep.receive(RAW, "-o", f"keylocation={location}", "-o", "keyformat=raw", "v/bad")
    assert "encryption property 'keyformat' cannot be set or excluded for raw streams" in done.stderr
    assert zkeep("list", "v/bad") == 1


def test_a_raw_increment_cannot_follow_what_was_encrypted_here_nor_a_plain_one_what_was_received_raw(
    zkeep: Session, capsys: Capture
) -> None:
    assert zkeep.receive(PLAIN_2018, "v/enc/ds").returncode == 0
    raw = zkeep.folder / "raw"
    with raw.open("wb") as sink:
        send = [sys.executable, "-m", "zkeep", "send", "-w", "v/enc/ds@2018"]
        assert subprocess.run(send, stdout=sink, check=False).returncode == 0
    assert zkeep.receive(raw, "v/copy").returncode == 0
    done = zkeep.receive(PLAIN_2019, "v/copy")
    assert (done.returncode, "was received raw" in done.stderr) == (1, True)
    # Another encryption of the same snapshots has another key, and no raw increment of it fits.
    assert zkeep.receive(PLAIN_2018, "v/enc/other").returncode == 0
    assert zkeep.receive(PLAIN_2019, "v/enc/other").returncode == 0
    with raw.open("wb") as sink:
        send = [sys.executable, "-m", "zkeep", "send", "-w", "-i", "@2018", "v/enc/other@2019"]
        assert subprocess.run(send, stdout=sink, check=False).returncode == 0
    done = zkeep.receive(raw, "v/enc/ds")
    assert (done.returncode, "encrypted here, from a plain stream" in done.stderr) == (1, True)


@pytest.mark.parametrize("verb", ["receive", "encrypt"])
def test_an_increment_whose_source_is_gone_is_refused_with_the_way_out(
    zkeep: Session, capsys: Capture, verb: str
) -> None:
    """A bookmark stays of it here, which is no source of a receive."""
    for stream in (PLAIN_2018, PLAIN_2019):
        assert zkeep.receive(stream, "v/enc/ds").returncode == 0
    assert zkeep("bookmark", "v/enc/ds@2019", "#b") == 0
    assert zkeep("rollback", "v/enc/ds@2019") == 0
    assert zkeep("destroy", "v/enc/ds@2019") == 0
    third = STORY / "plain-blanc-2020.zfs"
    done = zkeep.receive(third, "v/enc/ds", verb=verb)
    assert done.returncode == 1
    assert "newest is @2018, 0x" in done.stderr
    assert "send from that one, or from a bookmark of it" in done.stderr
    assert zkeep("destroy", "v/enc/ds@2018") == 0
    done = zkeep.receive(third, "v/enc/ds", verb=verb)
    assert (done.returncode, "destination has no snapshot: send it in full" in done.stderr) == (1, True), done.stderr
    assert listed(capsys, zkeep, "-t", "all", "-r", "v/enc") == ["v/enc", "v/enc/ds", "v/enc/ds#b"]


def test_a_blind_pool_refuses_plain_streams_where_nothing_encrypts_them(zkeep: Session) -> None:
    done = zkeep.receive(PLAIN_2018, "v/plain")
    assert (done.returncode, "blind=on" in done.stderr) == (1, True)


def send(session: Session, name: str, *words: str) -> Path:
    """The file that `zkeep send WORDS` wrote."""
    path = session.folder / name
    with path.open("wb") as sink:
        command = [sys.executable, "-m", "zkeep", "send", *words]
        done = subprocess.run(command, stdout=sink, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


def listed(capsys: Capture, session: Session, *words: str) -> list[str]:
    capsys.readouterr()
    assert session("list", "-H", "-o", "name", *words) == 0
    return capsys.readouterr().out.split()


def test_the_migration_of_the_article(zkeep: Session, capsys: Capture, tmp_path: Path) -> None:
    """Plain snapshots of years become encrypted, leave raw for a blind pool, and come back as files with the key."""
    # 1. In clear, as it was for years; then below an encrypted dataset, first in full, then year after year.
    years = ["2018", "2019", "2020", "migration"]
    assert zkeep("create", "-o", "blind=off", "v/old") == 0
    assert zkeep("create", "v/enc/jambon") == 0
    for year in years:
        stream = STORY / f"plain-blanc-{year}.zfs"
        assert zkeep.receive(stream, *(["-F"] if year != "2018" else []), "v/old/blanc").returncode == 0
        letters = ["-x", "encryption"] if year == "2018" else ["-F"]
        assert zkeep.receive(stream, *letters, "v/enc/jambon/blanc").returncode == 0
    names = [f"v/enc/jambon/blanc@{year}" for year in years]
    assert listed(capsys, zkeep, "-t", "snapshot", "-r", "v/enc") == names
    assert zkeep.values(capsys, "v/enc/jambon/blanc", "encryption", "encryptionroot") == ["aes-256-gcm", "v/enc"]
    # 2. The plain ones go, and the encrypted ones take their place.
    assert zkeep("destroy", "-r", "v/old") == 0
    assert zkeep("set", "mountpoint=/srv/jambon", "v/enc/jambon") == 0
    assert zkeep.values(capsys, "v/enc/jambon/blanc", "mountpoint") == ["/srv/jambon/blanc"]
    # 3. Everything leaves raw, and later what changed; the other pool has no key.
    assert zkeep("pool", "create", "blind", str(tmp_path / "blind")) == 0
    first = send(zkeep, "first", "-Rw", "v/enc/jambon/blanc@2020")
    assert zkeep.receive(first, "-s", "blind/blanc").returncode == 0
    more = send(zkeep, "more", "-w", "-i", "@2020", "v/enc/jambon/blanc@migration")
    assert zkeep.receive(more, "blind/blanc").returncode == 0
    assert listed(capsys, zkeep, "-t", "snapshot", "-r", "blind") == [f"blind/blanc@{year}" for year in years]
    assert zkeep.values(capsys, "blind/blanc", "keystatus") == ["unavailable"]
    assert zkeep("pool", "scrub", "blind") == 0
    assert not holds(tmp_path / "blind", b"ledger.csv")
    # 4. In an emergency the key comes, and the files are there.
    target = tmp_path / "files"
    target.mkdir()
    assert zkeep("unload-key", "-a") == 0
    key = f"file://{zkeep.key}"
    assert zkeep("extract", "-L", key, "-C", str(target), "blind/blanc@migration") == 0
    assert (target / "jambons" / "2018" / "ledger.csv").is_file()
    assert zkeep("verify", "-L", key, "blind/blanc@migration") == 0


def test_a_dry_run_says_what_would_be_and_changes_nothing(zkeep: Session, capsys: Capture) -> None:
    done = zkeep.receive(PLAIN_2018, "-n", "-v", "-x", "encryption", "v/enc/ds")
    assert done.returncode == 0
    assert "would receive full stream of zdata/jambon/blanc@2018 into v/enc/ds@2018" in done.stdout
    assert zkeep("list", "v/enc/ds") == 1
    assert zkeep.receive(PLAIN_2019, "-n", "v/enc/ds").returncode == 1
    assert zkeep.receive(PLAIN_2018, "v/enc/ds").returncode == 0
    assert zkeep.receive(PLAIN_2019, "-n", "v/enc/ds").returncode == 0
    assert listed(capsys, zkeep, "-t", "snapshot", "-r", "v") == ["v/enc/ds@2018"]
    assert zkeep("unload-key", "v/enc") == 0
    for letters in (["-n"], [], ["-x", "encryption"]):
        done = zkeep.receive(PLAIN_2019, *letters, "v/enc/ds")
        assert (done.returncode, "the key of 'v/enc' is not loaded: zkeep load-key v/enc" in done.stderr) == (1, True)


def encrypt(session: Session, stream: Path, *words: str) -> Path:
    """zkeep encrypt WORDS < STREAM, into a file."""
    path = session.folder / "raw.zfs"
    command = [sys.executable, "-m", "zkeep", "encrypt", *words]
    with stream.open("rb") as source, path.open("wb") as sink:
        done = subprocess.run(command, stdin=source, stdout=sink, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return path


def test_encrypt_is_a_filter_from_plain_to_raw(zkeep: Session, capsys: Capture) -> None:
    """A package, then increments; one that was not taken at the other end is sent again."""
    for year in ("2018", "2019", "2020"):
        stream = STORY / f"plain-blanc-{year}.zfs"
        first = encrypt(zkeep, stream, "v/enc/state")
        before = first.read_bytes()
        again = encrypt(zkeep, stream, "v/enc/state")
        assert again.read_bytes() == before
        assert not any(word in before for word in (b"ledger.csv", b"jambons"))
        assert zkeep.receive(again, "v/blind").returncode == 0
    assert listed(capsys, zkeep, "-t", "snapshot", "-r", "v/blind") == [f"v/blind@{y}" for y in (2018, 2019, 2020)]
    assert zkeep("verify", "v/blind@2020") == 0
    assert zkeep.values(capsys, "v/blind@2020", "guid") == zkeep.values(capsys, "v/enc/state@2020", "guid")


def test_encrypt_refuses_what_is_raw(zkeep: Session) -> None:
    command = [sys.executable, "-m", "zkeep", "encrypt", "v/enc/state"]
    with RAW.open("rb") as source:
        done = subprocess.run(command, stdin=source, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the stream is raw, and so encrypted already" in done.stderr
    assert zkeep("list", "v/enc/state") == 1


def test_increments_follow_what_has_no_contents_any_more(zkeep: Session) -> None:
    """Without a second copy at home: the server has the contents, and home what the next increment needs."""
    first = encrypt(zkeep, PLAIN_2018, "v/enc/state")
    assert zkeep.receive(first, "v/blind").returncode == 0
    assert zkeep("set", "contents=metadata", "v/enc/state@2018") == 0
    assert zkeep("pool", "compact", "v") == 0
    for year in (2019, 2020):
        stream = encrypt(zkeep, STORY / f"plain-blanc-{year}.zfs", "v/enc/state")
        assert zkeep.receive(stream, "v/blind").returncode == 0
        assert zkeep("verify", f"v/blind@{year}") == 0
        assert zkeep("set", "contents=metadata", f"v/enc/state@{year}") == 0
    path, cat = "jambons/2018/scan.raw", [sys.executable, "-m", "zkeep", "cat"]
    gone = subprocess.run([*cat, "v/enc/state@2018", path], capture_output=True, text=True, check=False)
    assert (gone.returncode, "contents=metadata" in gone.stderr) == (1, True)
    assert subprocess.run([*cat, "v/blind@2020", path], stdout=subprocess.DEVNULL, check=False).returncode == 0
