"""System calls, each in a folder of its own, by root and by an ordinary user: what comes of them, and what changes."""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from ctypes import CDLL, get_errno
from functools import partial
from pathlib import Path
from typing import Any

ROOT, NOBODY, SOMEBODY, GROUP = 0, 65534, 1000, 100
"Users, and a group that the ordinary user (NOBODY) is in as well as in its own."
OLD = 1_000_000_000_000_000_000
AT_FDCWD, NOW, OMIT = -100, (1 << 30) - 1, (1 << 30) - 2
Call = Callable[[str], object]
Case = tuple[str, Callable[[str], None], Call]
"A name, what makes its folder (root does), and the call."


def _opened(path: str, flags: int, then: Callable[[int], object] = lambda fd: None, mode: int = 0o6777) -> object:
    fd = os.open(path, flags, mode)
    try:
        return then(fd)
    finally:
        os.close(fd)


def _libc(name: str, *arguments: object) -> int:
    result: int = getattr(CDLL(None, use_errno=True), name)(*arguments)
    if result < 0:
        raise OSError(get_errno(), name)
    return result


def _run(path: str) -> None:
    os.execv(path, ["x"])  # it is a text, which no kernel runs


def _renameat2(old: str, new: str, flags: int) -> None:
    _libc("renameat2", AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


def _times(path: str, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    from ctypes import c_long

    _libc("utimensat", AT_FDCWD, os.fsencode(path), (c_long * 4)(*atime, *mtime), 0)


# What lies in the folder of a case


def _put(top: str, name: str, kind: str, mode: int, owner: int, group: int) -> None:
    path = f"{top}/{name}"
    makers: dict[str, Callable[[], object]] = {
        "file": lambda: _opened(path, os.O_CREAT | os.O_WRONLY, lambda fd: os.write(fd, b"content"), 0o600),
        "dir": lambda: os.mkdir(path),
        "full": lambda: (os.mkdir(path), os.mkdir(f"{path}/in")),
        "link": lambda: os.symlink("target", path),
        "fifo": lambda: os.mkfifo(path),
        "socket": lambda: os.mknod(path, stat.S_IFSOCK | 0o600),
        "device": lambda: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    }
    makers[kind]()
    os.chown(path, owner, group, follow_symlinks=False)
    if kind != "link":
        os.chmod(path, mode)


def _folder(mode: int, owner: int, group: int, *things: tuple[str, str, int, int, int]) -> Callable[[str], None]:
    def make(top: str) -> None:
        os.mkdir(top)
        for thing in things:
            _put(top, *thing)
        os.chown(top, owner, group)
        os.chmod(top, mode)

    return make


FOLDERS = [(0o755, ROOT, ROOT), (0o777, ROOT, ROOT), (0o1777, ROOT, GROUP), (0o2777, ROOT, GROUP), (0o2777, ROOT, 7)]
OPEN = FOLDERS[1]
KINDS = ("file", "dir", "full", "link", "fifo", "socket", "device")


def _making() -> Iterator[Case]:
    makers: dict[str, Call] = {
        "create": lambda top: _opened(f"{top}/new", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        "mkdir": lambda top: os.mkdir(f"{top}/new", 0o7777),
        "mkfifo": lambda top: os.mkfifo(f"{top}/new", 0o6666),
        "socket": lambda top: os.mknod(f"{top}/new", stat.S_IFSOCK | 0o2777),
        "device": lambda top: os.mknod(f"{top}/new", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
        "symlink": lambda top: os.symlink("somewhere", f"{top}/new"),
        "link": lambda top: os.link(f"{top}/old", f"{top}/new"),
        "nameless": lambda top: _opened(top, os.O_TMPFILE | os.O_WRONLY, lambda fd: _mode(os.fstat(fd))),
    }
    for (name, call), folder in itertools.product(makers.items(), FOLDERS):
        yield f"{name} in {folder[0]:o}:{folder[2]}", _folder(*folder, ("old", "file", 0o666, SOMEBODY, 7)), call
    for (name, call), kind in itertools.product(makers.items(), KINDS):
        make = _folder(*OPEN, ("new", kind, 0o777, NOBODY, GROUP), ("old", "file", 0o666, 0, 0))
        yield f"{name} over {kind}", make, call
    for kind, owner in itertools.product(KINDS, (NOBODY, SOMEBODY)):
        make = _folder(*OPEN, ("old", kind, 0o600, owner, 7))
        yield f"link of {kind} of {owner}", make, lambda top: os.link(f"{top}/old", f"{top}/new", follow_symlinks=False)


def _removing() -> Iterator[Case]:
    for kind, owner, folder in itertools.product(KINDS, (NOBODY, SOMEBODY), FOLDERS[:3]):
        make = _folder(*folder, ("old", kind, 0o777, owner, 7))
        yield f"unlink {kind} of {owner} in {folder[0]:o}", make, lambda top: os.unlink(f"{top}/old")
        yield f"rmdir {kind} of {owner} in {folder[0]:o}", make, lambda top: os.rmdir(f"{top}/old")
    with_link = _folder(*OPEN, ("old", "file", 0o666, ROOT, ROOT))
    yield "unlink of two names", with_link, lambda top: (os.link(f"{top}/old", f"{top}/two"), os.unlink(f"{top}/old"))


def _renaming() -> Iterator[Case]:
    for old, new, flags in itertools.product(KINDS, (*KINDS, ""), (0, 1, 2)):
        things = [("old", old, 0o777, NOBODY, GROUP)] + ([("new", new, 0o777, NOBODY, GROUP)] if new else [])
        call = partial(lambda flags, top: _renameat2(f"{top}/old", f"{top}/new", flags), flags)
        yield f"rename {old} over {new or 'nothing'} {flags}", _folder(*OPEN, *things), call
    modes = (0o755, 0o777, 0o1777, 0o2777)
    for kind, owner, into in itertools.product(("file", "dir", "link"), (NOBODY, SOMEBODY), modes):
        things = [("old", kind, 0o755, owner, 7), ("to", "dir", into, SOMEBODY, GROUP)]
        for folder in (OPEN, FOLDERS[2]):
            yield (
                *(f"rename {kind} of {owner} from {folder[0]:o} into {into:o}", _folder(*folder, *things)),
                lambda top: os.rename(f"{top}/old", f"{top}/to/new"),
            )
            inside = _folder(*folder, ("to", "dir", into, SOMEBODY, GROUP), ("to/new", kind, 0o755, owner, 7))
            name = f"rename {kind} of {owner} from {into:o} into {folder[0]:o}, above"
            yield name, inside, lambda top: os.rename(f"{top}/to/new", f"{top}/old")


def _attributes() -> Iterator[Case]:
    modes = (0o6777, 0o2755, 0o1777, 0o4711, 0)
    for kind, owner, mode in itertools.product(("file", "dir", "fifo"), (NOBODY, SOMEBODY), modes):
        make = _folder(*OPEN, ("it", kind, 0o777, owner, 7))
        yield f"chmod {kind} of {owner} {mode:o}", make, partial(lambda mode, top: os.chmod(f"{top}/it", mode), mode)
    ids = ((-1, -1), (NOBODY, -1), (-1, GROUP), (-1, NOBODY), (SOMEBODY, -1), (-1, 7), (NOBODY, GROUP), (ROOT, ROOT))
    every = itertools.product(("file", "dir", "link"), (NOBODY, SOMEBODY), (0o6777, 0o6666), ids)
    for kind, owner, mode, (uid, gid) in every:
        make = _folder(*OPEN, ("it", kind, mode, owner, 7))
        call: Call = partial(lambda u, g, top: os.chown(f"{top}/it", u, g, follow_symlinks=False), uid, gid)
        yield f"chown {kind} {mode:o} of {owner} to {uid}:{gid}", make, call
    some, now, omit = (5, 7), (0, NOW), (0, OMIT)
    times = [(a, m) for a in (some, now, omit) for m in (some, now, omit)] + [((0, 1 << 30), some)]
    for owner, mode, (a, m) in itertools.product((NOBODY, SOMEBODY), (0o644, 0o666), times):
        make = _folder(*OPEN, ("it", "file", mode, owner, 7))
        yield f"times {a} {m} of {owner} {mode:o}", make, partial(lambda a, m, top: _times(f"{top}/it", a, m), a, m)
    for kind, name in itertools.product(KINDS, ("user.a", "trusted.a", "security.a", "system.a", "none.a", "user.")):
        for owner in (NOBODY, SOMEBODY):
            make = _folder(*OPEN, ("it", kind, 0o644, owner, 7))
            call = partial(lambda n, top: os.setxattr(f"{top}/it", n, b"1", follow_symlinks=False), name)
            yield f"setxattr {name} of {kind} of {owner}", make, call
    for mode in (0o777, 0o1777):
        make = _folder(*OPEN, ("it", "dir", mode, SOMEBODY, 7))
        yield f"setxattr of a folder {mode:o}", make, lambda top: os.setxattr(f"{top}/it", "user.a", b"1")


def _contents() -> Iterator[Case]:
    read, write, both = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
    mods = (0, os.O_TRUNC, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_APPEND, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_PATH)
    for kind, flags, mod in itertools.product(("file", "dir", "link", "socket"), (read, write, both), mods):
        make = _folder(*OPEN, ("it", kind, 0o666, SOMEBODY, 7))
        call: Call = partial(lambda f, top: _opened(f"{top}/it", f), flags | mod)
        yield f"open {kind} {flags}|{mod:o}", make, call
    for owner, mode, (name, call) in itertools.product(
        *((NOBODY, SOMEBODY), (0o6777, 0o6666, 0o2767, 0o666, 0o644)),
        {
            "write": lambda top: _opened(f"{top}/it", write, lambda fd: os.write(fd, b"more")),
            "write nothing": lambda top: _opened(f"{top}/it", write, lambda fd: os.write(fd, b"")),
            "append": lambda top: _opened(f"{top}/it", write | os.O_APPEND, lambda fd: os.write(fd, b"more")),
            "truncate": lambda top: os.truncate(f"{top}/it", 3),
            "truncate to its size": lambda top: os.truncate(f"{top}/it", 7),
            "truncate beyond": lambda top: os.truncate(f"{top}/it", 1 << 40),
            "truncate below": lambda top: os.truncate(f"{top}/it", -1),
            "ftruncate": lambda top: _opened(f"{top}/it", write, lambda fd: os.ftruncate(fd, 3)),
            "O_TRUNC": lambda top: _opened(f"{top}/it", write | os.O_TRUNC),
            "allocate": lambda top: _opened(f"{top}/it", write, lambda fd: os.posix_fallocate(fd, 0, 9000)),
            "read": lambda top: _opened(f"{top}/it", read, lambda fd: os.read(fd, 3)),
            "copy": lambda top: _opened(f"{top}/it", both, lambda fd: os.copy_file_range(fd, fd, 3, 0, 7)),
        }.items(),
    ):
        yield f"{name} {mode:o} of {owner}", _folder(*OPEN, ("it", "file", mode, owner, 7)), call
    for kind in ("dir", "fifo", "link", "device"):
        make = _folder(*OPEN, ("it", kind, 0o777, NOBODY, 7))
        yield f"truncate {kind}", make, lambda top: os.truncate(f"{top}/it", 0)
    for bits in (0, 1, 2, 4, 5, 7):
        make = _folder(*OPEN, ("it", "dir", bits, SOMEBODY, 7))
        yield f"list a folder {bits}", make, lambda top: os.listdir(f"{top}/it")
        yield f"create in a folder {bits}", make, lambda top: _opened(f"{top}/it/new", os.O_CREAT | os.O_WRONLY)
        yield f"look into a folder {bits}", make, lambda top: os.stat(f"{top}/it/none")


def _names() -> Iterator[Case]:
    long, path = "n" * 255, "d/" * 2047
    makers: dict[str, Callable[[str], object]] = {
        "create": lambda name: _opened(name, os.O_CREAT | os.O_WRONLY),
        "mkdir": os.mkdir,
        "mkfifo": os.mkfifo,
        "symlink": lambda name: os.symlink("x", name),
        "unlink": os.unlink,
        "rmdir": os.rmdir,
        "stat": os.stat,
        "truncate": lambda name: os.truncate(name, 0),
        "chmod": lambda name: os.chmod(name, 0o777),
        "rename from": lambda name: os.rename(name, "/nowhere/else"),
    }
    names = (long, long + "n", "it/in", "it/", "none/", "loop/in", "loop", ".", "..", "it/.", "", path, "ä" * 127)
    for (verb, make), name in itertools.product(makers.items(), names):
        folder = _folder(*OPEN, ("it", "file", 0o666, NOBODY, NOBODY), ("loop", "link", 0, NOBODY, NOBODY))
        call: Call = partial(lambda make, name, top: make(f"{top}/{name}"), make, name)
        yield f"{verb} {name[:9]!r} {len(name)}", _looping(folder), call
    for size in (1, 254, 4094, 4095, 4096):
        yield f"symlink to {size}", _folder(*OPEN), partial(lambda s, top: os.symlink("x" * s, f"{top}/new"), size)
    busy = _folder(*OPEN, ("it", "file", 0o777, NOBODY, NOBODY))
    yield "run what is written to", busy, lambda top: _opened(f"{top}/it", os.O_WRONLY, lambda fd: _run(f"{top}/it"))
    below = _folder(*OPEN, ("it", "full", 0o777, NOBODY, NOBODY))
    yield "rename below itself", below, lambda top: os.rename(f"{top}/it", f"{top}/it/in/new")
    yield "rename over above", below, lambda top: os.rename(f"{top}/it/in", f"{top}/it")
    yield "rename to a slash", below, lambda top: os.rename(f"{top}/it", f"{top}/new/")
    yield "rmdir .", below, lambda top: os.rmdir(f"{top}/it/in/.")
    yield "rmdir ..", below, lambda top: os.rmdir(f"{top}/it/in/..")


def _looping(make: Callable[[str], None]) -> Callable[[str], None]:
    def made(top: str) -> None:
        make(top)
        os.unlink(f"{top}/loop")
        os.symlink("loop", f"{top}/loop")

    return made


def cases() -> list[Case]:
    return [*_making(), *_removing(), *_renaming(), *_attributes(), *_contents(), *_names()]


# Playing them


def _mode(status: os.stat_result) -> str:
    return f"{status.st_mode:o} {status.st_uid}:{status.st_gid}"


def _listed(top: str) -> dict[str, Any]:
    """All that is below a folder: how it is, and its times."""
    found = {}
    for path in [Path(top), *sorted(Path(top).rglob("*"))]:
        status = path.lstat()
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        what = [_mode(status), status.st_nlink, size, status.st_rdev]
        if stat.S_ISREG(status.st_mode):
            what.append(path.read_bytes().decode("latin-1") if size < 1 << 20 else "")
        times = [status.st_mtime_ns, status.st_ctime_ns, status.st_atime_ns]
        found[str(path.relative_to(top))] = (what, times)
    return found


def _outcome(call: Call, top: str) -> object:
    try:
        result = call(top)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    except ValueError as error:
        return str(error)
    return result if isinstance(result, int | str | list) else None


def _as_user(user: int, tops: list[str], calls: list[Call]) -> list[object]:
    """What comes of calls in these folders, in a process of this user."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.umask(0o022)
            if user:
                os.setgroups([GROUP])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
            results = [_outcome(call, top) for call, top in zip(calls, tops, strict=True)]
            with os.fdopen(writes, "w") as out:
                json.dump(results, out, default=str)
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as source:
        found: list[object] = json.load(source)
    os.waitpid(child, 0)
    return found


def play(top: Path, user: int, chosen: list[Case]) -> dict[str, object]:
    """What comes of each case, and what is there afterwards; of times only whether they are old, given or new."""
    top.mkdir()
    top.chmod(0o755)
    before = os.umask(0)
    tops = [str(top / str(number)) for number in range(len(chosen))]
    for (_, make, _), place in zip(chosen, tops, strict=True):
        make(place)
        for path in [Path(place), *Path(place).rglob("*")]:
            os.utime(path, ns=(OLD, OLD), follow_symlinks=False)
    os.umask(before)
    time.sleep(0.02)
    start = time.time_ns() - 10_000_000  # clocks of file systems tick every few milliseconds
    results = _as_user(user, tops, [call for _, _, call in chosen])
    found: dict[str, object] = {}
    for (name, _, _), place, result in zip(chosen, tops, results, strict=True):
        state = {
            path: (*what, *("new" if at > start else "ours" if at < 10 * 10**9 else "old" for at in times[:2]))
            for path, (what, times) in _listed(place).items()
        }
        found[name] = (result, state)
    return found
