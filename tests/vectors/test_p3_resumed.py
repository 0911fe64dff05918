"""P3: a receive that breaks off at any byte goes on with its token, and nobody can tell afterwards."""

from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path

import pytest
from histories import DATA, History, Pair, forget_originals, histories, new_pool, put_together, take, take_chain

from zkeep.errors import BadStream, TryAgain
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import NotThere, Pool
from zkeep.pool.timeline import ingest
from zkeep.pool.timeline import segment as seg
from zkeep.pool.transfer.send import SendRequest, send

SETS = histories(DATA / "histories")
WHERE = Path(os.environ.get("ZKEEP_VECTORS", "/nowhere"))


def token_of(pool: Pool, target: str) -> str | None:
    """What `zkeep get receive_resume_token` shows; None if nothing remains."""
    try:
        doc = pool.catalog.get("receive", pool.dataset(DatasetName.parse(target)).key)
    except NotThere:
        return None
    return str(doc["token"]) if doc else None


def resumed(pool: Pool, token: str) -> bytes:
    """zfs send -t, from a pool that has the snapshot."""
    sink = io.BytesIO()
    send(pool, SendRequest(token=token, received_name=True), sink)
    return sink.getvalue()


def take_in_pieces(pool: Pool, sender: Pool, stream: bytes, name: str, dice: random.Random) -> int:
    """Receive a stream that breaks off again and again; returns how often it was resumed."""
    resumes = 0
    while True:
        cut = dice.randrange(1, len(stream)) if resumes < 5 else len(stream)
        try:
            take(pool, stream[:cut], name, resumable=True)
        except BadStream:
            assert cut < 3000  # before its BEGIN was whole: nothing was kept, or what was kept stays
        except TryAgain:
            token = token_of(pool, "v/x")
            assert token is not None
            stream = resumed(sender, token)
            resumes += 1
        else:
            return resumes


@pytest.mark.parametrize("history", SETS, ids=str)
def test_p3_a_receive_in_pieces_is_the_same_in_the_end(
    tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seg, "TARGET", 20_000)
    monkeypatch.setattr(ingest.seg, "TARGET", 20_000)
    dice = random.Random(history.name)
    with new_pool(tmp_path / "sender") as sender, new_pool(tmp_path / "receiver") as receiver:
        take_chain(sender, history)
        for pair in history.chain:
            stream = history.stream(pair)
            take_in_pieces(receiver, sender, stream, f"v/x@s{pair[1]}", dice)
        check_all(receiver, history)
        forget_originals(receiver)
        check_all(receiver, history, composed=True)


def check_all(pool: Pool, history: History, *, composed: bool = False) -> None:
    pairs: list[Pair] = [*history.chain, (None, history.last)]
    for pair in pairs:
        assert put_together(pool, pair) == history.stream(pair), (pair, composed)


def rests(archive: str) -> dict[str, bytes]:
    with tarfile.open(DATA / "resumed" / archive) as tar:
        return {m.name.removesuffix(".zfs"): held.read() for m in tar if (held := tar.extractfile(m))}


@pytest.mark.parametrize("archive", ["res1.tar.xz", "res3.tar.xz"])
def test_p3_a_real_kernel_goes_on_with_our_token_and_we_send_what_it_sends(tmp_path: Path, archive: str) -> None:
    stem, held = archive.partition(".")[0], rests(archive)
    full, increment = held[f"{stem}.full-s0"], held[f"{stem}.inc-s0-s1"]
    with new_pool(tmp_path / "sender") as sender:
        take(sender, full, "v/x@s0")
        take(sender, increment, "v/x@s1")
        for name, rest in held.items():
            if ".cut" not in name:
                continue
            whole, cut = held[name.rpartition(".cut")[0]], int(name.rpartition(".cut")[2])
            with new_pool(tmp_path / name) as pool:
                if whole is increment:
                    take(pool, full, "v/x@s0")
                with pytest.raises(TryAgain):
                    take(pool, whole[:cut], "v/x@s" + "01"[whole is increment], resumable=True)
                assert resumed(sender, str(token_of(pool, "v/x"))) == rest, name
                take(pool, rest, "v/x")
                assert put_together(pool, (0, 1) if whole is increment else (None, 0)) == whole, name
                forget_originals(pool)
                last = (None, 1) if whole is increment else (None, 0)
                assert put_together(pool, last) == held[f"{stem}.full-s{last[1]}"], name


@pytest.mark.skipif(not WHERE.is_dir(), reason="ZKEEP_VECTORS is not set")
def test_p3_what_a_real_kernel_resumed_is_the_same_in_the_end(tmp_path: Path) -> None:
    whole, part, rest = (WHERE / f"variants/B-resume-{n}.zfs" for n in ("0-whole", "1-part", "2-rest"))
    with new_pool(tmp_path) as pool:
        with pytest.raises(TryAgain):
            take(pool, part.read_bytes(), "v/x@s0", resumable=True)
        take(pool, rest.read_bytes(), "v/x")
        assert token_of(pool, "v/x") is None
        assert put_together(pool, (None, 0)) == whole.read_bytes()
        forget_originals(pool)
        assert put_together(pool, (None, 0)) == whole.read_bytes()
