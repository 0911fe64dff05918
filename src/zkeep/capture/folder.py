"""Turn a scanned folder into the objects of the next snapshot.

What is read fits into one transaction group as a rule: all objects in ascending order of their numbers. Beyond `step`
bytes it is cut into several, each of them a snapshot that is gone in the end (see commit): the files first, a large one
in parts, and the folders last, so that no folder ever names what is not there yet.

A new file that could not be read must have no name. That is known when its folder may be written already; then one more
transaction group takes the name away, before the snapshot gets its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from zkeep.capture.earlier import OpenWhole
from zkeep.capture.objects import ObjectWriter
from zkeep.capture.previous import EXTRA, Previous, one_an_inode
from zkeep.capture.report import Result, Watch, file_changes
from zkeep.capture.scan import FOLDER, Folders, Node, Scan
from zkeep.format.folding import PLAIN, Naming
from zkeep.pool.timeline.spans import unique
from zkeep.snapshot.changes import ObjectChange
from zkeep.snapshot.new_filesystem import ROOT, empty_root, fixed_objects
from zkeep.snapshot.numbers import FIXED, free_numbers, live_objects
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.writer import SnapshotWriter
from zkeep.tree.filesystem import Filesystem

STEP = 4 << 30
"Bytes of new data after which a transaction group ends."
_Task = Node | ObjectChange | int
"What becomes of an object; a number: it is freed."
_Todo = deque[_Task]
"In ascending order of the objects' numbers."


class FolderWriter:
    """Writes what a scan found, as changes against the last snapshot."""

    def __init__(
        self,
        scan: Scan,
        folders: Folders,
        previous: Previous,
        recordsize: int,
        generation: int,
        watch: Watch | None = None,
        step: int = STEP,
        open_whole: OpenWhole = lambda: None,
        naming: Naming = PLAIN,
    ) -> None:
        """`open_whole`: needed where what was there before lies in steps. `naming`: of the filesystem."""
        self._naming = naming
        self._scan = scan
        self._previous = previous
        self._step = step
        self._watch = watch or Watch()
        self._todo: deque[_Todo] = deque()
        "What is left to do: one queue a transaction group, but that the files may take several."
        self._begun = self._corrected = False
        self._kept_in: dict[int, list[int | Node]] = {}
        "Folders with names of files that could not be looked at, by the number of the file."
        self.result = Result()
        self._objects = ObjectWriter(
            scan, folders, recordsize, generation, self._watch, self.result, open_whole, naming.flags
        )

    def write(self, writer: SnapshotWriter, base: OpenSnapshot | None) -> bool:
        """Give a writer what belongs into the next transaction group; whether there is more for another.

        `base`: the last snapshot; from the second call on, what the call before made.
        """
        # The first call plans all of it: which objects are written, which are freed, and in how many groups.
        live = live_objects(base)
        self._objects.open(writer, base, live)
        if not self._begun:
            self._prepare(base, live)
        bounded = len(self._todo) > 1
        self._objects.room = self._step if bounded else 1 << 63
        # Objects in ascending order, as the writer needs them, until the group is full.
        todo = self._todo[0]
        while todo and self._objects.room > 0:
            what = todo[0]
            if isinstance(what, int):
                writer.free(what)
            elif isinstance(what, ObjectChange):
                writer.write(what)
            elif self._corrected and what.kind != FOLDER:
                self._objects.count_names(what)
            elif not self._objects.write(what):
                break  # the rest of this file comes in the next one
            todo.popleft()
        # Objects that were met on the way (extended attributes) have the highest numbers.
        self._objects.write_pending()
        if not todo:
            self._todo.popleft()
        # All is read. Only now it is known what could not be.
        if not self._todo and not self._corrected:
            self._correct(live)
        return bool(self._todo)

    def close(self) -> None:
        """Nothing is written any more, for whatever reason."""
        self._objects.close()

    # What there is to do

    def _prepare(self, base: OpenSnapshot | None, live: np.ndarray) -> None:
        self._begun = True
        tree = Filesystem(base) if base is not None else None
        if self._watch.change is not None:
            for found in file_changes(self._scan, tree):
                self._watch.change(found)
        self._watch.start(self._scan.bytes)
        if tree is not None:
            self._keep_names(tree)
        # 1. New files get numbers that neither the base nor the scan has.
        taken = unique(np.append(live, np.fromiter(self._scan.seen, np.uint64, len(self._scan.seen))))
        rows = self._previous.rows
        self._objects.partial.update(rows["object"][rows["links"] == 0].tolist())
        self._assign(taken)
        # 2. Changed files and folders, freed objects, files with another count of names; in a first snapshot the
        #    objects that every filesystem has.
        folders = [node for node in self._scan.written if node.kind == FOLDER]
        files = [node for node in self._scan.written if node.kind != FOLDER]
        seen = self._scan.seen
        keep = seen | self._previous.extras_of(seen) | FIXED | {ROOT}
        nothing_leads_there = ~np.isin(live, np.fromiter(keep, np.uint64, len(keep)))
        gone: list[int] = live[nothing_leads_there].tolist()
        if base is not None:
            base.expect([*(node.number for node in [*folders, *files]), *gone])
        fewer = list(self._recounted(base, tree))
        fixed = list(fixed_objects(self._naming)) if base is None else []
        # 3. One group if it is small enough; else files first, so that no folder names what is not stored yet.
        if self._scan.bytes <= self._step:
            self._todo.append(_in_order([*fixed, *files, *folders, *fewer, *gone]))
        else:
            root = [empty_root(naming=self._naming)] if base is None else []
            self._todo.append(_in_order([*fixed, *root, *files]))
            self._todo.append(_in_order([*folders, *fewer, *gone]))
        self._objects.read_ahead(sorted(files, key=_number_of))
        last = max((_number_of(todo[-1]) for todo in self._todo if todo), default=0)
        self._objects.attributes.next_number = max(int(taken[-1]), last) + 1

    def _keep_names(self, tree: Filesystem) -> None:
        """What lies below a folder that cannot be read stays; its names count among those of its files."""
        waiting = list(self._scan.kept)
        # What was found elsewhere and has one name only lies there no more: folders, and files without other names.
        found = set(self._scan.seen) if waiting else set()
        alone = {n.number for n in self._scan.written if n.number and n.kind != FOLDER and n.inode is None}
        while waiting:
            # Go through the last snapshot's folders, from the one that cannot be read down.
            above = waiting.pop()
            for entry in tree.names(above):
                is_folder = tree.znode(entry.number).is_folder
                if entry.number in (found if is_folder else alone):
                    # It was seen under its new name, so the name here is an old one: drop it from the kept folder.
                    self._objects.moved_out.setdefault(above, set()).add(entry.name)
                    continue
                if is_folder and entry.number not in self._scan.seen:
                    waiting.append(entry.number)
                self._scan.seen.add(entry.number)
                if not is_folder:
                    self._objects.names_kept[entry.number] += 1
                    self._kept_in.setdefault(entry.number, []).append(above)
        for node in self._scan.kept_names:
            assert node.parent is not None
            self._objects.names_kept[node.number] += 1
            self._kept_in.setdefault(node.number, []).append(node.parent)

    def _folders_of_kept(self, number: int) -> list[int]:
        """The folders with names of a file that could not be looked at."""
        return [each.number if isinstance(each, Node) else each for each in self._kept_in.get(number, ())]

    def _recounted(self, base: OpenSnapshot | None, tree: Filesystem | None) -> Iterator[ObjectChange]:
        """What is not read but changes all the same.

        Files that have only names left in folders that cannot be read, and had others: how many there are, and in
        which folder, changed. And such folders, from which something was moved away.
        """
        if not self._kept_in and not self._objects.moved_out:
            return
        # Folders that stay as they were, but lose what was found elsewhere.
        for number in sorted(self._objects.moved_out.keys() - {node.number for node in self._scan.written}):
            assert base is not None
            yield self._objects.without_moved(base.object(number))
        written = {names[0].number for names in self._scan.links.values()}
        written |= {node.number for node in self._scan.written if node.kind != FOLDER}
        # Files that stay as they were, but have gained or lost names: their link count and parent follow.
        for number in sorted(self._kept_in.keys() - written):
            assert base is not None
            assert tree is not None
            folders, parent = self._folders_of_kept(number), tree.znode(number).parent
            parent = parent if parent in folders else folders[0]
            change = self._objects.with_names(base.object(number), len(folders), parent)
            if change is not None:
                yield change

    def _assign(self, taken: np.ndarray) -> None:
        """Give each new file a number; the names of one file share theirs."""
        # 1. Several names of one file: if the last snapshot knows any of them, all of them are that object.
        for names in self._scan.links.values():
            known = next((name.number for name in names if name.number), 0)
            for name in names:
                name.number = known
        # 2. What has no number is new. The folder that is captured is the root.
        numbers = free_numbers(taken)
        for node in self._scan.written:
            if not node.number:
                node.number = ROOT if node.parent is None else next(numbers)
        # 3. The other names of new files; and files of which only the count of names changed are written, too.
        for names in self._scan.links.values():
            for name in names:
                name.number = names[0].number
            if not names[0].changed and self._count_differs(names):
                self._scan.written.append(names[0])

    def _count_differs(self, names: list[Node]) -> bool:
        """Whether a file has other names here than it had: a folder with one of them may have come or gone."""
        row = self._previous.row_of(names[0].number)
        above = {name.parent.number for name in names if name.parent is not None}
        above.update(self._folders_of_kept(names[0].number))
        count = len(names) + self._objects.names_kept[names[0].number]
        return row is None or int(row["links"]) != count or int(row["parent"]) not in above

    def _correct(self, live: np.ndarray) -> None:
        """Plan what only now is known: names of what could not be read, and attributes that nothing leads to."""
        self._corrected = True
        # Folders that were there for the scan and gone when they were read go, with the names in them.
        names = {name for node in self._objects.missing for name in self._scan.names_of(node)}
        lost = {node for node in self._objects.vanished if self._is_new(node)}
        fewer = self._drop_names_below(lost)
        # Folders that are stored already are written again without the names that lead to nothing.
        folders = {name.parent for name in names | lost if name.parent is not None} - lost
        folders = {folder for folder in folders if not _lies_in(folder, lost)}
        names |= lost
        for folder in folders:
            folder.children = [child for child in folder.children or [] if child not in names]
        # Objects that nothing leads to are freed: old extended attributes, parts of files, those folders.
        extras = self._previous.extras.tolist()
        stale = self._objects.stale
        written = self.result.rows.objects() | self._objects.restored if extras else set()
        before = set(live.tolist()) if extras or stale else set()
        left = [number for owner, number in extras if owner in written and number in before]
        left += [number for number in stale if number in before]
        left += [node.number for node in self._objects.missing if node.number in self._objects.partial]
        left += [node.number for node in lost]
        if folders or left:
            self._todo.append(_in_order([*fewer, *folders, *set(left)]))

    def _is_new(self, folder: Node) -> bool:
        """Whether nothing below a folder was in the last snapshot, but for files that have names elsewhere, too."""
        return all(
            child.number not in self._scan.seen
            and (child.kind != FOLDER or (child in self._objects.vanished and self._is_new(child)))
            and (child.kind == FOLDER or child.inode is not None or child in self._objects.missing)
            for child in folder.children or []
        )

    def _drop_names_below(self, lost: set[Node]) -> set[Node]:
        """Forget the names in folders that are gone; the files that have others."""
        fewer = set()
        for inode, names in self._scan.links.items():
            left = [name for name in names if name.parent not in lost]
            if left and len(left) < len(names) and left[0] not in self._objects.missing:
                self._scan.links[inode] = left
                fewer.add(left[0])
        return fewer

    # What the next capture compares with

    def next_rows(self) -> Previous:
        """Rows of what was written, and of all that stayed."""
        # Rows of objects that are still there and were not written stay as they are.
        fresh, old = self.result.rows.array(), self._previous.rows
        seen = np.fromiter(self._scan.seen, np.uint64, len(self._scan.seen))
        if not len(fresh) and not self.result.names and np.isin(old["object"], seen).all():
            return self._previous  # nothing was written, and nothing is gone
        stays = np.isin(old["object"], seen) & ~np.isin(old["object"], fresh["object"])
        written = set(fresh["object"].tolist()) | self._objects.restored if len(self._previous.extras) else set()
        kept = [p for p in self._previous.extras.tolist() if p[0] in self._scan.seen and p[0] not in written]
        extras = np.array([tuple(pair) for pair in kept] + self.result.extras, EXTRA)
        rows = one_an_inode(np.concatenate([old[stays], fresh]) if len(old) else fresh)
        _set_names(rows, self.result.names)
        return Previous(rows, extras, ROOT)

    def forget_nodes(self) -> None:
        """Free the memory of what was scanned: all is written, and next_rows() needs none of it."""
        self._objects.close()  # which has them in a list of its own
        # A folder and what is in it refer to one another.
        for node in self._scan.written:
            node.children = None
        self._scan.written.clear()
        self._scan.links.clear()

    def rows_of_step(self) -> Previous:
        """The rows of next_rows() after a step: folders are written again, under their present numbers."""
        self._objects.plan_folders(node for todo in self._todo for node in todo if isinstance(node, Node))
        return self.next_rows()


def _set_names(rows: np.ndarray, names: dict[int, tuple[int, int]]) -> None:
    """Note of files how many names they have now, and the folder of one."""
    if not names:
        return
    numbers = np.fromiter(sorted(names), np.uint64, len(names))
    mine = np.flatnonzero(np.isin(rows["object"], numbers))
    found = [names[number] for number in rows["object"][mine].tolist()]
    rows["links"][mine], rows["parent"][mine] = np.array(found, np.uint64).reshape(-1, 2).T


def _lies_in(node: Node | None, folders: set[Node]) -> bool:
    while node is not None and node not in folders:
        node = node.parent
    return node is not None


def _in_order(tasks: Iterable[_Task]) -> _Todo:
    return deque(sorted(tasks, key=_number_of))


def _number_of(task: _Task) -> int:
    return task if isinstance(task, int) else task.number
