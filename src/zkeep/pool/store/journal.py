"""The journal: what was done to the catalog, transaction by transaction, as lines of text.

    journal/G.log       one line a transaction after checkpoint G (20 digits; 0: none)
    journal/G.ckpt.gz   all documents after transaction G

A line is `before digest {"n":number,"ops":[[kind,key,document or null],...]}`: `digest` covers `before` and
the JSON, `before` is the digest of the transaction before. So a line proves itself, and its place in the
chain. A line that does not prove itself is the rest of an append that never finished: it is passed over,
if what follows it continues the chain. If what follows does not, a line is missing: Damaged.

A checkpoint is published whole before the log and the checkpoint that it replaces are removed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b

from zkeep.errors import Damaged
from zkeep.pool.store.files import LocalStore

FOLDER = "journal"
_NO_DIGEST = "0" * 16
_FLOOR = 256 << 10
"A log shorter than this is not worth a checkpoint."
_GZIP = 31

Operation = tuple[str, str, str | None]
"Kind, key, and the document's JSON, or None where it is deleted."


@dataclass(frozen=True, slots=True)
class Place:
    """A point between two transactions: `offset` in the log of `generation`, after transaction `number`."""

    generation: int = 0
    offset: int = 0
    number: int = 0
    digest: str = _NO_DIGEST


def encode(document: object) -> str:
    """The one way in which a document is written, so that equal documents have equal text."""
    return json.dumps(document, separators=(",", ":"), sort_keys=True)


def _digest(before: str, body: bytes) -> str:
    return blake2b(before.encode() + body, digest_size=8).hexdigest()


def _line(place: Place, operations: Iterable[Operation]) -> tuple[bytes, str]:
    ops = ",".join(f"[{encode(kind)},{encode(key)},{value or 'null'}]" for kind, key, value in operations)
    body = f'{{"n":{place.number + 1},"ops":[{ops}]}}'.encode()
    digest = _digest(place.digest, body)
    return f"{place.digest} {digest} ".encode() + body + b"\n", digest


def _parse(line: bytes) -> tuple[str, str, int, list[Operation]] | None:
    """None if the line does not prove itself."""
    before, digest, body = line[:16].decode("latin-1"), line[17:33].decode("latin-1"), line[34:]
    if len(line) < 35 or _digest(before, body) != digest:
        return None
    content = json.loads(body)
    operations = [(k, key, None if doc is None else encode(doc)) for k, key, doc in content["ops"]]
    return before, digest, content["n"], operations


class Journal:
    """Reading needs no lock; appending and checkpoints need the catalog's."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    def _log(self, generation: int) -> str:
        return f"{FOLDER}/{generation:020d}.log"

    def _checkpoint(self, generation: int) -> str:
        return f"{FOLDER}/{generation:020d}.ckpt.gz"

    def generation(self) -> int:
        """The newest checkpoint's; 0 if there is none."""
        files = [name for name in self._store.names(FOLDER) if name.endswith(".ckpt.gz")]
        return int(files[-1][len(FOLDER) + 1 :].partition(".")[0]) if files else 0

    def length(self, generation: int) -> int:
        """Bytes of the log of `generation`; a place with this offset has nothing after it."""
        try:
            return self._store.size(self._log(generation))
        except FileNotFoundError:
            return 0

    def append(self, place: Place, operations: Iterable[Operation]) -> Place:
        """Durable when it returns. `place` must be the end of the chain."""
        line, digest = _line(place, operations)
        log = self._log(place.generation)
        if self._is_torn(log):
            line = b"\n" + line
        size = self._store.append(log, line)
        return Place(place.generation, size, place.number + 1, digest)

    def _is_torn(self, log: str) -> bool:
        try:
            with self._store.open(log) as blob:
                return blob.size > 0 and blob.read(blob.size - 1, 1) != b"\n"
        except FileNotFoundError:
            return False

    def sync(self, generation: int) -> None:
        """Make durable what another process may have written without living to sync it."""
        if self.length(generation):
            self._store.append(self._log(generation), b"")

    def entries(self, place: Place) -> Iterator[tuple[Place, list[Operation]]]:
        """The transactions after `place`, each with the place after it. Damaged where the chain breaks."""
        log = self._log(place.generation)
        size = self.length(place.generation)
        if not size and not place.offset:
            return
        if place.offset > size:
            raise Damaged(f"{log} has {size} bytes where the index has seen {place.offset}")
        with self._store.open(log) as blob:
            content = blob.read(place.offset, size - place.offset)
        for line in content.splitlines(keepends=True):
            place = replace(place, offset=place.offset + len(line))
            if not (entry := _parse(line.removesuffix(b"\n"))):
                continue
            before, digest, number, operations = entry
            if before != place.digest or number != place.number + 1:
                raise Damaged(f"{log}: transaction {place.number + 1} is missing or damaged")
            place = replace(place, number=number, digest=digest)
            yield place, operations

    def end(self) -> Place:
        """The last place of the chain; Damaged if the checkpoint or the chain is."""
        place, _ = self.load(self.generation())
        for place, _ in self.entries(place):  # noqa: B007, B020
            pass
        return place

    def is_long(self, generation: int) -> bool:
        """The log has outgrown its checkpoint."""
        try:
            floor = 2 * self._store.size(self._checkpoint(generation))
        except FileNotFoundError:
            floor = 0
        return self.length(generation) > max(floor, _FLOOR)

    def checkpoint(self, place: Place, rows: Iterable[tuple[str, str, str]]) -> Place:
        """Write all documents as of `place`; returns the same point, at the start of a new log."""
        head = encode({"n": place.number, "digest": place.digest})
        lines = [head, *(f"[{encode(kind)},{encode(key)},{value}]" for kind, key, value in rows)]
        body = "\n".join(lines).encode()
        packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
        text = body + f"\n{_digest('', body)}\n".encode()
        self._store.put(self._checkpoint(place.number), packer.compress(text) + packer.flush())
        return Place(place.number, 0, place.number, place.digest)

    def renew(self, place: Place, rows: Iterable[tuple[str, str, str]]) -> None:
        """Replace the whole journal by a checkpoint; the caller holds all of it elsewhere, safely."""
        for name in self._store.names(FOLDER):
            self._store.delete(name)
        self.checkpoint(place, rows)

    def load(self, generation: int) -> tuple[Place, list[tuple[str, str, str]]]:
        """What a checkpoint holds, and its place; nothing at all for generation 0."""
        if not generation:
            return Place(), []
        name = self._checkpoint(generation)
        try:
            body, _, digest = zlib.decompress(self._store.get(name), _GZIP)[:-1].rpartition(b"\n")
        except zlib.error as error:
            raise Damaged(f"{name}: {error}") from None
        if _digest("", body) != digest.decode("latin-1"):
            raise Damaged(f"{name}: its digest is wrong")
        head, *lines = body.split(b"\n")
        rows = [(kind, key, encode(document)) for kind, key, document in map(json.loads, lines)]
        start = json.loads(head)
        return Place(generation, 0, start["n"], start["digest"]), rows

    def prune(self, generation: int) -> None:
        """Remove the logs and checkpoints that the checkpoint `generation` replaces."""
        for name in self._store.names(FOLDER):
            number = name[len(FOLDER) + 1 :].partition(".")[0]
            if number.isdigit() and int(number) < generation:
                self._store.delete(name)
