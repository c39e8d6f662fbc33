"""Who is compared: one database entry each, and one way to take and give back a connection.

Every peer has the same five settings, as far as it knows them: the defaults of `PoolSettings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from abs_orm_app.environment import PoolSettings

DJANGO = "django.db.backends.postgresql"
OURS = "abs_orm_app.backends.postgresql"
REAL_POOL = "django_pg_real_pool"
DJ_DB_CONN_POOL = "dj_db_conn_pool.backends.postgresql"
NO_END = {"DB_POOL_RECYCLE": "-1"}
NO_PING = {"DB_POOL_PRE_PING": "false"}


@dataclass(frozen=True)
class Peer:
    """One way to have connections, in Django or (`engine` None) in SQLAlchemy.

    engine: ENGINE of the entry.
    environ: the variables that make the entry, beside DATABASE_URL.
    pooled: there is one pool for all threads.
    """

    name: str
    label: str
    engine: str | None
    environ: Mapping[str, str] = field(default_factory=dict, hash=False)
    pooled: bool = True


PEERS = (
    Peer("none", "no pool", DJANGO, {"DB_POOL_MODE": "null"}, pooled=False),
    Peer(
        "persistent",
        "persistent connections",
        DJANGO,
        {"DB_POOL_MODE": "persistent"} | NO_END | NO_PING,
        pooled=False,
    ),
    Peer(
        "persistent-checks",
        "persistent, with checks",
        DJANGO,
        {"DB_POOL_MODE": "persistent"} | NO_END,
        pooled=False,
    ),
    Peer("stock", "Django's pool", DJANGO, NO_PING),
    Peer("stock-checks", "Django's pool, with checks", DJANGO),
    Peer("dj-db-conn-pool", "django-db-connection-pool", DJ_DB_CONN_POOL, {"DB_POOL_MODE": "null"}),
    Peer("queuepool", "SQLAlchemy's QueuePool", None),
    Peer("ours", "abs_orm_app", OURS),
)
# Compared only where it matters when a connection goes back to the pool.
LEASING = (
    Peer("real-pool", "django-pg-real-pool", REAL_POOL),
    Peer(
        "ours-transaction", "abs_orm_app, `transaction`", OURS, {"DB_POOL_RELEASE": "transaction"}
    ),
)
BY_NAME = {peer.name: peer for peer in (*PEERS, *LEASING)}


def entry(peer: Peer, written: dict[str, Any]) -> dict[str, Any]:
    """The peer's entry of DATABASES, from the one that `database_from_env` has written."""
    settings = PoolSettings.from_env()
    changed = {**written, "ENGINE": peer.engine}
    if peer.engine == DJ_DB_CONN_POOL:
        changed["POOL_OPTIONS"] = {
            "POOL_SIZE": settings.size,
            "MAX_OVERFLOW": settings.overflow,
            "PRE_PING": settings.pre_ping,
            "RECYCLE": settings.recycle,
            "TIMEOUT": settings.timeout,
        }
    return changed
