"""URLs of the sample project."""

from django.contrib import admin
from django.urls import path

from abs_orm_app.integrations import health
from abs_project import events, views

urlpatterns = [
    path("", views.index),
    path("slow/", views.slow),
    path("async/", views.slow_async),
    path("events/", events.events),
    path("healthz/", health.view),
    path("admin/", admin.site.urls),
]
