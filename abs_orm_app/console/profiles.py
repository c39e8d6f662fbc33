"""Profiles: reference settings to compare an alias with, built in or from the project."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from abs_orm_app.config.texts import did_you_mean
from abs_orm_app.config.variables import Reader
from abs_orm_app.console.arguments import refuse_unknown
from abs_orm_app.console.layout import Layout
from abs_orm_app.environment import SETTINGS
from abs_orm_app.facts.databases import Configured, Value
from abs_orm_app.facts.wording import format_value

Profile = Mapping[str, Value]  # by variable; a profile may leave some out

SETTING = "ABS_ORM_APP_PROFILES"  # of a project: {name: {variable: value}}

_FIELDS = {field: variable for field, variable in SETTINGS.items() if variable.shown == "always"}

PROFILES: dict[str, Profile] = {
    # The pool settings of fullon_orm's SQLAlchemy engine; our defaults are the same.
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
    alias: str
    field: str  # of PoolSettings
    name: str  # of the variable, without a prefix
    here: Value  # None: not used in the alias's mode
    wanted: Value

    @property
    def matches(self) -> bool:
        return self.here == self.wanted


@dataclass(frozen=True, kw_only=True)
class Comparison:
    profile: str  # its name
    aliases: Mapping[str, str]  # those on PostgreSQL, with their modes
    rows: tuple[Compared, ...]

    @property
    def matches(self) -> bool:
        """True if there is an alias to compare, and none differs."""
        return bool(self.rows) and all(row.matches for row in self.rows)

    def of(self, alias: str) -> list[Compared]:
        return [row for row in self.rows if row.alias == alias]


def profiles() -> dict[str, Profile]:
    """Return the built-in and the project's profiles. Raises ImproperlyConfigured for a bad one."""
    own = getattr(settings, SETTING, {})
    if not isinstance(own, Mapping):
        raise ImproperlyConfigured(f"{SETTING} must be a dict of profiles by name.")
    return PROFILES | {name: _parsed(name, values) for name, values in own.items()}


def find_profile(name: str | None) -> Profile | None:
    """Return the profile of this name; None without a name."""
    if name is None:
        return None
    known = profiles()
    refuse_unknown(name, tuple(known), "There is no profile", "there is")
    return known[name]


def _parsed(name: str, values: object) -> Profile:
    where = f"{SETTING}[{name!r}]"
    variables = {variable.name: variable for variable in _FIELDS.values()}
    known = tuple(variables)
    if not isinstance(values, Mapping) or not values:
        raise ImproperlyConfigured(f"{where} must be a dict such as {{'DB_POOL_SIZE': 20}}.")
    for key in values:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"; it has {', '.join(known)}"
            raise ImproperlyConfigured(f"{where} has no setting {key!r}{hint}.")
    reader = Reader({key: str(value) for key, value in values.items()})
    parsed: Profile = {key: reader.read(variables[key]) for key in values}
    if reader.problems:
        raise ImproperlyConfigured(f"{where}: {' '.join(reader.problems)}")
    return parsed


def compare(databases: Iterable[Configured], name: str, profile: Profile) -> Comparison:
    found = [database for database in databases if database.vendor == "postgresql"]
    return Comparison(
        profile=name,
        aliases={database.alias: database.mode for database in found},
        rows=tuple(
            Compared(
                alias=database.alias,
                field=field,
                name=variable.name,
                here=database.value(field),
                wanted=profile[variable.name],
            )
            for database in found
            for field, variable in _FIELDS.items()
            if variable.name in profile
        ),
    )


def comparison_section(comparison: Comparison, layout: Layout) -> str:
    """Format each alias's settings next to the profile's, and whether they match."""
    mark = layout.signs.good if comparison.matches else layout.signs.bad
    heading = layout.heading(f"Comparison with {comparison.profile}", mark)
    if not comparison.aliases:
        return "\n".join([heading, *layout.wrap("There is no PostgreSQL alias to compare.")])
    blocks = ["\n".join(_alias(alias, comparison, layout)) for alias in comparison.aliases]
    return f"{heading}\n" + "\n\n".join(blocks)


def _alias(alias: str, comparison: Comparison, layout: Layout) -> list[str]:
    mode, rows = comparison.aliases[alias], comparison.of(alias)
    if all(row.here is None for row in rows):
        why = f"{alias} differs from {comparison.profile}: there is no pool here (mode {mode})."
        return list(map(layout.style.ERROR, layout.wrap(why)))
    columns = ("setting", "here", comparison.profile, "match")
    first, *others = layout.table([columns, *map(_row, rows)])
    lines = [
        line if row.matches else layout.style.ERROR(line)
        for row, line in zip(rows, others, strict=True)
    ]
    differing = [row.name for row in rows if not row.matches]
    verdict, paint = f"{alias} matches {comparison.profile}.", layout.style.SUCCESS
    if differing:
        verdict = f"{alias} differs from {comparison.profile} in {', '.join(differing)}."
        paint = layout.style.ERROR
    return [first, *lines, *map(paint, layout.wrap(verdict))]


def _row(row: Compared) -> Sequence[str]:
    match = "yes" if row.matches else "no"
    return row.name, format_value(row.field, row.here), format_value(row.field, row.wanted), match
