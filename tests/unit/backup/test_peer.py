"""Peers that lie, talk without end, or do not talk at all."""

from __future__ import annotations

import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zkeep.backup import patience
from zkeep.backup import peer as module
from zkeep.backup.fetch import parse_snapshots
from zkeep.backup.peer import Peer, clean, parse_listing
from zkeep.backup.places import Host
from zkeep.backup.plan import Have, Point, plan
from zkeep.backup.run import Side, replicate
from zkeep.errors import Refused, TryAgain
from zkeep.format.records import Begin, ByteOrder, End, Feature, Layout
from zkeep.names import DatasetName
from zkeep.pool.transfer.token import Token

DATASET = DatasetName("vault/me")
ROW = "vault/me\t5\t1\tfilesystem\t-\n"


def listing(text: str) -> Have:
    return parse_listing(text.encode(), DATASET, "box")


def test_a_listing() -> None:
    token = Token("x@y", 3, 0, 0, 0)
    rows = f"vault/me@b\t2\t20\tsnapshot\t-\nvault/me\t5\t1\tfilesystem\t{token.encode()}\n"
    rows += "vault/me@a\t1\t10\tsnapshot\t-\nvault/me#a\t1\t10\tbookmark\t-\nvault/me/child\t9\t2\tfilesystem\t-\n"
    found = listing(rows)
    assert [point.name for point in found.points if point.is_snapshot] == ["@a", "@b"]
    assert found.by_guid(1) == Point("@a", 1, 10)
    assert found.token == token
    assert listing("") == Have()


@pytest.mark.parametrize(
    "row",
    [
        "vault/you@a\t1\t10\tsnapshot\t-",
        "vault/me@a\t0\t10\tsnapshot\t-",
        "vault/me@a\t-1\t10\tsnapshot\t-",
        f"vault/me@a\t{1 << 64}\t10\tsnapshot\t-",
        "vault/me@a\t1e3\t10\tsnapshot\t-",
        "vault/me@a\t\u0661\t10\tsnapshot\t-",
        "vault/me@a\t1\tnone\tsnapshot\t-",
        "vault/me@a\x1b[2J\t1\t10\tsnapshot\t-",
        "vault/me@a\t1\t10\tsnapshot",
        "vault/me@a\t1\t10\tsnapshot\t-\tmore",
        "vault/me@a\t1\t10\tpool\t-",
        "vault/me@a\t1\t10\tsnapshot\t-\nvault/me@b\t1\t11\tsnapshot\t-",
        "vault/me\t5\t1\tfilesystem\t1-bad",
        "vault/me\t5\t1\tfilesystem\t1-" + "0" * 100_000,
        "../../etc@a\t1\t10\tsnapshot\t-",
    ],
)
def test_rows_that_were_not_asked_for_are_refused_in_one_clean_line(row: str) -> None:
    with pytest.raises(Refused) as found:
        listing(ROW + row + "\n")
    text = str(found.value)
    assert len(text) < 700
    assert text.isprintable()


@pytest.mark.parametrize("line", ["garbage", "x" * 200, "vault/me@a\t1", "vault/me@a\t1\t10\tsnapshot\t-\tmore", "a b"])
def test_a_line_of_other_cells_is_shown(line: str) -> None:
    with pytest.raises(Refused) as found:
        listing(ROW + line + "\n")
    assert line[:40].replace("\t", "\\t") in str(found.value).replace("\\\\", "\\")
    assert "unpack" not in str(found.value)


def test_snapshots_without_a_dataset_are_refused() -> None:
    with pytest.raises(Refused, match="not the dataset itself"):
        listing("vault/me@a\t1\t10\tsnapshot\t-\n")


def test_messages_steer_no_terminal() -> None:
    said = clean("\x1b[31mgone\x1b[0m\x1b]0;title\x07 \x9b2Jfor\r\ngood \u202eevil")
    assert said.isprintable()
    assert "\x1b" not in said
    assert said.startswith("gone for good")
    assert len(clean("x" * 100_000)) < 500


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("No space left on device", "zkeep: cannot receive full stream: No space left on device."),
        ("cannot receive v/me: quota exceeded", "cannot receive v/me: quota exceeded"),
        ("stream ends early", "zkeep: cannot receive full stream: No space left on device. (stream ends early)"),
    ],
)
def test_the_reason_of_a_receive_that_broke_off_is_told_once_without_the_token(why: str, said: str) -> None:
    lines = [
        "zkeep: cannot receive full stream: No space left on device.",
        "Partially received snapshot is saved.",
        "A resuming stream can be generated on the sending system by running:",
        f"    zfs send -t 1-c0ffee-e0-{'7' * 40}",
        f"to go on with v/me@s by: zkeep receive -s v/me ({why})",
    ]
    assert clean("\n".join(lines)) == said


class Script(Peer):
    """Runs Python instead of zkeep, as if it were behind ssh."""

    def words(self, *words: str) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", self.program, *words]


def script(code: str) -> Script:
    return Script(code, Host("box"))


def test_endless_answers_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ANSWER", 1 << 20)
    with pytest.raises(Refused, match="an answer of more than 1 MiB"):
        script("while True: print('x' * 99999)").ask("list")


def test_endless_messages_are_kept_in_part() -> None:
    done, _ = script("import sys\nfor i in range(3000): sys.stderr.write('x' * 99 + chr(10))\nsys.exit(1)").ask("list")
    assert done.status == 1
    assert len(done.said) < 500


def test_one_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.05)
    with pytest.raises(TryAgain, match="did not answer"):
        script("import time; time.sleep(60)").ask("list")


@pytest.mark.parametrize(("status", "error"), [(255, TryAgain), (127, Refused), (-15, TryAgain)])
def test_ssh_and_the_shell_are_told_from_the_verb(status: int, error: type[Exception]) -> None:
    class Named(Script):
        program = "zkeep"

        def words(self, *words: str) -> list[str]:
            ends = f"os.kill(os.getpid(), {-status})" if status < 0 else f"os._exit({status})"
            return [sys.executable, "-I", "-S", "-c", f"import os; {ends}"]

    with pytest.raises(error, match="box"):
        Named("zkeep", Host("box")).ask("list")


def test_names_reach_a_host_as_one_word_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Peer("zkeep", Host("box", "me", 7), ("-o", "A=b")).words("list", "vault/a b'c")
    assert words[-3:] == ["--", "me@box", "zkeep list 'vault/a b'\"'\"'c'"]
    assert words[words.index("-p") + 1] == "7"


def test_zfs_is_found_where_cron_does_not_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_ADMIN", (str(tmp_path),))
    monkeypatch.setenv("PATH", "/nowhere")
    assert Peer("zfs").words("list") == ["zfs", "list"]
    (tmp_path / "zfs").touch(0o755)
    assert Peer("zfs").words("list") == [str(tmp_path / "zfs"), "list"]


# Streams

EAT = "import sys\nif sys.argv[1] == 'list': print(*{rows!r}, sep='', end='')\nelse: sys.stdin.buffer.read()\n"
POINT = Point("@a", 1, 10)
RAW = Begin(versioninfo=Feature.RAW << 2 | 1).pack()


@contextmanager
def sides(give: str, take: str) -> Iterator[tuple[Side, Side]]:
    yield Side(script(give), DatasetName("local/docs")), Side(script(take), DATASET)


def send(give: str, take: str) -> list[str]:
    seen: list[str] = []
    with sides(give, take) as (source, target):
        steps = plan(Have(True, (POINT,)), Have(), "DEST")
        replicate(source, target, steps, lambda event, **fields: seen.append(event))
    return seen


STREAM = f"import sys\nsys.stdout.buffer.write({RAW!r})\nsys.stdout.buffer.write(b'x' * 300000)\n"


def test_a_stream_that_arrives_is_looked_for() -> None:
    listed = EAT.format(rows=[ROW, "vault/me@a\t1\t10\tsnapshot\t-\n"])
    seen = send(STREAM, listed)
    assert (seen[0], seen[-1]) == ("send", "sent")


def test_a_stream_that_was_swallowed_counts_for_nothing() -> None:
    for rows in ([ROW], [], [ROW, "vault/me@a\t2\t10\tsnapshot\t-\n"], [ROW, "vault/me#a\t1\t10\tbookmark\t-\n"]):
        with pytest.raises(Refused, match="does not list the snapshot"):
            send(STREAM, EAT.format(rows=rows))


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("head", [Begin(versioninfo=Feature.COMPRESSED << 2 | 1), Begin(magic=1), End()])
def test_nothing_of_a_stream_in_clear_is_passed_on(tmp_path: Path, order: ByteOrder, head: Layout) -> None:
    took = tmp_path / "took"
    take = f"import sys; open({str(took)!r}, 'wb').write(sys.stdin.buffer.read())"
    give = f"import sys; sys.stdout.buffer.write({head.pack(order)!r} + bytes(99))"
    with pytest.raises(Refused, match="its stream is not raw"):
        send(give, take)
    assert not took.exists() or not took.read_bytes()


@pytest.mark.parametrize(
    ("give", "take", "error", "words"),
    [
        (STREAM, "import sys; print('no room', file=sys.stderr); sys.exit(1)", Refused, "no room"),
        (STREAM, "import sys; sys.stdin.buffer.read(9); sys.exit(255)", TryAgain, "cannot reach box"),
        (STREAM, "import sys; sys.exit(5)", TryAgain, "status 5"),
        (STREAM, "import sys; sys.exit(0)", TryAgain, "before the stream did"),
        (STREAM, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", TryAgain, "ssh was ended by signal 9"),
        (STREAM, "import sys; print('Killed', file=sys.stderr); sys.exit(137)", TryAgain, "box says: Killed"),
        (STREAM, "import sys; sys.stdin.buffer.read(9); sys.exit(143)", TryAgain, "status 143"),
        (STREAM, "import sys; sys.exit(126)", Refused, "status 126"),
        (STREAM + "sys.exit('it is gone')", EAT.format(rows=[ROW]), Refused, "it is gone"),
    ],
    ids=["refused", "ssh", "again", "early", "killed", "killed there", "ended there", "not killed", "sender"],
)
def test_whose_fault_it_is_that_a_stream_did_not_arrive(
    give: str, take: str, error: type[Exception], words: str
) -> None:
    big = give.replace("300000", "30000000") if "sys.exit('it" not in give else give
    with pytest.raises(error, match=words):
        send(big, take)


STILL = "import time; time.sleep(60)"
BIG = STREAM.replace("300000", "30000000")
DRIP = "import time\nwhile True: {}; time.sleep(0.02)"


@pytest.mark.parametrize(
    ("give", "take", "words"),
    [
        (BIG, STILL, "cannot receive: [0-9]+ bytes moved in"),
        (BIG, DRIP.format("__import__('sys').stdin.buffer.raw.read(1)"), "cannot receive: [0-9]+ bytes moved in"),
        (STILL, EAT.format(rows=[ROW]), "cannot send: nothing moved in"),
        (DRIP.format("__import__('os').write(1, b'x')"), EAT.format(rows=[ROW]), "cannot send: [0-9]+ bytes moved in"),
        (STREAM + DRIP.format("sys.stdout.buffer.raw.write(b'x')"), EAT.format(rows=[ROW]), "cannot send: .* moved in"),
    ],
    ids=["still", "sips", "silent", "header drips", "stream drips"],
)
def test_a_side_that_keeps_a_stream_waiting_is_ended(
    give: str, take: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "WAIT_SECONDS", 1.2)
    monkeypatch.setattr(patience, "LEAST", 8 << 20)
    with pytest.raises(TryAgain, match=words):
        send(give, take)


def test_a_side_that_is_slow_and_goes_on_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the rate, in each while of waiting; what we do meanwhile is not waited for."""
    monkeypatch.setattr(patience, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(patience, "LEAST", 20)
    read, write = os.pipe()
    with open(read, "rb") as source, open(write, "wb") as sink:
        patient = patience.Patient(source)
        for _ in range(3):
            time.sleep(0.15)
            os.write(write, b"x")
            assert patient.read(1) == b"x"
        with pytest.raises(TryAgain, match="cannot receive: 3 bytes moved in 0 seconds of waiting"):
            patient.read(1)
        sink.close()


@pytest.mark.parametrize("line", [b"\n", b"\t\n", b"\x0b", b"\x1c", "\u2028".encode(), b"\r", b"vault/me\t" * 9])
@pytest.mark.parametrize("parse", [parse_listing, parse_snapshots])
def test_a_listing_of_rubbish_takes_no_more_memory_than_its_bytes(
    line: bytes, parse: Callable[[bytes, DatasetName, str], object]
) -> None:
    """64 MiB of empty lines took some 7 GB as rows."""
    answer = line * ((1 << 20) // len(line))
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match="box lists what is no"):
            parse(answer, DATASET, "box")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_listing_of_too_many_rows_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LINES", 1000)
    with pytest.raises(Refused, match="an answer of more than 1000 lines to a question"):
        script("while True: print('vault/me@a')").ask("list")
    assert len(script("for i in range(1000): print(i)").ask("list")[1].split()) == 1000
