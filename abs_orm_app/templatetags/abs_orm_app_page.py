"""The filters of the page's templates.

What they do is loaded when the first of them is used: Django imports this module for every
`manage.py check`, and that would more than double what the app adds to it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from django import template

register = template.Library()


def _filter(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(
        import_module("abs_orm_app.integrations.admin_page.filters"), name
    )
    return function


def _of_one(name: str) -> Callable[[Any], Any]:
    return lambda value: _filter(name)(value)


def _of_two(name: str) -> Callable[[Any, Any], Any]:
    return lambda value, argument: _filter(name)(value, argument)


for _name in (
    "amount", "duration", "filled", "gauge", "guide_url", "level", "place", "sparks", "times",
    "value", "without_pool",
):  # fmt: skip
    register.filter(_name, _of_one(_name))
for _name in ("became", "in_effect"):
    register.filter(_name, _of_two(_name))
