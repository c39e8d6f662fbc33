"""The sample project's URLs, and what else watches."""

import os

from django.contrib.staticfiles.urls import staticfiles_urlpatterns
from django.urls import include, path

from abs_orm_app.integrations.admin_page import views

views.REFRESH = int(os.environ.get("REFRESH", "1"))  # s; so that tests need not wait for long

urlpatterns = [
    path("", include("django_prometheus.urls")),
    path("", include("abs_project.urls")),
    *staticfiles_urlpatterns(),  # a WSGI server serves no static files by itself
]
