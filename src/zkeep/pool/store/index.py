"""The index of the catalog: one SQLite table of documents, and the place in the journal that it stands for.

SQLite's errors become ours: busy is TryAgain, malformed is Damaged, full or read-only is an OSError.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import count
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import quote

from zkeep.errors import Damaged, TryAgain
from zkeep.names import shown
from zkeep.pool.store.journal import JournalPlace, Operation
from zkeep.pool.store.row import MOST, REMEDY, KnownRows, Malformed, Stored, checked, sum_of, text_of
from zkeep.pool.store.shapes import fault
from zkeep.pool.store.terms import FIELDS, MARK, VERSION, kind_of, read_sums, terms, unreadable
from zkeep.pool.types import Doc

Row = tuple[str, str, str]
"Kind, key, and the document's JSON."

MEMORY = ":memory:"
_FEW = 64
"Pages that are not worth giving back."
_LONG = 1024
"Characters of a document above which it is compressed."
_LAST = "\U0010ffff"
_DOCUMENTS = f"kind < '{MARK}' OR kind >= '{chr(ord(MARK) + 1)}'"
_NOTHING = "null"
"The value of a row that only leads to a document (terms.py)."
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DISK = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
}
_SETTINGS = (
    "trusted_schema=OFF",
    "cell_size_check=ON",
    "mmap_size=0",
    "journal_mode=WAL",
    "synchronous=NORMAL",  # what power loss takes from it, the journal gives back
    "wal_autocheckpoint=64",
    "journal_size_limit=262144",
)
_SAFE = 3
"How many of the settings are for a frozen index, too."
SUFFIXES = ("", "-wal", "-shm")
"The suffixes of the files that make an index."
ROLLBACK = "-journal"
"The suffix of a file that SQLite would obey; an index of ours has one only where the disk is not fit for a WAL."
_SUMS = "SELECT 0, count(*), coalesce(sum(sum), 0), coalesce(sum(place(kind, key)), 0) FROM doc"
"""How many rows there are, the sum of their sums, and that of the keys by which they are found: a damaged page may
lose rows silently, or hide one where no search finds it. The table `tally` keeps what they should be."""
_COUNTED = f"INSERT INTO tally {_SUMS}"
# doc       one row a document:           kind 'snapshot' | key '000000000003/00000000000000000012' | JSON | CRC-32
# and one for each term of it:  kind '@snapshot.name' | key 'mon\n000000000003/...' | null | CRC-32
# applied   one row: how far in the journal the rows are
# tally     one row: how many rows there must be, and the sums of their CRCs
_TABLES = (
    "CREATE TABLE doc (kind TEXT, key TEXT, value TEXT, sum INTEGER, PRIMARY KEY (kind, key)) WITHOUT ROWID",
    "CREATE TABLE applied (id INTEGER PRIMARY KEY, generation INTEGER, offset INTEGER, number INTEGER, digest TEXT)",
    "CREATE TABLE tally (id INTEGER PRIMARY KEY, rows INTEGER, total INTEGER, places INTEGER)",
)
_TRIGGERS = (
    "CREATE TRIGGER doc_comes AFTER INSERT ON doc BEGIN UPDATE tally SET rows = rows + 1, total = total + new.sum; END",
    "CREATE TRIGGER doc_goes AFTER DELETE ON doc BEGIN UPDATE tally SET rows = rows - 1, total = total - old.sum; END",
)
"The sum of places needs a function of ours, which SQLite does not run in a schema that it does not trust."
_FORMER_TRIGGERS = (
    "CREATE TRIGGER doc_comes AFTER INSERT ON doc BEGIN UPDATE tally"
    " SET rows = rows + 1, total = total + new.sum, places = places + place(new.kind, new.key); END",
    "CREATE TRIGGER doc_goes AFTER DELETE ON doc BEGIN UPDATE tally"
    " SET rows = rows - 1, total = total - old.sum, places = places - place(old.kind, old.key); END",
)
_SCHEMA = {*_TABLES, *_TRIGGERS}
_FORMER = {*_TABLES, *_FORMER_TRIGGERS}
_PROGRESS_STEP = 1_000_000
"SQLite calls the progress handler after so many instructions."
_WORK = 64
"A statement may take about so many instructions for each byte of the file: pages that form a circle end."


class ForeignIndex(Damaged):
    """An SQLite file whose schema is not ours: it may hold views and triggers, and nothing in it is used."""


_INSERT = "INSERT OR IGNORE INTO doc VALUES (?, ?, ?, ?) RETURNING 1"
_EVERYTHING = "SELECT * FROM doc ORDER BY kind, key"
_ALL = f"SELECT * FROM doc WHERE {_DOCUMENTS} ORDER BY kind, key"  # noqa: S608 (constants)
_LOOKUP = (
    "SELECT d.kind, d.key, d.value, d.sum FROM doc t CROSS JOIN doc d ON d.key = substr(t.key, ?)"
    " WHERE t.kind = ? AND t.key >= ? AND t.key < ? AND d.kind = ? ORDER BY t.key"
)
_BELOW = _LOOKUP.replace("substr(t.key, ?)", "substr(t.key, instr(t.key, char(10)) + 1)")
_LAST_OF = (
    "SELECT kind, key, value, sum FROM doc WHERE kind = ? AND key >= ? AND key < ? ORDER BY key DESC LIMIT 1"
)


FOLLOWED = ("run", "dataset")
"Kinds of documents whose changes an index remembers."


_NUMBERS = count()


class ChangeMark(NamedTuple):
    """A point up to which changes were followed."""

    epoch: tuple[int, ...]
    position: int


class _Closable(Protocol):
    def close(self) -> None: ...


Held = TypeVar("Held", bound=_Closable)


@contextmanager
def closing_on_error(held: Held) -> Iterator[Held]:
    """Close what SQLite holds open at once if the block raises, not when garbage is next collected."""
    try:
        yield held
    except BaseException:
        held.close()
        raise


class Index:
    """Documents in SQLite. `path` may be MEMORY; else it is a plain file or absent (Catalog makes sure of it).

    `wait`: seconds that a statement waits for another process. `frozen`: the file is read-only, and never changes.
    """

    def __init__(self, path: str, wait: float, *, frozen: bool = False) -> None:
        self._path = path
        self._frozen = frozen
        self.number = next(_NUMBERS)
        "No other index of this process has it."
        self.file: tuple[int, int] | None = None
        "Device and inode of the file, if it may be made again by other processes."
        self._undone = 0
        self._begun = 0
        self._applied: dict[str, list[str]] = {kind: [] for kind in FOLLOWED}
        self._places = 0
        self._seen: int | None = None
        "The data version in this transaction."
        self._done = 0
        self._allowed = 1 << 62
        self._known = KnownRows()
        if path != MEMORY and not os.path.lexists(path):
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))  # SQLite's other files take its mode
        with self._errors():
            where = f"file:{quote(path)}?immutable=1" if frozen else path
            self._db = sqlite3.connect(where, uri=frozen, timeout=wait, isolation_level=None, check_same_thread=False)
        with closing_on_error(self):
            self._prepare()

    def _bound(self) -> None:
        """Bound what SQLite does with the content, which may be hostile; before the first statement reads it."""
        self._db.create_function("place", 2, sum_of, deterministic=True)
        self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST + (1 << 20))
        self._db.set_progress_handler(self._is_too_much, _PROGRESS_STEP)
        for setting in _SETTINGS[: _SAFE if self._frozen else None]:
            self._run(f"PRAGMA {setting}")

    def _prepare(self) -> None:
        self._bound()
        if self._path != MEMORY:
            self._allowed = os.path.getsize(self._path) * _WORK
        # An empty file gets our tables; one of an older zkeep its new triggers; any other schema is foreign.
        if not self._schema() and not self._frozen:
            self._change_schema(set(), (*_TABLES, _COUNTED, *_TRIGGERS))
        if self._schema() == _FORMER and not self._frozen:
            # Dropping a trigger does not run it.
            self._change_schema(_FORMER, ("DROP TRIGGER doc_comes", "DROP TRIGGER doc_goes", *_TRIGGERS))
        if self._schema() != _SCHEMA:
            raise ForeignIndex(f"{self._path}: its schema is not that of a catalog; {REMEDY}")
        if not self._has_terms():
            if self._frozen:
                self._thaw()
            self._begin_terms()

    def _thaw(self) -> None:
        """Go on with a copy in memory, which can be changed: the file is of an older version."""
        with self._errors(), closing(self._db) as file:
            self._db = sqlite3.connect(MEMORY, isolation_level=None, check_same_thread=False)
            file.backup(self._db)
        self._bound()

    def _has_terms(self) -> bool:
        rows = self._run("SELECT value FROM doc WHERE kind = ? AND key = ''", MARK)
        return bool(rows) and rows[0][0] == VERSION

    def _begin_terms(self) -> None:
        """Make the rows by which documents are looked up, also in an index of a version that had none."""
        with self.change():
            if self._has_terms():
                return
            for row in self._run(f"DELETE FROM doc WHERE NOT ({_DOCUMENTS}) RETURNING kind, key"):  # noqa: S608
                self._places -= sum_of(*row)
            for kind in FIELDS:
                query = "SELECT kind, key, value, sum FROM doc WHERE kind = ?"
                for row in self._run(query, kind):
                    try:
                        text = text_of(*row)
                    except Damaged:  # who asks for it is told; the others are there all the same
                        self._replace_terms(set(), unreadable(kind, row[1]))
                    else:
                        self._replace_terms(set(), terms(kind, row[1], text))
            self._put(MARK, "", VERSION)

    def _schema(self) -> set[str]:
        """The statements that make it, as SQLite keeps them."""
        return {str(sql) for (sql,) in self._run("SELECT sql FROM sqlite_master")}

    def _change_schema(self, before: set[str], statements: Sequence[str]) -> None:
        """Run the statements, unless another process was first: then the schema is no longer that of before."""
        with self.change():
            if self._schema() == before:
                for statement in statements:
                    self._run(statement)

    def _is_too_much(self) -> bool:
        """SQLite's progress handler: True interrupts a statement that takes too long."""
        self._done += _PROGRESS_STEP
        return self._done > self._allowed + 100 * _PROGRESS_STEP

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._as_ours(error) from None

    def _as_ours(self, error: Exception) -> Exception:
        """The error of this program for one of SQLite's."""
        if isinstance(error, UnicodeDecodeError):  # SQLite quotes what it found in its message
            return Damaged(f"{self._path}: its text is not UTF-8; {REMEDY}")
        # The low byte is the primary code; the rest says in which call it happened.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _BUSY:
            return TryAgain(f"{self._path} is busy: another process holds it")
        if code in _DISK:
            return OSError(_DISK[code], str(error), self._path)
        kind = ForeignIndex if str(error).startswith("malformed database schema") else Damaged
        return kind(f"{self._path}: {str(error)[:200]!a}; {REMEDY}")

    def _run(self, query: str, *values: object) -> list[Any]:
        self._done = 0
        try:  # as in _errors(); each change takes dozens of statements
            return self._db.execute(query, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._as_ours(error) from None

    def close(self) -> None:
        self._db.close()

    # Transactions of SQLite's own

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def begin(self, mode: str = "IMMEDIATE") -> None:
        self._run(f"BEGIN {mode}")
        self._seen = None
        self._begun = self._db.total_changes

    def commit(self) -> None:
        self._note_places()
        self._run("COMMIT")

    def rollback(self) -> None:
        # What only read has changed nothing: what is cached stays true.
        self._undone += self._db.total_changes != self._begun
        self._db.rollback()
        self._places = 0

    @contextmanager
    def change(self) -> Iterator[None]:
        """A transaction, undone if the block raises."""
        self.begin()
        try:
            yield
            self.commit()
        except BaseException:
            self.rollback()
            raise

    def version(self) -> tuple[int, int, int]:
        """Differs after every change that a reader here would see, from this connection or another."""
        return self._data_version(), self._db.total_changes, self._undone

    def _data_version(self) -> int:
        """Differs after every change by another connection; in a transaction none is seen, so it is asked once."""
        if self._seen is None or not self.in_transaction:
            self._seen = int(self._run("PRAGMA data_version")[0][0])
        return self._seen

    def changes(self, kind: str, mark: ChangeMark | None) -> tuple[ChangeMark, list[str] | None]:
        """The keys of documents that came, went or changed since `mark`, and the mark of now.

        None: unknown, because another connection changed something, or a change was rolled back.
        """
        epoch = (self.number, self._data_version(), self._undone)
        keys = self._applied[kind]
        now = ChangeMark(epoch, len(keys))
        return now, keys[mark.position :] if mark and mark.epoch == epoch else None

    def shrink(self) -> None:
        """Give pages that nothing uses back to the disk, where they are more than a quarter."""
        unused, pages = (self._run(f"PRAGMA {name}")[0][0] for name in ("freelist_count", "page_count"))
        if unused > max(pages // 4, _FEW):
            self._run("VACUUM")
            self._run("PRAGMA wal_checkpoint(TRUNCATE)")

    # Content

    def place(self) -> JournalPlace | None:
        """The place in the journal that the index stands for; None as long as it is empty."""
        rows = self._run("SELECT generation, offset, number, digest FROM applied")
        return JournalPlace(*rows[0]) if rows else None

    def move(self, place: JournalPlace) -> None:
        values = (place.generation, place.offset, place.number, place.digest)
        self._run("INSERT OR REPLACE INTO applied VALUES (0, ?, ?, ?, ?)", *values)

    def apply(self, operations: Iterable[Operation]) -> None:
        """Put and delete documents. Needs a transaction, because the tally changes with them."""
        for kind, key, value in operations:
            # Rows of terms follow from documents; a journal that has such a row is not ours.
            if kind.startswith(MARK):
                continue
            if kind in FOLLOWED:
                self._applied[kind].append(key)
            former = self._delete(kind, key) if value is None else self._put(kind, key, value)
            if kind in FIELDS:
                self._replace_terms(self._former_terms(former) if former else set(), terms(kind, key, value))

    def _put(self, kind: str, key: str, value: str) -> Stored | None:
        """Put a row; returns the one that it replaces."""
        # Compress a long document: a snapshot's BEGIN is mostly zeros and names.
        packed = zlib.compress(value.encode(), 1) if len(value) > _LONG else value
        row = kind, key, packed, sum_of(kind, key, value)
        # Most rows are new. A former one is deleted, so that the trigger takes it from the tally.
        former = None
        if not self._run(_INSERT, *row):
            former = self._delete(kind, key)
            self._run(_INSERT, *row)
        self._places += sum_of(kind, key)
        return former

    def _delete(self, kind: str, key: str) -> Stored | None:
        """Delete a row; returns it."""
        rows = self._run("DELETE FROM doc WHERE kind = ? AND key = ? RETURNING kind, key, value, sum", kind, key)
        if not rows:
            return None
        self._places -= sum_of(kind, key)
        former: Stored = rows[0]
        return former

    def _note_places(self) -> None:
        """Add to the tally what the transaction put and deleted; triggers keep its other columns."""
        change, self._places = self._places, 0
        if change:
            self._run("UPDATE tally SET places = places + ?", change)

    def _former_terms(self, row: Stored) -> set[tuple[str, str]]:
        """The rows that lead to a document. One that is not sound does not tell which, so all of its kind are read."""
        with suppress(Damaged):
            checked(*row)
            return terms(row[0], row[1], text_of(*row))
        kind, key = row[0], row[1]
        query = "SELECT kind, key FROM doc WHERE kind >= ? AND kind < ?"
        found = self._run(query, kind_of(kind, ""), kind_of(kind, _LAST))
        # TERM, line feed, key; of a run: key, line feed, figures; of what is malformed: the key.
        return {each for each in found if key in (each[1], each[1].partition("\n")[0], each[1].rpartition("\n")[2])}

    def _replace_terms(self, old: set[tuple[str, str]], new: set[tuple[str, str]]) -> None:
        for kind, key in old - new:
            self._delete(kind, key)
        for kind, key in new - old:
            self._put(kind, key, _NOTHING)

    def clear(self) -> None:
        self._undone += 1
        for statement in ("DELETE FROM doc", "DELETE FROM applied", "DELETE FROM tally", _COUNTED):
            self._run(statement)
        self._put(MARK, "", VERSION)

    def get(self, kind: str, key: str) -> Doc | None:
        rows = self._run("SELECT kind, key, value, sum FROM doc WHERE kind = ? AND key = ?", kind, key)
        return self._known.document(rows[0]) if rows else None

    def scan(self, kind: str, prefix: str) -> list[tuple[str, Doc]]:
        query = "SELECT kind, key, value, sum FROM doc WHERE kind = ? AND key >= ? AND key < ? ORDER BY key"
        return [(row[1], checked(*row)) for row in self._run(query, kind, prefix, prefix + _LAST)]

    def sound(self, kind: str, prefix: str) -> list[tuple[str, Doc]]:
        """What scan() says, without the documents that are not what one of their kind is."""
        query = "SELECT kind, key, value, sum FROM doc WHERE kind = ? AND key >= ? AND key < ? ORDER BY key"
        found = []
        for row in self._run(query, kind, prefix, prefix + _LAST):
            with suppress(Malformed):
                found.append((row[1], checked(*row)))
        return found

    def lookup(self, kind: str, field: str, term: str, prefix: str) -> list[tuple[str, Doc]]:
        """The documents of `kind` whose `field` is `term` and whose key begins with `prefix`, by key."""
        start = f"{term}\n{prefix}"
        if not _is_utf8(start):
            return []  # every document is UTF-8, so none has it
        # A term's row leads to the document's key, which follows the term and a line feed.
        found = self._run(_LOOKUP, len(term) + 2, kind_of(kind, field), start, start + _LAST, kind)
        return [(row[1], checked(*row)) for row in found]

    def below(self, kind: str, field: str, start: str) -> list[tuple[str, Doc]]:
        """The documents of `kind` whose `field` begins with `start`, by field."""
        found = self._run(_BELOW, kind_of(kind, field), start, start + _LAST, kind)
        return [(row[1], checked(*row)) for row in found]

    def last(self, kind: str, prefix: str) -> tuple[str, Doc] | None:
        """The document with the greatest key that begins with `prefix`."""
        rows = self._run(_LAST_OF, kind, prefix, prefix + _LAST)
        return (rows[0][1], checked(*rows[0])) if rows else None

    def after(self, kind: str, prefix: str, key: str, last: str = "") -> list[tuple[str, Doc]]:
        """The documents whose keys begin with `prefix` and are greater than `key`, up to `last`, by key."""
        query = "SELECT kind, key, value, sum FROM doc WHERE kind = ? AND key > ? AND key < ? ORDER BY key"
        return [(row[1], checked(*row)) for row in self._run(query, kind, max(key, prefix), (last or prefix) + _LAST)]

    def keys(self, kind: str, prefix: str) -> list[str]:
        query = "SELECT key FROM doc WHERE kind = ? AND key >= ? AND key < ? ORDER BY key"
        return [key for (key,) in self._run(query, kind, prefix, prefix + _LAST)]

    def sums(self, prefix: str) -> list[tuple[str, Doc]]:
        """The keys of runs, as scan() has them, and of each document `bytes`, `logical` and `dead`."""
        query = "SELECT kind, key, value, sum FROM doc WHERE kind = ? AND key >= ? AND key < ? ORDER BY key"
        found: list[tuple[str, Doc]] = []
        for row in self._run(query, kind_of("run", "sums"), prefix, prefix + _LAST):
            text_of(*row)
            key, _, figures = row[1].partition("\n")
            try:
                # Their maker may say anything: they are held to what a run's document may say, and one row is of each.
                doc = read_sums(figures) if figures else self.get("run", key)
                doc = {**doc, "txg": int(key.partition("/")[2])} if doc is not None else None
            except ValueError:
                doc = None
            if doc is None or fault("sums", key, doc) or (found and found[-1][0] == key):
                raise Damaged(f"catalog: the figures of run {shown(key)[1:-1]} are not what was stored; {REMEDY}")
            found.append((key, doc))
        return found

    def rows(self, *, terms: bool = False) -> Iterator[Row]:
        """All documents, by kind and key; with `terms`, also the rows by which they are looked up.

        Damaged at the first row that is not what was stored.
        """
        with self._errors():
            for kind, key, value, total in self._db.execute(_EVERYTHING if terms else _ALL):
                yield kind, key, text_of(kind, key, value, total)

    def is_complete(self) -> bool:
        """Whether every row that was put is there under its key; its content is not checked."""
        found = self._run(" UNION ALL ".join((_SUMS, "SELECT * FROM tally")))
        return len(found) == 2 and tuple(found[0]) == tuple(found[1])

    def faults(self) -> Iterator[str]:
        """One line for each row that is not what was stored."""
        if not self.is_complete():
            yield f"catalog: documents are missing or not what was stored; {REMEDY}"
        with self._errors():
            for row in self._db.execute(_EVERYTHING):
                try:
                    text_of(*row) if str(row[0]).startswith(MARK) else checked(*row)
                except Damaged as error:
                    yield str(error)


def _is_utf8(text: str) -> bool:
    """Whether it can be in a document: an argument with a byte that is no UTF-8 has a lone surrogate in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
