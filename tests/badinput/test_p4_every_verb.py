"""P4 for every verb and option that there is: lists of them are taken from the program, so that none is forgotten."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator

import click
import pytest
from badkit import Box, Record, begin_of, forged, stream
from doorkit import ROOT, Door, watched

from zkeep.cli import main
from zkeep.cli.keys.key import key_verb
from zkeep.cli.main import cli
from zkeep.cli.pool.pool import pool_verb
from zkeep.errors import WrongUsage, ZkeepError
from zkeep.format.records import BeginFlag, Feature
from zkeep.names import DatasetName
from zkeep.pool.transfer.token import Token
from zkeep.server.access import ROLES, Access, Denied
from zkeep.server.rules import _KEYED, _POOL_REFUSED, _REFUSED, ALIASES, POOL_RULES, RULES, judge

ATTEMPTS = int(os.environ.get("ZKEEP_RUNS", "50"))
"""How many attempts are made on what is another client's; a long run has 1,000."""
EVERYTHING = ",".join(ROLES)
ALL = Access(DatasetName(ROOT), frozenset(ROLES))
HIS = ("v/bob", "v/bob/secret", "v/bob/secret@s0", "v/bob/secret@s1", "v/bob/secret#b", "v/bob/new", "v/bob/secret@new")
OWN = ("v/alice", "v/alice/home", "v/alice/home@s0", "v/alice/home@s1", "v/alice/x", "v/alice/home#c", "@s0", "#c")
SECRET = begin_of(stream("rs1k", "inc-s0-s1"))
NOBODYS = SECRET.toguid ^ 1
"""A guid that no snapshot has."""
VALUES = {
    "receive -o": ("origin={}", "quota=1", "a:b=c", "readonly=on", "zkeep:backup-source={}"),
    "receive -x": ("quota", "a:b"),
    "create -o": ("a:b={}", "origin={}", "quota=1", "notify=exec:id"),
    "create -V": ("1M",),
    "create -b": ("8K",),
    "snapshot -o": ("a:b={}",),
    "send -i": ("{}", "@s0"),
    "send -I": ("{}", "@s0"),
    "send -X": ("{}", "v/alice/home,{}"),
    "send --exclude": ("{}",),
    "send -t": ("TOKEN",),
    "send --metadata": ("index", "all", "0-63", "{}"),
    "send --objects": ("1-99", "1:131072,4", "GUID"),
    "list -o": ("name,guid,used", "origin,clones", "{}"),
    "list -s": ("guid", "{}"),
    "list -S": ("used", "{}"),
    "list -t": ("all", "snapshot", "{}"),
    "list -d": ("1", "{}"),
    "get -o": ("all", "{}"),
    "get -s": ("local,received", "{}"),
    "get -t": ("all", "{}"),
    "get -d": ("9", "{}"),
}
"""What an option takes; `{}` is a name, TOKEN a resume token of a snapshot that may be another's, GUID its guid."""
FIRST = {"get": ("all", "guid,used", "{}", "written@s1", "written@{}"), "hold": ("tag", "bobs")}
FIRST |= {"release": ("bobs", "{}")}
FIRST |= {"set": ("a:b=c", "quota=1G", "retention=daily=1", "a:b={}"), "inherit": ("quota", "a:b")}
"""The words that some verbs take before names."""


def options_of(verb: str) -> Iterator[tuple[str, ...]]:
    """Each option that a rule allows, with the values that are tried for it."""
    rule = RULES[verb] if verb in RULES else POOL_RULES[verb.removeprefix("zpool ")]
    letters = [letter for letter in rule.letters if letter != ":"]
    valued = {letter for letter, mark in zip(rule.letters, rule.letters[1:], strict=False) if mark == ":"}
    names = [f"-{letter}" for letter in letters] + [f"--{name.removesuffix('=')}" for name in rule.longs]
    taking = {f"-{letter}" for letter in valued} | {f"--{name[:-1]}" for name in rule.longs if name.endswith("=")}
    for name in names:
        for value in VALUES.get(f"{verb} {name}", ("{}", "1")) if name in taking else (None,):
            yield (name,) if value is None else (name, value)


def made_up(chance: random.Random) -> str:
    """A call with an option or two in which `{}` stands for a name that is another client's, or nobody's."""
    program, verb = chance.choice([*(("zfs", verb) for verb in RULES), *(("zpool", verb) for verb in POOL_RULES)])
    if chance.random() < 0.2:  # what finds snapshots by their guids
        program, verb = "zfs", chance.choice(["receive", "send", "token"])
    if verb == "token":
        options = chance.sample(["-w", "-n", "-v", "-P", "-c", "--metadata index", "-i @s0"], chance.randrange(3))
        return f"zfs send {' '.join(options)} -t TOKEN"
    known = list(options_of(verb if program == "zfs" else f"zpool {verb}"))
    options = [word for option in chance.sample(known, min(len(known), chance.randrange(4))) for word in option]
    first = [chance.choice(FIRST[verb])] if verb in FIRST and program == "zfs" else []
    names = chance.choice([["{}"], ["{}", chance.choice(OWN)], [chance.choice(OWN), "{}"], ["{}", "{}"]])
    words = [program if verb != "history" else "zkeep", verb, *options, *first, *names]
    if "{}" in " ".join(options) and chance.random() < 0.5:
        words[-len(names) :] = [chance.choice(OWN)]
    return " ".join(words)


def token(guid: int) -> str:
    return Token("t/x@s", guid, 1, 0, 0, 0, Feature.RAW).encode()


def filled(line: str, name: str, guid: int) -> str:
    return line.replace("{}", name).replace("TOKEN", token(guid)).replace("GUID", str(guid & 0xFFFFFFFF))


@pytest.fixture
def door(box: Box, monkeypatch: pytest.MonkeyPatch) -> Door:
    return Door(box, monkeypatch)


def bobs(door: Door) -> dict[str, object]:
    """All documents of the catalog that are about what is bob's."""
    with_him = {"v/bob", "v/bob/secret"}
    listed = door.box.zkeep("list", "-Hp", "-r", "-t", "all", "-o", "all", "v/bob").out
    held = door.box.zkeep("holds", "-rH", "v/bob/secret@s0", "v/bob/secret@s1").out
    settings = door.box.zkeep("get", "-Hp", "-r", "-s", "local,received", "all", *sorted(with_him)).out
    return {"listed": drop_moving(listed), "held": held, "settings": settings}


def drop_moving(text: str) -> list[list[str]]:
    """Rows without what the whole pool has: room that is left."""
    rows = [line.split("\t") for line in text.split("\n")]
    return [[cell for cell in row if not cell.isdigit() or int(cell) < 1 << 30] for row in rows]


def test_p4_no_verb_and_no_option_reaches_another_clients(door: Door) -> None:
    """Half of the calls are made twice, with his name and with nobody's: the answers are the same."""
    chance = random.Random(int(os.environ.get("ZKEEP_SEED", "15")))
    streams = list(zip(streams_from(SECRET.toguid), streams_from(NOBODYS), strict=True))
    before = bobs(door)
    with watched(door.box) as found:
        for number in range(ATTEMPTS):
            line, name = made_up(chance), chance.choice(HIS)
            allow = chance.choice([EVERYTHING, EVERYTHING, "receive,list", "list,send"])
            given, none = chance.choice([*streams, (b"", b"")])
            nobodys = filled(line, name.replace("bob", "eve"), NOBODYS)
            other = answered(door, nobodys, allow, none)
            answer = answered(door, filled(line, name, SECRET.toguid), allow, given)
            # What the first of the two did to alice's own datasets may change the answer: then it is asked again.
            assert answer in (other, answered(door, nobodys, allow, none)), (number, allow, line, name)
    assert not found
    assert bobs(door) == before


def streams_from(guid: int) -> list[bytes]:
    """An increment from this snapshot, and a clone of it."""
    data = stream("rs1k", "inc-s1-s2")
    flags = begin_of(data).flags

    def change(flag: int, record: Record) -> None:
        record.put("fromguid", guid)
        record.put("flags", flags | flag)

    return [forged(data, lambda records, flag=flag: change(flag, records[0])) for flag in (0, BeginFlag.CLONE)]


def plain(text: str) -> str:
    """An answer without the words that were put into the question."""
    for guid in (SECRET.toguid, NOBODYS):
        for form in (f"{guid:#x}", str(guid), str(guid & 0xFFFFFFFF), token(guid)):
            text = text.replace(form, "GUID")
    return text.replace("bob", "eve")


def answered(door: Door, line: str, allow: str, given: bytes) -> tuple[int, str, str]:
    answer = door.ask(line, allow=allow, stdin=given)
    assert "Traceback" not in answer.err, line
    assert "ZKEEP_DEBUG" not in answer.err, (line, answer)
    return answer.status, plain(answer.out), plain(answer.err)


def test_every_verb_is_allowed_or_refused_by_name() -> None:
    """A verb that is added here, and not thought of there, fails this test."""
    known = {*RULES, *ALIASES, *_KEYED, *_REFUSED, "version"}
    assert set(main.VERBS) <= known
    assert set(pool_verb.commands) <= {*POOL_RULES, *_POOL_REFUSED}


@pytest.mark.parametrize("program", ["zkeep", "zfs"])
def test_p4_a_verb_that_is_not_in_the_table_runs_in_no_way(program: str) -> None:
    """Neither alone nor with names, nor with the options that it has."""
    with cli.make_context("zkeep", [], resilient_parsing=True) as top:
        for verb in sorted(set(main.VERBS) - {*RULES, *ALIASES, "version"}):
            command = cli.get_command(top, verb)
            assert command is not None
            flags = [option for param in command.params for option in param.opts if isinstance(param, click.Option)]
            groups = list(command.commands) if isinstance(command, click.Group) else []
            for words in ([], ["v/alice"], ["v/alice/home@s0"], *([flag] for flag in flags), *([g] for g in groups)):
                if words in (["-h"], ["--help"]):
                    continue
                if verb == "pool" and words and words[0] in POOL_RULES and program == "zkeep":
                    continue  # that is zpool list and so on
                with pytest.raises((Denied, WrongUsage)):
                    judge(program, [verb, *words], ALL)


def test_p4_pool_and_key_verbs_that_are_not_in_the_table() -> None:
    for name, words in itertools.product(pool_verb.commands, ([], ["v"], ["-f", "v"], ["/x"])):
        if name not in POOL_RULES:
            with pytest.raises((Denied, WrongUsage)):
                judge("zpool", [name, *words], ALL)
    for name in key_verb.commands:
        with pytest.raises((Denied, WrongUsage)):
            judge("zkeep", ["key", name, "v/alice/home"], ALL)


EXCLUDING = (
    *("--one-file-system", "--exclude", "--exclude-from", "--exclude-caches", "--exclude-if-present"),
    "--exclude-larger-than",
)
NOT_FOR_CLIENTS = {
    "snapshot": {"-j", "--json", "--from", "-n", "-v", "-L", *EXCLUDING, "--fs-snapshot"},
    "receive": {"--append-only"},
    "mount": {"-a", "-l", "-f", "-o", "-r", "-L", "-O", "-v"},
    "unmount": {"-a"},
    "send": {"-U", "--no-preserve-encryption"},
}
"""Options that were thought of, and that no client may give."""


def test_every_option_is_allowed_or_left_out_by_name() -> None:
    """An option that is added to a verb here, and not thought of there, fails this test."""
    with cli.make_context("zkeep", [], resilient_parsing=True) as top:
        for verb, rule in RULES.items():
            command = cli.get_command(top, verb)
            assert command is not None
            letters = {f"-{letter}" for letter in rule.letters.replace(":", "")}
            known = letters | {f"--{name.removesuffix('=')}" for name in rule.longs} | {"-h", "--help"}
            known |= NOT_FOR_CLIENTS.get(verb, set())
            for param in command.params:
                if isinstance(param, click.Option):
                    assert known & set(param.opts), (verb, param.opts)


def test_p4_options_that_are_left_out_are_refused() -> None:
    for verb, options in NOT_FOR_CLIENTS.items():
        for option in options:
            with pytest.raises(ZkeepError):
                judge("zkeep", [verb, option, "x", "v/alice/home@s0"], ALL)
