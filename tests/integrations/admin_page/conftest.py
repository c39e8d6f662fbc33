"""Users for the page, in no transaction of the test: it looks from connections of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.test import Client
from pytest_django.plugin import DjangoDbBlocker

from abs_orm_app.integrations import unpooled
from abs_orm_app.integrations.admin_page import access
from abs_orm_app.pool import HardenedPool
from tests.support.databases import pool_of
from tests.support.pages import SMALL, logged_in, permitted
from tests.support.projects import database, entry
from tests.support.servers import Server


@pytest.fixture(scope="module")
def tables(django_db_blocker: DjangoDbBlocker) -> None:
    with django_db_blocker.unblock():
        call_command("migrate", verbosity=0)


@pytest.fixture
def users(tables: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    with django_db_blocker.unblock():
        yield
        User.objects.all().delete()
        Session.objects.all().delete()


@pytest.fixture
def each_view_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no answer of a test before be given again, and no rate hold a test up."""
    monkeypatch.setattr(unpooled, "FRESH", 0.0)
    monkeypatch.setattr(access, "STRANGERS", unpooled.Rate(1000))


@pytest.fixture
def staff(users: None) -> Client:
    return permitted(logged_in(is_staff=True))


@pytest.fixture
def pool(users: None, server: Server) -> Iterator[HardenedPool]:
    """That of an alias "other", open."""
    with database(entry(server.conninfo, OPTIONS=SMALL)) as alias:
        yield pool_of(alias)
