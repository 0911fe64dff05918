"""What is wrong with a snapshot that is being opened."""

from __future__ import annotations

from zkeep.errors import NotAuthentic, Refused


class Forgery(NotAuthentic):
    """A MAC does not verify. `object` and `offset`: of the first block that it covers; -1 where it is all of them."""

    def __init__(self, snapshot: str, what: str, number: int = -1, offset: int = -1) -> None:
        self.snapshot = snapshot
        self.what = what
        self.object = number
        self.offset = offset
        super().__init__(f"{snapshot}: {self.place}{what}")

    def __reduce__(self) -> tuple[type[Forgery], tuple[str, str, int, int]]:
        return type(self), (self.snapshot, self.what, self.object, self.offset)

    @property
    def place(self) -> str:
        if self.object < 0:
            return ""
        offset = f", offset {self.offset}" if self.offset >= 0 else ""
        return f"object {self.object}{offset}: "


class Unreadable(Refused):
    """Authentic, but not what any OpenZFS would have written."""
