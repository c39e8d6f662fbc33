"""Arguments that the commands share, and parsers for their values."""

import math
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter, _ArgumentGroup
from collections.abc import Callable, Sequence
from typing import TypeVar

from django.core.management.base import CommandError, DjangoHelpFormatter
from django.db import connections

from abs_orm_app.config.texts import did_you_mean

T = TypeVar("T")

Arguments = ArgumentParser | _ArgumentGroup

BAD_ARGUMENTS = 2  # the exit code, like argparse's


class HelpFormatter(DjangoHelpFormatter, RawDescriptionHelpFormatter):
    """Like Django's, but keeps the lines of the description and the epilog."""


def add_database(parser: Arguments, without: str) -> None:
    """Add `--database ALIAS …`; `without`: the help's description of the default."""
    parser.add_argument(
        "--database",
        nargs="+",
        action="extend",
        metavar="ALIAS",
        help=f"Only these aliases of DATABASES. Default: {without}.",
    )


def chosen_aliases(names: Sequence[str] | None) -> list[str]:
    """Return the named aliases, once each, or all. Raises CommandError for an unknown one."""
    known = tuple(connections)
    for name in names or ():
        refuse_unknown(name, known, "DATABASES has no alias", "it has")
    return list(dict.fromkeys(names or known))


def refuse_unknown(name: str, known: tuple[str, ...], there_is_no: str, there_is: str) -> None:
    if name not in known:
        raise CommandError(
            f"{there_is_no} {name!r}{did_you_mean(name, known)}; {there_is} {', '.join(known)}.",
            returncode=BAD_ARGUMENTS,
        )


def argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Adapt a variable's parser to an argument; its errors are the end of a sentence."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise ArgumentTypeError(f"{text!r} {error}.") from None

    return parsed


@argument
def above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (math.isfinite(value) and value > 0):
        raise ValueError("is not a number above 0")
    return value
