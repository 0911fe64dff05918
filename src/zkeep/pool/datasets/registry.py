"""Which pools are known, by name: one JSON file in ZKEEP_HOME, changed whole under a lock."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path

from zkeep.errors import Damaged, Refused
from zkeep.names import parse_pool, shown
from zkeep.pool.datasets.model import Exists, NotThere, Pool
from zkeep.pool.store.files import LocalStore

FILE = "pools.json"


class Registry:
    """`home` need not exist before the first change."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def pools(self) -> dict[str, Path]:
        """Where each known pool lies, by name."""
        try:
            content = json.loads((self.home / FILE).read_bytes())
            return {parse_pool(name): Path(path) for name, path in sorted(content.items())}
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
        return Pool.open(self.path(name), name, wait)

    def add(self, name: str, path: Path) -> None:
        parse_pool(name)
        with self._change():
            known = self.pools()
            if name in known:
                raise Exists(f"a pool {name} is known already: it lies in {known[name]}")
            self._write({**known, name: path.resolve()})

    def remove(self, name: str) -> Path:
        """Forget the name; returns where the pool lies."""
        with self._change():
            path = self.path(name)
            self._write({n: p for n, p in self.pools().items() if n != name})
        return path

    def _change(self) -> AbstractContextManager[None]:
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        return LocalStore(self.home).lock("pools", wait=5.0, busy=f"{self.home / FILE} is busy")

    def _write(self, pools: dict[str, Path]) -> None:
        fresh = self.home / f"{FILE}.new"
        with fresh.open("w") as file:
            json.dump({name: str(path) for name, path in pools.items()}, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.home / FILE)
