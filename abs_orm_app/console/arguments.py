"""Arguments that the commands share: which databases, and numbers that are numbers."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import TypeVar

from django.core.management.base import CommandError
from django.db import connections

from abs_orm_app.config.variables import did_you_mean

T = TypeVar("T")

BAD_ARGUMENTS = 2  # the exit code, as argparse has it


def add_database(parser: ArgumentParser, without: str) -> None:
    """Add `--database ALIAS …`; `without` says which there are without it."""
    parser.add_argument(
        "--database",
        nargs="+",
        action="extend",
        metavar="ALIAS",
        help=f"Only these aliases of DATABASES; {without} without it.",
    )


def chosen_aliases(names: Sequence[str] | None) -> list[str]:
    """The aliases that were named, once each; all without a name. Raises CommandError."""
    known = tuple(connections)
    for name in names or ():
        refuse_unknown(name, known, "DATABASES has no alias", "it has")
    return list(dict.fromkeys(names or known))


def refuse_unknown(name: str, known: tuple[str, ...], there_is_no: str, there_is: str) -> None:
    """Raise CommandError if the name is not known."""
    if name not in known:
        raise CommandError(
            f"{there_is_no} {name!r}{did_you_mean(name, known)}; {there_is} {', '.join(known)}.",
            returncode=BAD_ARGUMENTS,
        )


def argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Make what reads a variable read an argument: `parse` raises the end of a sentence."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise ArgumentTypeError(f"{text!r} {error}.") from None

    return parsed


def number(least: float, *, exclusive: bool = False) -> Callable[[str], float]:
    """Parser of a finite number from `least`, or above it."""
    accepted = f"is not a number {'above' if exclusive else 'from'} {least:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(accepted) from None
        if not math.isfinite(value) or value < least or (exclusive and value == least):
            raise ValueError(accepted)
        return value

    return argument(parse)


above_zero = number(0, exclusive=True)
