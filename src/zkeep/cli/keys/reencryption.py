"""zkeep receive: where the keys come from with which plain streams become encrypted on arrival."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from zkeep.agent import client
from zkeep.cli.common.open_snapshot import keys_from
from zkeep.cli.common.terminal import say
from zkeep.cli.common.text import count
from zkeep.cli.keys import encryption
from zkeep.errors import Refused, WrongUsage
from zkeep.names import DatasetName, whole_number
from zkeep.pool.datasets.things import RESUME

if TYPE_CHECKING:
    from zkeep.crypto.unwrap import GetKey, WrappedKeys
    from zkeep.format.events import Batch, SubEnd
    from zkeep.pool.datasets.model import Dataset, Pool
    from zkeep.pool.transfer.admit import ReceiveTarget
    from zkeep.pool.transfer.receive import Substream
    from zkeep.pool.transfer.reserve import Charges
    from zkeep.reencrypt.receive import Follower, ReceiveKeys, Reencryption


_OWN_KEY = "-o encryption=on -o keyformat=raw -o keylocation=file:///path"
_NO_KEY = "no key is ever used for clients"


class EncryptingIntake:
    """What receive does with plain streams. It loads what can encrypt when the first one comes: see the pool's Intake.

    `asked`: the options -o that concern encryption; `excluded`: those of -x; `known`: keys that need not be loaded.
    `follower`: what takes each transaction group when it is there.

    Raises:
        Refused, WrongUsage: they contradict one another.
    """

    def __init__(
        self,
        asked: dict[str, str],
        excluded: Sequence[str],
        known: Sequence[bytes] = (),
        follower: Follower | None = None,
    ) -> None:
        if asked.get("encryption") == "off":
            raise Refused(
                "cannot receive: encryption=off: what lies below an encrypted dataset is encrypted: leave it out"
            )
        if "keyformat" in asked and asked.get("keylocation", "prompt") == "prompt":
            raise WrongUsage("standard input is the stream, no key: name its file with -o keylocation=file:///path")
        # Where a key is may also be said of a raw stream, as with zfs.
        fixed = set(encryption.OPTIONS) - {"keylocation"}
        named = [name for name in (*asked, *excluded) if name in fixed]
        why = f"encryption property '{named[0]}' cannot be set or excluded for raw streams" if named else None
        self.refuses_raw = why
        self._asked, self._known, self._follower = asked, known, follower
        self._made: Reencryption | None = None
        self._excludes = "encryption" in excluded
        self._in_clear: DatasetName | None = None
        "The first dataset that stays in clear, though -x encryption may have meant that it should not."

    def takes(self, pool: Pool, substream: Substream) -> bool:
        if substream.event.begin.raw:
            return False
        is_taken = self._reencryption().takes(pool, substream)
        # Who asks for encryption gets it, or nothing
        is_asked = bool(self._asked) or self._follower is not None
        if not is_taken and (is_asked or (self._excludes and _is_blind(pool, substream.target))):
            raise Refused(f"cannot receive {substream.target.name}: {in_clear(pool, substream.target.name)}")
        if not is_taken and self._in_clear is None:
            self._in_clear = substream.target.name
        return is_taken

    def judge(self, pool: Pool, substream: Substream, charges: Charges) -> None:
        self._reencryption().judge(pool, substream, charges)

    def receive(self, pool: Pool, substream: Substream, charges: Charges, events: Iterator[Batch | SubEnd]) -> SubEnd:
        return self._reencryption().receive(pool, substream, charges, events)

    def kept(self, pool: Pool, target: ReceiveTarget) -> str | None:
        return self._reencryption().kept(pool, target)

    def gives_up(self, pool: Pool, name: DatasetName) -> bool:
        newest = pool.newest_snapshot(pool.dataset(name))
        return newest is not None and RESUME in newest.doc and self._reencryption().gives_up(pool, name)

    def say_what_differs(self, target: str) -> None:
        """Tell of spill blocks that a broken sender misplaced, and that are put back; and of what was left out.

        Also of what is in clear: in ZFS, too, -x encryption only means what is above, but it reads as a promise.
        """
        if self._excludes and self._in_clear is not None:
            say(
                f"warning: -x encryption encrypts nothing here: {self._in_clear} is in clear, as what is above it: "
                f"receive below a dataset made with zkeep create {_OWN_KEY}, or give these options to the receive"
            )
        mended = self._made.mended if self._made is not None else 0
        if mended:
            blocks = count(mended, "spill block")
            say(f"received {target}: {blocks} misplaced by the sender (openzfs/zfs#18239) put back, and not lost")
        redacted = self._made.redacted if self._made is not None else 0
        if redacted:
            ranges = count(redacted, "range")
            say(f"received {target}: {ranges} left out by the sender (zfs send --redact) read as zeros")

    def _reencryption(self) -> Reencryption:
        if self._made is None:
            from zkeep.reencrypt.objects import STEP
            from zkeep.reencrypt.receive import Reencryption

            step = whole_number(os.environ.get("ZKEEP_STEP", str(STEP)), 1 << 62, 1)
            self._made = Reencryption(_IntakeKeys(self._asked, self._known), step, self._follower)
        return self._made


class KeylessIntake:
    """What receive does with plain streams of a server's clients, for whom no key is ever used."""

    refuses_raw: str | None = None

    def takes(self, pool: Pool, substream: Substream) -> bool:
        """Never; but below an encrypted dataset nothing is stored in clear.

        Raises:
            Refused: it would be.
        """
        name = substream.target.name
        above: DatasetName | None = name
        while above is not None and not substream.event.begin.raw:
            found = pool.tree().find(above)
            if found is not None and found.doc.get("crypt"):
                raise Refused(f"cannot receive {name}: {_NO_KEY}: send it raw, with zfs send -w")
            above = above.parent
        return False

    def judge(self, pool: Pool, substream: Substream, charges: Charges) -> None:
        raise Refused(f"cannot receive {substream.target.name}: {_NO_KEY}")

    def receive(self, pool: Pool, substream: Substream, charges: Charges, events: Iterator[Batch | SubEnd]) -> SubEnd:
        raise Refused(f"cannot receive {substream.target.name}: {_NO_KEY}")

    def kept(self, pool: Pool, target: ReceiveTarget) -> str | None:
        return None

    def gives_up(self, pool: Pool, name: DatasetName) -> bool:
        return False


class _IntakeKeys:
    """Loaded keys, and those that this receive makes."""

    def __init__(self, asked: dict[str, str], known: Sequence[bytes]) -> None:
        self._asked = asked
        self._made = list(known)
        self._new_root: tuple[DatasetName, bytes] | None = None
        self.get_key: GetKey = _GetKey(self._made)
        self.makes_root = "keyformat" in asked

    def for_new(self, pool: Pool, name: DatasetName, *, top: bool) -> ReceiveKeys:
        from zkeep.crypto.unwrap import unwrap
        from zkeep.reencrypt.receive import ReceiveKeys

        made = encryption.keys_below(pool, name, self._asked if top else {}, self._made)
        if made.is_root:
            self._new_root = name, made.wrapping_key
        self._made.append(made.wrapping_key)
        return ReceiveKeys(made.wrapped, unwrap(made.wrapped, made.wrapping_key), made.fields)

    def made(self, pool: Pool, dataset: Dataset) -> None:
        """A new encryption root's key is loaded, as zkeep create loads it."""
        if self._new_root is not None and self._new_root[0] == dataset.name:
            key, self._new_root = self._new_root[1], None
            with pool.afterwards(f"{dataset.name} is made", f"zkeep load-key {dataset.name}"):
                client.load(pool.doc["guid"], dataset.id, key)


class _GetKey:
    """Finds a wrapping key among those that were made, or loaded."""

    def __init__(self, made: list[bytes]) -> None:
        self._made = made
        self._loaded = keys_from(())

    def __call__(self, wrapped: WrappedKeys) -> bytes:
        from zkeep.crypto.unwrap import WrongKey, key_that_opens

        try:
            return bytes(key_that_opens(self._made, wrapped))
        except WrongKey:
            return self._loaded(wrapped)


def _is_blind(pool: Pool, target: ReceiveTarget) -> bool:
    from zkeep.pool.transfer.admit import is_blind, nearest

    return is_blind(pool, pool.find(target.name) or nearest(pool, target.name), target)


def in_clear(pool: Pool, name: DatasetName) -> str:
    """Why what is received there would be in clear, and the way out."""
    dataset = pool.find(name)
    if dataset is not None and pool.newest_snapshot(dataset):
        return f"{name} is in clear: name another dataset, below an encrypted one"
    return (
        f"nothing above {name} is encrypted: name a dataset below an encrypted one, or give it a key of its own: "
        + _OWN_KEY
    )


def refuse_missing_key(pool: Pool, name: DatasetName, *, below: bool) -> None:
    """Refuse -x encryption if the key is not loaded: the stream must be plain then, and will need it.

    `below`: what is received goes below that dataset, and not into it.

    Raises:
        Refused: the key of the dataset, or of the one above it, is not loaded.
    """
    from zkeep.reencrypt.receive import encrypted_above

    dataset = pool.find(name)
    if below or (dataset is not None and dataset.doc.get("crypt")):
        if dataset is not None and dataset.doc.get("crypt"):
            encryption.loaded_key_of(pool, dataset, f"cannot receive {name}")
    elif encrypted_above(pool, name) is not None:
        encryption.keys_below(pool, name, {}, [])
