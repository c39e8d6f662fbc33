"""Rules on installed packages that recognize engines by name, and do not know ours."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from abs_orm_app.checks.finding import Finding, new_finding
from abs_orm_app.facts.databases import Configured


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package, and the setting in which it looks up an engine by name."""

    app: str  # in INSTALLED_APPS
    name: str
    otherwise: str  # what it does with an engine that it does not know
    setting: str
    fix: str  # with {engine} and {connector}
    also: str = ""  # another setting that is enough: it names aliases


PACKAGES = (
    Package(
        app="dbbackup",
        name="django-dbbackup",
        otherwise="writes JSON instead of an archive of pg_dump, and cannot restore such archives",
        setting="DBBACKUP_CONNECTOR_MAPPING",
        fix='DBBACKUP_CONNECTOR_MAPPING = {{"{engine}": "dbbackup.db.postgresql.{connector}"}}',
        also="DBBACKUP_CONNECTORS",
    ),
    Package(
        app="cachalot",
        name="django-cachalot",
        otherwise="caches no query",
        setting="CACHALOT_ADDITIONAL_SUPPORTED_DATABASES",
        fix='CACHALOT_ADDITIONAL_SUPPORTED_DATABASES = {{"{engine}"}}',
        also="CACHALOT_DATABASES",
    ),
    Package(
        app="django_extensions",
        name="django-extensions",
        otherwise="refuses reset_db, sqldsn and other commands",
        setting="DJANGO_EXTENSIONS_RESET_DB_POSTGRESQL_ENGINES",
        fix='DJANGO_EXTENSIONS_RESET_DB_POSTGRESQL_ENGINES = ["{engine}"]',
    ),
)


def package_findings(
    databases: Sequence[Configured], apps: Collection[str], settings: Any
) -> list[Finding]:
    """Report packages in INSTALLED_APPS that do not know the engine of an alias."""
    return [
        package_does_not_know(package, database)
        for package in PACKAGES
        if any(app == package.app or app.startswith(f"{package.app}.") for app in apps)
        for database in databases
        if database.hardened and not _is_told(package, database, settings)
    ]


def package_does_not_know(package: Package, database: Configured) -> Finding:
    connector = "PgDumpBinaryConnector"
    if database.engine.endswith(".postgis"):
        connector = "PgDumpGisConnector"
    return new_finding(
        "W003",
        f"{package.name} does not know the engine {database.engine}: it {package.otherwise}.",
        "Add to the settings:",
        database.alias,
        fix=package.fix.format(engine=database.engine, connector=connector),
    )


def _is_told(package: Package, database: Configured, settings: Any) -> bool:
    aliases = getattr(settings, package.also, None) or ()
    if isinstance(aliases, str):  # django-cachalot has names for sets of aliases
        return aliases == "all_databases"
    engines = getattr(settings, package.setting, None) or ()
    return database.engine in engines or database.alias in aliases
