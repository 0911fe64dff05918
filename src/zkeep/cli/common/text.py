"""How numbers, dates and tables are written: as zfs writes them.

Source: OpenZFS lib/libzutil/zutil_nicenum.c zfs_nicenum_format(); lib/libzfs/libzfs_dataset.c zfs_prop_get();
lib/libzfs/libzfs_util.c zprop_print_headers().
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from zkeep.names import printable
from zkeep.pool.datasets.answers import Value
from zkeep.pool.datasets.properties import Property

_UNITS = ("", "K", "M", "G", "T", "P", "E")
_NONE_AT_ZERO = ("quota", "refquota", "reservation", "refreservation")
_PLAIN = ("recordsize", "volblocksize", "volsize", "special_small_blocks")
"Sizes that zfs writes without a B."


def nice(number: int, unit: str = "") -> str:
    """At most five characters: 0, 1023, 1.50K, 20.4M, 131K; `unit` follows a number below 1024."""
    index = 0
    whole = number
    # The largest unit of which there is at least one.
    while whole >= 1024 and index < len(_UNITS) - 1:
        whole //= 1024
        index += 1
    if index == 0:
        return f"{number}{unit}"
    # Exact multiples have no decimals.
    if number % (1 << 10 * index) == 0:
        return f"{whole}{_UNITS[index]}"
    value = number / (1 << 10 * index)
    # Of two, one or no decimals the most that fit into five characters, as zfs has it.
    texts = [f"{value:.{places}f}{_UNITS[index]}" for places in (2, 1, 0)]
    return next((text for text in texts if len(text) <= 5), texts[-1])


def nice_bytes(number: int) -> str:
    return nice(number, "B")


def count(number: int, what: str) -> str:
    """`1 error`, `2 errors`."""
    return f"{number} {what}" + "s" * (number != 1)


def date(seconds: int, with_seconds: bool = False) -> str:
    """`Mon Nov 23  0:59 2026`, in local time; the bare number where no calendar reaches."""
    try:
        at = time.localtime(seconds)
    except (OverflowError, ValueError, OSError):
        return str(seconds)
    clock = f"{at.tm_hour:2d}:{at.tm_min:02d}" + (f":{at.tm_sec:02d}" if with_seconds else "")
    return f"{time.strftime('%a %b', at)} {at.tm_mday:2d} {clock} {at.tm_year}"


def value(prop: Property, content: Value, exact: bool) -> str:
    """A property's value as get and list print it."""
    if content is None:
        return "-"
    return _number(prop, content, exact) if isinstance(content, int) else safe(content)


def _number(prop: Property, number: int, exact: bool) -> str:
    # Ratios are stored in hundredths.
    if prop.kind == "ratio":
        return f"{number // 100}.{number % 100:02d}" + ("" if exact else "x")
    if exact or prop.kind == "id":
        return str(number)
    if prop.kind == "date":
        return date(number, prop.name == "snapshots_changed")
    if number == 0 and prop.name in _NONE_AT_ZERO:
        return "none"
    return nice_bytes(number) if prop.kind == "size" and prop.name not in _PLAIN else nice(number)


def safe(text: str) -> str:
    """Escape a value so that it cannot steer a terminal or break a line."""
    return printable(text)


def least_width(prop: Property) -> int:
    """The least width of the column of a property, as zfs has it."""
    widths = [len(prop.column), *map(len, prop.codes)]
    return max([*widths, 5]) if prop.is_number else max(widths)


def flush_right(prop: Property) -> bool:
    return prop.is_number and prop.kind != "date"


def lines(rows: Iterable[Sequence[str]], widths: Sequence[int], right: Sequence[bool]) -> Iterable[str]:
    """Columns two spaces apart; the last one is not padded unless it is flush right."""
    last = len(widths) - 1
    for row in rows:
        cells = [
            cell.rjust(width) if is_right else (cell if at == last else cell.ljust(width))
            for at, (cell, width, is_right) in enumerate(zip(row, widths, right, strict=True))
        ]
        yield "  ".join(cells)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[bool],
    least: Sequence[int] | None = None,
) -> str:
    """Head and rows, each column as wide as the widest in it."""
    printed = [head, *rows]
    widths = [max(len(row[at]) for row in printed) for at in range(len(head))]
    if least:
        widths = [max(pair) for pair in zip(widths, least, strict=True)]
    return "".join(f"{line}\n" for line in lines(printed, widths, right))


def tabbed(rows: Iterable[Sequence[str]]) -> str:
    """The rows for scripts: no head, one tab between columns."""
    return "".join("\t".join(row) + "\n" for row in rows)
