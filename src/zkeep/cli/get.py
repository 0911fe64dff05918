"""zkeep get."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import click

from zkeep.cli import asjson, text
from zkeep.cli.list import find
from zkeep.cli.select import Item, Selection, depth_of, parse_types
from zkeep.errors import WrongUsage
from zkeep.names import shown
from zkeep.pool.datasets.answers import Answer
from zkeep.pool.datasets.properties import Property

_FIELDS = ("name", "property", "value", "received", "source")
_SOURCES = ("local", "default", "received", "inherited", "temporary", "none")


@click.command("get")
@click.option("-r", "recursive", is_flag=True, help="Show also what lies below.")
@click.option("-d", "depth", type=click.IntRange(0), metavar="DEPTH", help="As -r, to DEPTH levels.")
@click.option("-H", "scripted", is_flag=True, help="No head, one tab between columns.")
@click.option("-p", "exact", is_flag=True, help="Exact numbers.")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--json-int", "as_int", is_flag=True, help="With -j: numbers as numbers.")
@click.option("-o", "fields", metavar="FIELD,...", help="name property value received source, or all")
@click.option("-s", "sources", metavar="SOURCE,...", help="local default received inherited temporary none")
@click.option("-t", "types", multiple=True, metavar="TYPE,...", help="filesystem volume snapshot bookmark all")
@click.argument("wanted", metavar="all|PROPERTY[,PROPERTY]...")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def get_verb(
    *,
    recursive: bool,
    depth: int | None,
    scripted: bool,
    exact: bool,
    as_json: bool,
    as_int: bool,
    fields: str | None,
    sources: str | None,
    types: Sequence[str],
    wanted: str,
    names: Sequence[str],
) -> None:
    """Show properties, and where each value comes from.

    Those of zfs are shown as they were received or set here; 'blind' is zkeep's own: on (the default) refuses
    every stream that is not raw.

    \b
        zkeep get all vault/home
        zkeep get -Hp -o value receive_resume_token vault/home
    """
    chosen = chosen_words(fields, _FIELDS, "name,property,value,source", "column")
    kept = chosen_words(sources, _SOURCES, ",".join(_SOURCES), "source")
    limit = depth_of(recursive or not names, depth)
    items = Selection(names, parse_types(types) or "fvsb", limit).items()
    answers = [(item, list(_answers(item, wanted, kept))) for item in items]
    if as_json:
        sys.stdout.write(_json(answers, exact or as_int, as_int))
    else:
        sys.stdout.write(_text(answers, chosen, scripted, exact))


def chosen_words(given: str | None, known: Sequence[str], default: str, what: str) -> Sequence[str]:
    words = (given or default).split(",")
    if words == ["all"]:
        return known
    for word in words:
        if word not in known:
            raise WrongUsage(f"invalid {what} {shown(word)}: must be one of {' '.join(known)}")
    return words


def _answers(item: Item, wanted: str, sources: Sequence[str]) -> Iterator[tuple[Property, Answer]]:
    words = [name for word in wanted.split(",") for name in _expanded(item, word)]
    for name in words:
        prop = find(name)
        answer = item.view.get(item.thing, prop.name)
        source = answer.source.split(" ")[0].replace("-", "none")
        if source in sources:
            yield prop, answer


def _expanded(item: Item, word: str) -> Sequence[str]:
    return list(item.view.applicable(item.thing)) if word == "all" else [word]


def _text(
    answers: Sequence[tuple[Item, Sequence[tuple[Property, Answer]]]],
    fields: Sequence[str],
    scripted: bool,
    exact: bool,
) -> str:
    rows = [_row(item, prop, answer, fields, exact) for item, found in answers for prop, answer in found]
    if scripted:
        return text.tabbed(rows)
    least = [max([0, *(text.least_width(p) for _, found in answers for p, _ in found)])]
    widths = [least[0] if field == "value" else 0 for field in fields]
    head = [field.upper() for field in fields]
    return text.table(head, rows, [False] * len(fields), widths) if rows else ""


def _row(item: Item, prop: Property, answer: Answer, fields: Sequence[str], exact: bool) -> Sequence[str]:
    cells = {
        "name": str(item.thing.name),
        "property": prop.name,
        "value": text.value(prop, answer.value, exact),
        "received": text.safe(answer.received or "-"),
        "source": answer.source,
    }
    return [cells[field] for field in fields]


def _json(answers: Sequence[tuple[Item, Sequence[tuple[Property, Answer]]]], exact: bool, as_int: bool) -> str:
    datasets: asjson.Object = {}
    for item, found in answers:
        datasets[str(item.thing.name)] = asjson.thing(item.thing, found, exact, as_int)
    return asjson.dump({"output_version": asjson.version("zfs get"), "datasets": datasets})
