"""Nothing in the repository depends on the machine on which it was written."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = {".py", ".c", ".md", ".toml", ".txt", ".json", ".sh", ".cfg", ""}
PRIVATE = re.compile(r"(?<![\w./])/(?:work|opt|mnt/data|Users)/")


def tracked() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    names = listed.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_path_of_one_machine_is_in_it() -> None:
    files = [path for path in tracked() if path.suffix in TEXT and path != Path(__file__).resolve()]
    assert not [path for path in files if PRIVATE.search(path.read_text(errors="replace"))]


def test_nothing_large_is_in_it() -> None:
    assert not [path for path in tracked() if path.stat().st_size > 2 << 20]


def test_the_package_ships_the_streams_of_the_demo() -> None:
    assert len(list((ROOT / "src" / "zkeep" / "data").glob("*.zfs.xz"))) >= 12
