"""django-debug-toolbar wraps the cursors of each connection."""

from __future__ import annotations

from tests.compat.case import Case, in_threads


def check() -> None:
    from debug_toolbar.panels.sql import SQLPanel
    from django.test import Client

    counted = []
    record = SQLPanel.generate_stats

    def generate_stats(panel: SQLPanel, request: object, response: object) -> None:
        record(panel, request, response)
        counted.append(len(panel._queries))

    SQLPanel.generate_stats = generate_stats
    answers = in_threads(10, lambda _: Client().get("/").status_code)
    assert answers == [200] * 10
    assert counted == [1] * 10, counted


CASE = Case(
    packages=["django-debug-toolbar"],
    apps=["debug_toolbar"],
    middleware=["debug_toolbar.middleware.DebugToolbarMiddleware"],
    settings={
        "DEBUG_TOOLBAR_CONFIG": {
            "SHOW_TOOLBAR_CALLBACK": lambda _request: True,
            "IS_RUNNING_TESTS": False,
        }
    },
    tried="the SQL panel counts the query of each of 10 requests in threads",
    check=check,
)
