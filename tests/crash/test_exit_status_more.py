"""The exit status is true at whichever call the disk fails: verbs with keys, clones, partial receives, maintenance.

See test_exit_status.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faultkit import DATA, Bench, Verb, called, judge, unload

import keykit

KEY = keykit.location(DATA / "opened/story/jambon-zfs-key")
NEW = "-o keyformat=raw -o keylocation=file://{place}/new"
CHAIN = "opened/chains/ccm192-lzjb-8k.full-s0.zfs"
FAMILY = "opened/kernel/promoted.{}.zfs"
VERBS = {
    "promote": Verb("promote vault/fam/b"),
    "replicate": Verb("receive -F vault/old", FAMILY.format(1), stepwise=True),
    "receive -F": Verb("receive -F vault/changed/blanc", "streams/inc-w.zfs"),
    "receive -A": Verb("receive -A vault/partial"),
    "receive -c": Verb("receive -c hurt/d@s0", CHAIN, quiet=True),
    "change-key": Verb(f"change-key -L {KEY} {NEW} vault/jambon", random=True),
    "forget-keys": Verb("forget-keys -f vault/changed"),
    "create -o encryption": Verb(f"create -o encryption=on {NEW} vault/made", random=True),
    "snapshot --from": Verb("snapshot --from {place}/folder -L file://{place}/new vault/docs@more", random=True),
    "snapshot -r": Verb("snapshot -r -o a:b=c -L file://{place}/new vault/docs@named", random=True),
    "prune": Verb("prune vault/many/blanc"),
    "backup": Verb("backup --yes --key-file {place}/new {place}/folder vault/kept", random=True, stepwise=True),
    "pool compact": Verb("pool compact vault", quiet=True),
    "pool scrub": Verb("pool scrub vault", quiet=True),
    "pool scrub --rebuild-catalog": Verb("pool scrub --rebuild-catalog vault", quiet=True),
    "pool import -D": Verb("pool import -D gone"),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    top = tmp_path_factory.mktemp("template")
    keykit.write(top / "new", bytes(range(32)))
    (top / "folder").mkdir()
    (top / "folder" / "letter").write_text("Dear")
    new = NEW.format(place=top)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZKEEP_HOME", str(top / "home"))
        patch.setenv("ZKEEP_AGENT", str(top.with_name("run") / "agent"))
        for line in (
            f"pool create vault {top / 'vault'}",
            f"pool create hurt {top / 'hurt'}",
            f"receive hurt/d < {CHAIN}",
            "receive vault/jambon < streams/full-Rw.zfs",
            "receive vault/changed < streams/full-Rw.zfs",
            f"change-key -L {KEY} {new} vault/changed",
            "receive vault/spare < streams/full-Rw.zfs",
            f"receive vault/fam < {FAMILY.format(0)}",
            f"receive -F vault/fam < {FAMILY.format(1)}",
            f"receive vault/old < {FAMILY.format(0)}",
            f"create -o encryption=on {new} vault/docs",
            f"create -o encryption=on {new} vault/docs/below",
            f"snapshot --from {top}/folder -L file://{top}/new vault/docs@first",
            "receive vault/many < streams/full-Rw.zfs",
            "set retention=hourly=1 vault/many/blanc",
            "destroy -r vault/spare",
            f"pool create gone {top / 'gone'}",
            "pool destroy -f gone",
        ):
            words, _, name = line.partition(" < ")
            assert called(words, name) == 0, line
        stream = (DATA / "opened/chains/gcm128-zstd-16k.full-s0.zfs").read_bytes()
        (top / "cut").write_bytes(stream[: len(stream) // 2])
        assert called("receive -s vault/partial", str(top / "cut")) == 5
    segment = min((top / "hurt" / "segments").rglob("*-0.seg"))
    content = bytearray(segment.read_bytes())
    content[len(content) // 3] ^= 1
    segment.write_bytes(content)
    (top / "folder" / "second").write_bytes(os.urandom(100_000))
    yield top
    unload(top)


@pytest.mark.parametrize("verb", VERBS)
def test_p3_the_exit_status_says_what_is_true_of(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], verb: str
) -> None:
    bench = Bench(template, tmp_path / "place", VERBS[verb], monkeypatch)
    wrong = judge(bench, VERBS[verb], capfd)
    assert not wrong, "\n".join(wrong)
