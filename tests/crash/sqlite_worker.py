"""Commits transactions to an SQLite database until the folder that it lies in is gone; prints what was committed."""

from __future__ import annotations

import random
import sqlite3
import sys


def main(path: str, seed: int) -> None:
    chance = random.Random(seed)
    database = sqlite3.connect(path, isolation_level=None)
    # Few pages until what was logged is moved into the database, so that a kill meets that as well.
    for setting in ("journal_mode=wal", "synchronous=full", f"wal_autocheckpoint={chance.choice([5, 20, 1000])}"):
        database.execute(f"pragma {setting}")
    database.execute("create table if not exists rows(number integer primary key, content blob)")
    (last,) = database.execute("select ifnull(max(number), 0) from rows").fetchone()
    print(last, flush=True)
    while True:
        database.execute("begin")
        for _ in range(chance.choice([1, 1, 5])):
            last += 1
            content = str(last).encode() * chance.choice([1, 100, 3000])
            database.execute("insert into rows values(?, ?)", (last, content))
        if last > 300:  # some pages are used again, and the database does not grow for ever
            database.execute("update rows set content = ? where number = ?", (str(last - 300).encode() * 2, last - 300))
        database.execute("commit")
        print(last, flush=True)


main(sys.argv[1], int(sys.argv[2]))
