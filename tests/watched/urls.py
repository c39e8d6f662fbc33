"""The sample project's URLs, and what else watches."""

from django.contrib.staticfiles.urls import staticfiles_urlpatterns
from django.urls import include, path

from abs_orm_app.integrations import page

page.REFRESH = 1  # second, so that tests need not wait for long

urlpatterns = [
    path("", include("django_prometheus.urls")),
    path("", include("abs_project.urls")),
    *staticfiles_urlpatterns(),  # a WSGI server serves no static files by itself
]
