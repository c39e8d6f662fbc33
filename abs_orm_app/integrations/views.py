"""The decorator that the app's views share."""

from collections.abc import Callable
from typing import TypeVar

from django.db import connections, transaction
from django.http.response import HttpResponseBase

View = TypeVar("View", bound=Callable[..., HttpResponseBase])


def outside_transactions(view: View) -> View:
    """Exempt a view from ATOMIC_REQUESTS, for which Django waits for connections."""
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view
