"""Which role the server of an alias should have, and whether it has it."""

from __future__ import annotations

from typing import Literal

from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.server import ServerFacts

Wanted = Literal["primary", "standby", "either"]

_BY_ATTRS: dict[str, Wanted] = {
    "read-write": "primary",
    "primary": "primary",
    "standby": "standby",
    "prefer-standby": "standby",
    "read-only": "either",
    "any": "either",
}


def wanted_role(database: Configured) -> Wanted:
    """By `target_session_attrs`; without it, a primary for an alias that the project writes to."""
    if database.target_session_attrs:
        return _BY_ATTRS.get(database.target_session_attrs, "either")
    return "primary" if database.written else "either"


def role_in_words(database: Configured, server: ServerFacts) -> str:
    """What the server is, and whether that is what the alias needs."""
    wanted = wanted_role(database)
    role = "standby" if server.in_recovery else "primary"
    accepts = "read only" if server.in_recovery or server.read_only else "accepts writes"
    if wanted == "either":
        return f"{role}, {accepts}"
    if wanted == "primary" and role == wanted and server.read_only:
        return f"{role}, but its transactions are read-only by default, and this alias writes"
    if wanted == role:
        return f"{role}, {accepts}, as this alias needs"
    return f"{role}, {accepts}, but this alias needs a {wanted}"
