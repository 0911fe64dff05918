"""Which pools are known, by name: one JSON file in ZKEEP_HOME, changed whole under a lock."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from zkeep.errors import Damaged, Refused, ZkeepError
from zkeep.names import DatasetName, parse_pool, shown
from zkeep.pool.datasets import properties
from zkeep.pool.datasets.model import Dataset, Exists, NotThere, Pool
from zkeep.pool.store.disk import make_folder, sync_folder
from zkeep.pool.store.files import LocalStore

FILE = "pools.json"
NUMBER = "number.json"
BURIED = "destroyed.json"
"The file with the folders of destroyed pools that can be brought back, a list."
SETTINGS = "settings.json"
"The file with the settings in OUTWARD that were made on this machine: values by pool, dataset and property."
OUTWARD = ("mountpoint", "notify")
"""Properties that reach out of a pool's folder: where files appear, and which program runs. The maker of the folder
chose what it says of them, so they are acted on only if they were set on this machine."""


class Registry:
    """`home` need not exist before the first change. `warn` and `scope` are for pools that are opened (Pool.warn,
    Pool.scope); with a scope, no other pool is known.
    """

    def __init__(
        self, home: Path, warn: Callable[[str], object] = lambda text: None, scope: DatasetName | None = None
    ) -> None:
        self.home = home
        self.warn = warn
        self.scope = scope

    def pools(self) -> dict[str, Path]:
        """Where each known pool lies, by name."""
        try:
            content = json.loads((self.home / FILE).read_bytes())
            # The file is the user's and may have been edited: names and paths are checked like any input.
            found = {parse_pool(name): _path(text) for name, text in sorted(content.items())}
            return {name: path for name, path in found.items() if self.scope is None or name == self.scope.pool}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError, Refused) as error:
            raise Damaged(f"{self.home / FILE} is not what was stored: {error}") from None

    def path(self, name: str) -> Path:
        path = self.pools().get(name)
        if path is None:
            raise NotThere(
                f"cannot open {shown(name)[1:-1]}: no such pool; 'zkeep pool list' shows those known"
            )
        return path

    def open(self, name: str, wait: float = 5.0) -> Pool:
        pool = Pool.open(self.path(name), name, wait)
        pool.warn, pool.scope = self.warn, self.scope
        return pool

    def add(self, name: str, path: Path) -> None:
        parse_pool(name)
        with self._change():
            known = self.pools()
            if name in known:
                raise Exists(f"a pool {name} is known already: it lies in {known[name]}")
            self._write({**known, name: path.resolve()})
        with suppress(ZkeepError, OSError):
            self.forget(path.resolve())

    def number(self, *, keep: bool = True) -> str:
        """A random number of this home, made at the first call: two machines never have the same.

        `keep`: store a new one.
        """
        try:
            return _number((self.home / NUMBER).read_bytes())
        except FileNotFoundError:
            pass
        except ValueError as error:
            raise Damaged(f"{self.home / NUMBER} is not what was stored: {error}") from None
        fresh = os.urandom(16).hex()
        if keep:
            with self._change():
                if (self.home / NUMBER).exists():  # another process was faster
                    return _number((self.home / NUMBER).read_bytes())
                self._write_file(NUMBER, fresh)
        return fresh

    def remove(self, *names: str, buried: bool = False) -> None:
        """Forget the names, all or none. `buried`: their pools are destroyed, and can be brought back."""
        with self._change():
            paths = [self.path(name) for name in names]
            if buried:
                self._write_buried([*self.buried(), *paths])
            self._write({n: p for n, p in self.pools().items() if n not in names})

    def buried(self) -> list[Path]:
        """The folders of destroyed pools, the latest last; what is there now may be something else."""
        try:
            return [_path(str(path)) for path in json.loads((self.home / BURIED).read_bytes())]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, RecursionError) as error:
            raise Damaged(f"{self.home / BURIED} is not what was stored: {error}") from None

    def forget(self, path: Path) -> None:
        """Remove a destroyed pool from the list: its files are gone, or it was brought back."""
        if path in self.buried():
            with self._change():
                self._write_buried([p for p in self.buried() if p != path])

    def note_settings(self, pool: Pool, datasets: Iterable[Dataset], settings: Mapping[str, str]) -> None:
        """Remember which settings in OUTWARD were made on this machine; a client of a server makes none of these."""
        chosen = dict(properties.check(name, settings[name]) for name in OUTWARD if name in settings)
        if not chosen or self.scope is not None:
            return
        with self._change():
            made = {_setting(pool, dataset, name): value for dataset in datasets for name, value in chosen.items()}
            self._write_file(SETTINGS, {**self._settings(), **made})

    def was_set_here(self, pool: Pool, dataset: Dataset, name: str) -> bool:
        """Whether the dataset's own value of a property in OUTWARD was set on this machine."""
        value = dataset.doc["local"].get(name)
        return value is not None and self._settings().get(_setting(pool, dataset, name)) == value

    def _settings(self) -> dict[str, str]:
        try:
            found = json.loads((self.home / SETTINGS).read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            raise Damaged(f"{self.home / SETTINGS} is not what was stored: {error}") from None
        return found if isinstance(found, dict) else {}

    def _change(self) -> AbstractContextManager[None]:
        if self.scope is not None:
            raise Refused("cannot change which pools are known: permission denied")
        make_folder(self.home, 0o700)
        return LocalStore(self.home).lock("pools", wait=5.0, busy=f"{self.home / FILE} is busy")

    def _write(self, pools: dict[str, Path]) -> None:
        self._write_file(FILE, {name: _text(path) for name, path in pools.items()})

    def _write_buried(self, paths: list[Path]) -> None:
        self._write_file(BURIED, [_text(path) for path in dict.fromkeys(paths)])

    def _write_file(self, name: str, content: object) -> None:
        """Replace the file, all or nothing."""
        # Write beside it, sync, rename over it, sync the folder: the file is the old or the new one at any moment.
        fresh = self.home / f"{name}.new"
        with fresh.open("w") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.home / name)
        with suppress(OSError):
            sync_folder(self.home)


def _setting(pool: Pool, dataset: Dataset, name: str) -> str:
    return f"{pool.doc['guid']:x}/{dataset.guid:x}/{name}"


def _number(content: bytes) -> str:
    found = json.loads(content)
    if not isinstance(found, str) or not re.fullmatch("[0-9a-f]{32}", found):
        raise ValueError("it has no number")
    return found


def _path(text: str) -> Path:
    """The file has paths in UTF-8, whatever the locale says that names are in."""
    return Path(os.fsdecode(text.encode("utf-8", "surrogateescape")))


def _text(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "surrogateescape")
