"""django-pg-zero-downtime-migrations' schema editor on the pooled engine."""

from __future__ import annotations

from abs_orm_app.backends.postgresql.base import DatabaseWrapper as Pooled
from django_zero_downtime_migrations.backends.postgres.schema import DatabaseSchemaEditor


class DatabaseWrapper(Pooled):
    """The pooled engine."""

    SchemaEditorClass = DatabaseSchemaEditor
