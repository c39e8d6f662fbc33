"""Decides who may see the page: staff with its permission, even while the database is down."""

from dataclasses import dataclass
from typing import Any, Literal

from django.conf import settings
from django.contrib.admin import AdminSite
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.urls import Resolver404, resolve
from django.utils.crypto import constant_time_compare, salted_hmac

from abs_orm_app.facts.connecting import ERRORS
from abs_orm_app.facts.failure import Failure
from abs_orm_app.integrations.unpooled import (
    BusyError,
    Rate,
    failure_outside_pool,
    run_unpooled,
)

PERMISSION = "abs_orm_app.view_pools"
COOKIE = "abs_orm_app_staff"
GOOD_FOR = 300  # seconds

# Shown to unknown visitors: the real cause contains addresses and roles.
NO_ANSWER = Failure(cause="The database cannot be asked.", hint="")

# Visitors without a pass may have invented their session: each costs a connection and a query.
STRANGERS = Rate(5)


# "login": the visitor must log in first; "unknown": the database cannot be queried.
Admission = Literal["yes", "login", "forbidden", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Access:
    """Whether a request may see the page, and the context for the admin's templates."""

    admission: Admission
    context: dict[str, Any]
    failure: Failure | None = None  # why the database could not be queried


def access(request: HttpRequest, site: AdminSite) -> Access:
    """Look up session, user and permissions, without using a connection of the pools.

    If the database does not answer, a browser that was admitted a few minutes ago with the same
    session is still admitted: that is when the page is needed most.
    """
    known = _has_pass(request)
    try:
        return run_unpooled(lambda: _ask(request, site), rate=None if known else STRANGERS)
    except ERRORS as error:
        request.user = AnonymousUser()  # else templates and middleware would query it again
        told = known or isinstance(error, BusyError)
        return Access(
            admission="yes" if known else "unknown",
            context=_context_without_user(site),
            failure=failure_outside_pool(error) if told else NO_ANSWER,
        )


def site_in_charge(request: HttpRequest) -> AdminSite:
    """Return the admin site at the nearest URL above. Raises ImproperlyConfigured without one."""
    urlconf = getattr(request, "urlconf", None)
    parts = request.path_info.rstrip("/").split("/")
    for end in range(len(parts) - 1, 0, -1):
        try:
            view = resolve("/".join(parts[:end]) + "/", urlconf).func
        except Resolver404:
            continue
        site = getattr(view, "admin_site", None)  # AdminSite.get_urls sets it on each view
        if isinstance(site, AdminSite):
            return site
    raise ImproperlyConfigured(
        f"{request.path_info} is below no admin site, so nothing says who may see the connection "
        'pools: put the page below one, as in path("admin/pool/", include('
        '"abs_orm_app.integrations.page")).'
    )


def _ask(request: HttpRequest, site: AdminSite) -> Access:
    if not site.has_permission(request):
        return Access(admission="login", context={})
    if not request.user.has_perm(PERMISSION):
        return Access(admission="forbidden", context={})
    return Access(admission="yes", context=site.each_context(request))


def _context_without_user(site: AdminSite) -> dict[str, Any]:
    """Return the part of the admin's context that needs no user."""
    return {
        "site_title": site.site_title,
        "site_header": site.site_header,
        "has_permission": False,
        "is_nav_sidebar_enabled": False,
        "messages": (),  # messages may be stored in the session
    }


def give_pass(request: HttpRequest, response: HttpResponse) -> None:
    """Let the browser return for a while, even if the database cannot be queried."""
    if settings.SESSION_COOKIE_NAME not in request.COOKIES:
        return  # there is no session to bind the pass to
    response.set_signed_cookie(
        COOKIE,
        _of_session(request),
        salt=COOKIE,
        max_age=GOOD_FOR,
        path=request.path,
        secure=request.is_secure() or settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Strict",
    )


def _has_pass(request: HttpRequest) -> bool:
    given = request.get_signed_cookie(COOKIE, "", salt=COOKIE, max_age=GOOD_FOR)
    return constant_time_compare(given or "", _of_session(request))


def _of_session(request: HttpRequest) -> str:
    """Return what a pass is valid for: the session, so that it is worthless after a logout."""
    session = request.COOKIES.get(settings.SESSION_COOKIE_NAME, "")
    return salted_hmac(COOKIE, session, algorithm="sha256").hexdigest()
