"""Freed memory stays, and a block that is opened again and again costs no new pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, threading
from zkeep.snapshot.malloc import keep_freed_memory
{call}
def work():
    for _ in range(50):
        blocks = [b"x" * (1 << 17) for _ in range(64)]
        del blocks
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is of glibc")
def test_blocks_do_not_cost_new_pages() -> None:
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", PROGRAM.format(call=call)], capture_output=True, check=True).stdout)
        for call in ("keep_freed_memory()", "")
    )
    assert kept < given_back / 5


SHARING = """
import threading
from pathlib import Path
from zkeep.snapshot.malloc import share_freed_memory
{call}
def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
turn, left = threading.Barrier(9), []
def work(number):
    for at in range(8):
        if at == number:
            blocks = [bytearray(50_000) for _ in range(200)]
            left.append(blocks.pop())
            del blocks
        turn.wait()
before = held()
threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for _ in range(8):
    turn.wait()
for thread in threads:
    thread.join()
print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is of glibc")
def test_threads_use_what_others_freed() -> None:
    """Each of eight frees 10 MB but for the last block, before the next one begins."""
    shared, apart = (
        int(subprocess.run([sys.executable, "-c", SHARING.format(call=call)], capture_output=True, check=True).stdout)
        for call in ("share_freed_memory()", "")
    )
    assert shared < apart / 2
