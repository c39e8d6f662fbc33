"""Run `manage.py pgbouncer_ini` in this process, and parse its output."""

from __future__ import annotations

from contextlib import ExitStack
from io import StringIO
from typing import Any

from django.core.management import call_command

from abs_orm_app.environment import database_from_env
from tests.support.projects import database

URL = "postgresql://app:s3cret@db.example.com/shop"


def entry(url: str = URL, **environ: str) -> dict[str, Any]:
    return database_from_env(environ={"DATABASE_URL": url, **environ})


def written(*arguments: str, **entries: dict[str, Any]) -> str:
    """The output of the command for these entries of DATABASES."""
    out = StringIO()
    with ExitStack() as stack:
        aliases = [stack.enter_context(database(each, alias)) for alias, each in entries.items()]
        call_command(
            "pgbouncer_ini", "--database", *aliases, *arguments, stdout=out, stderr=StringIO()
        )
    return out.getvalue()


def ini(*arguments: str, **entries: dict[str, Any]) -> dict[str, str]:
    """The output as `{name: value}`, without comments."""
    lines = written(*arguments, **entries).splitlines()
    pairs = (line.partition(" =") for line in lines if line and line[0] not in ";[")
    return {name: value.strip() for name, _, value in pairs}


NAMELESS = 4_000_000  # a uid without a name, as in a container
