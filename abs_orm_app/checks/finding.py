"""What a rule finds. Each id has its entry in docs/checks.md."""

from __future__ import annotations

from dataclasses import dataclass

from django.core.checks import ERROR, INFO, WARNING

GUIDE = "docs/checks.md"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that an operator should know, and what to do about it."""

    id: str  # "abs_orm_app.E001"
    level: int  # of django.core.checks
    message: str
    hint: str
    alias: str | None = None  # None: it is about several aliases, or about none

    @property
    def guide(self) -> str:
        """Where the docs say more."""
        return f"{GUIDE}#{self.id.rpartition('.')[2]}"


def new_finding(number: str, message: str, hint: str, alias: str | None = None) -> Finding:
    """Make a finding; the number's letter gives the level."""
    level = {"E": ERROR, "W": WARNING, "I": INFO}[number[0]]
    return Finding(id=f"abs_orm_app.{number}", level=level, message=message, hint=hint, alias=alias)
