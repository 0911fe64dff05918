"""What refuses to be opened, and why: a snapshot without a BEGIN, without keys, or of a metadnode that cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from zkeep.errors import Damaged, Refused
from zkeep.format.nvlist import NvList, encode
from zkeep.format.objtypes import ObjsetType
from zkeep.format.records import Begin, Feature
from zkeep.names import DatasetName
from zkeep.pool.datasets.begin import Opening
from zkeep.pool.datasets.model import NotThere, Pool, Snapshot
from zkeep.snapshot.errors import Unreadable
from zkeep.snapshot.open import NoObject, OpenSnapshot, _metadnode

RUN = {"whole": True, "txg": 5, "from_txg": 0, "fromguid": 0, "features": 0, "maxblkid": 0, "segments": [], "bytes": 0}
RUN |= {"logical": 0, "records": 0, "file_bytes": 0, "dead": {}}
NO_FEATURES = Feature(0)
SHAPE = {"mdn_indblkshift": 17, "mdn_nlevels": 6, "mdn_nblkptr": 3, "mdn_checksum": 0, "mdn_compress": 0}


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", "p") as made:
        yield made


def a_snapshot(pool: Pool, opening: Opening | None, *, has_run: bool = True) -> Snapshot:
    with pool.transaction() as t:
        dataset = pool.create_dataset(t, DatasetName("p/a"))
        snapshot = pool.add_snapshot(t, dataset, "s", 5, 1234)
        if has_run:
            t.put("run", snapshot.key, RUN)
        if opening is not None:
            t.put("begin", snapshot.key, opening.doc())
    return snapshot


def begin(features: Feature = NO_FEATURES, kind: int = ObjsetType.FILESYSTEM, crypt: NvList | None = None) -> Opening:
    payload = b""
    if crypt is not None:
        outer = NvList()
        outer.set("crypt_keydata", crypt)
        payload = encode(outer)
    header = Begin(type=kind, toguid=1234, versioninfo=1 | int(features) << 2, payloadlen=len(payload), toname=b"p/a@s")
    return Opening(header.pack("little"), payload, "little")


@pytest.mark.parametrize(
    ("opening", "has_run", "error", "what"),
    [
        pytest.param(None, False, NotThere, "it holds nothing", id="nothing was ever received"),
        pytest.param(None, True, Damaged, "has lost its BEGIN", id="its BEGIN is gone"),
        pytest.param(begin(Feature.RAW), True, Damaged, "brought no keys", id="raw, and without a key record"),
        pytest.param(begin(Feature.RAW, crypt=NvList()), True, Unreadable, "no key is here", id="no key was given"),
    ],
)
def test_what_is_not_opened(
    pool: Pool, opening: Opening | None, has_run: bool, error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what):
        OpenSnapshot(pool, a_snapshot(pool, opening, has_run=has_run))


def test_a_plain_snapshot_needs_no_key(pool: Pool) -> None:
    with OpenSnapshot(pool, a_snapshot(pool, begin(kind=ObjsetType.VOLUME))) as found:
        assert found.is_volume
        assert not found.lacks_contents()
        assert list(found.numbers()) == []
        assert found.seal(0) is None
        assert list(found.seals()) == []
        with pytest.raises(NoObject, match="there is no object 7"):
            found.object(7)
        with pytest.raises(Unreadable, match="it is not encrypted"):
            found.metadnode_shape()


@pytest.mark.parametrize(
    ("changed", "is_possible"),
    [
        pytest.param({}, True, id="what every kernel makes"),
        pytest.param({"mdn_nlevels": 1}, True, id="one level"),
        pytest.param({"mdn_nlevels": 0}, False, id="no level"),
        pytest.param({"mdn_nlevels": 14}, False, id="more levels than any tree has"),
        pytest.param({"mdn_indblkshift": 7}, False, id="indirect blocks of one pointer"),
        pytest.param({"mdn_indblkshift": 21}, False, id="indirect blocks of 2 MiB"),
        pytest.param({"mdn_nblkptr": 0}, False, id="no pointer"),
        pytest.param({"mdn_nblkptr": 4}, False, id="more pointers than a dnode holds"),
        pytest.param({"mdn_checksum": 256}, False, id="a checksum of more than a byte"),
        pytest.param({"mdn_compress": 256}, False, id="a compression of more than a byte"),
    ],
)
def test_the_shape_of_the_metadnode_is_bounded(changed: dict[str, int], is_possible: bool) -> None:
    crypt = NvList()
    for name, value in (SHAPE | changed | {"mdn_maxblkid": 9}).items():
        crypt.set(name, value)
    if is_possible:
        assert _metadnode(crypt).maxblkid == 9
        return
    with pytest.raises(Damaged, match="a metadnode that cannot be"):
        _metadnode(crypt)


def test_a_wrong_key_names_the_snapshot(pool: Pool) -> None:
    snapshot = a_snapshot(pool, begin(Feature.RAW, crypt=NvList()))

    def refuse(wrapped: object) -> bytes:
        raise Refused("never asked: the key record makes no sense")

    with pytest.raises(Damaged, match="the key record"):
        OpenSnapshot(pool, snapshot, refuse)
