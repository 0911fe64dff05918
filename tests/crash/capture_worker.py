"""A process to be killed: takes a snapshot of a folder, or drops contents, and says on standard output what is done.

python capture_worker.py take SNAPSHOT FOLDER       ("+" when it is acknowledged)
python capture_worker.py drop SNAPSHOT              ("=" when it is confirmed to be elsewhere, "." when compacted)
"""

from __future__ import annotations

import os
import sys

from zkeep.capture import snapshot  # noqa: F401 (what takes long to import is there before the clock starts)
from zkeep.cli.main import run
from zkeep.pool.maintenance import compact  # noqa: F401


def tell(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def main(what: str, name: str, folder: str = "") -> None:
    tell("!ready")
    if what == "take":
        assert run(["snapshot", "--from", folder, name]) == 0
        tell("+")
        return
    assert run(["set", "contents=metadata", name]) == 0
    tell("=")
    assert run(["pool", "compact", name.partition("/")[0]]) == 0
    tell(".")


if __name__ == "__main__":
    main(*sys.argv[1:])
