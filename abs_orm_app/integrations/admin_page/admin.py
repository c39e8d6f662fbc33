"""Adds the page to an admin site: to its index and its sidebar, with its own permission.

The app registers it with the project's default site. For a site of your own:

    site.register(Pools, PoolsAdmin)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.urls import URLPattern, path

from abs_orm_app.integrations.admin_page.models import Pools

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Pools]
else:
    Base = admin.ModelAdmin


class PoolsAdmin(Base):
    """Shows the page where other models have their change list."""

    def get_urls(self) -> list[URLPattern]:
        # Imported here: when the app registers this class, DATABASES is not read yet.
        from abs_orm_app.integrations.admin_page import views

        site = {"site": self.admin_site}
        return [
            path("", views.page, site, name="abs_orm_app_pools_changelist"),
            path("guide/<slug:topic>/", views.guide_page, site, name="abs_orm_app_pools_guide"),
        ]

    def has_add_permission(self, *_: Any) -> bool:
        return False

    def has_change_permission(self, *_: Any) -> bool:
        return False

    def has_delete_permission(self, *_: Any) -> bool:
        return False
