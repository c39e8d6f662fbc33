"""What runs in a project's environment: its own tests, or its web server under load.

python tests/projects/inside.py serve gunicorn
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from abs_orm_app.environment import database_from_env

MODE = "PROJECTS_MODE"  # of the environment
STOCK = "django.db.backends.postgresql"
PARTS = (  # of DRF's tests: those that query most
    "authentication", "generic_relations", "test_atomic_requests.py", "test_filters.py",
    "test_generics.py", "test_model_serializer.py", "test_pagination.py", "test_permissions.py",
    "test_prefetch_related.py", "test_relations_pk.py", "test_validators.py",
)  # fmt: skip
CLIENTS, SECONDS = 20, 8.0
WEB = {
    "gunicorn": (
        "gunicorn", "--bind=unix:{socket}", "--worker-class=gthread", "--threads=20",
        "hc.wsgi:application",
    ),
    "uvicorn": (
        "uvicorn", "--uds={socket}", "--log-level=critical", "--factory",
        "tests.projects.inside:asgi",
    ),
}  # fmt: skip


def _without_pool(entry: dict[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in entry["OPTIONS"].items() if key != "pool"}
    return {**entry, "ENGINE": STOCK, "OPTIONS": options}


MODES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no pool": _without_pool,
    "Django's pool": lambda entry: {**entry, "ENGINE": STOCK},
    "request": lambda entry: {**entry, "ABS_ORM_APP": {"release": "request"}},
    "transaction": lambda entry: {**entry, "ABS_ORM_APP": {"release": "transaction"}},
}


def entry(*_: Any, **__: Any) -> dict[str, Any]:
    """The entry of DATABASES of the mode that the environment names."""
    return MODES[os.environ[MODE]]({**database_from_env()})


def rest_framework() -> None:
    """DRF's tests, whose conftest takes the entry from dj_database_url."""
    import dj_database_url
    import pytest

    dj_database_url.config = entry  # type: ignore[assignment]
    sys.path[0] = str(Path.cwd())  # its `tests`, not ours
    sys.exit(pytest.main(["-q", *(f"tests/{name}" for name in PARTS)]))


def asgi() -> Any:
    """healthchecks wants to know its client's address, which a Unix socket has not."""
    from django.core.asgi import get_asgi_application

    django = get_asgi_application()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await django({**scope, "client": ("127.0.0.1", 0)}, receive, send)

    return application


def ping() -> str:
    """The path of a check of healthchecks; a request of it writes two rows."""
    import django

    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from hc.accounts.models import Project
    from hc.api.models import Check

    call_command("migrate", verbosity=0)
    owner = User.objects.create(username="owner", email="owner@example.com")
    check = Check.objects.create(project=Project.objects.create(owner=owner))
    return f"/ping/{check.code}"


def serve(name: str) -> None:
    """Restart the server while clients ping; print how many requests there were and failed."""
    from tests.support.processes import web_server
    from tests.support.servers import Server

    with Server() as server:
        os.environ["DATABASE_URL"] = server.url
        path = subprocess.check_output(
            [sys.executable, "-c", "from tests.projects.inside import ping; print(ping())"],
            text=True,
        ).splitlines()[-1]
        with web_server(WEB[name], server, DEBUG="False", **_settings()) as web:
            ends = time.monotonic() + SECONDS

            def client(_: int) -> list[str]:
                answers = []
                while time.monotonic() < ends:
                    answers += web.get([path])
                return answers

            with ThreadPoolExecutor(CLIENTS) as executor:
                done = [executor.submit(client, number) for number in range(CLIENTS)]
                time.sleep(SECONDS / 2)
                server.restart()
                answers = [answer for each in done for answer in each.result()]
    failed = [each for each in answers if not re.match("HTTP/1.1 2", each)]
    print(json.dumps({"requests": len(answers), "failed": len(failed)}))


def _settings() -> dict[str, str]:
    names = (MODE, "DB_POOL_SIZE", "DB_MAX_OVERFLOW", "DB_POOL_TIMEOUT")
    return {name: os.environ[name] for name in names}


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
