"""Errors of opening and reading a snapshot."""

from __future__ import annotations

from zkeep.errors import Damaged, NotAuthentic, Refused


def _place(number: int, offset: int) -> str:
    if number < 0:
        return ""
    return f"object {number}, offset {offset}: " if offset >= 0 else f"object {number}: "


class BadRecord(Damaged):
    """A stored record is not what was received. `object`, `offset`: those of its block; -1 if it is not a block's."""

    def __init__(self, where: str, number: int, offset: int = -1) -> None:
        self.where = where
        self.object = number
        self.offset = offset
        self.place = _place(number, offset)
        self.what = f"{where}: the record is damaged"
        super().__init__(self.place + self.what)

    def __reduce__(self) -> tuple[type[BadRecord], tuple[str, int, int]]:
        return type(self), (self.where, self.object, self.offset)


class Forgery(NotAuthentic):
    """A MAC does not verify. `object`, `offset`: those of the first block it covers; -1 if it covers all."""

    def __init__(self, snapshot: str, what: str, number: int = -1, offset: int = -1) -> None:
        self.snapshot = snapshot
        self.what = what
        self.object = number
        self.offset = offset
        self.place = _place(number, offset)
        super().__init__(f"{snapshot}: {self.place}{what}")

    def __reduce__(self) -> tuple[type[Forgery], tuple[str, str, int, int]]:
        return type(self), (self.snapshot, self.what, self.object, self.offset)


class Unreadable(Refused):
    """The data is authentic, but not what any OpenZFS would have written."""
