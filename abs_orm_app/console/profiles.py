"""Reference settings to compare an alias with: ours, and those in the settings of the project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from abs_orm_app.config.variables import Reader, did_you_mean
from abs_orm_app.environment import VARIABLES
from abs_orm_app.facts.databases import FIELDS, Configured, Value

Profile = Mapping[str, Value]  # by variable; a profile may leave some out

SETTING = "ABS_ORM_APP_PROFILES"  # the name of a project's own, {name: {variable: value}}

PROFILES: dict[str, Profile] = {
    # The engine of fullon_orm (SQLAlchemy) in production.
    "fullon_orm": {
        "DB_POOL_SIZE": 20,
        "DB_MAX_OVERFLOW": 10,
        "DB_POOL_PRE_PING": True,
        "DB_POOL_RECYCLE": 3600,
        "DB_POOL_TIMEOUT": 30.0,
    },
}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One setting of one alias beside the profile's."""

    alias: str
    field: str  # of PoolSettings
    name: str  # of the variable, without a prefix
    here: Value  # None: not used in the alias's mode
    wanted: Value

    @property
    def matches(self) -> bool:
        return self.here == self.wanted


def profiles() -> dict[str, Profile]:
    """All profiles by name; a project's own come before ours of the same name.

    Raises ImproperlyConfigured, one sentence, for what cannot be one.
    """
    own = getattr(settings, SETTING, {})
    if not isinstance(own, Mapping):
        raise ImproperlyConfigured(f"{SETTING} must be a dict of profiles by name.")
    return PROFILES | {name: _parsed(name, values) for name, values in own.items()}


def _parsed(name: str, values: object) -> Profile:
    where = f"{SETTING}[{name!r}]"
    known = tuple(FIELDS.values())
    if not isinstance(values, Mapping) or not values:
        raise ImproperlyConfigured(f"{where} must be a dict such as {{'DB_POOL_SIZE': 20}}.")
    for key in values:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"; it has {', '.join(known)}"
            raise ImproperlyConfigured(f"{where} has no setting {key!r}{hint}.")
    reader = Reader({key: str(value) for key, value in values.items()})
    parsed: Profile = {key: reader.read(VARIABLES[key]) for key in values}
    if reader.problems:
        raise ImproperlyConfigured(f"{where}: {' '.join(reader.problems)}")
    return parsed


def compare(database: Configured, profile: Profile) -> list[Compared]:
    """Each setting of the profile beside what the alias has."""
    return [
        Compared(
            alias=database.alias,
            field=field,
            name=name,
            here=database.value(field),
            wanted=profile[name],
        )
        for field, name in FIELDS.items()
        if name in profile
    ]
