"""The sample project's settings, and what else watches."""

import abs_project.settings as sample
from abs_project.settings import *  # noqa: F403

DATABASES = {"default": {**sample.DATABASES["default"], "ATOMIC_REQUESTS": True}}
ROOT_URLCONF = "tests.watched.urls"
INSTALLED_APPS = ["django_prometheus", *sample.INSTALLED_APPS]
MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    *sample.MIDDLEWARE,
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]
