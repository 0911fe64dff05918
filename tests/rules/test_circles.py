"""Modules do not import one another in circles."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2] / "src"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}


def checks_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(path: Path) -> set[str]:
    """The modules of zkeep that a module imports, be it when it is imported itself or in a function.

    Types have no part in it: what stands below `if TYPE_CHECKING` is never imported.
    """
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    only_types = {inner for node in ast.walk(tree) if checks_types(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in only_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names} & MODULES.keys() or {node.module}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found & MODULES.keys()


def test_no_circles() -> None:
    TopologicalSorter({name: imports(path) for name, path in MODULES.items()}).prepare()
