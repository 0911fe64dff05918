"""The sender's names of datasets and snapshots, and what they are called here."""

from __future__ import annotations

from typing import Literal

from zkeep.errors import BadStream, Refused
from zkeep.format.events import SubBegin
from zkeep.names import BadName, DatasetName, SnapshotName, shown


def sent_name(event: SubBegin) -> tuple[str, str]:
    """The dataset and the snapshot as the sender calls them, checked."""
    try:
        text = event.begin.name.decode()
        parsed = SnapshotName.parse(text)
    except (UnicodeDecodeError, BadName) as error:
        reason = error.reason if isinstance(error, BadName) else "it is not UTF-8"
        raw = event.begin.name.decode("latin-1")
        raise BadStream(f"its snapshot name {shown(raw)} is not one: {reason}", event.offset, "BEGIN") from None
    return parsed.dataset.text, parsed.name


class Names:
    """Maps the sender's dataset names to names here."""

    def __init__(self, target: str, name_from: Literal["d", "e"] | None) -> None:
        self.snapshot = ""
        if "@" in target:
            parsed = SnapshotName.parse(target)
            if name_from:
                raise Refused("cannot receive: with -d or -e the target is a dataset, not a snapshot")
            self.target, self.snapshot = parsed.dataset, parsed.name
        else:
            self.target = DatasetName.parse(target)
        self._from = name_from
        self.top: str | None = None

    def dataset(self, sent: str) -> DatasetName:
        """The dataset here for the one that the sender calls `sent`."""
        # sent        pool/home/ann, of a stream whose top is pool/home; the target is tank/in
        # -d          tank/in/home/ann     all but the sender's pool
        # -e          tank/in/home/ann     from the last component of the top on
        # neither     tank/in/ann          the target is the top
        if self._from == "d":
            rest = sent.partition("/")[2]
        else:
            top = self.top or sent
            if not (sent + "/").startswith(top + "/"):
                raise Refused(f"cannot receive {shown(sent)}: it is not below {shown(top)}, where the stream begins")
            rest = sent[len(top) + 1 :]
            if self._from == "e":
                rest = f"{top.rpartition('/')[2]}/{rest}".rstrip("/")
        return self.target.child(rest) if rest else self.target
