"""The recovery sheet of a dataset: what it is, where its backups are, its key, and what to do in an emergency.

As text, with a QR code of the key's groups in block characters; as one page of PDF; the code alone as PNG.
"""

from __future__ import annotations

import errno
import io
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from zkeep.cli.common.terminal import say
from zkeep.crypto.groups import GROUP, READ_AS, Secret, lines_of
from zkeep.crypto.unwrap import SUITES, KeyFormat
from zkeep.errors import Refused, TryAgain, ZkeepError
from zkeep.names import printable, shown
from zkeep.pool.store.disk import sync_folder

QUIET = 2
"Modules of white around a QR code."
PAGE = (595, 842)
"The size of A4 in points; what is printed fits on letter paper, too."
MARGIN = 50
WIDE = 0.6
"The width of a character of Courier, in its height."
CODE = 150
"Points that a QR code is wide on a page, at least."
_BLOCKS = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}


@dataclass(frozen=True)
class Sheet:
    """What a recovery sheet says. `secret`: None where only the user knows the passphrase."""

    dataset: str
    "The encryption root."
    guid: int
    suite: int
    key_guid: int
    keyformat: int
    destination: str | None
    "Where the backups are, as `zkeep restore` takes it."
    below: Sequence[str] = ()
    "Datasets that the same key opens."
    secret: Secret | None = field(default=None, repr=False)
    made: float = field(default_factory=time.time)
    alias: str | None = None
    "The host of the destination as it is called where ssh_config has a name for it."
    ssh: Sequence[str] = ()
    "What ssh needs to get there, each as --ssh-option takes it."

    @property
    def source(self) -> str:
        return self.destination or self.dataset


@dataclass(frozen=True)
class Destination:
    """Where backups are, for a sheet: `text` as any machine finds it; `alias` and `ssh` as Sheet has them."""

    text: str | None = None
    alias: str | None = None
    ssh: Sequence[str] = ()


def destination_of(text: str | None, ssh: Sequence[str] = ()) -> Destination:
    """Look up what a destination is on other machines. `ssh`: more words for ssh, before the host."""
    from zkeep.backup.places import parse_destination
    from zkeep.backup.ssh_names import resolve

    try:
        place = parse_destination(text) if text is not None else None
    except ZkeepError:
        place = None
    if place is None or place.host is None or text is None:
        # What was named on the command line may have any bytes; the sheet is text, and is printed.
        return Destination(printable(text) if text is not None else None)
    found = resolve(place, ssh)
    assert found.place.host is not None
    alias = f"ssh://{place.host}" if found.place.host.name != place.host.name else None
    return Destination(printable(str(found.place)), alias, found.options)


def numbered(secret: Secret) -> list[str]:
    """The lines of a key as they are printed, and typed again."""
    return [f"{number:3}: {line}" for number, line in enumerate(lines_of(secret), 1)]


def text(sheet: Sheet, code: Sequence[str] = ()) -> str:
    """The sheet as text; `code`: its QR code, if it is to have one."""
    parts = [_head(sheet), _key(sheet), _emergency(sheet)]
    if code and sheet.secret is not None:
        parts.append(["The same lines as a QR code:", "", *(f"    {line}" for line in code)])
    return "\n".join(line for part in parts for line in (*part, ""))


def _head(sheet: Sheet) -> list[str]:
    form, more = KeyFormat(sheet.keyformat).name.lower(), len(sheet.below) - 3
    rows = [
        ("dataset", f"{sheet.dataset} (encryption root, guid {sheet.guid})"),
        ("opens also", ", ".join(sheet.below[:3]) + (f" and {more} more" if more > 0 else "")),
        ("backups", sheet.destination or f"in the pool {sheet.dataset.partition('/')[0]}"),
        ("", f"called {sheet.alias} on the machine that made them" if sheet.alias else ""),
        ("encryption", f"{SUITES[sheet.suite].name}, keyformat {form}, key guid {sheet.key_guid:#x}"),
        ("printed", time.strftime("%Y-%m-%d %H:%M", time.localtime(sheet.made))),
    ]
    return ["zkeep recovery sheet", "", *(f"  {name:11} {value}" for name, value in rows if value)]


def _key(sheet: Sheet) -> list[str]:
    if sheet.secret is None:
        return [
            "THE KEY is the passphrase, which only you know: it is not on this sheet, and nothing replaces it.",
            "Write it down here, or where you will find it in ten years:",
            *("", "", "  " + "_" * 70),
        ]
    what = "THE KEY: a passphrase, as groups" if sheet.secret.keyformat == KeyFormat.PASSPHRASE else "THE KEY"
    return [
        f"{what}. With these lines anyone can read the backups; without them nobody can.",
        "Keep this sheet where neither the machine nor the backups are.",
        "",
        *numbered(sheet.secret),
        "",
        f"The last {GROUP} characters of a line check it: zkeep says where something is mistyped.",
        "There is no I, L, O or U on the sheet; small letters are as good. Try it:",
        "",
        f"    zkeep key check {shlex.quote(sheet.dataset)}",
    ]


def _emergency(sheet: Sheet) -> list[str]:
    """The three commands."""
    source, key = shlex.quote(sheet.source), '"file://$PWD/zkeep.key"' if sheet.secret else "prompt"
    commands = ["zkeep key restore -o zkeep.key"] if sheet.secret else []
    over = "".join(f" --ssh-option {shlex.quote(option)}" for option in sheet.ssh)
    commands += [f"zkeep restore {source}{over} -L {key} -C restored"]
    commands += [f"zkeep restore {source}{over} -L {key} --to zfs:tank/restored      # on a host with ZFS"]
    lines = ["In an emergency, on any machine with zkeep:", "", *(f"    {command}" for command in commands)]
    if sheet.source.startswith("ssh://"):
        lines += ["", "The ssh key for that must be one that the server lets read: roles list,send of zkeep server."]
    return lines


# The QR code


def _matrix(secret: Secret) -> list[list[bool]]:
    """The modules of the code, true where it is dark, without white around it."""
    import segno

    content = " ".join(line.replace(" ", "") for line in lines_of(secret))
    return [[bool(module) for module in row] for row in segno.make(content, error="m", micro=False).matrix]


def code_lines(secret: Secret, *, dark: bool = True, encoding: str = "utf-8") -> list[str]:
    """The QR code in characters, two rows of modules in one line.

    `dark`: whether what is written is darker than what is not, as on paper and unlike on most terminals.
    `encoding`: if it lacks block characters, each module is two characters.
    """
    # Scanners need a quiet zone of light modules all around.
    modules = _matrix(secret)
    blank, side = [False] * (len(modules) + 2 * QUIET), [False] * QUIET
    framed = [*[blank] * QUIET, *([*side, *row, *side] for row in modules), *[blank] * QUIET]
    matrix = [[module == dark for module in row] for row in framed]
    try:
        "".join(_BLOCKS.values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ["".join("##" if module else "  " for module in row) for row in matrix]
    if len(matrix) % 2:
        matrix.append([False] * len(matrix))
    return [
        "".join(_BLOCKS[pair] for pair in zip(upper, lower, strict=True))
        for upper, lower in zip(matrix[::2], matrix[1::2], strict=True)
    ]


def png(secret: Secret) -> bytes:
    """The QR code as an image."""
    import segno

    image = io.BytesIO()
    content = " ".join(line.replace(" ", "") for line in lines_of(secret))
    segno.make(content, error="m", micro=False).save(image, kind="png", scale=8, border=4)
    return image.getvalue()


# The page


def pdf(sheet: Sheet) -> bytes:
    """The whole sheet as one page: text in Courier, the code as squares below it."""
    import pydyf

    document, page = pydyf.PDF(), pydyf.Stream()
    lines = text(sheet).rstrip("\n").split("\n")
    if sheet.secret is not None:
        lines += ["", "The same lines as a QR code:"]
    # Text from the top, as large as it fits beside the code.
    below = _print_lines(page, lines, CODE + 2 * MARGIN if sheet.secret is not None else 2 * MARGIN)
    if sheet.secret is not None:
        _print_code(page, _matrix(sheet.secret), below)
    document.add_object(page)
    # Courier is one of the fonts that every reader of PDF has: nothing needs to be embedded.
    font = pydyf.Dictionary({"Type": "/Font", "Subtype": "/Type1", "BaseFont": "/Courier"})
    document.add_object(font)
    fonts = pydyf.Dictionary({"Font": pydyf.Dictionary({"F1": font.reference})})
    box = pydyf.Array([0, 0, *PAGE])
    parent = document.pages.reference
    described = {"Type": "/Page", "Parent": parent, "MediaBox": box, "Contents": page.reference, "Resources": fonts}
    document.add_page(pydyf.Dictionary(described))
    output = io.BytesIO()
    document.write(output)
    return output.getvalue()


def _print_lines(page: object, lines: Sequence[str], taken: int) -> float:
    """Print lines from the top of the page, as large as they fit; returns the height at which they end.

    `taken`: points of the page's height that they do not have.
    """
    import pydyf

    assert isinstance(page, pydyf.Stream)
    widest = max(map(len, lines))
    # As large as the widest line and the number of lines allow.
    size = min(10.0, (PAGE[0] - 2 * MARGIN) / (WIDE * widest), (PAGE[1] - taken) / (1.25 * len(lines)))
    page.begin_text()
    page.set_font_size("F1", f"{size:.2f}")
    page.set_text_matrix(1, 0, 0, 1, MARGIN, PAGE[1] - MARGIN - size)
    for line in lines:
        # Names may have any character; Courier here has ASCII only.
        plain = line.encode("ascii", "backslashreplace").decode()
        page.show_text_string(plain)
        page.move_text_to(0, f"{-1.25 * size:.2f}")
    page.end_text()
    return float(PAGE[1] - MARGIN - 1.25 * size * (len(lines) + 1))


def _print_code(page: object, matrix: list[list[bool]], top: float) -> None:
    """Print the QR code below `top`, in squares."""
    import pydyf

    assert isinstance(page, pydyf.Stream)
    side = max(CODE, min(260.0, top - MARGIN)) / len(matrix)
    for down, row in enumerate(matrix):
        for right, dark in enumerate(row):
            if dark:
                corner = MARGIN + right * side, top - (down + 1) * side
                page.rectangle(*(f"{number:.3f}" for number in (*corner, side, side)))
    page.fill()


# Files and terminals


def ask_back(secret: Secret) -> None:
    """Let the user type one group of the sheet, chosen at random, to see that it was kept.

    Raises:
        Refused: it is another one.
    """
    import getpass
    import random

    lines = lines_of(secret)
    line = random.randrange(len(lines))  # noqa: S311
    groups = lines[line].split(" ")
    group = random.randrange(len(groups))  # noqa: S311
    try:
        typed = getpass.getpass(f"Type group {group + 1} of line {line + 1} of the sheet: ")
    except EOFError:
        raise Refused("no group of the sheet was typed") from None
    if [READ_AS.get(c) for c in typed.strip().upper()] != [READ_AS[c] for c in groups[group]]:
        raise Refused("that is not what the sheet says: keep it, and try again")


def save(path: Path, content: bytes, *, force: bool) -> None:
    """Write a file that only its owner can read.

    Raises:
        Refused: it is there already, and is not to be replaced.
    """
    try:
        _write_whole(path, content, force=force)
    except FileExistsError:
        raise Refused(f"cannot write {shown(str(path))}: it is there already; -f replaces it") from None


def write_new(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, and that is there whole or not at all.

    Raises:
        FileExistsError: it is there already.
    """
    _write_whole(path, content, force=False)


def _write_whole(path: Path, content: bytes, *, force: bool) -> None:
    number, name = tempfile.mkstemp(prefix=".zkeep-", dir=path.parent)  # of mode 0600
    try:
        _fill(number, content)
        if force:
            os.replace(name, path)
        else:
            _link(name, path, content)
    finally:
        _remove_draft(name)
    try:
        sync_folder(path.parent)
    except OSError as error:
        # Its name may not be on the disk. A new file goes again: then nothing was changed; one that took the place of
        # another has to stay.
        if not force:
            with suppress(OSError):
                os.unlink(path)
        if not os.path.lexists(path):
            raise
        why = f"may not be on the disk yet: {error.strerror or error}; write it again with -f"
        raise TryAgain(f"{shown(str(path))} is written, and {why}") from None


def _remove_draft(name: str) -> None:
    """Remove the name under which a file was written. By then it has its own name, or an error is on its way."""
    try:
        try:
            os.unlink(name)
        except KeyboardInterrupt:  # a signal that comes right now must not leave a key behind
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise
    except FileNotFoundError:
        pass
    except OSError as error:
        say(f"{shown(name, 4096)} cannot be removed, and has what was to be kept secret: {error.strerror}")


def _fill(fd: int, content: bytes) -> None:
    """Write a file, and wait until it is on the disk."""
    with open(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _link(name: str, path: Path, content: bytes) -> None:
    """Give a file its name, if nothing has that. FAT and exFAT have no links: there it is written under its name."""
    try:
        os.link(name, path, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _fill(fd, content)
        except BaseException:
            _remove_draft(str(path))
            raise


def show(sheet: Sheet) -> None:
    """Print the sheet on standard output; on a terminal, the QR code is dark on light whatever its colours are."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    if sheet.secret is None:
        print(text(sheet), end="")
        return
    if not sys.stdout.isatty():
        print(text(sheet, code_lines(sheet.secret, encoding=encoding)), end="")
        return
    print(text(sheet))
    # The guarded terminal escapes control characters; draw() lets these colours through.
    draw = getattr(sys.stdout, "draw", sys.stdout.write)
    for line in code_lines(sheet.secret, encoding=encoding):
        draw(f"    \x1b[30;107m{line}\x1b[0m\n")
