"""Says once for each process that the engine is used without its app: no check could say so."""

from __future__ import annotations

import logging

from django.apps import apps

logger = logging.getLogger("abs_orm_app.pool")

_said = False


def warn_if_not_installed(engine: str) -> None:
    """Called with each new connection."""
    global _said
    if _said or not apps.apps_ready:
        return
    _said = True
    if not apps.is_installed("abs_orm_app"):
        logger.warning(
            "The engine %s is used, but its app is not installed, so nothing checks its settings,"
            " and `manage.py check_pool` is missing: add 'abs_orm_app' to INSTALLED_APPS.",
            engine,
        )
