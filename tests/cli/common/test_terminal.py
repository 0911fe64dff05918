"""What is printed: hostile names steer no terminal, no encoding ends a verb, and no stream that is gone gives 120."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from zkeep.cli.common.sink import Sink
from zkeep.cli.common.terminal import Output, draw, guarded
from zkeep.cli.main import answers, run
from zkeep.names import printable, printable_path, unescaped, whole_number
from zkeep.pool.datasets.model import Pool

NASTY = "a\x1b[2J\r\n\x9bK\u202eb\udcff\x07"
Output_ = pytest.CaptureFixture[str]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """v, whose properties and last scrub somebody else wrote, in a folder of the same kind."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "runtime" / "agent"))
    path = tmp_path / "p\x1b[2J\x9b\u202e" / "pool"
    path.parent.mkdir()
    assert run(["pool", "create", "v", str(path)]) == 0
    with Pool.open(path) as opened, opened.transaction() as t:
        (top,) = opened.tree().by_id.values()
        opened.update_dataset(t, top, received={"x:y": NASTY, "mountpoint": f"/{NASTY}"}, local={"x:z": NASTY})
        t.put("scrub", "", {"seconds": 1, "bytes": 2, "finished": 3, "errors": [NASTY]})
    assert run(["create", "v/漢字-é".encode("ascii", "ignore").decode() + "d"]) == 0
    assert run(["set", "a:b=漢字 é", "v"]) == 0
    return path


# Nothing steers a terminal

SHOWING = [
    ["get", "all", "v"],
    ["get", "-H", "-o", "all", "x:y", "v"],
    ["get", "-j", "all", "v"],
    ["list", "-o", "name,x:y,x:z,mountpoint"],
    ["list", "-H", "-o", "x:y"],
    ["pool", "list", "-o", "name,path"],
    ["pool", "list", "-H", "-o", "path"],
    ["pool", "status", "-v"],
    ["pool", "status", "-j"],
    ["pool", "import", "PATH"],
    ["pool", "import", "-d", "PARENT"],
    ["pool", "create", "v", "PATH"],
    ["list", NASTY],
    ["get", NASTY, "v"],
    ["list", "-s", NASTY],
    ["list", "-d", NASTY],
    ["list", "-t", NASTY],
    ["set", f"quota={NASTY}", "v"],
    ["ls", f"v@{NASTY}"],
    ["load-key", "-L", f"file:///{NASTY.replace(chr(0), '')}", "v"],
    ["mount", "v", f"/{NASTY}"],
    ["unmount", f"/{NASTY}"],
    ["dump", f"/{NASTY}"],
    ["verify", "-L", f"file:///{NASTY}", "v"],
    ["hold", NASTY, "v@a"],
    ["send", "-t", NASTY],
    [NASTY],
]


@pytest.mark.parametrize("words", SHOWING)
def test_no_name_steers_a_terminal(pool: Path, capfd: Output_, words: list[str]) -> None:
    capfd.readouterr()
    run([{"PATH": str(pool), "PARENT": str(pool.parent)}.get(word, word) for word in words])
    out, err = capfd.readouterr()
    assert out or err
    assert not [c for c in out + err if not c.isprintable() and c not in "\n\t"]
    assert err.count("\n") <= 1


ODD = [{"seconds": "1"}, {"bytes": -1}, {"finished": 10**400}, {"errors": "x"}, {"errors": 3}]


@pytest.mark.parametrize("scrub", ODD)
def test_a_scrub_that_nobody_wrote_is_damage(pool: Path, capfd: Output_, scrub: dict[str, object]) -> None:
    with Pool.open(pool) as opened, opened.transaction() as t:
        t.put("scrub", "", scrub)
    capfd.readouterr()
    assert run(["pool", "status", "-v"]) == 0
    out, err = capfd.readouterr()
    assert "FAULTED" in out
    assert err == ""


@pytest.mark.parametrize(
    "path", [b"a", b"a\xff", b"\\", b"\\\xff", b"\\xff", b"a\nb", b"\xc2\x85", b"\x85", "\u202e漢".encode(), b"\\\\n\n"]
)
def test_a_path_is_known_again_from_what_is_shown(path: bytes) -> None:
    shown = printable_path(path)
    assert shown.isprintable()
    assert path in (unescaped(shown.encode()), shown.encode())


def test_a_line_that_is_drawn_over_is_the_only_one_that_moves(capfd: Output_) -> None:
    with guarded(matters=True):
        draw(f"1 of {NASTY}", to=sys.stderr)
    assert capfd.readouterr().err == f"\r1 of {printable(NASTY)}\x1b[K"


# Any encoding

ENCODINGS = ["ascii", "latin-1", "cp437", "euc-jp", "utf-16", "utf-8"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "words", [["get", "-H", "-o", "value", "a:b", "v"], ["list", "-o", "a:b"], ["ls", "漢字@é"], ["-h"]]
)
def test_an_encoding_takes_what_it_has(pool: Path, encoding: str, words: list[str]) -> None:
    done = zkeep(*words, PYTHONIOENCODING=encoding)
    assert done.returncode == (1 if words[0] == "ls" else 0)
    text = (done.stdout + done.stderr).decode(encoding)
    if words[-1] == "v":
        assert text.strip() == "漢字 é".encode(encoding, "backslashreplace").decode(encoding)


LOCALES = [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("words", [["get", "all", "v"], ["pool", "status"], ["set", "c:d=漢", "v"], ["list", "漢"]])
def test_a_locale_without_letters_is_one(pool: Path, locale: dict[str, str], words: list[str]) -> None:
    done = zkeep(*words, **locale)
    assert done.returncode == (1 if words[-1] == "漢" else 0)
    assert b"unexpected" not in done.stderr


def zkeep(*words: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "zkeep", *words]
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, **variables})


# Streams that are gone

WAYS = ["full", "closed", "broken"]


@contextmanager
def gone(way: str) -> Iterator[int | None]:
    """A descriptor that nothing can be written to; None: there shall be none."""
    with ExitStack() as stack:
        if way == "closed":
            yield None
            return
        reads, writes = os.pipe() if way == "broken" else (None, os.open("/dev/full", os.O_WRONLY))
        stack.callback(os.close, writes)
        if reads is not None:
            os.close(reads)
        yield writes


def status(words: list[str], **streams: int | None) -> int:
    """The exit status of zkeep with these streams in place of the usual ones."""
    close = [fd for name, fd in (("stdout", 1), ("stderr", 2)) if name in streams and streams[name] is None]
    places = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **{k: v for k, v in streams.items() if v}}
    start = "import os, sys; [os.close(int(fd)) for fd in sys.argv[1].split()]; os.execv(sys.argv[2], sys.argv[2:])"
    command = [sys.executable, "-c", start, " ".join(map(str, close)), sys.executable, "-m", "zkeep", *words]
    return subprocess.run(command, check=False, stdin=subprocess.DEVNULL, **places).returncode  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("words", "wanted"),
    [(["list"], 0), (["list", "x"], 1), (["-x"], 2), ([], 2), (["list", "v", "x"], 1), (["destroy", "-v", "v/-d"], 0)],
)
def test_without_standard_error_the_status_is_the_same(pool: Path, way: str, words: list[str], wanted: int) -> None:
    with gone(way) as stderr:
        assert status(words, stderr=stderr) == wanted


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("words", [["list"], ["get", "all", "v"], ["pool", "status"], ["-h"], ["list", "-j"], ["-V"]])
def test_what_was_asked_for_and_cannot_be_written_is_a_failure(pool: Path, way: str, words: list[str]) -> None:
    with gone(way) as stdout:
        assert status(words, stdout=stdout) == (5 if way == "broken" else 1)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_done_is_done_whether_or_not_it_can_be_told(pool: Path, way: str) -> None:
    with gone(way) as stdout:
        assert status(["destroy", "-v", "v/-d"], stdout=stdout) == 0
    assert run(["list", "v/-d"]) == 1


QUESTIONS = ["list", "destroy -nv v/a", "prune -n v", "mount", "load-key -rn v", "pool status", "pool import -d /x"]
CHANGES = ["snapshot -v --from /x v@a", "snap -j --from /x v@a", "mount v /x", "pool compact -v v", "pool scrub v"]


@pytest.mark.parametrize("line", QUESTIONS + CHANGES + ["pool destroy -f v", "prune -v v", "receive -v v"])
def test_a_call_is_for_its_answer_or_for_its_effect(line: str) -> None:
    assert answers(line.split()) == (line in QUESTIONS)


@pytest.mark.parametrize("way", WAYS)
def test_pools_change_whether_or_not_it_can_be_told(pool: Path, way: str) -> None:
    with gone(way) as stdout:
        assert status(["pool", "compact", "-v", "v"], stdout=stdout) == 0
        assert status(["pool", "destroy", "-f", "v"], stdout=stdout) == 0
    assert run(["list", "v"]) == 1


@pytest.mark.parametrize(("way", "wanted"), [("full", 1), ("broken", 5)])
def test_a_dump_that_cannot_be_written_could_be_read(way: str, wanted: int, tmp_path: Path, capfd: Output_) -> None:
    stream = Path(__file__).parents[2] / "data/streams/inc-w.zfs"
    with gone(way) as stdout, (tmp_path / "said").open("wb") as said:
        assert status(["dump", "-v", str(stream)], stdout=stdout, stderr=said.fileno()) == wanted
    assert "cannot read" not in (tmp_path / "said").read_text()


def test_both_are_gone(pool: Path) -> None:
    with gone("full") as full:
        assert status(["list"], stdout=full, stderr=full) == 1
        assert status(["destroy", "-v", "v/-d"], stdout=full, stderr=full) == 0


def test_click_writes_where_we_do(capfd: Output_) -> None:
    """It goes around a stream that says that it is ASCII."""
    import io

    import click

    kept = io.BytesIO()
    with guarded(matters=True):
        output = Output(io.TextIOWrapper(kept, "ascii", "backslashreplace"), matters=True)
        click.echo("é\x1b", file=output)  # type: ignore[arg-type]
        output.flush()
    assert kept.getvalue() == b"\\xe9\\x1b\n"


# Numbers


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", " 1", "1 ", "1_0", "1.0", "0x1", "٣", "²", "9" * 400, "9" * 5000, "101"]
)
def test_what_is_no_number_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"^"):
        whole_number(text, 100)


@pytest.mark.parametrize("text", ["100", "0" * 5000 + "7", "0"])
def test_numbers_have_any_number_of_zeros(text: str) -> None:
    assert whole_number(text, 100) == int(text[-3:])


LONG = "9" * 5000


@pytest.mark.parametrize("digits", ["9" * 400, LONG, "٣", "1e9", "inf", "nan", "-1"])
@pytest.mark.parametrize(
    "words",
    [
        ["load-key", "--lifetime", "N", "v"],
        ["load-key", "--lifetime", "Nd", "v"],
        ["change-key", "-o", "keyformat=passphrase", "-o", "pbkdf2iters=N", "v"],
        ["set", "quota=N", "v"],
        ["set", "quota=NT", "v"],
        ["set", "refquota=1.NX", "v"],
        ["set", "recordsize=N", "v"],
        ["set", "filesystem_limit=N", "v"],
        ["pool", "create", "-O", "quota=N", "w", "/nowhere/w"],
        ["receive", "-o", "quota=N", "v/r"],
        ["send", "-t", "1-N-N-N"],
    ],
)
def test_numbers_that_are_none_are_refused_in_one_line(
    pool: Path, capfd: Output_, words: list[str], digits: str
) -> None:
    capfd.readouterr()
    assert run([word.replace("N", digits) for word in words]) in (1, 2)
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "unexpected" not in err


@pytest.mark.parametrize("wait", ["inf", "nan", "-1", "1e400", "9" * 400, LONG, "x"])
def test_a_wait_that_is_none_is_refused(pool: Path, monkeypatch: pytest.MonkeyPatch, wait: str) -> None:
    monkeypatch.setenv("ZKEEP_WAIT", wait)
    assert run(["list", "v"]) == 2


@pytest.mark.parametrize("value", [LONG, "٣", "²", "007"])
def test_values_that_look_like_numbers_stay_what_they_are(pool: Path, capfd: Output_, value: str) -> None:
    assert run(["set", f"n:m={value}", "v"]) == 0
    for words in (["list", "-j", "--json-int", "-o", "name,n:m"], ["get", "-j", "--json-int", "n:m", "v"]):
        assert run(words) == 0


class Full(io.StringIO):
    """A file on a full disk: text, and the bytes below it."""

    def write(self, text: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @property
    def buffer(self) -> Full:
        return self


WRITES = {
    "text": lambda: Output(Full(), matters=True).write("x"),
    "bytes": lambda: Output(Full(), matters=True).buffer.write(b"x"),
    "a stream": lambda: Sink().write(b"x"),
}


@pytest.mark.parametrize("way", WRITES)
def test_what_cannot_be_written_to_standard_output_says_so(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else 'No space left on device' seems to be said of the pool."""
    monkeypatch.setattr(os, "write", lambda fd, content: Full().write(content))
    with pytest.raises(OSError, match="No space") as said:
        WRITES[way]()
    assert said.value.filename == "standard output"
