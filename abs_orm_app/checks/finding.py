"""A finding: what a rule reports. Each id has its entry in docs/checks.md."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Concatenate, ParamSpec

from django.core.checks import ERROR, INFO, WARNING

from abs_orm_app.config.texts import explain, printable
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.wording import LEVELS

P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that an operator should know, and what to do about it."""

    id: str  # "abs_orm_app.E001"
    level: int  # of django.core.checks
    message: str
    remedy: str  # what to do; ends with a colon if `fix` follows
    fix: str = ""  # one line to copy: variables, SQL, a shell command, or a part of DATABASES
    alias: str | None = None  # None: it is about several aliases, or about none

    @property
    def hint(self) -> str:
        """The remedy and the fix, in one text."""
        return f"{self.remedy} {self.fix}".rstrip()

    @property
    def number(self) -> str:
        """The id without the app's name, such as "E021"."""
        return self.id.rpartition(".")[2]

    @property
    def title(self) -> str:
        """Such as "WARNING W011 default"."""
        return " ".join(filter(None, (LEVELS[self.level], self.number, self.alias)))

    @property
    def explained_by(self) -> str:
        """The command that prints the entry of the docs."""
        return explain(self.number)


def new_finding(
    number: str, message: str, remedy: str, alias: str | None = None, *, fix: str = ""
) -> Finding:
    """Create a finding: its number's letter sets the level, and its texts are safe to print."""
    level = {"E": ERROR, "W": WARNING, "I": INFO}[number[0]]
    return Finding(
        id=f"abs_orm_app.{number}",
        level=level,
        message=printable(message),
        remedy=printable(remedy),
        fix=fix,
        alias=alias,
    )


def of_alias(
    rules: Callable[Concatenate[Configured, P], Iterator[Finding]],
) -> Callable[Concatenate[Configured, P], list[Finding]]:
    """Decorate rules on one alias, so that each of their findings names it."""

    def found(database: Configured, /, *args: P.args, **kwargs: P.kwargs) -> list[Finding]:
        return [replace(each, alias=database.alias) for each in rules(database, *args, **kwargs)]

    return found
