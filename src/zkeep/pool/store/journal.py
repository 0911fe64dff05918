"""The journal: what was done to the catalog, transaction by transaction, as lines of text.

    journal/G.log       one line a transaction after checkpoint G (20 digits; 0: none)
    journal/G.ckpt.gz   all documents after transaction G

A line is `before digest {"n":number,"ops":[[kind,key,document or null],...]}`: `digest` covers `before` and
the JSON, `before` is the digest of the transaction before. So a line proves itself, and its place in the
chain. A line that does not prove itself is the rest of an append that never finished: it is passed over,
if what follows it continues the chain. If what follows does not, a line is missing: Damaged.

A checkpoint is published whole before the log and the checkpoint that it replaces are removed.

The files may be hostile: they are read line by line, no line is longer than MOST, a checkpoint unpacks to no more than
a text like ours can, and only a limited number of lines that prove nothing is passed over.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b

from zkeep.errors import Damaged, Refused
from zkeep.pool.store.port import Blob, Store

FOLDER = "journal"
_NO_DIGEST = "0" * 16
_FLOOR = 256 << 10
"A log shorter than this is not worth a checkpoint."
_SQUEEZED = 8
"How many times as long as its checkpoint, which is compressed, a log may become: about what that holds once more."
_GZIP = 31
MOST = 256 << 20
"Bytes of a line, and so of a transaction."
_RATIO = 200
"Bytes of a checkpoint's text for each packed one, at most; documents reach 10 to 50, a bomb 1,000."
_SMALL = 64 << 20
"Bytes of a checkpoint's text that are read whatever the ratio."
_CHUNK = 1 << 20
_TORN = 10_000
"Lines that are not whole in one log; each is what a crash left."
_CHECKPOINT = re.compile(FOLDER + r"/(\d{20})\.ckpt\.gz")
_FILE = re.compile(FOLDER + r"/(\d{20})\.(?:log|ckpt\.gz)")

_ENCODER = json.JSONEncoder(separators=(",", ":"), sort_keys=True)
_quoted = json.encoder.encode_basestring_ascii
"What encode() makes of a text."

Operation = tuple[str, str, str | None]
"Kind, key, and the document's JSON, or None where it is deleted."


@dataclass(frozen=True, slots=True)
class JournalPlace:
    """A point between two transactions: `offset` in the log of `generation`, after transaction `number`."""

    generation: int = 0
    offset: int = 0
    number: int = 0
    digest: str = _NO_DIGEST


def encode(document: object) -> str:
    """The one way in which a document is written, so that equal documents have equal text."""
    return _ENCODER.encode(document)


def _digest(before: str, body: bytes) -> str:
    return blake2b(before.encode() + body, digest_size=8).hexdigest()


def _parse(line: bytes) -> tuple[str, str, int, list[Operation]] | None:
    """Parse a line; None if its digest is wrong. Damaged if the digest is right and the content is no transaction."""
    before, digest, body = line[:16].decode("latin-1"), line[17:33].decode("latin-1"), line[34:]
    if len(line) < 35 or _digest(before, body) != digest:
        return None
    try:
        content = json.loads(body)
        operations = [_operation(*each) for each in content["ops"]]
        return before, digest, int(content["n"]), operations
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"journal: a line is not a transaction: {str(error)!a}") from None


def _operation(kind: object, key: object, document: object) -> Operation:
    if not (isinstance(kind, str) and isinstance(key, str) and isinstance(document, dict | None)):
        raise TypeError("an operation is of two texts and a document")
    f"{kind}{key}".encode()  # what is no text for SQLite is none here, and a ValueError
    return kind, key, None if document is None else encode(document)


def _lines(chunks: Iterable[bytes], where: str) -> Iterator[bytes]:
    """Split a text that comes in chunks into lines, each with its line feed; the last one may have none."""
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        # A line may begin in one chunk and end in a later one: hold its beginning until its line feed comes.
        first, *others = chunk.split(b"\n")
        for part in others:
            yield b"".join((*held, first, b"\n"))
            held, size, first = [], 0, part
        held.append(first)
        size += len(first)
        if size > MOST:
            raise Damaged(f"{where}: a line has more than {MOST} bytes")
    if size:
        yield b"".join(held)


def _unpacked(blob: Blob, where: str) -> Iterator[bytes]:
    """Decompress a gzip file chunk by chunk. Damaged if it is not one, or unpacks to more than documents can."""
    packer, left = zlib.decompressobj(_GZIP), max(blob.size * _RATIO, _SMALL)
    try:
        for at in range(0, blob.size, _CHUNK):
            # Unpack a bounded piece at a time; what does not fit waits in `unconsumed_tail`.
            packed = blob.read(at, min(_CHUNK, blob.size - at))
            while packed:
                text = packer.decompress(packed, _CHUNK)
                left -= len(text)
                if left < 0:
                    raise Damaged(f"{where}: it unpacks to more than documents can")
                yield text
                packed = packer.unconsumed_tail
        yield packer.flush()
    except zlib.error as error:
        raise Damaged(f"{where}: {error}") from None
    if not packer.eof or packer.unused_data:
        raise Damaged(f"{where}: it is not one whole gzip file")


class Journal:
    """The journal of one catalog. Reading needs no lock; appending and checkpoints need the catalog's."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._whole = (-1, -1)
        "The generation and the size of a log that is known to end with a line feed."
        self._packed = (-1, 0)
        "A generation, and the size of its checkpoint."

    def _log(self, generation: int) -> str:
        return f"{FOLDER}/{generation:020d}.log"

    def _checkpoint(self, generation: int) -> str:
        return f"{FOLDER}/{generation:020d}.ckpt.gz"

    def generation(self) -> int:
        """The number of the newest checkpoint; 0 if there is none."""
        found = map(_CHECKPOINT.fullmatch, self._store.names(FOLDER))
        return max((int(match[1]) for match in found if match), default=0)

    def length(self, generation: int) -> int:
        """Bytes of the log of `generation`; a place with this offset has nothing after it."""
        try:
            return self._store.size(self._log(generation))
        except FileNotFoundError:
            return 0

    def append(self, place: JournalPlace, operations: Iterable[Operation]) -> JournalPlace:
        """Append one transaction; durable when it returns. `place` must be the end of the chain, and of its log."""
        # | before, 16 hex | digest, 16 hex | {"n":7,"ops":[["snapshot","3/12",{...}],["run","3/9",null]]} | line feed |
        #                    ^ BLAKE2b of `before` and the JSON, so that every line depends on all lines before it
        ops = ",".join(f"[{_quoted(kind)},{_quoted(key)},{value or 'null'}]" for kind, key, value in operations)
        body = f'{{"n":{place.number + 1},"ops":[{ops}]}}'.encode()
        digest = _digest(place.digest, body)
        line = f"{place.digest} {digest} ".encode() + body + b"\n"
        if len(line) > MOST:
            raise Refused(f"the change is too large for one transaction: {len(line)} bytes, {MOST} are allowed")
        # Behind the rest of an interrupted append, begin a line of its own. What this process wrote last is whole.
        log = self._log(place.generation)
        if self._whole != (place.generation, place.offset) and self._is_torn(log):
            line = b"\n" + line
        size = self._store.append(log, line)
        self._whole = place.generation, size
        return JournalPlace(place.generation, size, place.number + 1, digest)

    def _is_torn(self, log: str) -> bool:
        try:
            with self._store.open(log) as blob:
                return blob.size > 0 and blob.read(blob.size - 1, 1) != b"\n"
        except FileNotFoundError:
            return False

    def sync(self, generation: int) -> None:
        """Make durable what another process may have written and was killed before it synced."""
        if self.length(generation):
            self._store.append(self._log(generation), b"")

    def entries(self, place: JournalPlace) -> Iterator[tuple[JournalPlace, list[Operation]]]:
        """The transactions after `place`, each with the place after it. Damaged where the chain breaks."""
        log = self._log(place.generation)
        size = self.length(place.generation)
        if not size and not place.offset:
            return
        if place.offset > size:
            raise Damaged(f"{log} has {size} bytes where the index has seen {place.offset}")
        torn = 0
        for line in self._text(log, place.offset, size):
            # A line that does not prove itself is what a crash left of an append. Nothing was ever built on it.
            place = replace(place, offset=place.offset + len(line))
            if not (entry := _parse(line.removesuffix(b"\n"))):
                torn += 1
                if torn > _TORN:
                    raise Damaged(f"{log}: more than {_TORN} lines are not whole")
                continue
            # One that does must follow the transaction before it: else one is missing between them.
            before, digest, number, operations = entry
            if before != place.digest or number != place.number + 1:
                raise Damaged(f"{log}: transaction {place.number + 1} is missing or damaged")
            place = replace(place, number=number, digest=digest)
            yield place, operations

    def following(self, place: JournalPlace) -> Iterator[tuple[JournalPlace, list[Operation]]]:
        """The transactions after `place`, on into the logs of later checkpoints. No checkpoint is read.

        Damaged: the chain breaks, so that what is behind cannot be had. A log that is shorter than `place` says has
        nothing after it.
        """
        while True:
            if self.length(place.generation) >= place.offset:
                for after, operations in self.entries(place):
                    yield after, operations
                    place = after
            # The next log begins at a checkpoint, and a checkpoint is made of all transactions before it.
            found = map(_FILE.fullmatch, self._store.names(FOLDER))
            later = min((int(match[1]) for match in found if match and int(match[1]) > place.generation), default=0)
            if not later:
                return
            if later != place.number:
                raise Damaged(f"{self._checkpoint(later)}: it is damaged, and so is a transaction before it")
            place = replace(place, generation=later, offset=0)

    def _text(self, log: str, start: int, end: int) -> Iterator[bytes]:
        with self._store.open(log) as blob:
            chunks = (blob.read(at, min(_CHUNK, end - at)) for at in range(start, end, _CHUNK))
            yield from _lines(chunks, log)

    def end(self) -> JournalPlace:
        """The last place of the chain; Damaged if the checkpoint or the chain is."""
        place, rows = self.load(self.generation())
        for _ in rows:
            pass
        for place, _ in self.entries(place):  # noqa: B007, B020
            pass
        return place

    def is_long(self, place: JournalPlace) -> bool:
        """Whether the log that ends at `place` has outgrown its checkpoint."""
        if self._packed[0] != place.generation:
            try:
                self._packed = place.generation, self._store.size(self._checkpoint(place.generation))
            except FileNotFoundError:
                self._packed = place.generation, 0
        return place.offset > max(_SQUEEZED * self._packed[1], _FLOOR)

    def checkpoint(self, place: JournalPlace, rows: Iterable[tuple[str, str, str]]) -> JournalPlace:
        """Write all documents as of `place`; returns the same point, at the start of a new log."""
        head = encode({"n": place.number, "digest": place.digest})
        lines = [head, *(f"[{_quoted(kind)},{_quoted(key)},{value}]" for kind, key, value in rows)]
        body = "\n".join(lines).encode()
        text = body + f"\n{_digest('', body)}\n".encode()
        # Compress with gzip; a text that packs as well as a decompression bomb is stored, not compressed.
        for level in (6, 0):
            packer = zlib.compressobj(level, zlib.DEFLATED, _GZIP)
            packed = packer.compress(text) + packer.flush()
            if len(text) <= max(len(packed) * _RATIO, _SMALL):
                break
        self._store.put(self._checkpoint(place.number), packed)
        return JournalPlace(place.number, 0, place.number, place.digest)

    def renew(self, place: JournalPlace, rows: Iterable[tuple[str, str, str]]) -> None:
        """Replace the whole journal by a checkpoint; `rows`: all documents as of `place`, its last."""
        former = self._store.names(FOLDER)
        # The new checkpoint is there before anything goes; it is the newest, so it counts from then on.
        found = map(_FILE.fullmatch, former)
        newest = max((int(match[1]) for match in found if match), default=-1)
        self.checkpoint(replace(place, number=max(place.number, newest + 1)), rows)
        for name in former:
            self._store.delete(name)

    def load(self, generation: int) -> tuple[JournalPlace, Iterator[tuple[str, str, str]]]:
        """The place of a checkpoint, and its documents; none for generation 0.

        Rows are yielded as they are read, and may be trusted only after the last one: the digest is at the end.
        """
        if not generation:
            return JournalPlace(), iter(())
        lines = self._checkpoint_lines(self._checkpoint(generation))
        try:
            start = json.loads(next(lines, b""))
            place = JournalPlace(generation, 0, int(start["n"]), str(start["digest"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Damaged(f"{self._checkpoint(generation)}: {str(error)!a}") from None
        return place, self._rows(lines, self._checkpoint(generation))

    def _rows(self, lines: Iterator[bytes], name: str) -> Iterator[tuple[str, str, str]]:
        last = ("", "")
        for line in lines:
            try:
                kind, key, document = _operation(*json.loads(line))
            except (ValueError, TypeError, RecursionError) as error:
                raise Damaged(f"{name}: {str(error)!a}") from None
            if document is None or (kind, key) <= last:
                raise Damaged(f"{name}: its documents are not in order")
            last = kind, key
            yield kind, key, document

    def _checkpoint_lines(self, name: str) -> Iterator[bytes]:
        """All lines but the last, which is the digest of the others. Damaged at the end if it differs."""
        digest, last, between = blake2b(digest_size=8), None, b""
        with self._store.open(name) as blob:
            for line in _lines(_unpacked(blob, name), name):
                if last is not None:
                    digest.update(between + last)
                    between = b"\n"
                    yield last
                last = line.removesuffix(b"\n")
        if last != digest.hexdigest().encode():
            raise Damaged(f"{name}: its digest is wrong")

    def prune(self, generation: int) -> None:
        """Remove the logs and checkpoints that the checkpoint `generation` replaces."""
        for name in self._store.names(FOLDER):
            number = name[len(FOLDER) + 1 :].partition(".")[0]
            if number.isdigit() and int(number) < generation:
                self._store.delete(name)
