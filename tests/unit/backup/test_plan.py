"""What is sent, by guids alone; and what is refused."""

from __future__ import annotations

import pytest

from zkeep.backup.plan import (
    DestinationIsAhead,
    ForeignReceive,
    Have,
    NothingInCommon,
    NothingToSend,
    Point,
    Step,
    own_token,
    plan,
)
from zkeep.format.records import Feature
from zkeep.pool.transfer.token import Token

RAW = Feature.RAW | Feature.COMPRESSED


def have(*guids: int, bookmarks: tuple[int, ...] = (), token: Token | None = None, exists: bool = True) -> Have:
    """Guids in the order of their age; the same numbers are the txgs."""
    points = [Point(f"@s{guid}", guid, guid) for guid in guids] + [Point(f"#b{guid}", guid, guid) for guid in bookmarks]
    return Have(exists, tuple(sorted(points, key=lambda point: point.createtxg)), token)


def token(toguid: int, fromguid: int = 0, features: Feature = RAW) -> Token:
    return Token("vault/me@evil", toguid, 7, 4096, 1000, fromguid, features)


def steps(source: Have, target: Have, **more: object) -> list[str]:
    return [str(step) for step in plan(source, target, "DEST", **more).steps]  # type: ignore[arg-type]


def test_the_first_time_the_newest_is_sent_in_full() -> None:
    assert steps(have(1, 2, 3), have(exists=False)) == ["send @s3 in full"]
    assert not plan(have(1), have(exists=False), "DEST").fills
    assert plan(have(1), have(), "DEST").fills


def test_later_what_changed_since_the_newest_over_there() -> None:
    assert steps(have(1, 2, 3), have(1)) == ["send @s3 since @s1"]
    assert steps(have(1, 2, 3), have(1), every=True) == ["send @s2 since @s1", "send @s3 since @s2"]
    assert steps(have(1, 2, 3), have(1, 2, 3)) == []
    assert steps(have(3), have(1, 2, 3)) == []


def test_a_bookmark_is_a_source_and_a_snapshot_is_a_better_one() -> None:
    assert steps(have(3, bookmarks=(2,)), have(1, 2)) == ["send @s3 since #b2"]
    assert steps(have(2, 3, bookmarks=(2,)), have(1, 2)) == ["send @s3 since @s2"]


def test_what_broke_off_goes_on_and_then_the_rest() -> None:
    assert steps(have(1, 2), have(token=token(1))) == ["send @s1 in full, from byte 1000 on", "send @s2 since @s1"]
    assert steps(have(1, 2, 3), have(1, token=token(2, 1))) == [
        "send @s2 since @s1, from byte 1000 on",
        "send @s3 since @s2",
    ]
    assert steps(have(1, 2), have(token=token(1)), upto=1) == ["send @s1 in full, from byte 1000 on"]
    assert not plan(have(1), have(token=token(1)), "DEST").fills


def test_nothing_in_common_is_refused_with_the_newest_over_there() -> None:
    with pytest.raises(NothingInCommon, match=r"its newest is @s9 \(guid 0x9\)"):
        steps(have(1, 2), have(8, 9))


def test_a_destination_that_went_on_alone_is_refused_and_never_rolled_back() -> None:
    with pytest.raises(DestinationIsAhead, match=r"since @s2: @s8 \(guid 0x8\), @s9"):
        steps(have(1, 2, 3), have(1, 2, 8, 9))


def test_without_snapshots_nothing_is_sent() -> None:
    with pytest.raises(NothingToSend):
        steps(have(bookmarks=(1,)), have(exists=False))
    with pytest.raises(NothingToSend, match="the source has no snapshot"):
        steps(have(bookmarks=(1,)), have(1))


def test_a_destination_of_something_else_is_named_so_where_nothing_was_taken_yet() -> None:
    with pytest.raises(NothingInCommon, match="its newest is @s9"):
        steps(have(), have(9))


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (have(token=token(99)), "that snapshot is not here"),
        (have(token=token(2, features=Feature.COMPRESSED)), "not raw"),
        (have(1, token=token(2)), "its source, guid 0x0, is not the newest snapshot there"),
        (have(token=token(2, 1)), "its source, guid 0x1, is not the newest"),
        (have(7, token=token(2, 7)), "its source, guid 0x7, is not here"),
        (have(3, token=token(2, 3)), "its source, guid 0x3, is not here"),
        (have(2, token=token(2, 2)), "its source, guid 0x2, is not here"),
    ],
)
def test_a_token_that_does_not_fit_is_refused(target: Have, why: str) -> None:
    with pytest.raises(ForeignReceive, match=why):
        steps(have(1, 2, 3), target)


def test_a_bookmark_cannot_be_what_a_token_asks_for() -> None:
    with pytest.raises(ForeignReceive):
        steps(have(3, bookmarks=(2,)), have(token=token(2)))


def test_of_a_token_only_checked_numbers_are_passed_on() -> None:
    step = Step(Point("@s1", 1, 1), None, token(1, features=RAW | Feature.REDACTED | Feature.DEDUP))
    made = Token.decode(own_token(step, "local/docs@s1"))
    assert (made.toname, made.toguid, made.object, made.offset) == ("local/docs@s1", 1, 7, 4096)
    assert made.features == RAW
