"""Who may do what: the judge is a function of words, root and roles."""

from __future__ import annotations

import pytest

from zkeep.errors import ZkeepError
from zkeep.names import DatasetName
from zkeep.server.access import DEFAULT, ROLES, Access, Denied, parse_roles
from zkeep.server.rules import NOTHING, RULES, BadCall, judge

ROOT = DatasetName("vault/alice")


def words(line: str, *roles: str) -> list[str] | str:
    """What the verb is given, or why it is not run."""
    program, *rest = line.split()
    try:
        return judge(program, rest, Access(ROOT, frozenset(roles or DEFAULT))).words()
    except ZkeepError as error:
        return str(error)


NEEDED = {
    "receive": ("receive vault/alice/x", "receive -A vault/alice/x", "recv -s vault/alice/x", "create vault/alice/x"),
    "list": ("list", "list vault", "list -r vault/alice", "get all vault/alice", "holds vault/alice/x@s", "history"),
    "send": ("send -w vault/alice/x@s", "send -t 1-c0ffee-0-00", "send -wi @r vault/alice/x@s"),
    "hold": ("hold t vault/alice/x@s", "release t vault/alice/x@s"),
    "destroy": ("destroy vault/alice/x@s", "destroy -r vault/alice/x", "rollback -r vault/alice/x@s"),
    "snapshot": ("snapshot vault/alice/x@s", "bookmark vault/alice/x@s #b"),
    "admin": (
        "rename vault/alice/x vault/alice/y",
        "promote vault/alice/x",
        "set quota=1G vault/alice/x",
        "inherit quota vault/alice/x",
        "receive -o blind=off vault/alice/x",
        "create -o quota=1G vault/alice/x",
    ),
}


@pytest.mark.parametrize(("role", "line"), [(role, line) for role, lines in NEEDED.items() for line in lines])
def test_each_verb_needs_its_role(role: str, line: str) -> None:
    others = set(ROLES) - {role, "admin"}
    if role == "admin":
        others |= {"receive", "list"}
    assert "permission denied" in words(f"zfs {line}", *others)
    assert isinstance(words(f"zfs {line}", "admin"), list)
    if role != "admin":
        assert isinstance(words(f"zfs {line}", role), list)


def test_every_rule_is_of_a_role() -> None:
    assert {rule.role for rule in RULES.values()} == set(ROLES)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("zfs receive -sF vault/alice/x", ["receive", "-s", "-F", "--append-only", "-h", "--", "vault/alice/x"]),
        ("zfs receive vault/alice/x -v", ["receive", "-v", "--append-only", "-h", "--", "vault/alice/x"]),
        ("zfs list -Honame -d1 vault", ["list", "-H", "-o", "name", "-d", "1", "--", "vault"]),
        ("zfs get -H -- all vault/alice", ["get", "-H", "--", "all", "vault/alice"]),
        ("zfs list -o -r vault", ["list", "-o", "-r", "--", "vault"]),
        ("zfs version", ["version"]),
        ("zfs --version", ["version"]),
        ("zfs list --help", ["list", "--help"]),
    ],
)
def test_words_are_written_anew(line: str, found: list[str]) -> None:
    assert words(line) == found


def test_roles_that_may_more_are_not_held_back() -> None:
    call = "zfs receive -F vault/alice/x"
    assert words(call, "receive", "destroy", "hold") == ["receive", "-F", "--", "vault/alice/x"]
    assert words(call, "receive", "hold") == ["receive", "-F", "--append-only", "--", "vault/alice/x"]
    assert words(call, "admin") == ["receive", "-F", "--", "vault/alice/x"]


@pytest.mark.parametrize(
    "line",
    [
        "zfs set quota=1T vault/alice",
        "zfs set blind=off vault/alice",
        "zfs set a:b=c blind=off vault/alice/x vault/alice",
        "zfs inherit blind vault/alice",
        "zfs inherit -r quota vault/alice",
        "zfs receive -o quota=none vault/alice",
        "zfs receive -o refquota=none -F vault/alice@s",
        "zfs create -p -o quota=none vault/alice",
        "zfs destroy vault/alice",
        "zfs destroy -r vault/alice",
        "zfs rename vault/alice vault/alice/x",
        "zfs rename vault/alice/x vault/alice",
        "zfs set keylocation=prompt vault/alice/x",
        "zfs set keylocation=file:///etc/key vault/alice/x",
        "zfs receive -o encryption=on vault/alice/x",
        "zfs create -V 1G vault/alice/x",
        "zfs load-key vault/alice/x",
        "zfs mount -o x vault/alice/x",
        "zkeep cat vault/alice/x@s",
    ],
)
def test_what_no_role_may(line: str) -> None:
    with pytest.raises((Denied, BadCall)):
        judge(*_split(line), Access(ROOT, frozenset(ROLES)))


def _split(line: str) -> tuple[str, list[str]]:
    program, *rest = line.split()
    return program, rest


@pytest.mark.parametrize(
    "line",
    [
        "zfs receive -o readonly=on -o org.a:b=c -x mountpoint vault/alice/x",
        "zfs create -o encryption=off -o zrepl:placeholder=on -o mountpoint=none vault/alice/x",
        "zfs receive -o origin=vault/alice/y@s vault/alice/x",
        "zfs create -o nosuch=1 vault/alice/x",
        "zfs mount vault/alice/x",
    ],
)
def test_what_an_appending_key_may(line: str) -> None:
    assert isinstance(words(line), list)


@pytest.mark.parametrize("name", ["vault", "vault/bob", "vault/alicex", "other", "vault/alice2/x", "vault/bob/x"])
def test_names_outside_of_the_root_do_not_exist(name: str) -> None:
    for line in ("destroy {}", "send -w {}", "hold t {}", "receive -o origin={} vault/alice/x", "set a:b=c {}"):
        assert words(f"zfs {line.format(name)}", "admin") == f"cannot open {name}: dataset does not exist"


def test_datasets_above_are_there_already() -> None:
    access = Access(DatasetName("vault/clients/alice"))
    for name in ("vault", "vault/clients"):
        assert judge("zfs", ["create", "-p", "-u", name], access) is NOTHING
        with pytest.raises(Denied):
            judge("zfs", ["create", name], access)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("zfs", "missing command"),
        ("zfs nosuch", "unrecognized command 'nosuch'"),
        ("zfs list -y", "option -y not recognized"),
        ("zfs receive", "missing snapshot argument"),
        ("zfs receive -x", "option -x requires argument"),
        ("zfs destroy a b", "too many arguments"),
        ("zfs allow vault/alice", "cannot allow: permission denied"),
        ("zpool destroy vault", "cannot destroy: permission denied"),
        ("zpool nosuch vault", "unrecognized command 'nosuch'"),
        ("zfs load-key", "missing dataset argument"),
        ("zfs load-key vault/alice/x", "cannot load-key: permission denied: no key is ever used here"),
        ("zpool list other", "cannot open other: no such pool; this key has a part of vault"),
    ],
)
def test_wrong_calls(line: str, says: str) -> None:
    assert words(line, "admin") == says


def test_roles_are_known() -> None:
    assert parse_roles(["receive,list", "send"]) == {"receive", "list", "send"}
    with pytest.raises(ZkeepError, match="there is no role 'root'"):
        parse_roles(["root"])


@pytest.mark.parametrize(
    "line",
    [
        "set notify=exec:/bin/sh vault/alice/x", "inherit notify vault/alice/x",
        "create -o notify=exec:/x vault/alice/y", "receive -o notify=https://x/ vault/alice/x",
    ],
)  # fmt: skip
def test_what_runs_programs_is_the_administrators(line: str) -> None:
    assert "notify: permission denied" in str(words(f"zfs {line}", "admin"))


@pytest.mark.parametrize(
    "line",
    [
        "set zkeep:backup-source=/home vault/alice/x", "create -o zkeep:backup-source=/home vault/alice/y",
        "receive -o zkeep:backup-destination=ann@host:v/x vault/alice/x", "inherit zkeep:backup-source vault/alice/x",
        "snapshot -o zkeep:x=y vault/alice/x@s",
    ],
)  # fmt: skip
def test_a_client_does_not_give_its_dataset_out_as_one_of_the_servers_backups(line: str) -> None:
    assert ": permission denied" in str(words(f"zfs {line}", "admin"))
    assert isinstance(words(f"zfs {line.replace('zkeep:', 'org.example:')}", "admin"), list)


@pytest.mark.parametrize("line", ["prune vault/alice", "health", "metrics -o /tmp/x", "metrics --listen 127.0.0.1:1"])
def test_retention_and_health_are_not_asked_for_by_clients(line: str) -> None:
    assert isinstance(words(f"zkeep {line}", "admin"), str)
