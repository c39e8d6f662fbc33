"""The sample project's settings, and what else watches."""

import os

import abs_project.settings as sample
from abs_project.settings import *  # noqa: F403

ATOMIC = os.environ.get("ATOMIC") == "true"
DATABASES = {"default": {**sample.DATABASES["default"], "ATOMIC_REQUESTS": ATOMIC}}
ROOT_URLCONF = "tests.support.watched.urls"
INSTALLED_APPS = ["django_prometheus", *sample.INSTALLED_APPS]
MIDDLEWARE = [
    "tests.support.watched.middleware.content_security_policy",
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    *sample.MIDDLEWARE,
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]
