"""One connection of zkeep server: what the client asked for is parsed, judged, and run within this process."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from zkeep.cli import main
from zkeep.cli.common import terminal, usage
from zkeep.cli.common.own_path import own_path
from zkeep.cli.common.pools import confined, opened, registry
from zkeep.cli.common.sink import wired
from zkeep.cli.common.text import count, safe
from zkeep.errors import Refused, TryAgain, WrongUsage, ZkeepError
from zkeep.names import DatasetName, shown
from zkeep.pool.datasets.commands import HistoryEntry, record
from zkeep.pool.datasets.properties import parse_size
from zkeep.pool.store.files import LocalStore
from zkeep.server.access import DEFAULT, Access, Denied, parse_roles
from zkeep.server.programs import Action, Flow, Receives, Say, acting, called, understand
from zkeep.server.rules import NOTHING, BadCall, Call
from zkeep.server.shell import Choice, Pipeline, Redirect, Script, ScriptStep, parse
from zkeep.server.wire import Silence, Wire, time_limit, watch

MOST_CONNECTIONS = 16
_PATIENCE = 60.0
"Seconds to wait for other writers of the catalog: many clients end their receives at the same time."
BARRED = ("zkeep.crypto", "zkeep.capture", "zkeep.reencrypt", "zkeep.restore", "zkeep.snapshot", "cryptography")
"Cannot be imported in a process that serves a client: whatever it is asked for, it decrypts nothing."

_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)


@dataclass(frozen=True)
class Settings:
    """What the administrator says in the forced command. `idle` in seconds, `rate` in bytes a second; 0: no limit.

    `most`: connections at once. `zone`: the time zone, as in TZ; empty for the system's.
    """

    access: Access
    client: str
    idle: float
    rate: int
    most: int
    zone: str = ""

    @classmethod
    def parse(
        cls, root: str, roles: Sequence[str], client: str, idle: str, rate: str, most: int, zone: str = ""
    ) -> Settings:
        access = Access(DatasetName.parse(root), parse_roles(roles or DEFAULT))
        try:
            if not _SECONDS.fullmatch(idle):
                raise ValueError(idle)
            seconds = float(idle)
        except ValueError:
            raise WrongUsage(f"--idle takes a number of seconds, not {shown(idle)}") from None
        try:
            speed = parse_size(rate)
        except ValueError:
            raise WrongUsage(f"--rate takes bytes a second, like 10M, not {shown(rate)}") from None
        return cls(access, client, seconds, speed, most, zone)

    def line(self, client: str) -> str:
        """The forced command, for sh; `{client}` stands for the fingerprint of a key."""
        home = os.environ.get("ZKEEP_HOME")
        # sshd runs the line with an environment of its own, so what matters is in it.
        words = ["env", f"ZKEEP_HOME={os.path.abspath(home)}"] if home else []
        words += [own_path(), "server", "--root", self.access.root.text]
        words += ["--allow", ",".join(sorted(self.access.roles)), "--client"]
        words += [client] if client else []
        # Only what is not the default, so that the line stays readable.
        extra = [] if self.idle == 3600 else ["--idle", f"{self.idle:g}"]
        extra += ["--rate", str(self.rate)] if self.rate else []
        extra += [] if self.most == MOST_CONNECTIONS else ["--connections", str(self.most)]
        zone = self.zone or os.environ.get("TZ", "")
        extra += ["--timezone", zone] if zone else []
        return " ".join([shlex.join(words), *([] if client else ["{client}"]), shlex.join(extra)]).strip()


def serve(line: str, settings: Settings) -> int:
    """Do what a command line asks for; returns the exit status."""
    os.environ.pop("ZKEEP_DEBUG", None)
    os.environ.setdefault("ZKEEP_WAIT", f"{_PATIENCE:g}")
    # Take the time zone that the administrator says, or the system's: sshd may pass on a client's TZ (AcceptEnv)
    os.environ.pop("TZ", None)
    if settings.zone:
        os.environ["TZ"] = settings.zone
    time.tzset()
    silence = watch(settings.idle)
    with _blind(), _without_paths(), _limited(settings.idle), _counted(settings), confined(settings.access.root):
        return _Connection(settings, silence).script(parse(line))


@contextmanager
def _counted(settings: Settings) -> Iterator[None]:
    """Take one of the places that a client has on the server, so that it cannot take all of its memory.

    Raises:
        TryAgain: all of them are taken.
    """
    root = settings.access.root
    with ExitStack() as held:
        path = registry().pools().get(root.pool)
        digest = sha256(root.text.encode()).hexdigest()[:16]
        for place in range(settings.most if path else 0):
            assert path is not None
            with suppress(TryAgain):
                with suppress(OSError):  # a disk that nothing can be written to
                    held.enter_context(LocalStore(path).lock(f"client-{digest}-{place}", passing=True))
                break
        else:
            if path:
                raise TryAgain(f"this client has {count(settings.most, 'connection')} already; end one, or try again")
        yield


@contextmanager
def _without_paths() -> Iterator[None]:
    """Inside, no message names the folders of pools."""
    known = registry()
    with suppress(ZkeepError):
        # Where pools lie is the server's business: the terminal replaces these words in every message.
        paths = {str(path): "the pool" for path in known.pools().values()}
        terminal.Mask.words = {**paths, str(known.home): "the server"}
    try:
        yield
    finally:
        terminal.Mask.words = {}


@contextmanager
def _limited(idle: float) -> Iterator[None]:
    """Inside, a client that asks and does not read the answer is ended as one that sends nothing."""
    before, terminal.Output.limit = terminal.Output.limit, partial(time_limit, idle)
    try:
        yield
    finally:
        terminal.Output.limit = before


@contextmanager
def _blind() -> Iterator[None]:
    """Inside, what decrypts cannot be imported."""
    missing = [name for name in BARRED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(missing))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in missing:
            sys.modules.pop(name, None)


class _Connection:
    """Runs the steps of a script, one after the other."""

    def __init__(self, settings: Settings, silence: Silence) -> None:
        self._settings = settings
        self._silence = silence
        self._access = settings.access

    def script(self, script: Script, depth: int = 0) -> int:
        status = 0
        for step in script.steps:
            if self._silence.happened:
                break
            if step.after == ";" or (step.after == "&&") == (status == 0):
                status = self._step(step, depth)
        return status

    def _step(self, step: ScriptStep, depth: int) -> int:
        if isinstance(step.what, Choice):
            condition = self.script(step.what.condition, depth)
            return self.script(step.what.otherwise if condition else step.what.then, depth)
        return self._pipeline(step.what, depth)

    def _pipeline(self, pipeline: Pipeline, depth: int) -> int:
        """Run a pipeline; its errors go where the client wants them."""
        command = acting(pipeline)
        with _redirected(command.redirects):
            try:
                return self._run(understand(pipeline, self._access, depth), depth)
            except BaseException as error:
                # An error ends this pipeline, not the connection: the next one may depend on its status.
                status = main.report(called(command), error)
                # What was refused is worth a line in the history, too.
                if isinstance(error, Denied):
                    self._record(shlex.join(command.words), Wire(), time.time(), status, refused=True)
                if isinstance(error, BadCall):
                    _print_usage(error.verb)
                return status

    def _run(self, flow: Flow, depth: int) -> int:
        action: Action = flow.action
        if isinstance(action, Script):
            return self.script(action, depth + 1)
        if isinstance(action, Say):
            sys.stdout.write(action.text)
            sys.stdout.flush()
            return action.status
        if isinstance(action, Receives):
            # Print receives as ps would show them: syncoid and bzfs look for `zfs receive ... DATASET`.
            from zkeep.pool.transfer.registration import under_way

            with opened(self._access.root) as pool:
                names = under_way(pool)
            sys.stdout.write("".join(f"zfs receive {name}\n" for name in names))
            return 0
        return self._call(action, flow)

    def _call(self, call: Call, flow: Flow) -> int:
        if call is NOTHING:
            return 0
        if call.verb in ("mount", "umount", "unmount"):
            # Nothing is mounted for a client; tools that try are told so in zfs's words
            for text in call.arguments:
                with opened(DatasetName.parse(text)) as pool:
                    name = pool.dataset(DatasetName.parse(text)).name
                why = "encryption key not loaded" if call.verb == "mount" else "not currently mounted"
                raise Refused(f"cannot {call.verb.replace('um', 'unm')} '{name}': {why}")
            return 0
        wire = Wire(self._settings.idle, self._settings.rate, flow.filters)
        words, began = call.words(), time.time()
        with wired(wire):
            status = main.call(call.program, words)
            if status == 0 and call.verb == "send":
                wire.finish()
        if call.verb in main.CHANGING or call.verb == "send":
            self._record(shlex.join([call.program, *words]), wire, began, status)
        return status

    def _record(self, command: str, wire: Wire, began: float, status: int, *, refused: bool = False) -> None:
        """Add to the pool's history. If that is impossible, what was done stays done."""
        root = self._access.root
        peer = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
        client, taken = self._settings.client or "-", int(max(0.0, time.time() - began) * 1000)
        # Words of the client may hold what is no text; the history is JSON.
        told = [text.encode("utf-8", "replace").decode() for text in (client, peer or "-", command)]
        with suppress(ZkeepError, OSError), registry().open(root.pool, _PATIENCE) as pool:
            sizes = wire.received, wire.sent, taken, status
            entry = HistoryEntry(max(int(began), 0), told[0], told[1], pool.relative(root), told[2], *sizes)
            record(pool, root, entry, refused=refused)


def _print_usage(verb: str) -> None:
    """How a verb is called, as zfs prints it: tools look for options in it."""
    if verb not in main.VERBS:
        return
    with main.cli.make_context("zfs", [], resilient_parsing=True) as context:
        command = main.cli.get_command(context, verb)
        lines = usage.lines(command, verb) if command else []
    print("usage:", *(f"\t{safe(line)}" for line in lines), sep="\n", file=sys.stderr)


@contextmanager
def _redirected(redirects: Sequence[Redirect]) -> Iterator[None]:
    """Let standard streams go elsewhere inside."""
    if not redirects:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    # As a shell does it: keep copies, point the descriptors elsewhere, put them back.
    saved = {fd: os.dup(fd) for fd in (0, 1, 2)}
    try:
        for redirect in redirects:
            _redirect(redirect)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, copy in saved.items():
            os.dup2(copy, fd)
            os.close(copy)


def _redirect(redirect: Redirect) -> None:
    if redirect is Redirect.ERRORS_TO_OUTPUT:
        os.dup2(1, 2)
    elif redirect is Redirect.OUTPUT_TO_ERRORS:
        os.dup2(2, 1)
    else:
        # Everything else goes to, or comes from, /dev/null: no file of the server can be named.
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, {Redirect.DROP_ERRORS: 2, Redirect.DROP_OUTPUT: 1, Redirect.NO_INPUT: 0}[redirect])
        os.close(null)
