"""Secrets are kept from swap where the system lets us, and nothing fails where it does not."""

from __future__ import annotations

import mmap
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zkeep.agent.memory import _may_lock_without_limit, lock_as_used
from zkeep.crypto.pages import lock_pages

MIB = 1 << 20
LIMIT = 8 * MIB


def figure(name: str) -> int:
    """KiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def in_a_child(check: Callable[[], bool], *, limited: bool) -> bool:
    """Whether `check` holds in a process of its own; `limited`: of an ordinary user, who may lock 8 MiB."""
    child = os.fork()
    if not child:
        ok = False
        try:
            if limited:
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (LIMIT, LIMIT))
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
            ok = check()
        finally:
            os._exit(not ok)
    return os.waitpid(child, 0)[1] == 0


def test_with_a_limit_only_keys_are_locked_and_nothing_fails() -> None:
    def check() -> bool:
        key = os.urandom(32)
        lock_pages(key)
        locked = figure("VmLck")
        all_locked = lock_as_used()
        much = bytearray(4 * LIMIT)  # it can still be allocated
        return 4 <= locked <= 8 and not all_locked and figure("VmLck") == locked and len(much) == 4 * LIMIT

    assert in_a_child(check, limited=True)


def test_more_keys_than_may_be_locked_are_no_failure() -> None:
    def check() -> bool:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        lock_pages(os.urandom(32))
        return figure("VmLck") == 0

    assert in_a_child(check, limited=True)


@pytest.mark.skipif(not _may_lock_without_limit(), reason="this user may not lock all")
def test_without_a_limit_what_is_used_is_locked_and_what_is_not_takes_no_room() -> None:
    def check() -> bool:
        is_locked = lock_as_used()
        before = figure("VmRSS")
        mapped = mmap.mmap(-1, 64 * MIB)
        is_given = figure("VmRSS") - before > 32 * 1024
        return is_locked and figure("VmLck") >= figure("VmRSS") and not is_given and len(mapped) > 0

    assert in_a_child(check, limited=False)


def test_keys_that_are_unwrapped_lie_in_locked_pages() -> None:
    code = """
from zkeep.crypto.unwrap import MasterKeys, unwrap, wrap
from zkeep.agent.memory import keep_secret
from ctypes import CDLL
keep_secret(locked=False)
unwrap(wrap(MasterKeys(8, 1, 1, bytes(32), bytes(64)), bytes(32), 1), bytes(32))
locked = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmLck"))
core = open("/proc/self/limits").read().split("Max core file size")[1].split()[0]
print(locked != "0", CDLL(None).prctl(3, 0, 0, 0, 0), core)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "0", "0"]
