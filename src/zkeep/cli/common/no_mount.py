"""Flags of zfs that concern mounting: accepted, and without effect, as nothing is mounted here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def no_mount_option(letter: str, name: str) -> Callable[[F], F]:
    """The flag of this letter, which the verb gets under this name."""
    return click.option(letter, name, is_flag=True, help="Accepted and without effect: nothing is mounted here.")
