"""zkeep list."""

from __future__ import annotations

import getopt
import sys
from collections.abc import Sequence

import click

from zkeep.cli.common import asjson, text, usage
from zkeep.cli.common.output import OutputOptions, takes_output
from zkeep.cli.common.select import Item, Selection, depth_of, parse_types
from zkeep.cli.common.words import find_property
from zkeep.pool.datasets.properties import Property

_COLUMNS = "name,used,available,referenced,mountpoint"
_SPACE = "name,available,used,usedbysnapshots,usedbydataset,usedbyrefreservation,usedbychildren"


class _InOrder(click.Command):
    """Remembers -s and -S in the order in which they were given, which click does not."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            given, _ = getopt.gnu_getopt(args, "rd:Hpjo:s:S:t:h", ["help", "json", "json-int"])
        except getopt.GetoptError:
            given = []
        ctx.meta["keys"] = [(name == "-S", value) for name, value in given if name in ("-s", "-S")]
        return super().parse_args(ctx, args)


@click.command("list", cls=_InOrder)
@click.option("-r", "recursive", is_flag=True, help="Show also what lies below.")
@click.option("-d", "depth", type=usage.WholeNumber(), metavar="DEPTH", help="As -r, to DEPTH levels.")
@takes_output
@click.option("-o", "columns", multiple=True, metavar="P,...", help="Columns, or 'space' for the space figures.")
@click.option("-s", "ascending", multiple=True, metavar="P", help="Sort by this property.")
@click.option("-S", "descending", multiple=True, metavar="P", help="Sort by this property, descending.")
@click.option("-t", "types", multiple=True, metavar="TYPE,...", help="filesystem volume snapshot bookmark all")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.pass_context
def list_verb(
    ctx: click.Context,
    /,
    *,
    recursive: bool,
    depth: int | None,
    output: OutputOptions,
    columns: Sequence[str],
    types: Sequence[str],
    names: Sequence[str],
    **_: object,
) -> None:
    """List datasets, snapshots and bookmarks.

    Without NAME, all datasets of all pools. AVAIL is what the disk and the quotas leave; the other figures
    are sums of what the pool stores (docs/FORMAT.md).

    \b
        zkeep list -r -t snapshot -o name,used,refer,creation vault/home
        zkeep list -Hp -o name,guid -t all -S creation
    """
    wanted = ",".join(columns or [_COLUMNS]).replace("space", _SPACE).split(",")
    props = [find_property(name) for name in wanted]
    # Asking a dataset for its snapshots alone means those one level below it
    letters = parse_types(types)
    limit = depth_of(recursive or not names, depth)
    if letters and not set(letters) & set("fv") and limit == 0 and depth is None:
        limit = 1
    selection = Selection(names, letters or "fv", limit)
    items = _sorted(selection.items(), ctx.meta["keys"])
    if output.as_json:
        datasets: asjson.Object = {}
        for item in items:
            answers = [(p, item.view.get(item.thing, p.name)) for p in props if p.name != "name"]
            datasets[str(item.thing.name)] = asjson.thing(item.thing, answers, output.exact_json, output.as_int)
        sys.stdout.write(asjson.dump({"output_version": asjson.version("zfs list"), "datasets": datasets}))
    else:
        sys.stdout.write(_text(items, props, output.scripted, output.exact))


def _sorted(items: Sequence[Item], keys: Sequence[tuple[bool, str]]) -> Sequence[Item]:
    """Keys in falling priority; what has no value comes last, whichever the direction."""
    for reverse, name in reversed(keys):
        prop = find_property(name)
        values = [(item.view.get(item.thing, prop.name).value, item) for item in items]
        known = [(value, item) for value, item in values if value is not None]
        known.sort(key=lambda pair: pair[0] if prop.is_number else str(pair[0]), reverse=reverse)
        items = [item for _, item in known] + [item for value, item in values if value is None]
    return items


def _text(items: Sequence[Item], props: Sequence[Property], scripted: bool, exact: bool) -> str:
    rows = [[text.value(p, item.view.get(item.thing, p.name).value, exact) for p in props] for item in items]
    if scripted:
        return text.tabbed(rows)
    if not rows:
        if "status" not in click.get_current_context().meta:
            click.echo("no datasets available", err=True)
        return ""
    right = [text.flush_right(p) for p in props]
    return text.table([p.column for p in props], rows, right, [text.least_width(p) for p in props])
