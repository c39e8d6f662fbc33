"""The settings of healthchecks, which are not ours, with another DATABASES."""

from __future__ import annotations

from hc.settings import *  # noqa: F403
from hc.settings import INSTALLED_APPS

from tests.projects.inside import entry

INSTALLED_APPS = [*INSTALLED_APPS, "abs_orm_app"]
DATABASES = {"default": entry()}
ALLOWED_HOSTS = ["*"]
DEBUG = False
COMPRESS_ENABLED = False
