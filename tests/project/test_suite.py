"""The suite itself: what each of its processes has for itself."""

from __future__ import annotations

from django.db import connections

from tests.conftest import _server


def test_each_process_of_the_suite_has_a_database_of_its_own() -> None:
    """Also with pytest-xdist, whose processes inherit the environment of the first one."""
    assert connections.settings["default"]["HOST"] == str(_server.socket_dir)
