"""What a keeper of backups lists: checked row by row, and compared with what was sent."""

from __future__ import annotations

import pytest

from zkeep.backup.fetch import Listed, choose, parse_snapshots
from zkeep.backup.record import Known, Record, check_listing
from zkeep.errors import NotAuthentic, Refused
from zkeep.names import DatasetName

HOME = DatasetName("vault/home")


def listed(*rows: tuple[str, int, int]) -> list[Listed]:
    """Snapshots by name, guid and time of creation."""
    return [Listed(HOME.snapshot(name), guid, at, creation) for at, (name, guid, creation) in enumerate(rows)]


DAYS = listed(("mon", 1, 100), ("tue", 2, 200), ("wed", 3, 300))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"vault/home@x\t5\t1\t\n", "no snapshot of"),
        (b"vault/home@x\t5\t1\n", "no snapshot of"),
        (b"vault/home@x\t5\t1\t1\t1\t1\n", "no snapshot of"),
        (b"vault/other@x\t5\t1\t1\t1\n", "no snapshot of"),
        (b"vault/home#x\t5\t1\t1\t1\n", "no snapshot of"),
        (b"vault/homes\t5\t1\t1\t1\n", "no snapshot of"),
        (b"vault\t5\t1\t1\t1\n", "no snapshot of"),
        (b"vault/home@../x\t5\t1\t1\t1\n", "no snapshot of"),
        (b"vault/home@x\t-5\t1\t1\t1\n", "no snapshot of"),
        (b"vault/home@x\t5\t1\t\xd9\xa3\n", "no snapshot of"),
        (b"vault/home@x\t5\t1\t" + b"9" * 10_000 + b"\n", "no snapshot of"),
        (b"vault/home@\x1b[2Jx\t5\t1\t1\t1\n", "no snapshot of"),
        (b"\xff\n", "no snapshot of"),
        (b"\n", "no snapshot of"),
        (b"vault/home@x\t5\t1\t1\t1\nvault/home@y\t5\t1\t1\t1\n", "the same guid"),
        (b"vault/home@x\t5\t1\t1\t1\nvault/home@x\t6\t1\t1\t1\n", "the same name"),
    ],
)
def test_a_listing_that_cannot_be_believed(answer: bytes, said: str) -> None:
    with pytest.raises(Refused, match=said) as refused:
        parse_snapshots(answer, HOME, "zkeep on box")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 600


def test_a_listing_is_in_the_order_of_creation() -> None:
    found = parse_snapshots(b"vault/home@b\t7\t20\t5\t1\nvault/home@a\t6\t10\t9\t1\n", HOME, "zkeep")[HOME]
    assert [(str(s.name), s.guid, s.creation) for s in found] == [("vault/home@a", 6, 9), ("vault/home@b", 7, 5)]
    assert parse_snapshots(b"", HOME, "zkeep") == {HOME: []}


def test_datasets_below_are_listed_by_themselves() -> None:
    rows = (b"vault/home/b@x\t7\t2\t5\t1", b"vault/home/b\t1\t-\t5\t1", b"vault/home/a/c", b"vault/home@x\t7\t3\t5\t4")
    answer = b"\n".join(rows)
    found = parse_snapshots(answer, HOME, "zkeep")
    assert [str(name) for name in found] == ["vault/home", "vault/home/a/c", "vault/home/b"]
    assert [[(s.guid, s.size) for s in some] for some in found.values()] == [[(7, 4)], [], [(7, 1)]]


@pytest.mark.parametrize(
    ("name", "at", "guid"), [(None, None, 3), ("mon", None, 1), (None, 250.0, 2), (None, 300.0, 3), (None, 9e9, 3)]
)
def test_the_snapshot_is_chosen(name: str | None, at: float | None, guid: int) -> None:
    assert choose(DAYS, "vault/home", name, at).guid == guid


@pytest.mark.parametrize(("name", "at"), [("thu", None), (None, 99.0)])
def test_there_may_be_none(name: str | None, at: float | None) -> None:
    with pytest.raises(Refused, match="it has no snapshot"):
        choose(DAYS, "vault/home", name, at)
    with pytest.raises(Refused, match="it has no snapshot"):
        choose([], "vault/home")


def test_where_all_are_younger_the_oldest_is_named() -> None:
    with pytest.raises(Refused, match=r"that is as old; the oldest is @mon, of 19(70|69)-\d\d-\d\d \d\d:\d\d:40$"):
        choose(DAYS, "vault/home", None, 99.0)
    with pytest.raises(Refused, match=r"it has no snapshot$"):
        choose([], "vault/home", None, 99.0)
    with pytest.raises(Refused, match=r"it has no snapshot 'thu'$"):
        choose(DAYS, "vault/home", "thu")


def record(*sent: tuple[str, int, int], complete: bool = True) -> Record:
    return Record({guid: Known(name, guid, b"", at) for name, guid, at in sent}, complete)


ALL = record(("mon", 1, 101), ("tue", 2, 201), ("wed", 3, 301))


def test_what_was_sent_is_accepted() -> None:
    for chosen in DAYS:
        check_listing(ALL, DAYS, chosen, newest=chosen is DAYS[-1])
    check_listing(Record(), DAYS, DAYS[0], newest=True)
    check_listing(record(("mon", 1, 0), complete=False), DAYS, DAYS[-1], newest=True)


@pytest.mark.parametrize(
    ("there", "newest", "said"),
    [
        (DAYS[:2], True, "the last that was sent from here, is not there any more"),
        (listed(("wed", 3, 100), ("tue", 2, 200)), True, "the last that was sent from here, is older there"),
        (listed(("wed", 1, 300)), False, "it was sent from here as @mon"),
        (listed(("thu", 4, 400)), False, "nothing like that was ever sent from here"),
        (listed(("wed", 4, 400)), True, "nothing like that was ever sent from here"),
    ],
    ids=["kept-back", "reordered", "renamed", "foreign", "foreign-under-its-name"],
)
def test_what_is_another_than_was_sent(there: list[Listed], newest: bool, said: str) -> None:
    with pytest.raises(NotAuthentic, match=said):
        check_listing(ALL, there, there[-1], newest=newest)


def test_an_older_one_may_be_asked_for() -> None:
    check_listing(ALL, DAYS[:2], DAYS[1], newest=False)
