"""The live page at an address of your choice below an admin site.

    path("admin/pool/", include("abs_orm_app.integrations.page")),  # before the admin's own line
    path("admin/", admin.site.urls),

The default site needs no such line: it has the page in its index. See `docs/monitoring.md`.
"""

from django.urls import path

from abs_orm_app.integrations.admin_page.views import guide_page, page

app_name = "abs_orm_app"
urlpatterns = [
    path("", page, name="page"),
    path("guide/<slug:topic>/", guide_page, name="guide"),
]
