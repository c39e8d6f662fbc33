"""Writes PgBouncer's userlist.txt: the roles that may log in, and their passwords."""

from __future__ import annotations

from collections.abc import Sequence

from abs_orm_app.pgbouncer.target import Plan, Target, is_private

FILE = "userlist.txt"


def userlist(targets: Sequence[Target], plan: Plan) -> str:
    """Return the file: one line for each role.

    Raises ValueError, one sentence, for passwords that PgBouncer cannot use.
    """
    lines = []
    for user, (alias, password) in passwords(targets).items():
        if plan.with_password and not password and not is_private(targets, plan):
            raise ValueError(
                f"DATABASES[{alias!r}] has no password for the role {user!r}, which PgBouncer"
                " needs. If the password is elsewhere, as in .pgpass, leave out --with-password"
                " and replace the word PASSWORD with it."
            )
        shown = password if plan.with_password else "PASSWORD"
        lines.append(f"{quoted(user)} {quoted(shown)}\n")
    return "".join(lines)


def passwords(targets: Sequence[Target]) -> dict[str, tuple[str, str]]:
    """Return for each role an alias that has it, and its password, or "" if none is known.

    Raises ValueError, one sentence, for two passwords of one role.
    """
    found: dict[str, tuple[str, str]] = {}
    for each in targets:
        alias, password = found.get(each.user, (each.alias, ""))
        if password and each.password and password != each.password:
            raise ValueError(
                f"DATABASES[{alias!r}] and DATABASES[{each.alias!r}] have different passwords for"
                f" the role {each.user!r}, and one PgBouncer has one for all: make them equal, or"
                " write a file for each with --database."
            )
        if not password:
            found[each.user] = (each.alias, each.password)
    return found


def quoted(text: str) -> str:
    """Put a name into double quotes, as PgBouncer and PostgreSQL read it."""
    doubled = text.replace('"', '""')
    return f'"{doubled}"'
