"""Who may see the pool's pages: the admin's staff, also while the database is away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare, salted_hmac

from abs_orm_app.facts.failure import Failure, explain
from abs_orm_app.integrations.admin_page.side_connections import TROUBLE, beside_the_pools

COOKIE = "abs_orm_app_staff"
GOOD_FOR = 300  # seconds


@dataclass(frozen=True, kw_only=True)
class Access:
    """The answer to: may this request see the page?"""

    granted: bool
    context: dict[str, Any]  # for the admin's templates
    failure: Failure | None = None  # why the database could not be asked


def access(request: HttpRequest) -> Access:
    """Ask for session, user and permissions, without a connection of the pools.

    If the database does not answer, who was let in a few minutes ago with the same session still
    is: that is when the page is needed most.
    """
    try:
        return beside_the_pools(lambda: _ask(request))
    except TROUBLE as error:
        _stop_asking(request)
        return Access(granted=_has_pass(request), context=_context(), failure=explain(error))


def _ask(request: HttpRequest) -> Access:
    granted = admin.site.has_permission(request)
    return Access(granted=granted, context=admin.site.each_context(request) if granted else {})


def _stop_asking(request: HttpRequest) -> None:
    """What templates and middleware look at must not ask the database again."""
    request.user = AnonymousUser()


def _context() -> dict[str, Any]:
    """As much of the admin's context as there is without a user."""
    return {
        "site_title": admin.site.site_title,
        "site_header": admin.site.site_header,
        "has_permission": False,
        "is_nav_sidebar_enabled": False,
        "messages": (),  # they may be in the session
    }


def give_pass(request: HttpRequest, response: HttpResponse) -> None:
    """Let the browser come back for a while if the database cannot be asked."""
    response.set_signed_cookie(
        COOKIE,
        _of_session(request),
        salt=COOKIE,
        max_age=GOOD_FOR,
        path=request.path,
        secure=request.is_secure(),
        httponly=True,
        samesite="Strict",
    )


def _has_pass(request: HttpRequest) -> bool:
    given = request.get_signed_cookie(COOKIE, "", salt=COOKIE, max_age=GOOD_FOR)
    return constant_time_compare(given or "", _of_session(request))


def _of_session(request: HttpRequest) -> str:
    """What a pass is good with: after a logout it is with none."""
    session = request.COOKIES.get(settings.SESSION_COOKIE_NAME, "")
    return salted_hmac(COOKIE, session, algorithm="sha256").hexdigest()
