"""Lines to copy that change a setting of an alias, in the form in which its project wrote it."""

from __future__ import annotations

import re

from abs_orm_app.facts.databases import Configured, Value

_OPTIONS_BY_HAND = {
    "pre_ping": '"CONN_HEALTH_CHECKS": {value}',
    "recycle": '"OPTIONS": {{"pool": {{"max_lifetime": {value}}}}}',
    "timeout": '"OPTIONS": {{"pool": {{"timeout": {value}}}}}',
}


def written_by_hand(database: Configured) -> bool:
    """True if the project wrote the entry of DATABASES itself, without `database_from_env`."""
    return all(setting.source == "settings" for setting in database.settings)


def set_one(database: Configured, field: str, value: Value) -> str:
    """Set `pre_ping`, `recycle` or `timeout`."""
    if not written_by_hand(database):
        return f"{variable(database, field)}={_in_environment(value)}"
    if field == "recycle" and database.mode == "persistent":
        return f'"CONN_MAX_AGE": {value}'
    return _OPTIONS_BY_HAND[field].format(value=value)


def set_sizes(database: Configured, size: int, overflow: int) -> str:
    """Set the pool size and the overflow."""
    if written_by_hand(database):
        most = size + overflow
        return f'"OPTIONS": {{"pool": {{"min_size": {size}, "max_size": {most}}}}}'
    return f"{variable(database, 'size')}={size} {variable(database, 'overflow')}={overflow}"


def set_mode(database: Configured, mode: str) -> str:
    """Set the mode: "pool" or "pgbouncer"."""
    if not written_by_hand(database):
        return f"{variable(database, 'mode')}={mode}"
    if mode == "pgbouncer":
        return '"CONN_MAX_AGE": 0, "DISABLE_SERVER_SIDE_CURSORS": True'
    entry = f'DATABASES["{database.alias}"]'  # whatever has made it
    pool = '{"min_size": 4, "max_size": 10}'
    return (
        f'{entry} |= {{"CONN_MAX_AGE": 0, "CONN_HEALTH_CHECKS": True}};'
        f' {entry}.setdefault("OPTIONS", {{}})["pool"] = {pool}'
    )


def set_release(database: Configured, release: str) -> str:
    """Set when a connection goes back to the pool."""
    if written_by_hand(database):
        return f'"ABS_ORM_APP": {{"release": "{release}"}}'
    return f"{variable(database, 'release')}={release}"


def variable(database: Configured, field: str) -> str:
    """The variable that sets a field of PoolSettings for this alias."""
    return next(setting.name for setting in database.settings if setting.field == field)


def alter_role(role: str, parameter: str, value: str) -> str:
    """Set a parameter for all new sessions of a role."""
    return f"ALTER ROLE {_identifier(role)} SET {parameter} = {value};"


def _identifier(name: str) -> str:
    """The name as SQL takes it."""
    if re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        return name
    return '"' + name.replace('"', '""') + '"'


def _in_environment(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
