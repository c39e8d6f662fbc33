"""Print the table of what a request leaves to the next, and loses itself, in each way to connect.

`python -m benchmarks.inherited`; docs/promises.md sums up what it prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.support.servers import Server

ALIAS = "measured"
MODES: Mapping[str, Mapping[str, Any]] = {
    "null": {},
    "persistent": {"CONN_MAX_AGE": None},
    "stock pool": {"ENGINE": "django.db.backends.postgresql", "pool": True},
    "`request`": {"pool": True, "ABS_ORM_APP": {"release": "request"}},
    "`transaction`": {"pool": True, "ABS_ORM_APP": {"release": "transaction"}},
    "django-pg-real-pool": {"ENGINE": "django_pg_real_pool", "pool": True},
    "PgBouncer, session": {"pooler": "session"},
    "PgBouncer, transaction": {"pooler": "transaction"},
}
WORDS = {
    (False, False): "",
    (False, True): "left",
    (True, False): "lost",
    (True, True): "lost, left",
}


def main() -> None:
    from tests.support.inherited import KINDS, SETUP, outcome

    with Server(roles=["tenant"], sql=SETUP) as server:
        _set_up_django(server)
        rows: dict[str, list[str]] = {kind.name: [] for kind in KINDS}
        for changes in MODES.values():
            for kind in KINDS:
                with _alias(server, dict(changes)) as end_request:
                    found = outcome(kind, ALIAS, end_request)
                    rows[kind.name].append(WORDS[found.lost, found.left])
    print("| | " + " | ".join(MODES) + " |")
    print("|---|" + "---|" * len(MODES))
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def _set_up_django(server: Server) -> None:
    import django

    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "abs_project.settings",
        "DATABASE_URL": server.url,
        "DB_POOL_MODE": "null",
        "ENV_FILE": os.devnull,
    }
    django.setup()


@contextmanager
def _alias(server: Server, changes: dict[str, Any]) -> Iterator[Any]:
    """An alias of its own for each: yields what ends a request."""
    from django.db import connections

    from tests.support.databases import entry
    from tests.support.pgbouncers import PgBouncer

    pooled, mode = changes.pop("pool", False), changes.pop("pooler", None)
    options = {"pool": {"min_size": 2, "max_size": 2, "timeout": 10} if pooled else None}
    made = entry(server, OPTIONS=options, **changes)
    with _pooler(PgBouncer, server, mode) as pooler:
        if pooler:
            made |= {"PORT": str(pooler.port), "DISABLE_SERVER_SIDE_CURSORS": True}
        connections.databases[ALIAS] = made
        connections.configure_settings(connections.databases)
        wrapper: Any = connections[ALIAS]
        try:
            yield wrapper.close_if_unusable_or_obsolete
        finally:
            wrapper.close()
            wrapper.close_pool()
            del connections[ALIAS], connections.databases[ALIAS]


@contextmanager
def _pooler(make: Any, server: Server, mode: str | None) -> Iterator[Any]:
    if mode is None:
        yield None
        return
    with make(server, pool_mode=mode, default_pool_size=2) as pooler:
        yield pooler


if __name__ == "__main__":
    main()
