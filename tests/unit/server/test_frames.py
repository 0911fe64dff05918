"""What TrueNAS writes around its commands is taken off, and nothing that only looks like it."""

from __future__ import annotations

import shlex
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkeep.names import DatasetName
from zkeep.server.access import Access
from zkeep.server.frames import unframed
from zkeep.server.programs import Flow, understand
from zkeep.server.rules import Call
from zkeep.server.shell import CannotParse, Pipeline, Script, parse

SEND = "zfs send -p -w 'v/a/b c@1'"
ALICE = Access(DatasetName("v/a"), frozenset({"receive", "list", "send"}))


def sending(command: str) -> str:
    return f'({command} & PID=$!; echo "zettarepl: zfs send PID is $PID" 1>&2; wait $PID)'


def piped(*commands: str) -> str:
    """A pipeline of which every exit status counts, as zettarepl writes it."""
    steps = " | ".join(f'{{ {each} 4>&-; echo "pipestatus{at}=$?;" >&4; }}' for at, each in enumerate(commands))
    asked = "; ".join(f"[ $pipestatus{at} -ne 0 ] && exit $pipestatus{at}" for at in range(len(commands)))
    return f"exec 3>&1; eval $(exec 4>&1 >&3 3>&-; {steps}); {asked}; exit 0"


def meant(line: str) -> Flow:
    """What the line that comes over ssh leads to."""
    found: Script = parse(line)
    for depth in range(3):
        step = found.steps[0]
        assert isinstance(step.what, Pipeline)
        flow = understand(step.what, ALICE, depth)
        if not isinstance(flow.action, Script):
            return flow
        found = flow.action
    raise AssertionError(line)


def over_ssh(script: str) -> str:
    """A shell with its path, and within it another, as zettarepl quotes them."""
    return shlex.join(["sh", "-c", f"PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin sh -c {shlex.quote(script)}"])


@pytest.mark.parametrize(
    ("programs", "packing"),
    [(["lz4c -d"], "lz4"), (["pigz -d"], "gzip"), (["xzdec"], "xz"), (["mbuffer -q -r 1000", "lz4c -d"], "lz4")],
    ids=["lz4c", "pigz", "xzdec", "two"],
)
def test_a_receive_behind_what_unpacks_it(programs: list[str], packing: str) -> None:
    flow = meant(over_ssh(piped(*programs, "zfs recv -s -F -x mountpoint v/a/home")))
    assert isinstance(flow.action, Call)
    assert (flow.action.verb, flow.action.arguments) == ("recv", ("v/a/home",))
    assert [each.packing for each in flow.filters if each.packing] == [packing]


@pytest.mark.parametrize("script", [sending(SEND), piped(shlex.join(["sh", "-c", sending(SEND)]), "lz4c")])
def test_a_send_whose_number_is_asked_for(script: str) -> None:
    flow = meant(over_ssh(script))
    assert isinstance(flow.action, Call)
    assert (flow.action.verb, flow.action.arguments) == ("send", ("v/a/b c@1",))
    assert len(flow.filters) == script.count("lz4c")


@pytest.mark.parametrize(
    "line",
    [
        piped("lz4c -d", "zfs recv v/a/x").replace("exit $pipestatus1", "exit $pipestatus0"),
        piped("lz4c -d", "zfs recv v/a/x").replace(">&4; }); [", ">&4; }); id; ["),
        piped("lz4c -d", "zfs recv v/a/x").replace("eval $(exec", "eval $(id; exec"),
        piped("lz4c -d", "zfs recv v/a/x") + " ",
        sending(SEND).replace("wait", "kill"),
        sending(SEND) + "; id",
        piped(*["lz4c -d"] * 9, "zfs recv v/a/x"),
        "exec 3>&1; eval $(exec 4>&1 >&3 3>&-; exit 0",
        "exec 3>&1; eval $(exec 4>&1 >&3 3>&-; ); exit 0",
        f"({SEND} & PID=$!",
    ],
)
def test_another_line_stays_as_it_is_and_is_refused(line: str) -> None:
    assert unframed(line) == line
    with pytest.raises(CannotParse):
        parse(line)


@pytest.mark.parametrize("command", ["id; zfs recv v/a/x", "zfs recv $(id)", "zfs recv v/a/x > /tmp/x"])
def test_what_is_within_is_judged_as_ever(command: str) -> None:
    for script in (piped("lz4c -d", command), sending(command)):
        with pytest.raises(Exception, match=r"permission denied|not allowed|a pipeline here|exist"):
            meant(over_ssh(script))


@given(st.lists(st.sampled_from([*piped("a", "b").split(" "), SEND, "(", '"', "$(id)"]), max_size=40))
def test_whatever_comes_ends(pieces: list[str]) -> None:
    with suppress(CannotParse):
        parse(unframed(" ".join(pieces)))


def test_a_long_line_of_frames_takes_no_time() -> None:
    hostile = piped(*["x"] * 8).replace("x", 'x 4>&-; echo "pipestatus0=$?;" >&4; } | { y' * 700)
    began = time.process_time()
    unframed(hostile)
    assert time.process_time() - began < 0.5
