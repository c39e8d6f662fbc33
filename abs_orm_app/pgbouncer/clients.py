"""How clients reach PgBouncer: their database names, their settings, and who may log in."""

import re
from collections.abc import Sequence
from urllib.parse import quote

from abs_orm_app.facts.databases import is_local
from abs_orm_app.pgbouncer.target import Plan, Target, is_private

LOOPBACK = "127.0.0.1"
THIS_MACHINE = ("localhost", LOOPBACK, "::1")
EVERY_ADDRESS = ("*", "0.0.0.0", "::")  # noqa: S104 - only recognized; nothing listens on it


def client_settings(targets: Sequence[Target], plan: Plan) -> list[str]:
    """Return the settings that connect each alias to PgBouncer, one line each, no passwords."""
    host, names = _client_host(targets, plan), client_names(targets)
    in_url = f"[{host}]" if ":" in host else quote(host, safe="")
    found = []
    if any(each.prefix is not None for each in targets):
        found.append("DB_POOL_MODE=pgbouncer")
    for each in targets:
        name = names[each.alias]
        if each.prefix is None:
            found.append(
                f"DATABASES[{each.alias!r}]: 'HOST': {host!r}, 'PORT': {plan.listen_port}, 'NAME':"
                f" {name!r}, 'DISABLE_SERVER_SIDE_CURSORS': True, 'CONN_MAX_AGE': 0, and no pool in"
                " OPTIONS"
            )
        else:
            found.append(
                f"{each.prefix}DATABASE_URL={each.scheme}://{quote(each.user, safe='')}"
                f"@{in_url}:{plan.listen_port}/{quote(name, safe='')}"
            )
    return found


def client_names(targets: Sequence[Target]) -> dict[str, str]:
    """Return a unique PgBouncer name for the database of each alias."""
    names: dict[str, str] = {}
    for each in targets:
        name = _plain(each.name)
        while name in names.values() or name == "pgbouncer":  # the name of PgBouncer's console
            name = f"{name}_{_plain(each.alias)}"
        names[each.alias] = name
    return names


def is_exposed(plan: Plan) -> bool:
    return plan.listen_addr is not None and not all(
        address == "localhost" or (address and is_local(address)) for address in plan.addresses
    )


def _client_host(targets: Sequence[Target], plan: Plan) -> str:
    if is_private(targets, plan):
        return targets[0].host
    host = plan.addresses[0] or LOOPBACK
    return "HOST" if host in EVERY_ADDRESS else host


def _plain(name: str) -> str:
    """Replace unusual characters in a name: PgBouncer 1.18 cannot read names in quotes."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


FILE = "userlist.txt"


def userlist(targets: Sequence[Target], plan: Plan) -> str:
    """Return the file, one line per role. Raises ValueError for missing or differing passwords."""
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
    """Return an alias and its password, or "", by role. Raises ValueError if a role has two."""
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
    """Quote a name with double quotes, for PgBouncer or PostgreSQL."""
    doubled = text.replace('"', '""')
    return f'"{doubled}"'
