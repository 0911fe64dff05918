"""Files and functions stay small enough to read."""

from __future__ import annotations

import ast
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "src").rglob("*.py"))


def lengths() -> dict[str, int]:
    found = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                found[f"{path.name}:{node.lineno} {node.name}"] = (node.end_lineno or 0) - node.lineno + 1
    return found


def test_no_file_is_long() -> None:
    long = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert not {name: count for name, count in long.items() if count > 500}


def test_functions_are_short() -> None:
    sizes = lengths()
    assert median(sizes.values()) <= 10
    assert quantiles(sizes.values(), n=20)[-1] <= 30
    assert not {name: size for name, size in sizes.items() if size > 60}
