"""A model without a table, which gives the page its permission and its entry in the admin.

`migrate` creates the permission `abs_orm_app.view_pools`; there is no migration and no table.
"""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class NoRows(models.Manager["Pools"]):
    """Never queries, so that commands such as `dumpdata` can iterate over all models."""

    def get_queryset(self) -> models.QuerySet[Pools]:
        return super().get_queryset().none()


class Pools(models.Model):
    """The connection pools of this project."""

    alias = models.TextField(primary_key=True)

    objects: ClassVar[NoRows] = NoRows()

    class Meta:
        app_label = "abs_orm_app"
        managed = False
        default_permissions = ("view",)
        base_manager_name = "objects"
        verbose_name = verbose_name_plural = "connection pools"

    def __str__(self) -> str:
        return self.alias
