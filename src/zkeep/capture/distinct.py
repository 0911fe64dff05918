"""Leave out of a folder what a dataset cannot have beside one another: names that are one there, or none.

Only datasets that were created with casesensitivity, normalization or utf8only leave anything out.
"""

from __future__ import annotations

from collections import Counter

from zkeep.capture.scan import Choose, KeepsAll, ReadProblem, Seen
from zkeep.format.folding import MAX_VARIANTS, MIXED, PLAIN, Naming
from zkeep.names import shown


class DistinctNames:
    """Chooses entries as `choose` and `keeps_all` do, and of these the ones that can be stored together."""

    def __init__(self, naming: Naming, choose: Choose, keeps_all: KeepsAll) -> None:
        self._naming = naming
        self._choose = choose
        self._keeps_all = keeps_all
        self._takes_all = naming == PLAIN
        self.problems: list[ReadProblem] = []
        "What was left out."

    def choose(self, path: bytes, fd: int, entries: list[Seen]) -> list[Seen]:
        """The entries that are stored; of those whose names are one, the first by its bytes."""
        entries = self._choose(path, fd, entries)
        reasons = {} if self._takes_all else self._reasons([entry.name for entry in entries])
        prefix = path + b"/" if path else b""
        self.problems += [ReadProblem(prefix + name, reason) for name, reason in sorted(reasons.items())]
        return [entry for entry in entries if entry.name not in reasons]

    def keeps_all(self, names: bytes, folders: list[tuple[int, int]]) -> bool:
        """Whether choose() would keep all of these names."""
        if not self._keeps_all(names, folders):
            return False
        return self._takes_all or not names or not self._reasons(names.split(b"/"))

    def _reasons(self, names: list[bytes]) -> dict[bytes, str]:
        """Names that are left out, and why."""
        found: dict[bytes, str] = {}
        kept: dict[bytes, bytes] = {}
        variants: Counter[bytes] = Counter()
        equal, hashed = self._naming.equal, self._naming.hashed
        for name in sorted(names):
            reason = self._naming.refusal(name)
            if reason is None and equal is not None:
                first = kept.setdefault(equal(name), name)
                if first != name:
                    reason = f"its name is that of {shown(first.decode(errors='surrogateescape'))} in this dataset"
            if reason is None and hashed is not None and self._naming.casesensitivity == MIXED:
                variants[hashed(name)] += 1
                if variants[hashed(name)] > MAX_VARIANTS:
                    reason = f"more than {MAX_VARIANTS} names differ from it in their case only"
            if reason is not None:
                found[name] = reason
        return found
