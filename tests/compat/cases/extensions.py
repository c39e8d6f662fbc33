"""django-extensions has commands that know the engines by name."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO

from django.core.management import call_command
from django.db import connection, connections

from tests.compat.case import Case


def check() -> None:
    from django.contrib.auth.models import Group

    printed = StringIO()
    with redirect_stdout(printed):
        call_command("sqldsn")
    assert "dbname=" in printed.getvalue()
    Group.objects.create(name="gone")
    connections.close_all()
    connection.close_pool()
    call_command("reset_db", interactive=False, close_sessions=True, verbosity=0)
    call_command("migrate", verbosity=0)
    assert not Group.objects.exists()


CASE = Case(
    packages=["django-extensions"],
    apps=["django_extensions"],
    tried="`sqldsn`; `reset_db` drops the database and makes it again",
    lines='DJANGO_EXTENSIONS_RESET_DB_POSTGRESQL_ENGINES = ["abs_orm_app.backends.postgresql"]',
    note="Without it, these commands refuse the engine (`abs_orm_app.W003`).",
    check=check,
)
