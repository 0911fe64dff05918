"""zkeep restore: files back from a server, whatever the line and the server do."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from backupkit import ZKEEP, Done, Laptop
from zkeep.backup import fetch
from zkeep.pool.datasets import sent
from zkeep.pool.datasets.model import Pool

DEST = "ssh://box/vault/me"
ROLES = "receive,list,send"
CUT = """
case "$line" in *" send "*) if [ -s {folder}/cuts ]; then
    size=$(head -n 1 {folder}/cuts); sed -i 1d {folder}/cuts
    ZKEEP_HOME={server} SSH_ORIGINAL_COMMAND="$line" {zkeep} server --root vault/me --allow {roles} | head -c "$size"
    exit 255
fi ;; esac
"""


class Kept(Laptop):
    """A machine whose folder is there already."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self._monkeypatch, self._capfd = folder, monkeypatch, capfd
        self.server, self.source, self.key = folder / "srv", folder / "docs", folder / "key"
        self.home, self._log, self._outs = folder / "home", folder / "log", 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("restore")


@pytest.fixture
def laptop(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Laptop:
    """A machine with two backups on a server: of the file `a`, then also of a large file. It is made once."""
    folder, saved = place / "now", place / "saved"
    monkeypatch.setattr(fetch, "PAUSES", (0.0,))
    monkeypatch.setattr(fetch, "TRIES", 2)
    if not saved.exists():
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            made = Laptop(folder, patch, capfd, ROLES)
            assert made.backup().status == 0
            (made.source / "below").mkdir()
            (made.source / "below" / "large").write_bytes(random.Random(1).randbytes(600_000))
            (made.source / "a").write_bytes(b"second")
            assert made.backup().status == 0
        shutil.copytree(folder, saved)
    shutil.rmtree(folder)
    shutil.copytree(saved, folder)
    for name, value in (("XDG_RUNTIME_DIR", str(folder)), ("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return Kept(folder, monkeypatch, capfd)


def restore(laptop: Laptop, *words: str) -> Done:
    return laptop.run("restore", DEST, "-L", f"file://{laptop.key}", *words)


def cut(laptop: Laptop, *sizes: int) -> None:
    """Let the connections of the next sends end after so many bytes."""
    (laptop.folder / "cuts").write_text("".join(f"{size}\n" for size in sizes))
    names = {"folder": laptop.folder, "server": laptop.server, "zkeep": " ".join(ZKEEP), "roles": ROLES}
    (laptop.folder / "answer").write_text(CUT.format(**names))


def files(folder: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def leftovers(laptop: Laptop) -> list[str]:
    return [name for name in os.listdir(laptop.folder) if name.startswith("zkeep-")]


def test_all_files_come_back_and_nothing_else_stays(laptop: Laptop) -> None:
    done = restore(laptop, "-C", "new", "-v")
    assert (done.status, done.out) == (0, "")
    assert "restoring vault/me@backup-" in done.err
    assert files("new") == laptop.files()
    assert files("new")["a"] == b"second"
    assert leftovers(laptop) == []


def test_a_file_a_folder_or_a_pattern(laptop: Laptop) -> None:
    assert restore(laptop, "-C", "one", "a").status == 0
    assert files("one") == {"a": b"second"}
    assert restore(laptop, "-C", "two", "b*").status == 0
    assert list(files("two")) == ["below/large"]
    assert "no such file" in restore(laptop, "-C", "three", "missing").err


def test_a_snapshot_by_name_and_by_time(laptop: Laptop) -> None:
    old, _ = laptop.serve("list", "-H", "-p", "-o", "name,creation", "-t", "snapshot", "-r", "vault").out.splitlines()
    name, made = old.split("\t")
    assert restore(laptop, "-C", "named", "--snapshot", name.partition("@")[2]).status == 0
    assert files("named") == {"a": b"first"}
    assert restore(laptop, "--at", "1999-12-31").status == 1
    assert restore(laptop, "--snapshot", "other").status == 1
    assert restore(laptop, "--at", "2199-01-01", "-C", "late").status == 0
    assert files("late")["a"] == b"second"
    assert int(made) > 0


def test_a_broken_line_is_taken_up_again(laptop: Laptop) -> None:
    cut(laptop, 0, 250_000, 1)
    done = restore(laptop, "-C", "new")
    assert done.status == 0
    assert done.err.count("trying again") == 3
    assert files("new") == laptop.files()


def test_what_came_is_kept_in_the_spool(laptop: Laptop) -> None:
    cut(laptop, 400_000, *[0] * 3)
    done = restore(laptop, "-C", "new", "--spool", "spool")
    assert done.status == 5
    assert len(os.listdir("spool")) == 1
    assert not Path("new").exists()
    cut(laptop, 500_000, *[0] * 3)  # the rest is less than that, all of it is more
    assert restore(laptop, "-C", "new", "--spool", "spool").status == 0
    assert files("new") == laptop.files()
    assert os.listdir("spool") == []


@pytest.mark.parametrize("how", ["open to others", "a link"])
def test_p5_a_spool_that_others_can_write_to_is_not_gone_on_with(laptop: Laptop, how: str) -> None:
    """With --trust-server nothing but the folder's owner vouches for what lies there."""
    cut(laptop, 400_000, *[0] * 3)
    assert restore(laptop, "-C", "new", "--spool", "spool").status == 5
    (there,) = Path("spool").iterdir()
    if how == "a link":
        there.rename("elsewhere")
        there.symlink_to(Path("elsewhere").resolve())
    else:
        there.chmod(0o777)
    done = restore(laptop, "-C", "new", "--spool", "spool")
    assert done.status == 1
    assert "belongs to somebody else or is open to others" in done.err
    assert not Path("new").exists()


def test_without_a_spool_nothing_stays_of_what_broke_off(laptop: Laptop) -> None:
    cut(laptop, *[1000] * 3)
    assert restore(laptop, "-C", "new").status == 5
    assert leftovers(laptop) == []


def test_a_server_that_says_no_is_believed_at_once(laptop: Laptop) -> None:
    laptop.write_ssh("receive,list")
    done = restore(laptop, "-C", "new")
    assert done.status == 1
    assert "permission denied" in done.err
    assert "trying again" not in done.err
    assert laptop.run("restore", "ssh://box/vault/me/none", "-L", f"file://{laptop.key}").status == 1


def test_a_wrong_key_writes_nothing(laptop: Laptop) -> None:
    (laptop.folder / "wrong").write_bytes(bytes(32))
    (laptop.folder / "wrong").chmod(0o600)
    done = laptop.run("restore", DEST, "-L", f"file://{laptop.folder}/wrong", "-C", "new")
    assert done.status == 1
    assert not files("new")


# What was sent, and what is returned


def rename(laptop: Laptop, old: str, new: str) -> None:
    assert laptop.serve("rename", f"vault/me@{old}", new).status == 0


def names(laptop: Laptop) -> list[str]:
    listed = laptop.serve("list", "-H", "-o", "name", "-t", "snapshot", "-r", "vault").out.split()
    return [name.partition("@")[2] for name in listed]


def test_an_old_snapshot_as_the_newest_is_refused(laptop: Laptop) -> None:
    first, second = names(laptop)
    assert laptop.serve("rollback", "-r", f"vault/me@{first}").status == 0
    done = restore(laptop, "-C", "new")
    assert done.status == 4
    assert f"@{second}" in done.err
    assert "is not there any more" in done.err
    assert not files("new")
    assert restore(laptop, "-C", "new", "--trust-server").status == 0
    assert restore(laptop, "-C", "named", "--snapshot", first).status == 0


def test_an_old_snapshot_under_a_new_name_is_refused(laptop: Laptop) -> None:
    first, second = names(laptop)
    rename(laptop, second, "tmp")
    rename(laptop, first, second)
    done = restore(laptop, "-C", "new", "--snapshot", second)
    assert done.status == 4
    assert f"it was sent from here as @{first}" in done.err
    assert not files("new")


def test_old_content_under_a_known_guid_is_refused(laptop: Laptop) -> None:
    """Nothing authenticates a guid; the portable MAC is another."""
    with Pool.open(laptop.folder / "home" / "local", "local") as pool, pool.transaction() as t:
        for key, doc in pool.catalog.scan(sent.SENT):
            t.put(sent.SENT, key, {**doc, "portable_mac": "00" * 16})
    done = restore(laptop, "-C", "new")
    assert done.status == 4
    assert "it has the guid of what was sent from here, and is not that" in done.err
    assert not files("new")


def test_a_snapshot_that_was_never_sent_is_refused(laptop: Laptop) -> None:
    """Somebody with the same key writes on: a second source, or a thief of the key file."""
    (laptop.folder / "forged").mkdir()
    assert laptop.serve("pool", "create", "-O", "blind=off", "other", str(laptop.folder / "po")).status == 0
    options = ("-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation=file://{laptop.key}")
    assert laptop.serve("create", *options, "other/ds").status == 0
    assert laptop.serve("snapshot", "--from", str(laptop.folder / "forged"), "other/ds@newest").status == 0
    laptop.serve("destroy", "-r", "vault/me")
    assert send(laptop, "other/ds@newest", "vault/me")
    done = restore(laptop, "-C", "new")
    assert done.status == 4
    assert "nothing like that was ever sent from here" in done.err


def send(laptop: Laptop, snapshot: str, target: str) -> bool:
    env = {**os.environ, "ZKEEP_HOME": str(laptop.server)}
    sent = subprocess.run([*ZKEEP, "send", "-w", snapshot], env=env, capture_output=True, check=True).stdout
    return subprocess.run([*ZKEEP, "receive", target], env=env, input=sent, check=False).returncode == 0


def test_a_listing_is_checked(laptop: Laptop) -> None:
    (laptop.folder / "answer").write_text(r"printf 'vault/me@\033[2Jx\t5\t1\t1\n'; exit 0" + "\n")
    done = restore(laptop, "-C", "new")
    assert (done.status, "lists what is no snapshot" in done.err, "\x1b" in done.err) == (1, True, False)


def test_another_snapshot_than_was_asked_for(laptop: Laptop) -> None:
    """A server that sends the first one whatever it is asked for."""
    first, second = names(laptop)
    (laptop.folder / "answer").write_text(f'line=$(printf %s "$line" | sed s/{second}/{first}/)\n')
    done = restore(laptop, "-C", "new")
    assert done.status == 4
    assert "another snapshot than was asked for" in done.err
    assert not files("new")


@pytest.mark.parametrize("garbage", ["echo no stream at all; exit 0", "exec cat /dev/zero", "exit 0"])
def test_what_is_no_stream(laptop: Laptop, garbage: str) -> None:
    (laptop.folder / "answer").write_text(f'case "$line" in *" send "*) {garbage} ;; esac\n')
    assert restore(laptop, "-C", "new").status in (1, 5)
    assert not files("new")
    assert leftovers(laptop) == []


# Datasets here, and into datasets


def test_from_a_pool_here(laptop: Laptop) -> None:
    assert laptop.run("pool", "create", "own", str(laptop.folder / "own")).status == 0
    assert laptop.run("restore", DEST, "-L", f"file://{laptop.key}", "--to", "own/docs").status == 0
    assert laptop.run("restore", "own/docs", "-L", f"file://{laptop.key}", "-C", "new").status == 0
    assert files("new") == laptop.files()
    assert laptop.run("restore", "own/none").status == 1


def test_into_real_zfs_goes_only_what_is_authentic(laptop: Laptop) -> None:
    program = laptop.folder / "bin" / "zfs"
    program.write_text(f'#!/bin/sh\necho "$@" > {laptop.folder}/called; cat > {laptop.folder}/stream\n')
    program.chmod(0o755)
    assert restore(laptop, "--to", "zfs:tank/docs").status == 0
    assert (laptop.folder / "called").read_text() == "receive -u tank/docs\n"
    done = laptop.run("extract", "-C", "new", "-L", f"file://{laptop.key}", str(laptop.folder / "stream"))
    assert done.status == 0
    assert files("new") == laptop.files()
    program.write_text("#!/bin/sh\necho cannot receive: no room >&2; exit 1\n")
    done = restore(laptop, "--to", "zfs:tank/docs")
    assert (done.status, "no room" in done.err) == (1, True)


@pytest.mark.parametrize(
    "words",
    [("/tmp",), ("ssh://box",), ("vault/me", "--at", "soon"), ("vault/me", "--to", "ssh://box/a/b"),
     ("vault/me", "--to", "a/b", "x"), ("vault/me", "--at", "2020-01-01", "--snapshot", "x")],
)  # fmt: skip
def test_wrong_calls(laptop: Laptop, words: tuple[str, ...]) -> None:
    assert laptop.run("restore", *words).status == 2


# The same for verify, where what a server kept is at hand


def test_verify_knows_what_was_sent_from_here(laptop: Laptop) -> None:
    """The server's pool was brought here; it has the first snapshot under the name of the second."""
    first, second = names(laptop)
    key = f"file://{laptop.key}"
    assert laptop.run("pool", "import", str(laptop.folder / "pv")).status == 0
    assert laptop.run("verify", "-L", key, "vault/me", f"local/docs@{second}").status == 0
    rename(laptop, second, "tmp")
    rename(laptop, first, second)
    done = laptop.run("verify", "-L", key, f"vault/me@{second}")
    assert (done.status, f"it was sent from here as @{first}" in done.err) == (4, True)
    assert laptop.run("verify", "-L", key, "--trust-server", f"vault/me@{second}").status == 0


def test_the_filter_knows_what_was_sent_from_here(laptop: Laptop) -> None:
    first, second = names(laptop)
    rename(laptop, first, "other")
    for name, status in ((second, 0), ("other", 4)):
        env = {**os.environ, "ZKEEP_HOME": str(laptop.server)}
        stream = subprocess.run([*ZKEEP, "send", "-w", f"vault/me@{name}"], env=env, capture_output=True, check=True)
        env["ZKEEP_HOME"] = str(laptop.folder / "home")
        words = ("verify", "-L", f"file://{laptop.key}")
        done = subprocess.run([*ZKEEP, *words], env=env, input=stream.stdout, capture_output=True, check=False)
        assert (done.returncode, len(done.stdout) > 0) == (status, not status), done.stderr


def test_a_pattern_asks_once_for_all_folders_of_a_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    laptop = Laptop(tmp_path, monkeypatch, capfd, "receive,list,send")
    for number in range(150):
        folder = laptop.source / f"d{number:03}" / "sub"
        folder.mkdir(parents=True)
        (folder / "f").write_text(str(number))
        (folder.parent / "f1").write_text(f"one {number}")
    assert laptop.backup().status == 0
    for pattern, wanted in (("*/*/f", "*/*/f"), ("**/f1", "*/f1")):
        laptop.said()
        into = tmp_path / "out" / pattern.replace("/", "-")
        done = laptop.run("restore", "-L", laptop.key.as_uri(), "-C", str(into), "ssh://box/vault/me", pattern)
        assert done.status == 0, done.err
        found = {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}
        assert found == {str(path.relative_to(laptop.source)): path.read_bytes() for path in laptop.source.glob(wanted)}
        asked = [line for line in laptop.said() if "send -w --" in line]
        assert len(asked) <= 6, (pattern, asked)


def test_links_and_many_paths_are_asked_for_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    laptop = Laptop(tmp_path, monkeypatch, capfd, "receive,list,send")
    names = [f"f{number:03}" for number in range(128)]
    for name in names:
        (laptop.source / name).write_text(name)
        (laptop.source / f"{name}-too").hardlink_to(laptop.source / name)
        (laptop.source / f"in-{name}").mkdir()
        (laptop.source / f"in-{name}" / "x").write_text(name)
    assert laptop.backup().status == 0
    asked = {"f*": names, "in": [f"in-{name}/x" for name in names[::3]]}
    for what, wanted in asked.items():
        laptop.said()
        paths = [what] if len(wanted) == len(names) else wanted
        into = tmp_path / "out" / what
        done = laptop.run("restore", "-L", laptop.key.as_uri(), "-C", str(into), "ssh://box/vault/me", *paths)
        assert done.status == 0, done.err
        assert all((into / name).read_bytes() == (laptop.source / name).read_bytes() for name in wanted)
        sends = [line for line in laptop.said() if "send -w --" in line]
        assert len(sends) <= 6, (what, sends)
