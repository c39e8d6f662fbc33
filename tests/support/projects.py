"""Change DATABASES in this process, and run the sample project's commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connections
from psycopg.conninfo import conninfo_to_dict

from abs_orm_app.environment import database_from_env

ROOT = Path(__file__).resolve().parents[2]
OURS = "abs_orm_app.backends.postgresql"
STOCK = "django.db.backends.postgresql"
POOL = {"pool": {"min_size": 20, "max_size": 30, "timeout": 30.0, "max_lifetime": 3600.0}}
SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}


def compared_with_stock_engine(reason: str) -> pytest.MarkDecorator:
    """Run the test with our engine, and with Django's, where it must fail for `reason`."""
    fails = pytest.mark.xfail(strict=True, reason=reason)
    engines = [pytest.param(OURS, id="ours"), pytest.param(STOCK, id="stock", marks=fails)]
    return pytest.mark.parametrize("engine", engines)


@contextmanager
def database(entry: dict[str, Any], alias: str = "other") -> Iterator[str]:
    """Add an alias to DATABASES until the end of the block; then close its pool."""
    connections.settings[alias] = connections.configure_settings({"default": {**entry}})["default"]
    try:
        yield alias
    finally:
        with suppress(ImproperlyConfigured):  # of an engine that cannot be loaded
            wrapper: Any = connections[alias]
            wrapper.close()
            if pool := getattr(type(wrapper), "_connection_pools", {}).pop(alias, None):
                pool.close()
            del connections[alias]
        del connections.settings[alias]


def entry(conninfo: str, engine: str = OURS, **more: Any) -> dict[str, Any]:
    """An entry of DATABASES for a connection string of libpq."""
    given = conninfo_to_dict(conninfo)
    return {
        "ENGINE": engine,
        "NAME": given["dbname"],
        "USER": given["user"],
        "HOST": given["host"],
        "PORT": given["port"],
        "CONN_HEALTH_CHECKS": True,
        **more,
    }


def manage(
    *arguments: str, encoding: str = "utf-8", **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run manage.py of the sample project, without the variables of the suite's own server.

    encoding: of its output, where PYTHONIOENCODING sets another.
    """
    mine = ("DB_", "DATABASE_URL", "DEBUG", "WEB_CONCURRENCY", "PG")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    if not environ.keys() & {"DATABASE_URL", "DB_HOST", "DB_NAME", "ENV_FILE"}:
        # Without an address, the sample project starts a server in the checkout.
        inherited["DATABASE_URL"] = "postgresql://127.0.0.1:1/nowhere"
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env={**inherited, **environ},
        capture_output=True,
        encoding=encoding,
        timeout=60,
        check=False,
    )


def python(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the checkout with these variables, and no others."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={"PATH": os.defpath, "ENV_FILE": os.devnull, **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


class Ran:
    """Runs check_pool in this process: its output and exit code. `-v 2` unless it is said."""

    def __init__(self, *arguments: str, **options: Any) -> None:
        out = StringIO()
        options.setdefault("verbosity", 2)
        try:
            call_command("check_pool", *arguments, stdout=out, no_color=True, **options)
            self.code = 0
        except SystemExit as end:
            self.code = int(end.code or 0)
        self.out = out.getvalue()

    @property
    def last(self) -> str:
        """The last line."""
        return self.out.splitlines()[-1]

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def of_environment(*arguments: str, **environ: str) -> Ran:
    """Run check_pool in this process, on the alias that these variables make."""
    with database(database_from_env(environ=environ)) as alias:
        return Ran(*arguments, database=[alias])


def line(text: str, start: str) -> str:
    """The first line of the text that begins with `start`, apart from spaces."""
    return next(row for row in text.splitlines() if row.strip().startswith(start))
