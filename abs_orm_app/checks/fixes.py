"""Lines to copy that change a setting of an alias, in the form that its project uses."""

import re

from abs_orm_app.config.entry import KEY
from abs_orm_app.environment import POOL_PARAMETERS, SETTINGS
from abs_orm_app.facts.databases import Configured, Value


def written_by_hand(database: Configured) -> bool:
    """Return True if the project wrote its entry of DATABASES without `database_from_env`."""
    return all(setting.source == "settings" for setting in database.settings)


def set_one(database: Configured, field: str, value: Value) -> str:
    if not written_by_hand(database):
        return f"{variable(database, field)}={_in_environment(value)}"
    option = SETTINGS[field].options[database.mode]
    text = f'"{value}"' if isinstance(value, str) else value
    if option == KEY:
        return f'"{KEY}": {{"{field}": {text}}}'
    if field in POOL_PARAMETERS and database.mode == "pool":
        return f'"OPTIONS": {{"pool": {{"{POOL_PARAMETERS[field]}": {text}}}}}'
    return f'"{option}": {text}'


def set_sizes(database: Configured, size: int, overflow: int) -> str:
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
    entry = f'DATABASES["{database.alias}"]'  # however it was made
    pool = '{"min_size": 4, "max_size": 10}'
    return (
        f'{entry} |= {{"CONN_MAX_AGE": 0, "CONN_HEALTH_CHECKS": True}};'
        f' {entry}.setdefault("OPTIONS", {{}})["pool"] = {pool}'
    )


def variable(database: Configured, field: str) -> str:
    """Return the variable that sets a field of PoolSettings for this alias."""
    return next(setting.name for setting in database.settings if setting.field == field)


def alter_role(role: str, parameter: str, value: str) -> str:
    return f"ALTER ROLE {_identifier(role)} SET {parameter} = {value};"


def _identifier(name: str) -> str:
    if re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        return name
    return '"' + name.replace('"', '""') + '"'


def _in_environment(value: Value) -> str:
    if isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
