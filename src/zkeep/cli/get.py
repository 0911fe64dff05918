"""zkeep get."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain

import click

from zkeep.cli.common import asjson, text, usage
from zkeep.cli.common.output import OutputOptions, takes_output
from zkeep.cli.common.select import Item, Selection, depth_of, parse_types
from zkeep.cli.common.words import chosen_words, find_property
from zkeep.pool.datasets.answers import Answer
from zkeep.pool.datasets.properties import Property

_FIELDS = ("name", "property", "value", "received", "source")
_SOURCES = ("local", "default", "received", "inherited", "temporary", "none")


@click.command("get")
@click.option("-r", "recursive", is_flag=True, help="Show also what lies below.")
@click.option("-d", "depth", type=usage.WholeNumber(), metavar="DEPTH", help="As -r, to DEPTH levels.")
@takes_output
@click.option("-o", "fields", metavar="FIELD,...", help="name property value received source, or all")
@click.option("-s", "sources", metavar="SOURCE,...", help="local default received inherited temporary none")
@click.option("-t", "types", multiple=True, metavar="TYPE,...", help="filesystem volume snapshot bookmark all")
@click.argument("wanted", metavar="all|PROPERTY[,PROPERTY]...")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def get_verb(
    *,
    recursive: bool,
    depth: int | None,
    output: OutputOptions,
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
    if output.as_json:
        datasets: asjson.Object = {}
        for item, found in answers:
            datasets[str(item.thing.name)] = asjson.thing(item.thing, found, output.exact_json, output.as_int)
        sys.stdout.write(asjson.dump({"output_version": asjson.version("zfs get"), "datasets": datasets}))
    else:
        sys.stdout.write(_text(answers, chosen, output.scripted, output.exact))


def _answers(item: Item, wanted: str, sources: Sequence[str]) -> Iterator[tuple[Property, Answer]]:
    words = [[word] if word != "all" else item.view.applicable(item.thing) for word in wanted.split(",")]
    for name in chain.from_iterable(words):
        prop = find_property(name)
        answer = item.view.get(item.thing, prop.name)
        source = answer.source.split(" ")[0].replace("-", "none")
        if source in sources:
            yield prop, answer


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
