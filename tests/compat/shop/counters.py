"""A model of django-postgres-extra."""

from __future__ import annotations

from django.db import models
from psqlextra.models import PostgresModel


class Counter(PostgresModel):
    """A count by name."""

    name = models.CharField(max_length=9, unique=True)
    count = models.IntegerField()

    class Meta:
        app_label = "shop"
