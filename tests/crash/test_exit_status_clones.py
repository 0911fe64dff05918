"""The exit status is true at whichever call fails: clones, and what moves or goes back among them, with loaded keys.

See test_exit_status.py. Calls of all rooms fail, also those of the agent's client, which follows a root that moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faultkit import Bench, Verb, called, judge, unload

import keykit

LOAD = "load-key -a"
EVERYWHERE = "zkeep."
VERBS = {
    "clone": Verb("clone vault/docs@second vault/docs/new", random=True, room=EVERYWHERE),
    "clone -p -o": Verb("clone -p -o a:b=c vault/docs@first vault/far/away/new", random=True, room=EVERYWHERE),
    "promote what has the key": Verb("promote vault/copy", first=LOAD, room=EVERYWHERE),
    "promote again": Verb("promote vault/docs", first="promote vault/copy", room=EVERYWHERE),
    "rename a root": Verb("rename vault/docs vault/moved", first=LOAD, room=EVERYWHERE),
    "rename -p": Verb("rename -p vault/copy vault/far/away/copy", room=EVERYWHERE),
    "rename -r": Verb("rename -r vault/tree@first @renamed", room=EVERYWHERE),
    "roll back": Verb("rollback vault/copy@own", first="destroy vault/copy@later", room=EVERYWHERE, quiet=True),
    "roll back -r": Verb("rollback -r vault/copy@own", room=EVERYWHERE),
    "roll back -R": Verb("rollback -R vault/docs@first", first=LOAD, room=EVERYWHERE),
    "destroy -R": Verb("destroy -R vault/docs@second", first=LOAD, room=EVERYWHERE),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """vault/copy is a clone of vault/docs@second, with two snapshots of its own; vault/tree has a child."""
    top = tmp_path_factory.mktemp("template")
    keykit.write(top / "new", bytes(range(32)))
    (top / "folder").mkdir()
    key = f"-L file://{top}/new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZKEEP_HOME", str(top / "home"))
        patch.setenv("ZKEEP_AGENT", str(top.with_name("run") / "agent"))
        assert called(f"pool create vault {top}/vault") == 0
        options = f"-o encryption=on -o keyformat=raw -o keylocation=file://{top}/new"
        for name in ("vault/docs", "vault/tree"):
            assert called(f"create {options} {name}") == 0
        assert called("create vault/tree/child") == 0
        for number, line in enumerate(
            (
                f"snapshot --from {top}/folder {key} vault/docs@first",
                f"snapshot --from {top}/folder {key} vault/docs@second",
                "clone vault/docs@second vault/copy",
                f"snapshot --from {top}/folder {key} vault/copy@own",
                f"snapshot --from {top}/folder {key} vault/copy@later",
                f"snapshot --from {top}/folder {key} vault/tree@first",
                f"snapshot --from {top}/folder {key} vault/tree/child@first",
            )
        ):
            (top / "folder" / "letter").write_text(f"Dear {number}")
            assert called(line) == 0, line
    yield top
    unload(top)


@pytest.mark.parametrize("verb", VERBS)
def test_p3_the_exit_status_says_what_is_true_of_clones(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], verb: str
) -> None:
    bench = Bench(template, tmp_path / "place", VERBS[verb], monkeypatch)
    wrong = judge(bench, VERBS[verb], capfd)
    assert not wrong, "\n".join(wrong)
