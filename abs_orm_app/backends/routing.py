"""Finds out from settings and routers whether the project writes through an alias."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, router

_asking = ContextVar("_asking", default=False)


def only_reads(alias: str, entry: Mapping[str, Any]) -> bool:
    """True if the project's settings or routers show that the alias is a replica.

    That is a mirror in tests (`TEST: {"MIRROR": ...}`), or an alias that no router returns for
    writes. The default alias is never a replica. Also False if a router cannot be asked.
    """
    if alias == DEFAULT_DB_ALIAS:
        return False
    return bool((entry.get("TEST") or {}).get("MIRROR")) or _never_routed_to(alias)


def is_written(alias: str, entry: Mapping[str, Any]) -> bool:
    """True if the project is known to write through the alias: it is the default, or routed to."""
    if alias == DEFAULT_DB_ALIAS:
        return True
    return bool(router.routers) and not only_reads(alias, entry)


def _never_routed_to(alias: str) -> bool:
    # A router may query, which would call this again.
    if not router.routers or not apps.models_ready or _asking.get():
        return False
    token = _asking.set(True)
    try:
        return all(router.db_for_write(model) != alias for model in apps.get_models())
    except Exception:  # a router is the project's code, and may need a request
        return False
    finally:
        _asking.reset(token)
