"""A task of Django, for steady-queue; not in `tasks`, which others import on Django 5.2, too."""

from __future__ import annotations

from django.contrib.auth.models import Group
from django.tasks import task


@task()
def make(number: int) -> None:
    """Make a group."""
    Group.objects.create(name=str(number))
