"""django-dbbackup takes its connector by the name of the engine; another name gets JSON."""

from __future__ import annotations

import tempfile
from pathlib import Path

from django.core.management import call_command

from tests.compat.case import Case

BACKUPS = tempfile.mkdtemp()
STORAGE = {
    "BACKEND": "django.core.files.storage.FileSystemStorage",
    "OPTIONS": {"location": BACKUPS},
}
STATIC = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}


def check() -> None:
    from django.contrib.auth.models import Group

    from django.db import connection

    Group.objects.create(name="kept")
    call_command("dbbackup", verbosity=0)
    made = next(path for path in Path(BACKUPS).iterdir() if path.suffix != ".metadata")
    assert made.read_bytes()[:5] == b"PGDMP", f"{made.name} is no archive of pg_dump"
    Group.objects.all().delete()
    connection.close_pool()
    call_command("dbrestore", interactive=False, verbosity=0)
    assert Group.objects.filter(name="kept").exists()


CASE = Case(
    packages=["django-dbbackup"],
    apps=["dbbackup"],
    settings={"STORAGES": {"dbbackup": STORAGE, "default": STORAGE, "staticfiles": STATIC}},
    tried="`dbbackup` writes an archive of `pg_dump`, `dbrestore` restores it",
    lines=(
        'DBBACKUP_CONNECTOR_MAPPING = {"abs_orm_app.backends.postgresql":'
        ' "dbbackup.db.postgresql.PgDumpBinaryConnector"}'
    ),
    note="Without it, the backup is JSON, without a warning (`abs_orm_app.W003`).",
    check=check,
)
