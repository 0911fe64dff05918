"""The real kernel as the judge, from one command: builds the machine where it is not built yet, then runs the suite.

    python tests/interop                      OpenZFS 2.3: what CI runs
    python tests/interop --zfs 2.1            the other series: 2.1, 2.4
    python tests/interop --long [-k ...]      the whole matrix and longer histories; what follows is pytest's

Where the machine cannot be built, the tests are skipped, and say why.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest
from build import RELEASES, Builder, CannotBuild, machine

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/interop", description="Let the real kernel judge zkeep.")
    parser.add_argument("--zfs", choices=sorted(RELEASES), default=os.environ.get("ZKEEP_ZFS", "2.3"))
    parser.add_argument("--long", action="store_true", help="the whole matrix, longer histories")
    given, rest = parser.parse_known_args()
    os.environ["ZKEEP_ZFS"] = given.zfs
    if given.long:
        os.environ["ZKEEP_INTEROP"] = "long"
    try:
        Builder(given.zfs, machine(given.zfs)).build()
    except CannotBuild as error:
        print(f"\ncannot build the machine: {error}", flush=True)
    return pytest.main(["-m", "openzfs", "-rs", str(HERE), *rest])


if __name__ == "__main__":
    sys.exit(main())
