"""The views of the live page and its guide, in the Django admin.

They use no connection of the pools and always answer in time, so that the page works when the
pools are in trouble. See `docs/monitoring.md`. The views import their dependencies late, because
every `manage.py` command that reads the URLconf imports this module.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.core.signals import request_started
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_safe

from abs_orm_app.integrations.views import outside_transactions

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite

    from abs_orm_app.integrations.admin_page.access import Access
    from abs_orm_app.integrations.admin_page.overview import Pinned

REFRESH = 5  # seconds
TITLE = "Connection pools"


@never_cache
@require_safe
@csrf_protect
@login_not_required  # the view checks this itself
@outside_transactions
def page(request: HttpRequest, site: AdminSite | None = None) -> HttpResponse:
    """Show the page. 503 while the database cannot be queried for the visitor."""
    from abs_orm_app.integrations.admin_page import cards
    from abs_orm_app.integrations.admin_page.access import give_pass
    from abs_orm_app.integrations.admin_page.overview import overview

    site, asked, refusal = _admit(request, site)
    if refusal:
        return refusal
    pinned, problem = _pinned(request.GET.get("process"))
    seen, host = overview(pinned), socket.gethostname()
    context = {
        "title": TITLE,
        "page": cards.page(seen, asked.failure),
        "page_url": request.path,
        "guide": f"{request.path}guide/",
        "process": f"{host}:{seen.pid}",
        "answered_by": f"{host}:{os.getpid()}",
        "pinned": pinned is not None,
        "problem": problem,
        "now": datetime.now(timezone.get_current_timezone()),
        "refresh": REFRESH,
    }
    response = _answer(request, site, asked, "page", context)
    if asked.failure is None:
        give_pass(request, response)
    return response


@never_cache
@require_safe
@csrf_protect
@login_not_required
@outside_transactions
def guide_page(request: HttpRequest, topic: str, site: AdminSite | None = None) -> HttpResponse:
    """Show the app's documentation on a topic, such as a finding."""
    from abs_orm_app.checks.guide import find_entry

    site, asked, refusal = _admit(request, site)
    if refusal:
        return refusal
    try:
        entry = find_entry(topic)
    except LookupError:
        raise Http404 from None
    page_url = request.path.removesuffix(f"guide/{topic}/")
    context = {"title": entry.title, "text": entry.text, "page_url": page_url}
    return _answer(request, site, asked, "guide", context)


def _pinned(process: str | None) -> tuple[Pinned | None, str]:
    """Return the process that the visitor has pinned; or None, and why it cannot be shown."""
    from abs_orm_app.integrations.admin_page import neighbours

    if process is None:
        return None, ""
    if not re.fullmatch("[0-9]{1,9}", process):
        return None, "?process= takes the number of a process."
    pid = int(process)
    if pid == os.getpid():
        return (pid, None), ""
    if pools := neighbours.pinned(pid):
        return (pid, pools), ""
    said = "does not report its pools" if neighbours.lives(pid) else "is gone"
    return None, f"Process {pid} {said}."


def _admit(
    request: HttpRequest, site: AdminSite | None
) -> tuple[AdminSite, Access, HttpResponse | None]:
    """Return the site, its access decision, and the response to a visitor who is not admitted.

    Raises PermissionDenied for staff without the permission.
    """
    from abs_orm_app.integrations.admin_page.access import access, site_in_charge

    site = site or site_in_charge(request)
    asked = access(request, site)
    refusal = None
    if asked.admission == "forbidden":
        raise PermissionDenied
    if asked.admission == "unknown":
        refusal = _answer(request, site, asked, "unavailable", {"title": TITLE})
        refusal.headers["Retry-After"] = str(REFRESH)
    elif asked.admission == "login":
        login = reverse("admin:login", current_app=site.name)
        refusal = redirect_to_login(request.get_full_path(), login)
    return site, asked, refusal


def _answer(
    request: HttpRequest, site: AdminSite, asked: Access, template: str, context: dict[str, Any]
) -> HttpResponse:
    request.current_app = site.name
    # With 503, SessionMiddleware does not save the session, which may be in the database.
    return render(
        request,
        f"abs_orm_app/{template}.html",
        {**asked.context, **context, "failure": asked.failure},
        status=503 if asked.failure else 200,
    )


def _begin_history(**_: Any) -> None:
    """Make each process that serves requests record its pools' history, from its first request."""
    request_started.disconnect(_begin_history)
    with suppress(ImportError):  # without psycopg_pool, there is no pool to observe
        from abs_orm_app.integrations.admin_page import history, neighbours

        history.keep()
        neighbours.keep()


request_started.connect(_begin_history)
