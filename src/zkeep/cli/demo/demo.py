"""zkeep demo: the life of a backup server, played with the streams of a real OpenZFS host that ship with zkeep.

Every line that begins with `server$` is run as it stands. What is compared is compared byte for byte.
"""

from __future__ import annotations

import lzma
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zkeep.cli.common.text import nice_bytes
from zkeep.cli.common.work_folder import work_folder
from zkeep.errors import Damaged

if TYPE_CHECKING:
    from zkeep.cli.demo.shell import DemoShell

ANYWHERE, PRODUCTION = "anywhere$", "production$"
SOURCE = "zdata/encrypted/jambon"
MIRROR = "zbackups/encrypted/jambon"
INTRODUCTION = (
    "[bold]A backup server that cannot read its backups.[/] What follows [yellow]source#[/] was typed on a real "
    "OpenZFS host, whose streams ship with zkeep; what follows [green]server$[/] or [green]anywhere$[/] runs here "
    "and now, in a temporary folder."
)
AS_SENT = "-w --received-name"


@click.command("demo")
@click.option("--keep", is_flag=True, help="Leave the pool in its folder, to look around.")
@click.option("--blind", is_flag=True, help="Without the end, in which the key comes.")
def demo_verb(*, keep: bool, blind: bool) -> None:
    """Play the life of a backup server in a temporary folder; it takes seconds.

    Real streams of an OpenZFS host are received, listed, scrubbed, pruned, compacted and sent back, and what comes
    out is compared with what the kernel itself sent. Then the key comes, and the files are there. A dataset that was in
    clear for years becomes an encrypted one, snapshots and all. In the end a machine without ZFS becomes a source: a
    folder is stored encrypted, sent to the server, changed, and comes back. Exit status 0 only if all of it is equal.

    \b
        zkeep demo
        zkeep demo --keep
    """
    from rich.console import Console

    from zkeep.cli.demo.shell import DemoShell

    began = time.monotonic()
    with _folder(keep) as folder, _known_at(folder):
        stage = DemoShell(Console(highlight=False), folder)
        stage.console.print(INTRODUCTION)
        # The blind half: no key is in this process.
        for scene in (_create, _receive, _refuse, _increment, _send_back, _prune, _compact):
            scene(stage)
        stage.passed(f"{nice_bytes(stage.compared)} were sent back, each byte as the kernel sends it; no key was here")
        # The half with the key: emergency, migration, and a source without ZFS.
        if not blind:
            _emergency(stage)
            _migration(stage)
            _without_zfs(stage)
        stage.console.print(f"\n[bold green]✓ all is as it should be; {time.monotonic() - began:.1f} s[/]")
        if keep:
            click.echo(f"The pool is left in {folder}; look at it with ZKEEP_HOME={folder} zkeep list -t all")


@contextmanager
def _folder(keep: bool) -> Iterator[Path]:
    if keep:
        yield Path(tempfile.mkdtemp(prefix="zkeep-demo-"))
        return
    with work_folder() as folder:
        yield folder


@contextmanager
def _known_at(folder: Path) -> Iterator[None]:
    """The demo's pool is known to the demo alone, and so is the agent that holds its key."""
    own = {"ZKEEP_HOME": str(folder), "ZKEEP_AGENT": str(folder / "runtime" / "agent")}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def data(name: str) -> bytes:
    from importlib.resources import files

    return (files("zkeep") / "data" / name).read_bytes()


def stream(name: str) -> bytes:
    """A stream as the OpenZFS host sent it."""
    return lzma.decompress(data(f"{name}.zfs.xz"))


def _create(stage: DemoShell) -> None:
    stage.title("A pool is a folder on any disk: no ZFS, no root, no key")
    stage.run(f"pool create vault {stage.folder}/vault", "zpool create zbackups /dev/vdb1")


def _receive(stage: DemoShell) -> None:
    stage.title("The first backup: a tree of datasets, encrypted at the source")
    stage.elsewhere(f"zfs send -Rw {SOURCE}@to-remote-server | ssh server ...")
    sent = stream("jambon-full-Rw")
    said = stage.run("receive -v vault/jambon", f"zfs receive {MIRROR}", sent, show=False)
    count = said.count(b"\nreceived ") + said.startswith(b"received ")
    stage.passed(f"{count} snapshots, {nice_bytes(len(sent))}; the checksum of each record was verified")
    stage.run("list -r -o name,used,refer,encryption,keystatus vault/jambon", "zfs list -r ...")


def _refuse(stage: DemoShell) -> None:
    stage.title("What this server could read, it turns away")
    stage.elsewhere("zfs send -R zdata/jambon/blanc@2018 | ssh server ...")
    stage.refused("receive vault/readable", stream("jambon-blanc-plain-2018"))


def _increment(stage: DemoShell) -> None:
    stage.title("A day of changes: only those travel")
    stage.elsewhere("dd if=/dev/zero of=/zdata/jambon/blanc/another-file bs=1M count=5")
    stage.elsewhere(f"zfs snapshot {SOURCE}/blanc@work-of-the-day")
    stage.elsewhere(f"zfs send -w -i @to-remote-server {SOURCE}/blanc@work-of-the-day | ...")
    stage.run("receive vault/jambon/blanc", f"zfs receive {MIRROR}/blanc", stream("jambon-blanc-inc-w"))
    stage.run("list -t snapshot -o name,used,refer vault/jambon/blanc", "zfs list -t snapshot ...")
    _scrub(stage)


def _send_back(stage: DemoShell) -> None:
    stage.title("The source burned down: everything goes back as it came")
    stage.elsewhere("ssh server zkeep send ... | zfs receive zdata/encrypted/jambon")
    made = stage.run(f"send -R {AS_SENT} vault/jambon@to-remote-server", "zfs send -Rw ...", show=False)
    parts, wanted = _substreams(made), _substreams(stream("jambon-full-Rw"))
    stage.compare(b"".join(parts), b"".join(wanted), f"the {len(wanted)} substreams that the kernel sent")
    increment = f"send {AS_SENT} -i @to-remote-server vault/jambon/blanc@work-of-the-day"
    made = stage.run(increment, show=False)
    stage.compare(made, stream("jambon-blanc-inc-w"), "the increment that the kernel sent")


def _substreams(package: bytes) -> list[bytes]:
    """The bytes between each BEGIN and END of a compound stream, ordered by the guids of the snapshots."""
    from zkeep.format.events import SubBegin, SubEnd
    from zkeep.format.reader import Reader
    from zkeep.format.records import HEADER

    found, start, guid = {}, 0, 0
    for event in Reader().feed(package):
        if isinstance(event, SubBegin):
            start, guid = event.offset, event.begin.toguid
        elif isinstance(event, SubEnd):
            found[guid] = package[start : event.offset + HEADER]
    return [found[guid] for guid in sorted(found)]


def _prune(stage: DemoShell) -> None:
    stage.title("Seven snapshots come, the five in the middle go: still no key")
    stage.elsewhere("zfs send -w tank/rs512b@s0 | ...")
    stage.elsewhere("zfs send -w -i @s0 tank/rs512b@s1 | ...       and so on, six times")
    for name in ("week-full-s0", *(f"week-inc-s{day}-s{day + 1}" for day in range(6))):
        stage.quietly("receive vault/week", stream(name))
    stage.noted = _segment_bytes(stage.folder)
    stage.run("destroy -v vault/week@s1%s5", "zfs destroy -v tank/rs512b@s1%s5")
    _compare_week(stage)


def _compare_week(stage: DemoShell) -> None:
    made = stage.run(f"send {AS_SENT} vault/week@s6", show=False)
    stage.compare(made, stream("week-full-s6"), "the full stream that the kernel sends for it")
    made = stage.run(f"send {AS_SENT} -i @s0 vault/week@s6", show=False)
    stage.compare(made, stream("week-inc-s0-s6"), "the kernel's increment: it never came here")


def _compact(stage: DemoShell) -> None:
    from zkeep.pool.datasets.registry import Registry
    from zkeep.pool.maintenance.compact import compact

    stage.title("The disk has the space back, and nothing else has changed")
    with Registry(stage.folder).open("vault") as pool:
        skipped = compact(pool).skipped
    if skipped:
        raise Damaged(f"demo: compaction left something undone: {skipped[0]}")
    stage.passed(
        f"{nice_bytes(stage.noted)} of segments became {nice_bytes(_segment_bytes(stage.folder))} by compaction"
    )
    _compare_week(stage)
    _scrub(stage)


def _scrub(stage: DemoShell) -> None:
    stage.run("pool scrub vault", "zpool scrub zbackups")


def _segment_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "vault" / "segments").rglob("*.seg"))


def _emergency(stage: DemoShell) -> None:
    """The key comes; what is read is compared with what the source's kernel showed."""
    from zkeep.cli.demo.shell import call

    top, newest = "vault/jambon", "vault/jambon/blanc@work-of-the-day"
    key = stage.folder / "key"
    _write_key(key, data("jambon.key"))
    stage.title("The emergency: the key comes, and the files are there, without ZFS")
    stage.prompt = ANYWHERE
    stage.run(f"get -o property,value keystatus {top}", f"zfs get keystatus {MIRROR}")
    stage.run(f"set keylocation=file://{key} {top}", f"zfs set keylocation=file:///... {MIRROR}")
    try:
        stage.run(f"load-key {top}", f"zfs load-key {MIRROR}")
        stage.run(f"get -o property,value keystatus {top}", f"zfs get keystatus {MIRROR}")
        # Authenticate before reading: then what is extracted is what the source had.
        stage.run(f"verify -v {newest}")
        stage.run(f"ls -l {newest}", "ls -l /zbackups/encrypted/jambon/blanc")
        stage.run(f"extract -C {stage.folder}/restored {newest}", show=False)
        stage.run(f"unload-key {top}", f"zfs unload-key {MIRROR}")
    finally:
        # Even if a step fails, the key must not stay in an agent.
        call(f"unload-key {top}")
    count = _check_files(stage.folder / "restored")
    stage.passed(f"{count} files, another-file among them, have the source's SHA-256")


def _check_files(folder: Path, without: str = "") -> int:
    """Compare the files of blanc with what the source's kernel showed; how many they are.

    Raises:
        Damaged: one differs.
    """
    import hashlib
    import json

    wanted = {path: told for path, told in json.loads(data("jambon-blanc.sha256.json")).items() if path != without}
    for path, digest in wanted.items():
        if hashlib.sha256((folder / path).read_bytes()).hexdigest() != digest:
            raise Damaged(f"demo: {path} is not what it was at the source")
    return len(wanted)


YEARS = "2018", "2019", "2020", "migration"
"Snapshots of the dataset that was in clear."


def _migration(stage: DemoShell) -> None:
    """A dataset in clear, with its snapshots, becomes an encrypted one; that leaves raw for the blind server."""
    from zkeep.cli.demo.shell import SERVER, call

    folder, key = stage.folder, stage.folder / "home.key"
    _write_key(key, os.urandom(32))
    stage.title("Years in clear become encrypted, snapshot by snapshot, without a second ZFS")
    stage.prompt = PRODUCTION
    stage.run(f"pool create home {folder}/home-pool")
    try:
        # The dataset as it was for years
        stage.run("create -o blind=off home/blanc", show=False)
        for each in YEARS:
            stage.quietly("receive -F home/blanc", stream(f"jambon-blanc-plain-{each}"))
        if not _holding(stage.folder / "home-pool", b"ledger.csv"):
            raise Damaged("demo: what is in clear is not found in clear")
        options = f"-o encryption=on -o keyformat=raw -o keylocation=file://{key}"
        stage.run(f"create {options} home/encrypted", "zfs create -o encryption=on ... zdata/encrypted")
        # The first stream in full, each year after it as an increment.
        for before, year in zip(("", *YEARS), YEARS, strict=False):
            send = f"send -i @{before} home/blanc@{year}" if before else f"send -R home/blanc@{year}"
            _piped(stage, send, f"receive {'-F' if before else '-x encryption'} home/encrypted/blanc")
        stage.run("list -t snapshot -r -o name,used,refer home", "zfs list -t snapshot")
        stage.run("destroy -r home/blanc", "zfs destroy -r zdata/jambon/blanc")
        stage.run("set mountpoint=/srv/blanc home/encrypted/blanc", "zfs set mountpoint=...")
        _piped(stage, "send -Rw home/encrypted/blanc@2020", "receive vault/moved", "ssh server ")
        _piped(stage, "send -w -i @2020 home/encrypted/blanc@migration", "receive vault/moved", "ssh server ")
    finally:
        call("unload-key -a")
    _moved(stage, SERVER, key)


def _piped(stage: DemoShell, send: str, receive: str, over: str = "") -> None:
    """One snapshot, or several, from a dataset to another."""
    made = stage.run(f"{send} | {over}zkeep {receive}", show=False, runs=send)
    stage.quietly(receive, made)


def _moved(stage: DemoShell, server: str, key: Path) -> None:
    stage.prompt = server
    stage.run("get -o property,value encryption,keystatus vault/moved")
    for name in ("home-pool", "vault"):
        if found := _holding(stage.folder / name, b"ledger.csv"):
            raise Damaged(f"demo: {found[0]} has a file's name in clear")
    stage.passed("no file's name is in clear in any file of either pool")
    stage.prompt = ANYWHERE
    back = stage.folder / "moved"
    stage.run(f"extract -L file://{key} -C {back} vault/moved@migration", show=False)
    count = _check_files(back, without="another-file")
    stage.passed(f"{count} files have the SHA-256 that they had in clear")


def _holding(folder: Path, word: bytes) -> list[Path]:
    """The files below a folder that have a word in them."""
    return [path for path in folder.rglob("*") if path.is_file() and word in path.read_bytes()]


def _write_key(path: Path, key: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(key)


def _without_zfs(stage: DemoShell) -> None:
    """A folder of a machine without ZFS: stored encrypted, sent to the blind server, and restored with the key."""
    from zkeep.cli.demo.shell import SERVER, call

    site, key, back = (stage.folder / name for name in ("site", "site.key", "back"))
    site.mkdir()
    _write(site, {"index.html": b"<h1>open</h1>\n", "orders.db": os.urandom(2 << 20), "log": b"started\n" * 9})
    _write_key(key, os.urandom(32))
    stage.title("A production server without ZFS is a source, too")
    stage.prompt = PRODUCTION
    stage.run(f"pool create local {stage.folder}/local")
    try:
        options = f"-o encryption=on -o keyformat=raw -o keylocation=file://{key}"
        stage.run(f"create {options} local/site", "zfs create -o encryption=on ... zdata/site")
        _day(stage, site, "monday", "send -w local/site@monday")
        # A day later a little has changed in a large file: the increment is small.
        with (site / "orders.db").open("r+b") as orders:
            orders.seek(1 << 20)
            orders.write(b"one more order")
        _write(site, {"index.html": b"<h1>closed</h1>\n"})
        _day(stage, site, "tuesday", "send -w -i @monday local/site@tuesday")
        stage.run("unload-key local/site", "zfs unload-key zdata/site")
    finally:
        call("unload-key local/site")
    stage.prompt = SERVER
    stage.run("get -o property,value encryption,keystatus vault/site")
    stage.title("It burned down as well: the key, and any machine")
    stage.prompt = ANYWHERE
    stage.run(f"extract -L file://{key} -C {back} vault/site@tuesday")
    for path in sorted(site.iterdir()):
        if (back / path.name).read_bytes() != path.read_bytes():
            raise Damaged(f"demo: {path.name} is not what it was at the source")
    stage.passed("every file is as it was; and zfs receive takes the same streams")


def _day(stage: DemoShell, site: Path, name: str, send: str) -> None:
    """One snapshot of the folder, and its way to the server."""
    stage.run(f"snapshot -v --from {site} local/site@{name}")
    made = stage.run(f"{send} | ssh server zkeep receive vault/site", show=False, runs=send)
    stage.quietly("receive vault/site", made)
    stage.passed(f"{nice_bytes(len(made))} sent, encrypted before they left")


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
