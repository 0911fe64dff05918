"""The long matrix of snapshots made here: `python tests/interop --long -k test_matrix`.

The kernel receives, mounts and shows every snapshot as the folder was; sends the same records; writes on every kind of
object; and finds no fault, nor does zdb.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from hashlib import md5
from itertools import combinations, product
from itertools import pairwise as successive
from pathlib import Path

import pytest
from lab import RAW, Key, Lab, assert_same, long
from sourcekit import Folder, create, same_records

pytestmark = long

SUITES = [f"aes-{bits}-{mode}" for mode in ("gcm", "ccm") for bits in (256, 128, 192)]
COMPRESSIONS = ["lz4", "zstd", "zstd-19", "zstd-fast-10", "gzip-9", "gzip-1", "zle", "off"]
RECORDSIZES = ["128K", "512", "1K", "4K", "16K", "64K", "1M"]
XATTRS = ["sa", "on"]
Case = tuple[str, ...]


def pairwise(*factors: list[str]) -> list[Case]:
    """Cases in which every two values of two factors meet."""
    columns = combinations(range(len(factors)), 2)
    left = {((a, x), (b, y)) for a, b in columns for x, y in product(factors[a], factors[b])}
    dice, cases = random.Random(1), []
    while left:
        tries = []
        for _ in range(40):
            (a, x), (b, y) = dice.choice(sorted(left))
            case = [dice.choice(values) for values in factors]
            case[a], case[b] = x, y
            tries.append(tuple(case))
        best = max(tries, key=lambda case: len(_pairs(case) & left))
        left -= _pairs(best)
        cases.append(best)
    return cases


def _pairs(case: Case) -> set[tuple[tuple[int, str], tuple[int, str]]]:
    return {((a, case[a]), (b, case[b])) for a, b in combinations(range(len(case)), 2)}


def taken(lab: Lab, folder: Folder, turns: int, dataset: str = "v/src", count: int = 25) -> None:
    for turn in range(turns):
        folder.work(50 if turn == 0 else count)
        folder.snapshot(dataset)


def judge(lab: Lab, folder: Folder, key: Key, dataset: str = "src", kept: list[int] | None = None) -> None:
    """Everything that the kernel can say of a dataset `v/DATASET`, whose snapshots are s0, s1, ... or those `kept`."""
    numbers = kept or list(range(len(folder.trees)))
    names = [f"s{number}" for number in numbers]
    ours, theirs = f"v/{dataset}", f"back/{dataset}"
    # Full and increments: every snapshot is what the folder was.
    lab.send("full.zfs", "-w", f"{ours}@{names[0]}")
    lab.kernel_takes("full.zfs", theirs)
    if len(names) > 1:
        lab.send("rest.zfs", "-w", "-I", f"@{names[0]}", f"{ours}@{names[-1]}")
        lab.kernel_takes("rest.zfs", theirs)
    lab.kernel_opens(theirs, key)
    for number, got in zip(numbers, lab.seen([f"{theirs}@{name}" for name in names]), strict=True):
        assert_same(f"{theirs}@s{number}", got, folder.trees[number])
    # What the kernel sends of it again has the same records.
    lab.kernel_sends("theirs.zfs", f"-w {theirs}@{names[-1]}")
    lab.send("ours.zfs", "-w", f"{ours}@{names[-1]}")
    same_records(lab, "ours.zfs", "theirs.zfs")
    for before, name in successive(names):
        lab.kernel_sends("theirs.zfs", f"-w -i @{before} {theirs}@{name}")
        lab.send("ours.zfs", "-w", "-i", f"@{before}", f"{ours}@{name}")
        same_records(lab, "ours.zfs", "theirs.zfs", frees=False)
    write_on(lab, theirs)


def write_on(lab: Lab, dataset: str) -> None:
    """The kernel changes every kind of object, scrubs clean, and can remove all of it; zdb finds no fault."""
    lab.guest.run(f"python3 /mnt/every.py change /{dataset}")
    lab.guest.work(1, 40, f"/{dataset}")
    lab.guest.run(f"zfs snapshot {dataset}@after && zpool sync back")
    lab.kernel_finds_no_fault()
    zdb(lab, dataset)
    lab.guest.run(f"python3 /mnt/every.py remove /{dataset} && zpool sync back")
    lab.kernel_finds_no_fault()


def zdb(lab: Lab, dataset: str) -> None:
    """All objects, as far as zdb looks at them without the key."""
    command = f"command -v zdb >/dev/null || exit 0; zdb -dddd {dataset}@after 2>&1 >/dev/null"
    answer = lab.guest.call(command, timeout=90)
    complaints = [line for line in answer.err.splitlines() + answer.out.splitlines() if "failed to hold" not in line]
    assert answer.status == 0, answer
    assert not [line for line in complaints if "error" in line.lower() or "assert" in line.lower()], complaints[:5]


@pytest.mark.parametrize("case", pairwise(SUITES, COMPRESSIONS, RECORDSIZES, XATTRS), ids="-".join)
def test_matrix_of_options(lab: Lab, case: Case) -> None:
    suite, compression, recordsize, xattr = case
    key = lab.key(RAW)
    options = f"encryption={suite}", f"compression={compression}", f"recordsize={recordsize}", f"xattr={xattr}"
    create(lab, "v/src", key, *options)
    folder = Folder(lab, seed=len("".join(case)) * 100)
    taken(lab, folder, 3)
    judge(lab, folder, key)
    lab.zkeep("unload-key", "v/src")


@pytest.mark.parametrize("recordsize", ["4M", "16M"])
def test_matrix_of_the_largest_records(lab: Lab, recordsize: str) -> None:
    """Larger than a kernel of 2.1 makes; what it takes is up to a parameter of its module."""
    most = lab.guest.run("cat /sys/module/zfs/parameters/zfs_max_recordsize")
    if int(most) < 16 << 20:
        lab.guest.run("echo 16777216 > /sys/module/zfs/parameters/zfs_max_recordsize")
    key = lab.key(RAW)
    create(lab, "v/src", key, f"recordsize={recordsize}")
    folder = Folder(lab, seed=7)
    folder.work(30)
    (folder.path / "large").write_bytes(os.urandom(40 << 20))
    folder.snapshot("v/src")
    with (folder.path / "large").open("r+b") as sink:
        sink.seek(17 << 20)
        sink.write(b"changed")
    folder.snapshot("v/src")
    judge(lab, folder, key)
    lab.zkeep("unload-key", "v/src")


@pytest.mark.parametrize("seed", range(4))
def test_matrix_of_steps_in_the_middle_of_a_file(lab: Lab, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Large files that are cut by steps, while they grow, shrink, and get holes."""
    dice = random.Random(seed)
    key = lab.key(RAW)
    create(lab, "v/src", key, f"recordsize={dice.choice(['128K', '16K'])}")
    folder = Folder(lab, seed=1000 + seed)
    for turn in range(4):
        folder.work(25)
        for number in range(2):
            path = folder.path / f"large{number}"
            with path.open("r+b" if path.exists() else "wb") as sink:
                sink.seek(dice.choice([0, 100_000, 5 << 20]))
                sink.write(os.urandom(dice.choice([1 << 20, 6 << 20])))
                if turn and dice.random() < 0.5:
                    sink.truncate(dice.choice([3 << 20, 9 << 20]))
        monkeypatch.setenv("ZKEEP_STEP", dice.choice(["500000", "2000000", "5000000"]))
        folder.snapshot("v/src")
    monkeypatch.delenv("ZKEEP_STEP")
    judge(lab, folder, key)
    lab.zkeep("unload-key", "v/src")


def test_matrix_of_200_increments_in_a_row(lab: Lab) -> None:
    key = lab.key(RAW)
    create(lab, "v/src", key)
    folder = Folder(lab, seed=5)
    looked_at = {}
    for number in range(201):
        if number in (0, 1, 50, 100, 150, 200):
            folder.work(20)
            folder.trees = [{}] * number
            folder.snapshot("v/src")
            looked_at[number] = folder.trees[-1]
            continue
        (folder.path / f"day{number % 10}").write_bytes(os.urandom(number * 100))
        lab.zkeep("snapshot", "--from", str(folder.path), f"v/src@s{number}")
    lab.send("full.zfs", "-w", "v/src@s0")
    lab.send("rest.zfs", "-w", "-I", "@s0", "v/src@s200")
    lab.kernel_takes("full.zfs", "back/src")
    lab.kernel_takes("rest.zfs", "back/src")
    lab.kernel_opens("back/src", key)
    names = [f"back/src@s{number}" for number in looked_at]
    for name, got, want in zip(names, lab.seen(names), looked_at.values(), strict=True):
        assert_same(name, got, want)
    lab.kernel_sends("theirs.zfs", "-w back/src@s200")
    lab.send("ours.zfs", "-w", "v/src@s200")
    same_records(lab, "ours.zfs", "theirs.zfs")
    write_on(lab, "back/src")
    lab.zkeep("unload-key", "v/src")


def test_matrix_of_children_in_one_stream(lab: Lab) -> None:
    """A parent, children that inherit its root, and one that is a root itself: -R in full, and -R -I."""
    key, other = lab.key(RAW), lab.key(RAW)
    create(lab, "v/top", key)
    lab.zkeep("create", "v/top/one")
    lab.zkeep("create", "v/top/one/two")
    create(lab, "v/top/root", other)
    places = ["top", "top/one", "top/one/two", "top/root"]
    folders = []
    for number in range(len(places)):
        (lab.folder / f"tree{number}").mkdir()
        folders.append(Folder(lab, seed=50 * number, name=f"tree{number}/source"))
    for _ in range(3):
        for place, folder in zip(places, folders, strict=True):
            folder.work(15)
            folder.snapshot(f"v/{place}")
    lab.send("full.zfs", "-Rw", "v/top@s0")
    lab.send("rest.zfs", "-Rw", "-I", "@s0", "v/top@s2")
    lab.kernel_takes("full.zfs", "back/top")
    lab.kernel_takes("rest.zfs", "back/top")
    roots = lab.guest.run("zfs get -H -o value -r -t filesystem encryptionroot back/top").splitlines()
    assert sorted(roots) == ["back/top", "back/top", "back/top", "back/top/root"]
    lab.kernel_opens("back/top", key, other)
    for place, folder in zip(places, folders, strict=True):
        names = [f"back/{place}@s{turn}" for turn in range(3)]
        for name, got, want in zip(names, lab.seen(names), folder.trees, strict=True):
            assert_same(name, got, want)
        lab.guest.work(3, 20, f"/back/{place}")
    lab.kernel_finds_no_fault()
    lab.zkeep("unload-key", "-r", "v/top")


@pytest.mark.parametrize("seed", range(3))
def test_matrix_after_pruning(lab: Lab, seed: int) -> None:
    """Some of eight snapshots are destroyed; the others are still what they were, at both ends."""
    key = lab.key(RAW)
    create(lab, "v/src", key)
    folder = Folder(lab, seed=200 + seed)
    taken(lab, folder, 8)
    gone = random.Random(seed).sample(range(7), 4)
    for number in gone:
        lab.zkeep("destroy", f"v/src@s{number}")
    lab.zkeep("pool", "compact", "v")
    judge(lab, folder, key, kept=[number for number in range(8) if number not in gone])
    lab.zkeep("unload-key", "v/src")


def test_matrix_without_contents(lab: Lab) -> None:
    """A dataset that keeps no contents: each increment is made without those before, and the kernel has all of it."""
    key = lab.key(RAW)
    create(lab, "v/src", key)
    folder = Folder(lab, seed=77)
    for turn in range(5):
        folder.work(50 if turn == 0 else 25)
        folder.snapshot("v/src")
        words = [f"v/src@s{turn}"] + (["-i", f"@s{turn - 1}"] if turn else [])
        lab.send("part.zfs", "-w", *words)
        lab.kernel_takes("part.zfs", "back/src")
        lab.zkeep("set", "contents=metadata", f"v/src@s{turn}")
        lab.zkeep("pool", "compact", "v")
        if turn == 2:
            lab.zkeep("destroy", "v/src@s1")
            lab.zkeep("pool", "compact", "v")
    lab.kernel_opens("back/src", key)
    names = [f"back/src@s{turn}" for turn in range(5)]
    for name, got, want in zip(names, lab.seen(names), folder.trees, strict=True):
        assert_same(name, got, want)
    write_on(lab, "back/src")
    lab.zkeep("unload-key", "v/src")


def test_matrix_with_healed_records(lab: Lab) -> None:
    """Some records of every segment are damaged, and healed from what was sent before."""
    key = lab.key(RAW)
    create(lab, "v/src", key)
    folder = Folder(lab, seed=31)
    taken(lab, folder, 2)
    lab.send("good0.zfs", "-w", "v/src@s0")
    lab.send("good1.zfs", "-w", "-i", "@s0", "v/src@s1")
    for path in sorted((lab.folder / "v" / "segments").rglob("*.seg")):
        _damage(path)
    assert lab.call("pool", "scrub", "v").status == 3
    for turn in range(2):
        lab.zkeep("receive", "-c", f"v/src@s{turn}", given=lab.share / f"good{turn}.zfs")
    lab.zkeep("pool", "scrub", "v")
    judge(lab, folder, key)
    lab.zkeep("unload-key", "v/src")


def _damage(path: Path) -> None:
    """Change bytes of the first third of a segment, where records are."""
    content = bytearray(path.read_bytes())
    for at in (len(content) // 5, len(content) // 3):
        content[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def _large_xattrs(path: Path) -> None:
    """More than a spill block holds: they get a folder of their own. Only some file systems take so much."""
    for number in range(5):
        os.setxattr(path, f"user.large{number}", os.urandom(30_000))


def _flags(path: Path) -> None:
    for number, flag in enumerate("iad"):
        file = path.with_name(f"flag-{flag}")
        file.write_bytes(b"x" * number)
        subprocess.run(["chattr", f"+{flag}", file], check=True, capture_output=True)


def _shown_flags(lab: Lab) -> list[str]:
    """The flags of the three files, as lsattr of the kernel shows them."""
    lines = lab.guest.run("lsattr /back/src/flag-*").splitlines()
    return ["".join(letter for letter in line.split()[0] if letter in "iad") for line in lines]


@pytest.mark.parametrize("xattr", XATTRS)
def test_matrix_of_xattr_folders(lab: Lab, xattr: str) -> None:
    _with_odd_files(lab, _large_xattrs, xattr)


def test_matrix_of_file_flags(lab: Lab) -> None:
    _with_odd_files(lab, _flags, "sa")


def _with_odd_files(lab: Lab, make: Callable[[Path], None], xattr: str) -> None:
    key = lab.key(RAW)
    create(lab, "v/src", key, f"xattr={xattr}")
    place = Path("/dev/shm") / lab.folder.name if make is _large_xattrs and Path("/dev/shm").is_dir() else lab.folder
    place.mkdir(exist_ok=True)
    folder = Folder(lab, seed=3, place=place / "source")
    try:
        folder.work(20)
        (folder.path / "odd").write_bytes(b"it is odd")
        try:
            make(folder.path / "odd")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"this file system cannot have that: {error}")
        folder.snapshot("v/src")
        (folder.path / "odd").write_bytes(b"it changed")
        folder.snapshot("v/src")
        lab.send("full.zfs", "-w", "v/src@s0")
        lab.send("rest.zfs", "-w", "-i", "@s0", "v/src@s1")
        lab.kernel_takes("full.zfs", "back/src")
        lab.kernel_takes("rest.zfs", "back/src")
        lab.kernel_opens("back/src", key)
        names = ["back/src@s0", "back/src@s1"]
        for name, got, want in zip(names, lab.seen(names), folder.trees, strict=True):
            assert_same(name, got, want)
        if make is _flags:
            assert _shown_flags(lab) == ["a", "d", "i"]
        write_on(lab, "back/src")
    finally:
        subprocess.run(["chattr", "-R", "-i", "-a", folder.path], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", folder.path], check=False)
        lab.zkeep("unload-key", "v/src")


@pytest.mark.parametrize("blocksize", ["4K", "16K", "128K"])
def test_matrix_of_volumes(lab: Lab, blocksize: str) -> None:
    """Random writes, holes and steps; some snapshots pruned; the kernel writes on."""
    key = lab.key(RAW)
    words = ("-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation={key.outside}")
    lab.zkeep("create", *words, "-V", "32M", "-b", blocksize, "v/disk")
    dice, image, want = random.Random(int(blocksize[:-1])), lab.folder / "disk.img", {}
    image.write_bytes(b"")
    for turn in range(6):
        with image.open("r+b") as sink:
            sink.truncate(32 << 20)
            for _ in range(12):
                sink.seek(dice.randrange(30 << 20))
                sink.write(dice.choice([dice.randbytes(100_000), bytes(200_000), b"text " * 9000]))
        lab.zkeep("snapshot", "--from", str(image), f"v/disk@s{turn}")
        want[turn] = md5(image.read_bytes(), usedforsecurity=False).hexdigest()
    for turn in (1, 3):
        lab.zkeep("destroy", f"v/disk@s{turn}")
        del want[turn]
    lab.zkeep("pool", "compact", "v")
    lab.send("full.zfs", "-w", "v/disk@s0")
    lab.send("rest.zfs", "-w", "-I", "@s0", "v/disk@s5")
    lab.kernel_takes("full.zfs", "back/disk")
    lab.kernel_takes("rest.zfs", "back/disk")
    lab.guest.run(f"zfs load-key -L {key.inside} back/disk && zfs set snapdev=visible back/disk")
    for turn, digest in want.items():
        device = lab.guest.device(f"back/disk@s{turn}")
        assert lab.guest.run(f"md5sum < {device}").split()[0] == digest
    lab.kernel_sends("theirs.zfs", "-w back/disk@s5")
    lab.send("ours.zfs", "-w", "v/disk@s5")
    same_records(lab, "ours.zfs", "theirs.zfs", frees=False)
    lab.guest.work(5, 40, lab.guest.device("back/disk"))
    lab.kernel_finds_no_fault()
    lab.zkeep("unload-key", "v/disk")
