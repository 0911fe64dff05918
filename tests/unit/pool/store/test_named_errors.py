"""Errors of a disk name the folder of the store: a call on a descriptor knows no path."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zkeep.pool.store.disk import Disk, naming
from zkeep.pool.store.files import LocalStore


def _draft(store: LocalStore) -> None:
    with store.draft("d") as draft:
        draft.write(b"x", soon=True)
        draft.sync()


CALLS: dict[str, tuple[str, Callable[[LocalStore], object]]] = {
    "put": ("write", lambda store: store.put("a", b"x")),
    "put, synced": ("sync", lambda store: store.put("a", b"x")),
    "put, named": ("link", lambda store: store.put("a", b"x")),
    "append": ("write", lambda store: store.append("journal/a", b"x")),
    "append, synced": ("sync", lambda store: store.append("journal/a", b"x")),
    "a new folder": ("mkdir", lambda store: store.append("journal/a", b"x")),
    "a draft": ("write", _draft),
    "a draft, synced": ("sync", _draft),
}


@pytest.mark.parametrize(("call", "do"), CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_is_named(
    call: str, do: Callable[[LocalStore], object], number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number), "a" if call in ("link", "mkdir") else None)

    monkeypatch.setattr(Disk, call, fail)
    with pytest.raises(OSError, match=os.strerror(number)) as found:
        do(LocalStore(tmp_path))
    assert found.value.filename == str(tmp_path)


def test_a_whole_path_and_other_errors_stay() -> None:
    for number, named, found in ((errno.ENOSPC, "/x", "/x"), (errno.EIO, None, None), (errno.EDQUOT, "x", "/pool")):
        with pytest.raises(OSError, match="s") as error, naming(Path("/pool"), (errno.ENOSPC, errno.EDQUOT)):
            raise OSError(number, "is so", named)
        assert error.value.filename == found
