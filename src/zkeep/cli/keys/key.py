"""zkeep key: a dataset's key on paper, and back."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from zkeep.agent import client
from zkeep.cli.common import usage
from zkeep.cli.common.named_files import read_start
from zkeep.cli.common.open_snapshot import MAX_KEY_FILE, typed_groups
from zkeep.cli.common.pools import opened
from zkeep.cli.common.terminal import say
from zkeep.cli.keys.root_key import check_present, opening_material, records_of
from zkeep.errors import Refused, WrongUsage
from zkeep.names import DatasetName, shown
from zkeep.pool.datasets.derived import encryption_root
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.sent import DESTINATION
from zkeep.pool.datasets.view import View

if TYPE_CHECKING:
    from zkeep.cli.keys.sheet import Sheet
    from zkeep.crypto.groups import Secret

F = TypeVar("F", bound=Callable[..., Any])
key_option = click.option("-L", "location", metavar="KEYLOCATION", help="file:///path or prompt: where the key is.")
yes_option = click.option("--yes", "yes", is_flag=True, help="Do not ask before the key is shown.")
force_option = click.option("-f", "force", is_flag=True, help="Replace files that are there.")


@click.group("key", cls=usage.VerbGroup, context_settings={"help_option_names": ["-h", "--help"]})
def key_verb() -> None:
    """Keep the key of a dataset on paper, and bring it back from there.

    A recovery sheet has the key as groups of characters, with check characters in each line, so that a slip in typing
    is found where it is. load-key and -L take a sheet where they take a key.

    \b
        zkeep key sheet --pdf home.pdf vault/home
        zkeep key check vault/home
        zkeep key restore -o home.key
    """


@key_verb.command("show")
@key_option
@yes_option
@click.argument("name", metavar="DATASET")
def show(*, location: str | None, yes: bool, name: str) -> None:
    """Print the key of a dataset, as the lines that are on its recovery sheet.

    The key is the one that is loaded, else the one at its keylocation, or at -L. A passphrase is printed only if it is
    given with -L.

    \b
        zkeep key show vault/home
        zkeep key show -L file:///root/key --yes vault/home
    """
    from zkeep.cli.keys.sheet import numbered

    sheet = _sheet(name, location, None)
    if sheet.secret is None:
        raise Refused(f"the key of {sheet.dataset} is its passphrase, which is kept nowhere: give it with -L prompt")
    _confirm(sheet, yes)
    for line in numbered(sheet.secret):
        click.echo(line)


@key_verb.command("sheet")
@key_option
@click.option("--destination", metavar="SRC", help="Where the backups are: pool/dataset or ssh://host/pool/dataset.")
@click.option("-o", "text_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the text to FILE.")
@click.option("--pdf", "pdf_file", type=click.Path(path_type=Path), metavar="FILE", help="Write a page to FILE.")
@click.option("--png", "png_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the QR code to FILE.")
@force_option
@yes_option
@click.argument("name", metavar="DATASET")
def sheet(
    *,
    location: str | None,
    destination: str | None,
    text_file: Path | None,
    pdf_file: Path | None,
    png_file: Path | None,
    force: bool,
    yes: bool,
    name: str,
) -> None:
    """Print the recovery sheet of a dataset: what it is, its key, and what to do in an emergency.

    Files are made for their owner alone. Print them, then delete them: shred -u FILE. The sheet has a passphrase only
    if that is given with -L; else it says that the passphrase is the key.

    \b
        zkeep key sheet vault/home
        zkeep key sheet --destination ssh://backup@server/vault/alice/home --pdf home.pdf local/home
    """
    from zkeep.cli.keys import sheet as page

    made = _sheet(name, location, destination)
    if png_file and made.secret is None:
        raise Refused(f"there is no QR code: the key of {made.dataset} is its passphrase; give it with -L prompt")
    # Without a file the sheet goes to the terminal, after a question: anyone who looks over the shoulder sees the key.
    if not (text_file or pdf_file or png_file):
        if made.secret is not None:
            _confirm(made, yes)
        page.show(made)
    if text_file:
        code = page.code_lines(made.secret) if made.secret else ()
        page.save(text_file, page.text(made, code).encode(), force=force)
    if pdf_file:
        page.save(pdf_file, page.pdf(made), force=force)
    if png_file and made.secret:
        page.save(png_file, page.png(made.secret), force=force)


@key_verb.command("check")
@click.option("-i", "source", metavar="FILE", help="Read the lines, or the whole sheet, from FILE; - is the input.")
@click.argument("name", required=False, metavar="[DATASET]")
def check(*, source: str | None, name: str | None) -> None:
    """Type the lines of a recovery sheet, and hear of each whether it is right.

    With DATASET, the key is also tried on that: the sheet is the right one. Nothing that is typed is shown.

    \b
        zkeep key check vault/home
        zkeep key check -i sheet.txt
    """
    secret = _read_sheet(source, "", says_lines=True)
    click.echo("all lines are right, and belong together")
    if name is not None:
        with opened(DatasetName.parse(name)) as pool:
            root = _root(pool, DatasetName.parse(name))
            try:
                check_present(pool, root, secret.material())
            except Refused as error:
                raise Refused(f"the sheet is of another key than '{root.name}' has ({error})") from None
        click.echo(f"the key opens {root.name}")


@key_verb.command("restore")
@click.option("-o", "target", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The key file.")
@force_option
@click.argument("source", required=False, metavar="[SHEET]")
def restore(*, target: Path, force: bool, source: str | None) -> None:
    """Make a key file again: of the lines of a recovery sheet, typed, or of SHEET, a file with its text or QR code.

    zfs takes the file, too.

    \b
        zkeep key restore -o home.key
        zkeep load-key -L file://$PWD/home.key vault/home
        zfs load-key -L file://$PWD/home.key tank/home
    """
    from zkeep.cli.keys.sheet import save

    if target.exists() and not force:  # before the lines are typed
        raise Refused(f"cannot write {shown(str(target))}: it is there already; -f replaces it")
    save(target, _read_sheet(source, "").material(), force=force)


# What they share


def _sheet(name: str, location: str | None, destination: str | None) -> Sheet:
    with opened(DatasetName.parse(name)) as pool:
        root = _root(pool, DatasetName.parse(name))
        sent_to = destination or root.doc["local"].get(DESTINATION)
        return describe(pool, root, secret_of(pool, root, location), sent_to)


def _root(pool: Pool, name: DatasetName) -> Dataset:
    root = encryption_root(View(pool), pool.dataset(name))
    if root is None:
        raise Refused(f"'{name}' is not encrypted: it has no key")
    return root


def describe(pool: Pool, root: Dataset, secret: Secret | None, destination: str | None = None) -> Sheet:
    """The recovery sheet of an encryption root; `destination`: where its backups are, if not in this pool."""
    from zkeep.cli.keys.root_key import family
    from zkeep.cli.keys.sheet import Sheet, destination_of
    from zkeep.crypto.unwrap import WrappedKeys

    to = destination_of(destination)
    record = records_of(pool, root)[0]
    wrapped, below = WrappedKeys.of(record.fields), [member.name.text for member in family(pool, root)[1:]]
    guid = int(str(View(pool).get(root, "guid").value or 0))
    fields = (wrapped.suite, wrapped.guid, wrapped.keyformat, to.text, below, secret)
    return Sheet(root.name.text, guid, *fields, alias=to.alias, ssh=to.ssh)


def secret_of(pool: Pool, root: Dataset, location: str | None) -> Secret | None:
    """The key of an encryption root, loaded, from its keylocation or from `location`; it was tried.

    None for a passphrase that is not given: it is kept nowhere.

    Raises:
        Refused: it is wrong, or not to be had.
    """
    from zkeep.crypto.groups import Secret
    from zkeep.crypto.unwrap import KeyFormat

    keyformat = records_of(pool, root)[0].keyformat
    if location is None and keyformat == KeyFormat.PASSPHRASE:
        return None
    if location is None and (key := _loaded(pool, root)) is not None:
        return Secret(keyformat, key)
    return Secret.of(opening_material(pool, root, location), keyformat)


def _loaded(pool: Pool, root: Dataset) -> bytes | None:
    from zkeep.crypto.unwrap import WrappedKeys, WrongKey, key_that_opens

    with suppress(WrongKey), client.borrowed() as loaded:
        return bytes(key_that_opens(loaded, WrappedKeys.of(records_of(pool, root)[0].fields)))
    return None


def _confirm(sheet: Sheet, yes: bool) -> None:
    """Ask before a key is shown."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused(f"the key of {sheet.dataset} is shown only where somebody can be asked, or with --yes")
    click.confirm(f"Show the key of {sheet.dataset} to all who can see this?", abort=True, err=True)


_PICTURES = (b"%PDF-", b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
"How a PDF, a PNG, a JPEG and a TIFF begin."
_MOST_WRONG = 5
"Wrong lines that are named one by one: a sheet has three, but for a long passphrase; more are another file."
_HEX = re.compile(rb"[0-9a-fA-F]{64}\s*")


def _read_sheet(source: str | None, of: str, *, says_lines: bool = False) -> Secret:
    """Read the lines of a sheet from a file, from standard input or as they are typed.

    `says_lines`: say of each line on standard output whether it is right.

    Raises:
        Refused: they are not all right.
    """
    from zkeep.crypto.unwrap import WRAPPING_KEY

    if source is None and sys.stdin.isatty():
        return typed_groups(of, tell=click.echo if says_lines else None)
    content = read_start(source or "-", MAX_KEY_FILE + 1)
    if content.startswith(_PICTURES):
        way = "type the lines that are on it: the same command without a file asks for them"
        raise Refused(f"{shown(source or '-')} is a picture of a sheet, or a PDF, and not its text; {way}")
    if len(content) > MAX_KEY_FILE:
        raise WrongUsage(f"a sheet has {MAX_KEY_FILE} bytes at most")
    if len(content) == WRAPPING_KEY or _HEX.fullmatch(content):
        what = shown(source) if source is not None and source != "-" else "what came"
        way = "try it with zkeep load-key -n -L file:///path DATASET; the sheet of it is printed by zkeep key sheet"
        raise Refused(f"{what} is a key itself, not the lines of its recovery sheet: {way}")
    return _read_lines(content.decode("utf-8", "replace"), says_lines)


def _read_lines(text: str, says_lines: bool) -> Secret:
    """Read all lines, so that all that is wrong is said at once."""
    from zkeep.crypto.groups import Reading, WrongGroups, read_line, typed_lines

    reading, wrong = Reading(), 0
    for number, line in enumerate(typed_lines(text), 1):
        if reading.complete:
            raise Refused(f"there is something behind line {number - 1}, which is the last one")
        try:
            # Each line has check characters, so that a mistyped one is known by itself.
            found = read_line(line, number)
        except WrongGroups as error:
            wrong += 1
            if wrong <= _MOST_WRONG:
                say(str(error))
            continue
        reading.lines.append(found)
        # One wrong character can be put right; the person should know which.
        if found.mended:
            say(f"{found.mended}; read as that")
        if says_lines:
            click.echo(f"line {number} is {'put right' if found.mended else 'right'}")
    # The wrong lines were named by now; none of them is guessed.
    if wrong:
        raise Refused("the lines are not all right; look at the sheet again" if wrong > 1 else "one line is not right")
    return reading.secret()
