"""Made-up facts of a server, for tests of rules and sums."""

from __future__ import annotations

from typing import Any

from abs_orm_app.facts.server import ServerFacts


def server_facts(**facts: Any) -> ServerFacts:
    """A server with 100 connections, none of them in use, except for the facts given."""
    defaults: dict[str, Any] = {
        "identity": "one",
        "version": "18.0",
        "address": "db:5432",
        "database": "shop",
        "role": "app",
        "superuser": False,
        "tls": True,
        "tls_version": "TLSv1.3",
        "tls_cipher": "x",
        "in_recovery": False,
        "read_only": False,
        "max_connections": 100,
        "superuser_reserved": 3,
        "reserved": 0,
        "may_use_reserved": False,
        "role_limit": None,
        "database_limit": None,
        "used": 0,
        "used_by_role": 0,
        "used_in_database": 0,
        "used_by_project": 0,
        "settings": {},
    }
    return ServerFacts(**(defaults | facts))
