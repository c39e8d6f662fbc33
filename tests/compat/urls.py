"""One view with one query."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth.models import Group
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, URLResolver, include, path


def index(_request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"<html><body>{Group.objects.count()} groups</body></html>")


urlpatterns: list[URLPattern | URLResolver] = [path("", index)]
if "debug_toolbar" in settings.INSTALLED_APPS:
    urlpatterns += [path("__debug__/", include("debug_toolbar.urls"))]
