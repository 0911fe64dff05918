"""The table of verbs that clients may call, with which options, on which names. No pool is looked at.

The words of an allowed call are written again from what was parsed here, options first, then `--`, then names: so the
verb sees nothing that was not checked, however it parses. Verbs that open a file, take a key or work on whole pools are
not in the table.
"""

from __future__ import annotations

import getopt
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from zkeep.errors import WrongUsage
from zkeep.names import DatasetName, shown
from zkeep.pool.datasets import properties
from zkeep.server.access import Access, Denied, dataset_of, shown_name

Option = tuple[str, str | None]
APPEND_ONLY, NO_HOLDS = "--append-only", "-h"
ALIASES = {"recv": "receive", "snap": "snapshot", "umount": "unmount"}
KEYLESS = "permission denied: no key is ever used here"
_ENCRYPTION = ("encryption", "keyformat", "keylocation", "pbkdf2iters", "pbkdf2salt")
_OUTPUT = ("json", "json-int")


class BadCall(WrongUsage):
    """The verb is not called like that; `verb`: the one that knows how it is."""

    def __init__(self, text: str, verb: str = "") -> None:
        self.verb = verb
        super().__init__(text)


@dataclass(frozen=True)
class Call:
    """A verb of `program` (zkeep, zfs, zpool) with its options and arguments."""

    program: str
    verb: str
    options: tuple[Option, ...] = ()
    arguments: tuple[str, ...] = ()

    def words(self) -> list[str]:
        options = [word for name, value in self.options for word in ((name,) if value is None else (name, value))]
        return [self.verb, *options, *(("--", *self.arguments) if self.arguments else ())]

    def has(self, *names: str) -> bool:
        return any(name in names for name, _ in self.options)

    def values(self, *names: str) -> list[str]:
        return [value or "" for name, value in self.options if name in names]


NOTHING = Call("", "")
"A call that is allowed, and is done already."
Judge = Callable[[Call, Access], Call]


@dataclass(frozen=True)
class VerbRule:
    """What a verb asks for: the client's role, its options as getopt writes them, and a check of options and names."""

    role: str
    letters: str
    judge: Judge
    longs: tuple[str, ...] = ()


def judge(program: str, words: Sequence[str], access: Access) -> Call:
    """Decide whether a client may call a verb so; returns the call that is to be run.

    Raises:
        Denied: the client may not, whatever is in the pool.
        BadCall: it makes no sense.
    """
    verb, rest = (words[0], words[1:]) if words else ("", [])
    if verb in ("version", "--version", "-V"):
        return Call(program, "version")
    # The verb must be in the table.
    table = POOL_RULES if program == "zpool" else RULES
    rule = table.get(ALIASES.get(verb, verb))
    if rule is None:
        raise _unknown(program, verb, rest)
    # Its options must be among those of the rule; they may stand behind names, as for zfs.
    longs = ["help", *rule.longs]
    try:
        given, arguments = getopt.gnu_getopt(list(rest), rule.letters, longs)
    except getopt.GetoptError as error:
        raise BadCall(str(error.msg), verb) from None
    if any(name == "--help" for name, _ in given):
        return Call(program, verb, (("--help", None),))
    # The options that take a value
    letters = {f"-{letter}" for letter, mark in zip(rule.letters, rule.letters[1:], strict=False) if mark == ":"}
    valued = letters | {f"--{name[:-1]}" for name in rule.longs if name.endswith("=")}
    options = tuple((name, value if name in valued else None) for name, value in given)
    # The role comes before the names: without it, a client learns nothing about any name.
    about = f" {shown_name(arguments[-1])}" if arguments else ""
    access.require(rule.role, f"cannot {ALIASES.get(verb, verb)}{about}")
    return rule.judge(Call(program, verb, options, tuple(arguments)), access)


def _unknown(program: str, verb: str, rest: Sequence[str]) -> WrongUsage | Denied:
    """Why a verb that is not in the table is not run."""
    # Tools call a verb without arguments to read from its usage which options it knows.
    if program != "zpool" and verb in _KEYED:
        return Denied(f"cannot {verb}: {KEYLESS}") if rest else BadCall("missing dataset argument", verb)
    if verb in (_POOL_REFUSED if program == "zpool" else _REFUSED):
        return Denied(f"cannot {verb}: permission denied")
    return BadCall(f"unrecognized command {shown(verb)}" if verb else "missing command")


_KEYED = (
    *("load-key", "unload-key", "change-key", "forget-keys", "key", "verify", "extract", "cat", "ls", "diff"),
    "encrypt",
)
_REFUSED = (
    *("allow", "clone", "groupspace", "jail", "program", "project", "projectspace", "redact", "rewrite", "share"),
    *("unallow", "unjail", "unshare", "unzone", "upgrade", "userspace", "wait", "zone"),
    *("backup", "completion", "demo", "dump", "health", "help", "metrics", "pool", "prune", "restore", "schedule"),
    *("server", "shim"),
)
_POOL_REFUSED = (
    *("add", "attach", "checkpoint", "clear", "compact", "create", "ddtprune", "destroy", "detach", "events", "export"),
    *("history", "import", "initialize", "iostat", "labelclear", "offline", "online", "prefetch", "reguid", "remove"),
    *("reopen", "replace", "resilver", "scrub", "set", "split", "sync", "trim", "upgrade", "wait"),
)


# Names


def _names(call: Call, access: Access) -> Call:
    for text in call.arguments:
        access.owned(text)
    return call


def _seen(call: Call, access: Access) -> Call:
    for text in call.arguments:
        access.visible(text)
    return call


def _get(call: Call, access: Access) -> Call:
    for text in call.arguments[1:]:
        access.visible(text)
    return call


def _tagged(call: Call, access: Access) -> Call:
    for text in call.arguments[1:]:
        access.owned(text)
    return call


def _not_root(text: str, access: Access, cannot: str) -> None:
    """The root itself is the administrator's: it stays where it is, with what is set for it."""
    if dataset_of(access.owned(text)) == access.root and not set("@#") & set(text):
        raise Denied(f"cannot {cannot} {shown_name(text)}: permission denied: it is what this key is confined to")


# Settings


def check_setting(text: str, access: Access, dataset: DatasetName, cannot: str) -> None:
    """Judge `property=value` (or a property alone) for a dataset.

    What zkeep acts on (quotas, blind, ...) is policy, and the administrator's; below the root also the admin role's.
    """
    name, _, value = text.partition("=")
    prop = properties.find(name)
    if prop is None:
        return  # the verb says so
    if prop.name in _ENCRYPTION and (prop.name, value) != ("encryption", "off"):
        raise Denied(f"{cannot}: {KEYLESS}")
    if prop.name.startswith(properties.OWN_PREFIX):  # by these the server's own backups find their datasets
        raise Denied(f"{cannot}: {prop.name}: permission denied: it is set by the server's administrator")
    if prop.is_policy or prop.is_own:
        access.require("admin", f"{cannot}: {prop.name}")
        if dataset == access.root or prop.name == "notify":  # which runs programs on the server
            raise Denied(f"{cannot}: {prop.name}: permission denied: it is set by the server's administrator")


def _settings(texts: Iterable[str], access: Access, dataset: DatasetName, cannot: str) -> None:
    for text in texts:
        check_setting(text, access, dataset, cannot)


# Verbs that need more


def _receive(call: Call, access: Access) -> Call:
    """An appending client destroys nothing with -F, and sets no holds that would keep the server from pruning."""
    call = _one(call, "missing snapshot argument")
    target = dataset_of(access.owned(call.arguments[0]))
    cannot = f"cannot receive {target}"
    # `syncoid --preserve-properties` sends it; that is how it is here without a word.
    call = replace(call, options=tuple(option for option in call.options if option != ("-o", "keylocation=prompt")))
    for text in call.values("-o"):
        # Each -o is checked as zkeep set would be; an origin must be the client's own.
        name, _, value = text.partition("=")
        if name == "origin":
            access.owned(value)
        else:
            check_setting(text, access, target, cannot)
    # Encryption needs a key, and none is ever used for a client.
    if set(call.values("-x")) & {"encryption", "keyformat", "keylocation"}:
        raise Denied(f"{cannot}: {KEYLESS}")
    # What a role lacks becomes an option of the call, so that receive itself refuses it, whatever the stream says.
    extra: list[Option] = []
    if not access.may("destroy"):
        extra.append((APPEND_ONLY, None))
    if not access.may("hold") and not call.has(NO_HOLDS):
        extra.append((NO_HOLDS, None))
    return replace(call, options=(*call.options, *extra))


def _create(call: Call, access: Access) -> Call:
    call = _one(call, "missing filesystem argument")
    name = dataset_of(access.visible(call.arguments[0]) if call.has("-p") else access.owned(call.arguments[0]))
    if name != access.root and access.root.is_within(name):
        return NOTHING  # tools make sure that all datasets above are there
    if call.has("-V"):
        raise Denied(f"cannot create {name}: {KEYLESS}")
    _settings(call.values("-o"), access, name, f"cannot create {name}")
    return call


def _send(call: Call, access: Access) -> Call:
    """What a token names is looked for within the root only (Pool.scope); objects are those of a snapshot in it."""
    for text in call.values("-i", "-I"):
        if text[:1] not in ("@", "#") and ("/" in text or "@" in text or "#" in text):
            access.owned(text)
    for text in (name for names in call.values("-X", "--exclude") for name in names.split(",")):
        access.owned(text)
    return _names(call, access)


def _destroy(call: Call, access: Access) -> Call:
    call = _one(call, "missing dataset argument")
    text = call.arguments[0]
    dataset, mark, _ = text.partition("@")
    access.owned(dataset if mark else text)
    if not mark:
        _not_root(text, access, "destroy")
    return call


def _bookmark(call: Call, access: Access) -> Call:
    """Either name may be relative to the other: `@monday`, `#monday`."""
    full = [text for text in call.arguments if text[:1] not in ("@", "#")]
    if call.arguments and not full:
        raise BadCall("missing dataset name", call.verb)
    for text in full:
        access.owned(text)
    return call


def _snapshot(call: Call, access: Access) -> Call:
    for text in call.arguments:
        name = dataset_of(access.owned(text))
        _settings(call.values("-o"), access, name, f"cannot create snapshot {shown_name(text)}")
    return call


def _rename(call: Call, access: Access) -> Call:
    if len(call.arguments) != 2:
        raise BadCall("missing target dataset argument" if len(call.arguments) < 2 else "too many arguments", call.verb)
    old, new = call.arguments
    # Both names must be the client's own, and the root of its access stays where it is.
    _not_root(old, access, "rename")
    if "@" not in old:
        _not_root(new, access, "rename to")
    # A snapshot may be renamed with '@new' alone; a full name is looked at.
    elif "/" in new or new.partition("@")[0]:
        access.owned(new if "@" in new or "/" in new else f"{old.partition('@')[0]}@{new}")
    return call


def _set(call: Call, access: Access) -> Call:
    pairs = [word for word in call.arguments if "=" in word]
    for text in (word for word in call.arguments if "=" not in word):
        name = dataset_of(access.owned(text))
        _settings(pairs, access, name, f"cannot set property for {shown_name(text)}")
    return call


def _inherit(call: Call, access: Access) -> Call:
    for text in call.arguments[1:]:
        name = dataset_of(access.owned(text))
        check_setting(call.arguments[0], access, name, f"cannot inherit {shown_name(call.arguments[0])}")
    return call


def _promote(call: Call, access: Access) -> Call:
    return _names(_one(call, "missing clone filesystem argument"), access)


def _one(call: Call, missing: str) -> Call:
    if len(call.arguments) != 1:
        raise BadCall("too many arguments" if call.arguments else missing, call.verb)
    return call


def _pools(call: Call, access: Access) -> Call:
    return _check_pools(call, access, call.arguments)


def _pool_get(call: Call, access: Access) -> Call:
    return _check_pools(call, access, call.arguments[1:])


def _check_pools(call: Call, access: Access, names: Sequence[str]) -> Call:
    for text in names:
        if text != access.root.pool:
            raise Denied(f"cannot open {shown_name(text)}: no such pool; this key has a part of {access.root.pool}")
    return call


_SEND_LONGS = (
    *("raw", "replicate", "props", "dryrun", "verbose", "parsable", "large-block", "embed", "compressed", "holds"),
    *("backup", "skip-missing", "exclude=", "dedup", "proctitle", "received-name", "newest-key"),
    *("metadata=", "objects="),
)
RULES = {
    "receive": VerbRule("receive", "vnsuFdeo:x:hMcA", _receive),
    "create": VerbRule("receive", "puo:nvPV:sb:", _create),
    "list": VerbRule("list", "rd:Hpjo:s:S:t:", _seen, _OUTPUT),
    "get": VerbRule("list", "rd:Hpjo:s:t:", _get, _OUTPUT),
    "holds": VerbRule("list", "rHp", _names),
    "history": VerbRule("list", "Hj", _seen, ("json",)),
    "mount": VerbRule("list", "", _names),
    "unmount": VerbRule("list", "fu", _names),
    "send": VerbRule("send", "wRpi:I:t:nvPLechbsX:DV", _send, _SEND_LONGS),
    "hold": VerbRule("hold", "r", _tagged),
    "release": VerbRule("hold", "r", _tagged),
    "destroy": VerbRule("destroy", "rRdfnpv", _destroy),
    "rollback": VerbRule("destroy", "rRf", _names),
    "snapshot": VerbRule("snapshot", "ro:", _snapshot),
    "bookmark": VerbRule("snapshot", "r", _bookmark),
    "rename": VerbRule("admin", "pruf", _rename),
    "promote": VerbRule("admin", "", _promote),
    "set": VerbRule("admin", "u", _set),
    "inherit": VerbRule("admin", "rS", _inherit),
}
POOL_RULES = {
    "list": VerbRule("list", "Hpjo:", _pools, _OUTPUT),
    "get": VerbRule("list", "Hpjo:", _pool_get, _OUTPUT),
    "status": VerbRule("list", "vxj", _pools, ("json",)),
}
