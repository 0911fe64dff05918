"""The letters of send and receive that say what comes along: holds, properties, which datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from commandkit import Vault

STREAMS = Path(__file__).parents[1] / "data" / "streams"
FULL = STREAMS / "full-Rw.zfs"
TOP = "vault/j@to-remote-server"


class Box(Vault):
    """A pool that refuses without changing anything."""

    def refuses(self, line: str, *why: str, status: int = 1, stdin: bytes = b"") -> None:
        before = self("list -r -t all -o name,used")
        super().refuses(line, *why, status=status, stdin=stdin)
        assert self("list -r -t all -o name,used") == before

    def get(self, prop: str, name: str) -> list[str]:
        """Value and source, here and of what is received."""
        return self(f"get -H -o value,source,received {prop} {name}").decode().rstrip("\n").split("\t")

    def tree(self, name: str) -> list[str]:
        return [line[len(name) :] for line in self(f"list -H -r -o name {name}").decode().splitlines()]


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZKEEP_DEBUG", raising=False)
    return Box(tmp_path)


@pytest.fixture
def full(box: Box) -> Box:
    box("receive vault/j", FULL.read_bytes())
    return box


def test_holds_are_sent_and_set_where_both_sides_want_them(full: Box) -> None:
    full(f"hold kept {TOP}")
    for letters, wanted, there in (("-Rwh", "", True), ("-Rwh", "-h", False), ("-Rw", "", False), ("-wh", "", True)):
        target = f"vault/{letters[1:]}{wanted}"
        stream = full(f"send {letters} {TOP}")
        full(f"receive {wanted} {target}", stream)
        found = full(f"holds -H -p {target}@to-remote-server").decode().split("\t")
        assert found[1:2] == (["kept"] if there else []), letters
    full.refuses("destroy vault/wh@to-remote-server", "it is held (kept)")
    full("release kept vault/wh@to-remote-server")


def test_what_is_sent_of_properties(full: Box) -> None:
    full("set compression=zstd vault/j")
    full("inherit mountpoint vault/j")
    for letters, compression, mountpoint in (
        ("-wp", ["zstd", "received", "zstd"], ["/vault/p", "default", "-"]),
        ("-wb", ["on", "default", "-"], ["/zdata/jambon", "received", "/zdata/jambon"]),
        ("-wh", ["on", "default", "-"], ["/vault/h", "default", "-"]),
    ):
        target = f"vault/{letters[2:]}"
        full(f"receive {target}", full(f"send {letters} {TOP}"))
        assert full.get("compression", target) == compression, letters
        assert full.get("mountpoint", target) == mountpoint, letters


def test_datasets_are_left_out(full: Box) -> None:
    full("receive vault/a", full(f"send -Rw -X vault/j/pays,vault/j/blanc -X vault/j/none {TOP}"))
    assert full.tree("vault/a") == ["", "/bayonne", "/parme"]
    full.refuses(f"send -Rw -X vault {TOP}", "-X vault: not a valid non-root dataset name", status=2)
    full.refuses(f"send -w -X vault/j/pays {TOP}", "go with -R", status=2)


def test_a_snapshot_that_is_missing_below(full: Box) -> None:
    full("destroy vault/j/pays@to-remote-server")
    lacking = "cannot send vault/j@to-remote-server recursively: snapshot vault/j/pays@to-remote-server does not exist"
    full.refuses(f"send -Rw {TOP}", lacking)
    stream = full(f"send -Rws {TOP}", says="WARNING: skipping dataset vault/j/pays and its children: snapshot")
    full("receive vault/a", stream)
    assert full.tree("vault/a") == ["", "/bayonne", "/blanc", "/parme"]


def test_letters_that_only_have_to_be_understood(full: Box) -> None:
    plain = full(f"send -w {TOP}")
    assert full(f"send -wDVLec {TOP}") == plain
    assert b"Usage" in full("send --help")
    assert b"Usage" in full("receive --help")
    full.refuses("send -t 1-2-3-4 -h", "-t goes with no", status=2)
    full.refuses("receive -A -s vault/j", "-A goes with no other letter", status=2)


# -o and -x


def test_over_what_a_replication_brings(box: Box) -> None:
    """Set at the top and inherited below; what cannot be inherited is the top's alone."""
    stream = FULL.read_bytes()
    box("receive -o mountpoint=/m -o quota=1G -o a:b=c -x atime vault/j", stream)
    assert box.get("mountpoint", "vault/j") == ["/m", "local", "/zdata/jambon"]
    assert box.get("mountpoint", "vault/j/pays") == ["/m/pays", "inherited from vault/j", "-"]
    assert box.get("quota", "vault/j")[:2] == ["1G", "local"]
    assert box.get("quota", "vault/j/pays")[:2] == ["none", "default"]
    assert box.get("a:b", "vault/j/blanc")[:2] == ["c", "inherited from vault/j"]


def test_a_local_value_outlives_x(full: Box) -> None:
    full("set mountpoint=/mine vault/j")
    full("destroy -r vault/j/pays")
    full("destroy vault/j@to-remote-server")
    full("receive -F -x mountpoint vault/k", FULL.read_bytes())
    assert full.get("mountpoint", "vault/k") == ["/vault/k", "default", "/zdata/jambon"]
    full("inherit -S mountpoint vault/k")
    assert full.get("mountpoint", "vault/k")[:2] == ["/zdata/jambon", "received"]


@pytest.mark.parametrize(
    ("letters", "why"),
    [
        ("-x encryption", "encryption property 'encryption' cannot be set or excluded for raw streams"),
        ("-x keyformat", "encryption property 'keyformat' cannot be set or excluded for raw streams"),
        ("-o normalization=formC", "it is set once"),
        ("-o used=1", "it is read-only"),
        ("-o recordsize=3", "must be a power of 2"),
        ("-o nonsense=1", "there is none of this name"),
    ],
)
def test_what_cannot_be_set_while_receiving(box: Box, letters: str, why: str) -> None:
    box.refuses(f"receive {letters} vault/j", why, stdin=FULL.read_bytes())


def test_a_property_given_twice_is_refused(box: Box) -> None:
    for letters in ("-o atime=on -x atime", "-x atime -x atime"):
        box.refuses(f"receive {letters} vault/j", "property 'atime' specified multiple times", status=2)


def test_an_origin_may_be_named(full: Box) -> None:
    """Two snapshots would do as the origin; one of them is named."""
    full("receive vault/k", full(f"send -Rw {TOP}"))
    clone = full("send -w -i @2018 vault/j/blanc@2019")
    for name in ("vault/j/blanc@2018", "vault/k/blanc@2018"):
        target = f"vault/c{name[6]}"
        full(f"receive -o origin={name} {target}", clone)
        assert full.get("origin", target)[0] == name
    missing = "vault/j/blanc@none"
    full.refuses(f"receive -o origin={missing} vault/c", f"origin {missing} does not exist", stdin=clone)
    full.refuses("receive -o origin=vault/j/pays@migration vault/c", "is not the source of the stream", stdin=clone)
    plain = full(f"send -w {TOP}")
    full.refuses(f"receive -o origin={TOP} vault/c", "the stream is full, so it has nothing in common", stdin=plain)


def test_creating_says_what_it_does(full: Box) -> None:
    before = full("list -r -t all -o name,used")
    told = b"would create ancestors of vault/x/y\nwould create vault/x/y\n\ta:b=c\n"
    assert full("create -nv -p -o a:b=c vault/x/y") == told
    assert full("create -nP -o quota=1G vault/x") == b"create\tvault/x\nproperty\tquota\t1073741824\n"
    full.refuses("create -nv vault/j", "dataset already exists")
    assert full("list -r -t all -o name,used") == before
    assert full("create -v vault/x") == b"create vault/x\n"
    assert full.get("used", "vault/x")[0] == "0B"
    for letters in ("-V 1G", "-s -V 1G", "-b 8K -V 1G"):
        full.refuses(f"create {letters} vault/vol", "volumes come by 'zkeep receive'")


def test_bookmarks_of_a_whole_tree(full: Box) -> None:
    full("bookmark -r vault/j@to-remote-server vault/j#sent")
    found = full("list -H -r -t bookmark -o name vault/j").decode().split()
    assert found == [f"vault/j{name}#sent" for name in ("", "/bayonne", "/blanc", "/parme", "/pays")]
    full.refuses("bookmark -r vault/j/pays#sent vault/j/pays#again", "-r goes with a snapshot", status=2)
    full("destroy vault/j#sent")
    full.refuses("bookmark -r vault/j@to-remote-server vault/j#sent", "bookmark exists")


def test_pure() -> None:
    from zkeep.errors import Refused
    from zkeep.pool.transfer.overrides import Where, override
    from zkeep.pool.transfer.receive import ReceiveOptions

    def made(where: Where, **given: Any) -> tuple[dict[str, str | None], dict[str, str]]:
        received = {"atime": "off", "quota": "5", "x:y": "z"}
        return override(ReceiveOptions(**given), where, {"exec": "off"}, received), received

    top = Where("f", raw=True, top=True, recursive=True)
    below = Where("f", raw=True, top=False, recursive=True)
    volume = Where("v", raw=True, top=True, recursive=False)
    settings = {"atime": "on", "quota": "7", "x:y": "w", "origin": "a@b"}
    assert made(top, set_properties=settings)[0] == {"atime": "on", "quota": "7", "x:y": "w"}
    assert made(below, set_properties=settings)[0] == {"atime": None, "x:y": None}
    everything = ({"atime": "off", "quota": "5", "x:y": "z"}, {"atime": "off", "x:y": "z"})
    for where in (top, below):
        local, received = made(where, exclude=["atime", "quota", "x:y", "exec"])
        assert local == {"atime": None, "x:y": None}, "exec is local: that prevails anyway"
        assert received == everything[1]
    assert made(Where("v", raw=True, top=True, recursive=True), set_properties={"atime": "on"})[0] == {}
    with pytest.raises(Refused, match="does not apply"):
        made(volume, set_properties={"atime": "on"})
