"""A process to be killed: receives a package, and says on standard output which snapshots it has acknowledged."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.receive import Arrival, ReceiveOptions, receive


def tell(arrival: Arrival) -> None:
    if arrival.bytes is not None:
        os.write(1, f"{arrival.kept}\n".encode())


if __name__ == "__main__":
    with Pool.open(Path(sys.argv[1])) as pool, Path(sys.argv[2]).open("rb") as package:
        os.write(1, b"!ready\n")
        receive(pool, package, "b/data", ReceiveOptions(on_snapshot=tell, resumable=sys.argv[3] == "-s"))
        os.write(1, b"!done\n")
        sys.stdin.read()
