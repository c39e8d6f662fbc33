"""A project with one package: `python -m tests.compat.project NAME`, in that package's environment.

DJANGO_SETTINGS_MODULE may be this module, in a process that a check starts.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from typing import Any

from abs_orm_app.environment import database_from_env
from tests.compat.case import Case

BETWEEN = 5.0  # seconds in which what a check has used comes back to the pool

# Defined when this module is DJANGO_SETTINGS_MODULE, which reads its globals.
NAME = os.environ.get("COMPAT_CASE", "")


def case(name: str) -> Case:
    found: Case = importlib.import_module(f"tests.compat.cases.{name}").CASE
    return found


def settings_of(case: Case, *, with_lines: bool) -> dict[str, Any]:
    """The settings of a small project with the package, ours in front."""
    entry = database_from_env()
    if case.engine:
        entry["ENGINE"] = case.engine
    made: dict[str, Any] = {
        "SECRET_KEY": "compat",
        "DEBUG": True,
        "ALLOWED_HOSTS": ["*"],
        "USE_TZ": True,
        "DATABASES": {"default": entry},
        "ROOT_URLCONF": "tests.compat.urls",
        "STATIC_URL": "static/",
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        "INSTALLED_APPS": [
            "abs_orm_app",
            "django.contrib.contenttypes",
            "django.contrib.auth",
            "django.contrib.sessions",
            "django.contrib.messages",
            "django.contrib.staticfiles",
            "tests.compat.shop",
            *case.apps,
        ],
        "MIDDLEWARE": list(case.middleware),
        "TEMPLATES": [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
            }
        ],
        **case.settings,
    }
    if with_lines:
        exec(case.lines, made)  # noqa: S102  # the source text of the case itself
    return {name: value for name, value in made.items() if name.isupper()}


if NAME:
    globals().update(settings_of(case(NAME), with_lines="COMPAT_BARE" not in os.environ))


def main(name: str) -> None:
    """Set the project up, try the package, and see that every connection came back."""
    os.environ |= {"COMPAT_CASE": name, "DJANGO_SETTINGS_MODULE": "tests.compat.project"}
    tried = case(name)
    tried.setup()
    import django
    from django.core.management import call_command
    from django.db import connection, connections

    django.setup()
    if tried.migrates:
        call_command("migrate", run_syncdb=True, verbosity=0)
    connections.close_all()
    tried.check()
    connections.close_all()
    pool: Any = getattr(connection, "pool", None)
    assert type(pool).__module__.startswith("abs_orm_app."), f"the pool is {type(pool)}"
    deadline = time.monotonic() + BETWEEN
    while (stats := pool.get_stats())["pool_size"] != stats["pool_available"]:
        assert time.monotonic() < deadline, f"connections did not come back: {stats}"
        time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1])
