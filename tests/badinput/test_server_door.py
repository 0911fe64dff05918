"""P4: whatever a client sends to zkeep server, no shell runs, no other file is opened, nothing of others is told."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from contextlib import suppress

import click
import pytest
from badkit import Box, begin_of, forged, stream
from doorkit import CANARY, COMMANDS, FRAGMENTS, ROOT, Door, mutated, watched
from packagekit import Entry, package

from zkeep.cli.main import cli
from zkeep.errors import ZkeepError
from zkeep.format.records import BeginFlag, Feature
from zkeep.names import DatasetName
from zkeep.pool.transfer.token import Token
from zkeep.server.access import ROLES, Access
from zkeep.server.programs import Receives, Say, understand
from zkeep.server.rules import Call
from zkeep.server.shell import Choice, Script, parse

LINES = int(os.environ.get("ZKEEP_LINES", "3000"))
"""How many lines are judged; a long run has 100,000."""
RUNS = int(os.environ.get("ZKEEP_RUNS", "150"))
"""How many of them are run, and how many attempts are made on another client's datasets; a long run has 1,000."""
EVERYTHING = ",".join(ROLES)


@pytest.fixture
def door(box: Box, monkeypatch: pytest.MonkeyPatch) -> Door:
    return Door(box, monkeypatch)


def calls_of(script: Script, access: Access, depth: int = 0) -> Iterator[Call]:
    """The verbs that a script may run."""
    for step in script.steps:
        if isinstance(step.what, Choice):
            for part in (step.what.condition, step.what.then, step.what.otherwise):
                yield from calls_of(part, access, depth)
            continue
        action = understand(step.what, access, depth).action
        if isinstance(action, Script):
            yield from calls_of(action, access, depth + 1)
        elif isinstance(action, Call):
            yield action
        else:
            assert isinstance(action, Say | Receives)


def judged(line: str, access: Access) -> list[Call]:
    with suppress(ZkeepError):  # nothing else may come
        return list(calls_of(parse(line), access))
    return []


def parsed_by_click(call: Call) -> click.Context | None:
    """What the verb itself makes of the words; None where it refuses them."""
    group: click.Command | None = cli
    words = call.words()
    with cli.make_context("zkeep", [], resilient_parsing=True) as top:
        if call.program == "zpool":
            group = cli.get_command(top, "pool")
        assert isinstance(group, click.Group)
        command = group.get_command(top, words[0])
        if command is None:
            return None
        try:
            return command.make_context(words[0], words[1:], top)
        except (click.ClickException, click.exceptions.Exit):
            return None


FILES = ("source", "locations", "key_locations", "folder", "files", "exclude_from", "excludes_from", "path")
"""Parameters of verbs that name files."""


def is_own(text: str) -> bool:
    dataset = re.split("[@#]", text)[0]
    return dataset == ROOT or dataset.startswith(f"{ROOT}/")


@pytest.mark.parametrize("allow", ["receive,list", EVERYTHING])
def test_p4_a_verb_sees_no_name_and_no_file_but_the_clients(allow: str) -> None:
    """Judged by what click makes of the words, which is what the verb will do."""
    chance, access = random.Random(allow), Access(DatasetName(ROOT), frozenset(allow.split(",")))
    allowed = 0
    for _ in range(LINES):
        for call in judged(mutated(chance), access):
            allowed += 1
            ctx = parsed_by_click(call)
            if ctx is None or call.program == "zpool":
                continue
            files = [name for name in FILES if ctx.params.get(name)]
            assert not files or call.verb == "bookmark", call  # whose source is a snapshot
            for name in ("target", "name", "old", "snapshot"):
                if (text := ctx.params.get(name)) and not (call.verb == "bookmark" and text[0] in "#@"):
                    assert is_own(text), call
            if call.verb in ("list", "get", "hold", "release", "holds", "snapshot", "snap", "inherit"):
                for text in ctx.params.get("names") or ():
                    assert is_own(text) or (text == "v" and call.verb in ("list", "get")), call
    assert allowed > LINES // 20


def test_p4_whatever_is_sent_opens_no_file_and_runs_no_program(door: Door) -> None:
    chance = random.Random(4)
    data = stream("rs512b", "inc-s1-s2")
    with watched(door.box) as found:
        for number in range(RUNS):
            line = mutated(chance)
            answer = door.ask(line, allow=EVERYTHING if number % 2 else "receive,list", stdin=data)
            assert "Traceback" not in answer.err, line
            assert "ZKEEP_DEBUG" not in answer.err, (line, answer)
            assert "bob" not in (answer.out + answer.err).replace(line, "") or "bob" in line, (line, answer)
            assert not found, (line, found)
    assert door.box.zkeep("list", "-H", "-o", "name", "-t", "all", "-r", "v/bob").out.count("\n") == 5


MONSTERS = [
    "x" * (10 << 20),
    "zfs list " + "a" * (10 << 20),
    "zfs list " + "v/alice " * 100_000,
    "'" * 1001,
    "if true; then " * 1000,
    "sh -c " + "'" * 99,
    "zfs list \0 v/alice",
    "zfs list '\0'",
    "\n",
    "",
    "\ud800\udcff",
    "zfs list \udcff",
    "zfs list v/alice@" + "\u202e" * 90,
    "zfs send -t 1-" + "f" * 100_000,
    "zfs get " + "a," * 10_000 + "b v/alice",
    "zfs set " + "a=b " * 1000 + "v/alice/home",
]


def test_p4_monstrous_lines_get_a_line(door: Door) -> None:
    for line in MONSTERS:
        answer = door.ask(line, allow=EVERYTHING)
        assert answer.err.count("\n") <= 12, line[:99]
        assert len(answer.err) < 4000, line[:99]
        assert "Traceback" not in answer.err
        assert "ZKEEP_DEBUG" not in answer.err


FILE_TAKING = [
    f"create -o keylocation=file://{CANARY} v/alice/x",
    "create -o encryption=on -o keyformat=raw v/alice/x",
    f"receive -o keylocation=file://{CANARY} v/alice/x",
    f"set keylocation=file://{CANARY} v/alice/home",
    f"snapshot --from {CANARY} v/alice/home@x",
    f"snapshot -L file://{CANARY} v/alice/home@x",
    f"help --man-pages {CANARY}",
    f"extract -C {CANARY} v/alice/home@s0",
    f"cat v/alice/home@s0 {CANARY}",
    f"ls {CANARY}",
    f"verify {CANARY}",
    f"dump {CANARY}",
    f"mount v/alice/home {CANARY}",
    f"load-key -L file://{CANARY} v/alice/home",
    f"change-key -o keylocation=file://{CANARY} v/alice/home",
    "forget-keys v/alice/home",
    f"diff -L file://{CANARY} v/alice/home@s0",
    f"pool create x {CANARY}",
    f"pool import {CANARY}",
    "pool export v",
    "pool destroy -f v",
    "pool scrub v",
    "pool compact v",
    "server --root v",
    f"server --root v --print-authorized-keys {CANARY}",
    "demo",
    "completion bash",
]


def test_p4_what_takes_a_file_or_a_key_is_refused_to_every_role(door: Door) -> None:
    for words in FILE_TAKING:
        with watched(door.box) as found:
            answer = door.ask(f"zkeep {words}", allow=EVERYTHING)
        assert answer.status in (1, 2), words
        assert answer.out == "", words
        assert not found, words


# Isolation: what is another client's answers as what does not exist


BOBS = ("v/bob", "v/bob/secret", "v/bob/secret@s0", "v/bob/secret#b", "v/bob/new")
NOBODYS = ("v/eve", "v/eve/secret", "v/eve/secret@s0", "v/eve/secret#b", "v/eve/new")


def attempts() -> Iterator[tuple[str, str, str]]:
    """Roles, and a line about what is bob's, and the same about what nobody has."""
    verbs = (
        *("zfs list {}", "zfs list -r {}", "zfs get all {}", "zfs get -Hp guid,used {}", "zfs destroy -r {}"),
        *("zfs destroy -nv {}", "zfs rollback -r {}", "zfs hold t {}", "zfs holds {}", "zfs release bobs {}"),
        *("zfs receive -F {}", "zfs receive -s {}", "zfs receive -A {}", "zfs receive -o origin={} v/alice/x"),
        *("zfs receive -d {}", "zfs create {}", "zfs create -p {}", "zfs send -w {}"),
        *("zfs send -w -i {} v/alice/home@s1", "zfs send -nv {}"),
        *("zfs send -Rw -X {} v/alice/home@s1", "zfs rename {} v/alice/x", "zfs rename v/alice/home {}"),
        *("zfs rename v/alice/home@s0 {}", "zfs promote {}", "zfs set quota=1 {}", "zfs set a:b=c {}"),
        *("zfs inherit quota {}", "zfs bookmark {} v/alice/home#x", "zfs bookmark v/alice/home@s0 {}", "zfs mount {}"),
        *("zfs umount {}", "zfs snapshot {}", "zkeep list {}", "zkeep get used {}", "zpool list {}", "zpool status {}"),
        *("zfs list v/alice {}", "zfs get all v/alice/home {}", "sh -c 'zfs list {}'"),
        *("if zfs list {}; then exit 1; fi", "zfs list {} || zfs destroy {}"),
        *("zfs receive -u v/alice/../{}", "zfs list 'v/alice/{}'", "zfs list v/alice@{}", "sudo zfs get name {} 2>&1"),
        *("gzip -dc | zfs receive {}", "zfs send -w {} | zstd", "zfs list -t all -o name,origin,clones -r {}"),
    )
    for allow in ("receive,list", "list,send", EVERYTHING):
        for verb in verbs:
            for his, none in zip(BOBS, NOBODYS, strict=True):
                yield allow, verb.replace("{}", his), verb.replace("{}", none)


def test_p4_another_clients_names_answer_as_names_that_do_not_exist(door: Door) -> None:
    all_of_them = list(attempts())
    data = stream("rs1k", "inc-s1-s2")
    chance = random.Random(2)
    before = door.box.state()[0]
    for allow, his, none in chance.sample(all_of_them, min(RUNS, len(all_of_them))):
        one, other = (door.ask(line, allow=allow, stdin=data) for line in (his, none))
        assert (one.status, one.out.replace("bob", "eve"), one.err.replace("bob", "eve")) == (
            other.status,
            other.out,
            other.err,
        ), his
    after = door.box.state()[0]
    for kind in ("dataset", "snapshot", "bookmark", "run"):
        assert {k: v for k, v in after[kind].items() if k in before[kind]}.keys() >= {
            key for key, doc in before[kind].items() if "bob" in str(doc)
        }
    assert door.box.zkeep("get", "-Hp", "-o", "value", "userrefs", "v/bob/secret@s1").out == "1\n"


def test_p4_guids_and_tokens_of_others_find_nothing(door: Door) -> None:
    """A clone, an increment and a token by the guid of bob's snapshot, and by one that nobody has."""
    s1 = begin_of(stream("rs1k", "inc-s0-s1")).toguid
    after = stream("rs1k", "inc-s1-s2")

    def clone_from(guid: int) -> bytes:
        def change(records: list) -> None:  # type: ignore[type-arg]
            records[0].put("fromguid", guid)
            records[0].put("flags", begin_of(after).flags | BeginFlag.CLONE)

        return forged(after, change)

    for allow in ("receive,list,send", EVERYTHING):
        for letters in ("", "-F", "-s", "-n", "-nvF"):
            found = [
                door.ask(f"zfs receive {letters} v/alice/x", stdin=clone_from(guid), allow=allow)
                for guid in (s1, s1 ^ 1)
            ]
            texts = [answer.err.replace(f"{s1:#x}", "G").replace(f"{s1 ^ 1:#x}", "G") for answer in found]
            assert texts[0] == texts[1] != ""
            assert {answer.status for answer in found} == {1}
        tokens = [
            Token(toname="t@s", toguid=guid, object=0, offset=0, bytes=0, fromguid=0, features=Feature.RAW).encode()
            for guid in (s1, s1 ^ 1)
        ]
        texts = [
            door.ask(f"zfs send -t {token}", allow=allow).err.replace(f"{guid:#x}", "G")
            for token, guid in zip(tokens, (s1, s1 ^ 1), strict=True)
        ]
        assert texts[0] == texts[1] != ""


def test_p4_what_was_cloned_across_is_not_told_to_either(door: Door) -> None:
    """The administrator made a clone of bob's snapshot in alice's tree, and one of alice's in bob's."""

    def clone_of(data: bytes) -> bytes:
        def change(records: list) -> None:  # type: ignore[type-arg]
            records[0].put("flags", begin_of(data).flags | BeginFlag.CLONE)

        return forged(data, change)

    door.box.takes(clone_of(stream("rs1k", "inc-s1-s2")), "-o", "origin=v/bob/secret@s1", "v/alice/given")
    door.box.takes(clone_of(stream("rs512b", "inc-s1-s2")), "-o", "origin=v/alice/home@s1", "v/bob/taken")
    for line in (
        "zfs list -r -t all -o name,origin,clones v",
        "zfs get -r all v",
        "zfs list -j -r -t all v",
        "zfs destroy v/alice/home@s1",
        "zfs destroy -R v/alice/home@s1",
        "zfs destroy -R v/alice/home",
        "zfs rollback -R v/alice/home@s0",
        "zfs promote v/alice/given",
        "zpool status -v",
        "zpool get all",
    ):
        answer = door.ask(line, allow=EVERYTHING)
        assert "bob" not in answer.out + answer.err, line
    # Bob's bookmark of s0 is in the past of alice's clone: a token may not name it.
    to, s0 = begin_of(stream("rs1k", "inc-s1-s2")).toguid, begin_of(stream("rs1k", "full-s0")).toguid
    texts = []
    for guid in (s0, s0 ^ 1):
        token = Token("t/given@s2", to, 0, 0, 0, guid, Feature.RAW).encode()
        answer = door.ask(f"zfs send -nt {token}", allow=EVERYTHING)
        texts.append((answer.status, answer.out, answer.err.replace(f"{guid:#x}", "G")))
    assert texts[0] == texts[1] != (0, "", "")
    assert door.box.zkeep("list", "v/bob/taken", "v/alice/home@s1", "v/bob/secret@s1").status == 0
    assert door.box.zkeep("get", "-H", "-o", "value", "origin", "v/alice/given").out == "v/bob/secret@s1\n"


def test_p4_sizes_of_others_are_not_told(door: Door) -> None:
    """With a quota of the root, nothing that alice can see changes when bob stores something."""
    assert door.box.zkeep("set", "quota=1G", "v/alice").status == 0
    lines = (
        "zfs get -Hp -r all v",
        "zfs list -Hp -r -t all -o space,name v",
        "zpool get -Hp all v",
        "zpool list -Hp",
        "zpool status -v v",
        "zfs list -j",
    )
    before = [door.ask(line).out for line in lines]
    door.box.takes(stream("rs1k", "inc-s1-s2"), "v/bob/secret@s2")
    door.box.takes(stream("rs1k", "full-s0"), "v/bob/more@s0")
    assert door.box.zkeep("pool", "scrub", "v").status == 0
    after = [re.sub(r"scan:.*\n", "", door.ask(line).out) for line in lines]
    assert after == [re.sub(r"scan:.*\n", "", text) for text in before]


def test_the_fragments_reach_every_part_of_the_parser() -> None:
    """Else the tests above would be easy to pass."""
    access = Access(DatasetName(ROOT), frozenset(ROLES))
    chance = random.Random(1)
    lines = [mutated(chance) for _ in range(1000)]
    assert len({line for line in lines if judged(line, access)}) > 40
    assert len({line for line in lines if not judged(line, access)}) > 40
    probes = ("command", "echo", "exit", "ps", "if", "sh")
    assert all(judged(line, access) or line.startswith(probes) or "lzop" in line for line in COMMANDS)
    assert len(FRAGMENTS) > 80


def test_p4_a_quota_holds_for_everything_that_a_client_sends(door: Door) -> None:
    data = stream("rs512b", "inc-s1-s2")
    assert door.box.zkeep("set", "quota=200K", "v/alice").status == 0
    assert door.ask("zfs receive v/alice/home", stdin=data).status == 0
    used = int(door.box.zkeep("get", "-Hp", "-o", "value", "used", "v/alice").out)
    assert door.box.zkeep("set", f"quota={used}", "v/alice").status == 0
    answer = door.ask("zfs receive v/alice/more", stdin=stream("rs512b", "full-s0"))
    assert answer.status == 1
    assert "the quota is used up" in answer.err
    for line in ("zfs set quota=none v/alice", "zfs inherit quota v/alice", "zfs receive -o quota=none v/alice"):
        assert "permission denied" in door.ask(line, allow=EVERYTHING).err


def test_p4_what_no_quota_counts_is_bounded(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    many = " ".join(f"-o a:{number}={'x' * 4000}" for number in range(5))
    for line in (f"zfs create {many} v/alice/new", f"zfs receive {many} v/alice/new"):
        answer = door.ask(line, stdin=stream("rs512b", "full-s0"))
        assert answer.status == 1
        assert "cannot set so many properties" in answer.err
    monkeypatch.setattr("zkeep.pool.datasets.namespace.MOST_DATASETS", 4)
    assert door.ask("zfs create -p v/alice/a/b").status == 0
    assert "there are 4 datasets already" in door.ask("zfs create v/alice/c").err


def test_p4_a_package_promotes_and_destroys_nothing_outside(door: Door) -> None:
    """A clone of bob's snapshot, which the administrator made, was promoted and bob's snapshots are gone, it says."""
    own, other = stream("rs512b", "full-s0"), stream("rs1k", "inc-s1-s2")
    s1 = begin_of(stream("rs1k", "inc-s0-s1")).toguid
    clone = forged(other, lambda records: records[0].put("flags", begin_of(other).flags | BeginFlag.CLONE))
    door.box.takes(clone, "-o", "origin=v/bob/secret@s1", "v/alice/given@s2")
    look = ("list", "-Hp", "-r", "-t", "all", "-o", "name,guid,used,origin", "v/bob")
    before = door.box.zkeep(*look).out
    for snaps in ({"s2": begin_of(other).toguid}, {"s1": s1, "s2": begin_of(other).toguid}):
        entries = [Entry("t/A", {"a0": begin_of(own).toguid}), Entry("t/A/given", snaps)]
        data = package("t/A@a0", entries, [own], fromsnap="a")
        for allow in ("receive,list", EVERYTHING):
            answer = door.ask("zfs receive -F v/alice", stdin=data, allow=allow)
            assert "bob" not in answer.out + answer.err
            assert door.box.zkeep(*look).out == before
    assert door.box.zkeep("get", "-H", "-o", "value", "origin", "v/alice/given").out == "v/bob/secret@s1\n"
