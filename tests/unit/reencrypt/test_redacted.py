"""Redacted plain streams become encrypted: what the sender left out is a hole, and nothing is built on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_translator import FEATURES, Look, fill, obj, stream, write

from receivekit import take as take_plain
from reencryptkit import encrypted_pool, take
from zkeep.errors import Interrupted, Refused
from zkeep.format.records import Feature, Redact
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.token import Token
from zkeep.reencrypt.leftovers import partial_of

REDACTED = FEATURES | Feature.REDACTED
FOR, OTHER = 77, 78
"Guids of snapshots for which a stream is redacted."


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with encrypted_pool(tmp_path / "pool") as made:
        yield made


def left_out(number: int, offset: int, length: int) -> Redact:
    return Redact(object=number, offset=offset, length=length)


def first(**lists: tuple[int, ...]) -> bytes:
    """Objects 2 and 3 of four blocks each: of 2 the two in the middle are left out, of 3 all."""
    parts = [*obj(2, 4), write(2, 0, fill("a")), left_out(2, 512, 1024), write(2, 1536, fill("d"))]
    return stream(1, *parts, *obj(3, 4), left_out(3, 0, 2048), features=REDACTED, **(lists or {"redact_snaps": (FOR,)}))


def test_what_is_left_out_is_a_hole(pool: Pool) -> None:
    take(pool, first())
    found = Look(pool, 1)
    assert found.blocks == {2: {0: fill("a"), 1536: fill("d")}, 3: {}}
    assert found.objects[3].dnode.maxblkid == 3


def test_what_an_increment_leaves_out_does_not_stay_from_before(pool: Pool) -> None:
    take(pool, stream(1, *obj(2, 2), write(2, 0, fill("a")), write(2, 512, fill("b"))))
    take(pool, stream(2, *obj(2, 2), left_out(2, 512, 512), features=REDACTED, redact_snaps=(FOR,)))
    assert Look(pool, 2).blocks == {2: {0: fill("a")}}


@pytest.mark.parametrize("increment", [
    stream(2, *obj(2, 4), write(2, 512, fill("n"))),
    stream(2, *obj(2, 4), features=REDACTED, redact_snaps=(FOR, OTHER)),
    stream(2, *obj(2, 4), redact_from_snaps=(OTHER,)),
])
def test_an_increment_that_takes_for_granted_what_was_left_out_is_refused(pool: Pool, increment: bytes) -> None:
    """Its file would have old zeros between new blocks."""
    take(pool, first())
    with pytest.raises(Refused, match="s1 is redacted, and the stream does not say that it was made for it"):
        take(pool, increment)


@pytest.mark.parametrize("increment", [
    stream(2, *obj(2, 4), write(2, 512, fill("n")), toguid=FOR),
    stream(2, *obj(2, 4), write(2, 512, fill("n")), features=REDACTED, redact_snaps=(FOR,)),
    stream(2, *obj(2, 4), write(2, 512, fill("n")), redact_from_snaps=(FOR,)),
])
def test_an_increment_that_was_made_for_it_is_taken(pool: Pool, increment: bytes) -> None:
    take(pool, first())
    take(pool, increment)
    assert Look(pool, 2).blocks == {2: {0: fill("a"), 512: fill("n"), 1536: fill("d")}, 3: {}}


def test_the_resume_token_asks_for_the_same_redaction(pool: Pool) -> None:
    """Without it zfs send -t would send what was to be left out."""
    whole = first(redact_snaps=(FOR, OTHER), redact_from_snaps=(9,))
    with pytest.raises(Interrupted):
        take(pool, whole[:-400], step=256, resumable=True)
    partial = partial_of(pool, DatasetName.parse("v/enc/ds"))
    assert partial is not None
    assert Token.decode(partial["token"]).redaction == {"redact_snaps": (FOR, OTHER), "book_redact_snaps": (9,)}


def test_so_does_that_of_a_receive_in_clear(tmp_path: Path) -> None:
    with Pool.create(tmp_path / "plain", "v", {"blind": "off"}) as pool:
        with pytest.raises(Interrupted):
            take_plain(pool, first()[:-400], "v/x", resumable=True)
        token = pool.catalog.get("receive", pool.dataset(DatasetName.parse("v/x")).key)
        assert token is not None
        assert Token.decode(token["token"]).redaction == {"redact_snaps": (FOR,)}
