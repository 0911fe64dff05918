"""How a verb prints a table: the letters -H, -p and -j, which list, get and their pool twins share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

scripted_option = click.option("-H", "scripted", is_flag=True, help="No head, one tab between columns.")
json_option = click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
_OPTIONS = (
    scripted_option,
    click.option("-p", "exact", is_flag=True, help="Exact numbers."),
    json_option,
    click.option("--json-int", "as_int", is_flag=True, help="With -j: numbers as numbers."),
)


@dataclass(frozen=True)
class OutputOptions:
    """The output options of a verb: -H, -p, -j, --json-int."""

    scripted: bool
    exact: bool
    as_json: bool
    as_int: bool

    @property
    def exact_json(self) -> bool:
        """Whether numbers in JSON are exact: those that are printed as numbers always are."""
        return self.exact or self.as_int


def takes_output(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a verb, which gets them as one argument: `output`."""

    @wraps(function)
    def called(*args: Any, scripted: bool, exact: bool, as_json: bool, as_int: bool, **others: Any) -> Any:
        return function(*args, output=OutputOptions(scripted, exact, as_json, as_int), **others)

    for option in reversed(_OPTIONS):
        called = option(called)
    return called
