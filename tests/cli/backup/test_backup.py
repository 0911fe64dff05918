"""zkeep backup of a folder: the first time, later, and whenever something breaks off."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path as FilePath
from threading import Event, Thread
from time import sleep

import pytest

from backupkit import Laptop
from zkeep.backup.local import Job
from zkeep.backup.places import Path, parse_destination
from zkeep.capture import ahead
from zkeep.cli.backup import keys as backup_keys
from zkeep.cli.backup.wanted import is_running, locked
from zkeep.crypto.groups import Secret, lines_of
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.sent import of_dataset as sent_of


@pytest.fixture
def laptop(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Laptop:
    return Laptop(tmp_path, monkeypatch, capfd)


def test_the_first_backup_makes_all_and_the_next_sends_what_changed(laptop: Laptop) -> None:
    first = laptop.backup()
    assert (first.status, first.err) == (0, "")
    assert [line.split()[2] for line in first.out.splitlines()] == ["key", "pool", "dataset"]
    assert stat.S_IMODE(laptop.key.stat().st_mode) == 0o600
    assert len(laptop.key.read_bytes()) == 32
    (laptop.source / "b").write_bytes(os.urandom(200_000))
    second = laptop.backup("-j", "-v")
    (sent,) = second.events("sent")
    assert 200_000 < int(str(sent["bytes"])) < 230_000
    assert second.events("+")[0]["path"] == "b"
    assert laptop.files() == {"a": b"first", "b": (laptop.source / "b").read_bytes()}
    # Of its own, only the last is kept here, without contents; and what was sent is known.
    own = laptop.run("list", "-H", "-p", "-o", "guid,contents", "-t", "snapshot", "-r", "local").out.split()
    assert own == [laptop.snapshots()[-1], "metadata"]
    with Pool.open(laptop.folder / "home" / "local") as pool:
        record = sent_of(pool, pool.dataset(DatasetName("local/docs")))
        assert [str(each.guid) for each in record] == laptop.snapshots()
        assert {len(each.portable_mac) for each in record} == {32}
        assert {each.to for each in record} == {("ssh://box/vault/me",)}


def test_nothing_is_made_when_the_first_time_is_refused(laptop: Laptop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(status: int, words: str, *command: str) -> None:
        done = laptop.run("backup", *command)
        assert (done.status, done.out) == (status, "")
        assert words in done.err, done.err
        assert not (laptop.folder / "home").exists()
        assert not laptop.key.exists()

    docs, key, there = str(laptop.source), str(laptop.key), "ssh://box/vault/me"
    refused(1, "has to be confirmed on a terminal", docs, there)
    refused(2, "--yes goes with --key-file", "--yes", docs, there)
    always = ("--yes", "--key-file", key)
    refused(1, "No such file", *always, f"{docs}x", there)
    refused(2, "--ping takes a URL", *always, "--ping", "file:///etc/passwd", docs, there)
    refused(1, "retention", *always, "--retention", "often", docs, there)
    refused(1, "there is no pool usb", *always, docs, "usb/docs")
    (laptop.folder / "down").touch()
    refused(5, "cannot reach box: ssh: connect to host box port 22: Connection refused", *always, docs, there)
    laptop.key.parent.joinpath("short").write_bytes(b"short")
    refused(5, "Connection refused", "--yes", "--key-file", f"{key}/../short", docs, there)
    (laptop.folder / "down").unlink()
    refused(1, "is no key", "--yes", "--key-file", str(laptop.folder / "short"), docs, there)
    # A dry run makes nothing either, and says what would be done.
    dry = laptop.backup("-n")
    assert dry.status == 0
    assert "would send it in full to ssh://box/vault/me" in dry.out
    assert not (laptop.folder / "home").exists()


@pytest.mark.parametrize("cut", [300, 200_000])
def test_cut_at_any_byte_the_same_command_goes_on(laptop: Laptop, cut: int) -> None:
    (laptop.source / "b").write_bytes(os.urandom(500_000))
    (laptop.folder / "cut").write_text(str(cut))
    broken = laptop.backup()
    assert (broken.status, broken.err.count("\n")) == (5, 1)
    (laptop.folder / "cut").unlink()
    (laptop.source / "c").write_bytes(b"meanwhile")
    again = laptop.backup("-j")
    assert again.status == 0, again.err
    resumed = [int(str(event["resumed"])) for event in again.events("send")]
    assert (resumed[0] > 100_000) == (cut == 200_000)
    assert sorted(laptop.files()) == ["a", "b", "c"]


def test_the_same_backup_twice_at_once_is_tried_again_later(laptop: Laptop) -> None:
    assert laptop.run("version").status == 0  # its home is this process's now
    job = Job(Path(str(laptop.source)), parse_destination("ssh://box/vault/me"))
    with locked(job):
        done = laptop.backup()
    assert (done.status, done.err) == (5, f"zkeep: cannot back up {laptop.source}: the same backup runs already\n")


def test_what_is_due_and_runs_already_is_no_failure_and_no_monitor_is_told_one(
    laptop: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cron looks every hour, also while a long backup runs; that one reports its own end."""
    told: list[str] = []
    monkeypatch.setattr("zkeep.cli.backup.backup.ping", lambda url, *words: told.append(" ".join(words[:1])))
    assert laptop.run("version").status == 0
    with locked(Job(Path(str(laptop.source)), parse_destination("ssh://box/vault/me"))):
        done = laptop.backup("--due", "02:30")
        assert (done.status, done.out, done.err, told) == (0, "", "", [])
        assert laptop.backup("--due", "02:30", "-v").out == f"the backup of {laptop.source} runs already\n"
        assert laptop.backup("--due", "02:30", "-j").events("running") == [{"what": "running"}]
        assert laptop.backup("--due", "02:30", "-n").status == 0
        told.clear()
        assert laptop.backup().status == 5
        assert told == ["start"]
    # Another backup of the same folder is none of this one's business; and this one is still due.
    with locked(Job(Path(str(laptop.source)), parse_destination("ssh://box/vault/other"))):
        assert laptop.backup("--due", "02:30").status == 0
    assert len(laptop.snapshots()) == 1
    assert laptop.backup("--due", "02:30").status == 0
    assert len(laptop.snapshots()) == 1


def test_a_backup_that_begins_while_one_looks_whether_it_is_due_is_done(laptop: Laptop) -> None:
    assert laptop.run("version").status == 0
    held, job = Event(), Job(Path(str(laptop.source)), parse_destination("ssh://box/vault/me"))

    def look() -> None:
        with locked(job, 0.0):
            held.set()
            sleep(0.2)

    looking = Thread(target=look)
    looking.start()
    held.wait()
    with locked(job):
        assert is_running(job)
    looking.join()
    assert not is_running(job)


@pytest.mark.parametrize(
    ("to", "line"),
    [
        ("ssh://box/vault/me", "ssh box 'zkeep receive -A vault/me'"),
        ("ssh://me@box:2222/vault/me", "ssh -p 2222 me@box 'zkeep receive -A vault/me'"),
    ],
)
def test_a_receive_that_cannot_go_on_is_given_up_with_the_line_that_is_named(
    laptop: Laptop, to: str, line: str
) -> None:
    (laptop.source / "b").write_bytes(os.urandom(2_000_000))
    (laptop.folder / "cut").write_text("1000000")
    assert laptop.backup(to=to).status == 5
    (laptop.folder / "cut").unlink()
    assert laptop.run("destroy", "local/docs@%").status == 0
    refused = laptop.backup(to=to)
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert refused.err.endswith(f"if nothing else sends there, give it up: {line}\n")
    # A key that may only append is enough for that.
    subprocess.run(shlex.split(line), check=True, capture_output=True)
    assert laptop.backup(to=to).status == 0


def test_a_dataset_that_is_there_and_not_encrypted_is_refused_with_the_way_out(laptop: Laptop) -> None:
    assert laptop.run("pool", "create", "usb", str(laptop.folder / "usb")).status == 0
    assert laptop.run("create", "usb/docs").status == 0
    refused = laptop.backup(to="usb/docs")
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "usb/docs: it is there already, and not encrypted; backup makes the dataset itself" in refused.err
    assert refused.err.endswith(": zkeep destroy usb/docs\n")
    assert laptop.run("destroy", "usb/docs").status == 0
    assert laptop.backup(to="usb/docs").status == 0


def test_a_file_that_cannot_be_read_is_named_and_all_else_is_sent(
    laptop: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    (laptop.source / "b").write_bytes(b"new")
    real = os.open

    def failing(path: object, *more: object, **others: object) -> int:
        if os.fspath(path) in (b"b", "b") and not more[0] & os.O_CREAT:  # type: ignore[call-overload, operator, index]
            raise PermissionError(13, "Permission denied")
        return real(path, *more, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(ahead, "_read_files", None)  # it opens files by itself
    monkeypatch.setattr(os, "open", failing)
    done = laptop.backup("-j")
    monkeypatch.undo()
    assert (done.status, done.events("done")) == (3, [{"what": "done", "status": 3}])
    assert "b: Permission denied" in done.err.replace("'", "")
    assert laptop.files() == {"a": b"first"}


def test_the_first_time_a_group_of_the_sheet_is_typed_back(laptop: Laptop, monkeypatch: pytest.MonkeyPatch) -> None:
    key = Secret(1, bytes(range(32)))
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        group, line = (int(digit) for digit in prompt if digit.isdecimal())
        return lines_of(key)[line - 1].split()[group - 1].lower() if len(asked) > wrong else "0000"

    monkeypatch.setattr(backup_keys, "has_terminal", lambda: True)
    monkeypatch.setattr("getpass.getpass", answer)
    laptop.key.write_bytes(key.content)
    laptop.key.chmod(0o600)
    words = ("backup", "--key-file", str(laptop.key), str(laptop.source), "ssh://box/vault/me")
    wrong = 3
    refused = laptop.run(*words)
    assert (refused.status, len(asked)) == (1, 3)
    assert "nothing was made" in refused.err
    assert not (laptop.folder / "home").exists()
    asked.clear()
    refused = laptop.run(*words, "-j")  # no sheet comes between JSON lines
    assert (refused.status, asked, [line[0] for line in refused.out.splitlines()]) == (1, [], ["{"])
    assert "run it without -j once" in refused.err
    asked += [""] * 3
    wrong = 4
    done = laptop.run(*words)
    assert (done.status, len(asked)) == (0, 5)
    assert all(line in done.out for line in lines_of(key))
    assert len(laptop.snapshots()) == 1


def test_a_disk_image_that_grows(laptop: Laptop) -> None:
    image = laptop.folder / "disk.img"
    image.write_bytes(os.urandom(100_000))
    words = ("backup", "--yes", "--key-file", str(laptop.key), str(image), "ssh://box/vault/me/disk")
    assert laptop.run(*words).status == 0
    image.write_bytes(image.read_bytes() + os.urandom(50_000))
    done = laptop.run(*words)
    assert done.status == 0, done.err
    name = laptop.serve("list", "-H", "-o", "name", "-t", "snapshot", "vault/me/disk").out.split()[-1]
    out = laptop.folder / "restored"
    done = laptop.serve("extract", "-L", laptop.key.as_uri(), "-C", str(out), name)
    assert done.status == 0, done.err
    (restored,) = [path for path in out.rglob("*") if path.is_file()]
    content = image.read_bytes()
    assert restored.read_bytes()[: len(content)] == content


def test_a_full_quota_over_there_and_then_room_again(laptop: Laptop) -> None:
    (laptop.source / "b").write_bytes(os.urandom(300_000))
    assert laptop.serve("set", "quota=200K", "vault/me").status == 0
    full = laptop.backup()
    assert (full.status, full.err.count("\n")) == (5, 1)  # what came is kept: it goes on when there is room
    assert full.err.endswith("zkeep on box says: cannot receive vault/me: the quota is used up\n")
    assert laptop.serve("set", "quota=2M", "vault/me").status == 0
    assert laptop.backup().status == 0
    assert len(laptop.files()) == 2


def test_a_destination_that_lost_what_was_sent_is_named_so(laptop: Laptop) -> None:
    for content in (b"1", b"2"):
        (laptop.source / "b").write_bytes(content)
        assert laptop.backup().status == 0
    name = laptop.serve("list", "-H", "-o", "name", "-t", "snapshot", "-s", "createtxg", "vault/me").out.split()[0]
    assert laptop.serve("rollback", "-r", name).status == 0
    done = laptop.backup()
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert "it had @backup-" in done.err, done.err
    assert "name a dataset that does not exist yet" in done.err


def test_a_snapshot_that_was_never_sent_keeps_its_contents(laptop: Laptop) -> None:
    """Made by hand, or by a backup that did not come through and held since: the destination never had them."""
    assert laptop.backup().status == 0
    for name in ("mine", "backup-of-mine", "backup-2026-11-28T02:30:00Z"):
        (laptop.source / name).write_bytes(os.urandom(50_000))
        laptop.run("snapshot", "--from", str(laptop.source), "-L", laptop.key.as_uri(), f"local/docs@{name}")
        content = {path.name: path.read_bytes() for path in laptop.source.iterdir() if path.name != "a"}
        (laptop.source / name).write_bytes(b"later")
    assert laptop.run("hold", "mine", f"local/docs@{name}").status == 0
    (laptop.source / "last").write_bytes(os.urandom(50_000))
    assert laptop.backup().status == 0
    assert laptop.run("pool", "compact", "local").status == 0
    rows = laptop.run("list", "-H", "-o", "name,contents", "-t", "snapshot", "-s", "createtxg", "-r", "local").out
    assert [row.split()[-1] for row in rows.splitlines()] == ["all", "all", "all", "metadata"], rows
    assert name in rows
    out = laptop.folder / "mine"
    done = laptop.run("extract", "-L", laptop.key.as_uri(), "-C", str(out), f"local/docs@{name}", name)
    assert done.status == 0, done.err
    assert (out / name).read_bytes() == content[name]
    assert len(laptop.files()) == 5  # and it was sent whole


def test_a_destination_that_lost_all_is_named_so_and_no_snapshots_pile_up(laptop: Laptop) -> None:
    assert laptop.serve("create", "vault/me/docs").status == 0
    to = "ssh://box/vault/me/docs"
    assert laptop.backup(to=to).status == 0
    assert laptop.serve("destroy", "-r", "vault/me/docs").status == 0
    for more in ((), ("-n",)):
        done = laptop.backup(*more, to=to)
        assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
        assert "has nothing any more" in done.err
        assert "name a dataset that does not exist yet" in done.err
    assert len(laptop.run("list", "-H", "-o", "name", "-t", "snapshot", "-r", "local").out.split()) == 1


def test_the_first_time_a_destination_with_backups_is_refused_before_a_key_is_made(laptop: Laptop) -> None:
    """A reinstalled machine: a sheet of a new key would be kept as that of the old backup."""
    assert laptop.backup().status == 0
    laptop.key.rename(laptop.folder / "old")
    for file in (laptop.folder / "home").iterdir():
        file.rename(laptop.folder / f"old-{file.name}")
    for more in ((), ("-n",)):
        done = laptop.backup(*more)
        assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
        assert "it has backups from elsewhere" in done.err
        assert not laptop.key.exists()
        assert not list((laptop.folder / "home").glob("*/"))


def test_on_this_machine_the_dataset_of_something_else_is_refused(laptop: Laptop) -> None:
    assert laptop.run("pool", "create", "usb", str(laptop.folder / "usb")).status == 0
    keys = ("-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation={laptop.key.as_uri()}")
    laptop.key.write_bytes(bytes(range(32)))
    laptop.key.chmod(0o600)
    for name in ("usb/empty", "usb/full"):
        assert laptop.run("create", *keys, name).status == 0
    done = laptop.run("snapshot", "--from", str(laptop.source), "usb/full@mine")
    assert done.status == 0, done.err
    done = laptop.backup(to="usb/full")
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert "it has snapshots of something else" in done.err
    assert laptop.run("set", f"zkeep:backup-source={laptop.source}", "usb/full").status == 0
    for _ in range(2):  # an empty one is its own from then on
        for to in ("usb/full", "usb/empty"):
            done = laptop.backup(to=to)
            assert done.status == 0, done.err
    laptop.source.rename(laptop.folder / "other")
    laptop.source = laptop.folder / "other"
    done = laptop.backup(to="usb/empty")
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert "it is the backup of" in done.err


@pytest.mark.parametrize("to", ["ssh://box/vault/me", "usb/docs"])
def test_another_key_file_than_the_one_in_use_is_refused(laptop: Laptop, to: str) -> None:
    assert laptop.run("pool", "create", "usb", str(laptop.folder / "usb")).status == 0
    assert laptop.backup(to=to).status == 0
    (laptop.folder / "link").symlink_to(laptop.key)
    laptop.key, key = laptop.folder / "other", laptop.key
    done = laptop.backup(to=to)
    assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    assert "leave --key-file out" in done.err
    for file in (key, laptop.folder / "link"):
        laptop.key = file
        assert laptop.backup(to=to).status == 0


def test_how_it_ended_is_told_to_a_monitor(laptop: Laptop) -> None:
    told: list[tuple[str, bytes]] = []

    class Monitor(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Monitor) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/uuid"
        (laptop.folder / "down").touch()
        assert laptop.backup("--ping", url).status == 5
        assert laptop.backup("--ping", url, "-n").status == 5  # a dry run tells nobody
        server.shutdown()
    assert [path for path, _ in told] == ["/uuid/start", "/uuid/fail"]
    assert b"Connection refused" in told[1][1]
    silent = laptop.backup("--ping", url)  # the monitor is gone: a warning
    assert silent.err.count("warning: cannot ping 127.0.0.1") == 2
