"""Programs that work on a mounted dataset (ZKEEP_INTEROP=long): git, tar, rsync, make, PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from test_live_system_calls import mounted

from mountkit import needs_fuse

pytestmark = pytest.mark.skipif(os.environ.get("ZKEEP_INTEROP") != "long", reason="ZKEEP_INTEROP=long runs programs")
Zkeep = Callable[..., int]
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/none"))
PORT = "5998"


def do(*command: str | os.PathLike[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if not shutil.which(tool)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@needs_fuse
@needs("git")
def test_git(zkeep: Zkeep, tmp_path: Path) -> None:
    source = tmp_path / "source"
    do("git", "init", "-q", source)
    for number in range(200):
        (source / f"file {number}").write_text(f"{number}\n" * (number * 7 % 500))
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for part in range(4):
        do("git", "-C", source, "add", *(f"file {number}" for number in range(part, 200, 4)))
        do("git", "-C", source, *identity, "commit", "-qm", f"part {part}")
    with mounted(tmp_path) as (top, _):
        clone = top / "clone"
        do("git", "clone", "-q", "--no-local", source, clone)
        do("git", "-C", clone, "gc", "-q")
        do("git", "-C", clone, "checkout", "-q", "HEAD~2")
        do("git", "-C", clone, "checkout", "-q", "-")
        do("git", "-C", clone, "fsck", "--full", "--strict")
        assert do("git", "-C", clone, "status", "--porcelain") == ""


@needs_fuse
@needs("tar", "rsync")
def test_tar_and_rsync(zkeep: Zkeep, tmp_path: Path) -> None:
    source, archive = Path(os.__file__).parent, tmp_path / "archive.tar"
    do("tar", "-C", source, "--exclude=site-packages", "--exclude=__pycache__", "-cf", archive, ".")
    with mounted(tmp_path) as (top, _):
        folder = top / "from"
        (folder / "tar").mkdir(parents=True)
        os.link(_made(folder / "first"), folder / "second")
        os.setxattr(folder / "first", "user.note", b"kept")
        do("tar", "-C", folder / "tar", "-xpf", archive)
        do("tar", "-C", folder / "tar", "--compare", "-f", archive)
        do("rsync", "-aHAX", f"{folder}/", top / "copy")
        assert do("rsync", "-aHAXnci", "--delete", f"{folder}/", f"{top}/copy/") == ""
        assert os.stat(top / "copy" / "first").st_nlink == 2
    with mounted(tmp_path) as (top, _):
        do("tar", "-C", top / "copy" / "tar", "--compare", "-f", archive)


def _made(path: Path) -> Path:
    path.write_bytes(b"two names")
    return path


@needs_fuse
@needs("make", "gcc")
def test_make(zkeep: Zkeep, tmp_path: Path) -> None:
    with mounted(tmp_path) as (top, _):
        for number in range(20):
            (top / f"f{number}.c").write_text(f"int f{number}(void) {{ return {number}; }}\n")
        calls = " + ".join(f"f{number}()" for number in range(20))
        declared = "".join(f"int f{number}(void);\n" for number in range(20))
        (top / "main.c").write_text(f"{declared}int main(void) {{ return ({calls}) != 190; }}\n")
        objects = " ".join(f"f{number}.o" for number in range(20))
        (top / "Makefile").write_text(f"all: main\nmain: main.o {objects}\n\tgcc -o $@ $^\n")
        do("make", "-s", "-C", top, "-j2")
        do(top / "main")
        assert "up to date" in do("make", "-C", top, "main")


@needs_fuse
@pytest.mark.skipif(not (POSTGRES / "initdb").exists() or os.geteuid() != 0, reason="needs PostgreSQL, and root")
def test_postgresql_recovers_after_a_kill(zkeep: Zkeep, tmp_path: Path) -> None:
    """Every transaction that was acknowledged before the mount was killed is there."""
    user = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups")
    with open_to_others(tmp_path), mounted(tmp_path, "-o", "allow_other") as (top, process):
        data = top / "data"
        data.mkdir()
        shutil.chown(data, "postgres")
        do(*user, POSTGRES / "initdb", "-D", data, "-A", "trust")
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"unix_socket_directories='/tmp'\nport={PORT}\nlisten_addresses=''\n")
        server = subprocess.Popen([*user, POSTGRES / "postgres", "-D", data], stderr=subprocess.DEVNULL)
        _wait(user)
        _sql(user, "create table numbers(number int primary key)")
        for number in range(20):
            _sql(user, f"insert into numbers values({number})")
        process.kill()
        process.wait()
        server.kill()
        server.wait()
    with open_to_others(tmp_path), mounted(tmp_path, "-o", "allow_other") as (top, _):
        (top / "data" / "postmaster.pid").unlink(missing_ok=True)
        server = subprocess.Popen([*user, POSTGRES / "postgres", "-D", top / "data"], stderr=subprocess.DEVNULL)
        _wait(user)
        assert _sql(user, "select count(*), sum(number) from numbers") == "20|190\n"
        server.terminate()
        server.wait()


@contextmanager
def open_to_others(path: Path) -> Iterator[None]:
    """While this is held, every user may walk to a path, whatever the modes of the folders above are."""
    with ExitStack() as stack:
        for folder in (path, *path.parents):
            mode = folder.stat().st_mode & 0o7777
            if not mode & 0o001:
                stack.callback(folder.chmod, mode)
                folder.chmod(mode | 0o011)
        yield


def _sql(user: tuple[str, ...], text: str) -> str:
    return do(*user, "psql", "-h", "/tmp", "-p", PORT, "-Atqc", text, "postgres")


def _wait(user: tuple[str, ...]) -> None:
    """Return when the server answers."""
    command = [*user, str(POSTGRES / "pg_isready"), "-q", "-h", "/tmp", "-p", PORT]
    assert any(subprocess.run(command, check=False).returncode == 0 for _ in range(3000))
