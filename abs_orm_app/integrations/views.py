"""What the views have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from django.db import connections, transaction
from django.http.response import HttpResponseBase

View = TypeVar("View", bound=Callable[..., HttpResponseBase])


def outside_transactions(view: View) -> View:
    """With ATOMIC_REQUESTS, Django would wait for a connection of each alias before the view."""
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view
