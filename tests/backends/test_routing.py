"""Which aliases the project writes through, by its settings and its routers."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import router

from abs_orm_app.backends.routing import is_written, only_reads


class Routers:
    """Everything is written to `main`; reads go anywhere."""

    def db_for_read(self, _model: Any, **_: Any) -> str:
        return "replica"

    def db_for_write(self, _model: Any, **_: Any) -> str:
        return "main"


class Queries:
    """It has to query before it knows, and so comes back."""

    def db_for_write(self, _model: Any, **_: Any) -> str:
        return "replica" if is_written("main", {}) else "main"


class NeedsARequest:
    def db_for_write(self, _model: Any, **_: Any) -> str:
        raise LookupError("no tenant")


@pytest.fixture
def routed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "routers", [request.param()])


def test_without_routers_only_the_default_alias_is_known_to_be_written() -> None:
    assert is_written("default", {})
    assert not is_written("other", {})
    assert not only_reads("other", {})


def test_a_mirror_only_reads() -> None:
    assert only_reads("replica", {"TEST": {"MIRROR": "default"}})
    assert not only_reads("default", {"TEST": {"MIRROR": "other"}})


@pytest.mark.parametrize("routed", [Routers], indirect=True)
@pytest.mark.usefixtures("routed")
def test_routers_say_what_is_written() -> None:
    assert is_written("main", {})
    assert not is_written("replica", {})
    assert only_reads("replica", {})


@pytest.mark.parametrize("routed", [Queries, NeedsARequest], indirect=True)
@pytest.mark.usefixtures("routed")
def test_a_router_that_cannot_be_asked_says_nothing() -> None:
    assert not only_reads("other", {}) or not is_written("other", {})
    assert not only_reads("default", {})


def test_the_models_of_the_project_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Notes:
        def db_for_write(self, _model: Any, **_: Any) -> None:
            asked.append(_model)

    monkeypatch.setattr(router, "routers", [Notes()])
    assert only_reads("replica", {})
    assert User in asked
