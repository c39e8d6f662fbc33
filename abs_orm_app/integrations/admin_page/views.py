"""A live page of the pools in the Django admin, for staff.

    path("admin/pool/", include("abs_orm_app.integrations.page")),  # before the admin's own line
    path("admin/", admin.site.urls),

It takes no connection of the pools and ends in time, so that it is there when they are in trouble.
`docs/page.md` says more.
"""

from __future__ import annotations

import os
import socket
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_safe

from abs_orm_app.integrations.admin_page import guide, history
from abs_orm_app.integrations.admin_page.access import Access, access, give_pass
from abs_orm_app.integrations.admin_page.overview import overview
from abs_orm_app.integrations.views import outside_transactions

REFRESH = 5  # seconds

history.keep()


@never_cache
@require_safe
@csrf_protect
@login_not_required  # it is asked for here
@outside_transactions
def page(request: HttpRequest) -> HttpResponse:
    """The page; the login where nobody is logged in; 503 where the database cannot be asked."""
    asked = access(request)
    if not asked.granted:
        return _refuse(request, asked)
    context = {
        "title": "Connection pools",
        "overview": overview(),
        "process": f"{socket.gethostname()}:{os.getpid()}",
        "now": datetime.now(timezone.get_current_timezone()),
        "refresh": REFRESH,
    }
    response = _answer(request, asked, "page", context)
    if asked.failure is None:
        give_pass(request, response)
    return response


@never_cache
@require_safe
@csrf_protect
@login_not_required
@outside_transactions
def guide_page(request: HttpRequest, name: str) -> HttpResponse:
    """A page of the app's documentation."""
    asked = access(request)
    if not asked.granted:
        return _refuse(request, asked)
    if name not in guide.FILES:
        raise Http404
    markdown = guide.FILES[name].read_text()
    context = {"title": guide.title(markdown), "guide": guide.render(markdown)}
    return _answer(request, asked, "guide", context)


def _refuse(request: HttpRequest, asked: Access) -> HttpResponse:
    if asked.failure:
        return _answer(request, asked, "unavailable", {"title": "Connection pools"})
    login = reverse("admin:login", current_app=admin.site.name)
    return redirect_to_login(request.get_full_path(), login)


def _answer(
    request: HttpRequest, asked: Access, template: str, context: dict[str, Any]
) -> HttpResponse:
    request.current_app = admin.site.name
    # With 503, the session's middleware leaves the session alone, which the database has.
    return render(
        request,
        f"abs_orm_app/{template}.html",
        {**asked.context, **context, "failure": asked.failure},
        status=503 if asked.failure else 200,
    )
