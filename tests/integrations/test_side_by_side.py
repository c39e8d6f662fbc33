"""A new project with README's settings, django-prometheus and django-health-check."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.processes import Web, web_server
from tests.support.readme import embed, run
from tests.support.servers import Server, wait_until

SETTINGS = """
INSTALLED_APPS += ["django_prometheus", "health_check"]
MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    *MIDDLEWARE,
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]
"""
# django-prometheus counts queries in an engine of its own; this one is both.
ENGINE = """
from abs_orm_app.backends.postgresql.base import DatabaseWrapper as Pooled
from django_prometheus.db.backends.postgresql.base import DatabaseWrapper as Counting


class DatabaseWrapper(Counting, Pooled):
    pass
"""
URLS = """
from django.urls import include
from health_check.views import HealthCheckView

CHECKS = ["health_check.Database", "abs_orm_app.integrations.health_check.Pool"]
urlpatterns += [
    path("", include("django_prometheus.urls")),
    path("health/", HealthCheckView.as_view(checks=CHECKS)),
]
"""
GUNICORN = ("gunicorn", "--bind=unix:{socket}", "shop.wsgi")


@pytest.fixture(params=["our engine", "both engines"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    run(sys.executable, "-m", "django", "startproject", "shop", tmp_path, cwd=tmp_path)
    settings = tmp_path / "shop" / "settings.py"
    embed(settings)
    with settings.open("a") as file:
        file.write(SETTINGS)
        if request.param == "both engines":
            (tmp_path / "shop" / "engine").mkdir()
            (tmp_path / "shop" / "engine" / "base.py").write_text(ENGINE)
            file.write('DATABASES["default"]["ENGINE"] = "shop.engine"\n')
    with (tmp_path / "shop" / "urls.py").open("a") as file:
        file.write(URLS)
    return tmp_path


def is_healthy(web: Web) -> bool:
    """Ask again until it is: while another request waits, the check warns."""
    return web.get(["/health/"])[0].startswith("HTTP/1.1 200")


def body(web: Web, path: str) -> str:
    (answer,) = web.get([path])
    status, _, text = answer.partition("\n")
    assert status.startswith("HTTP/1.1 200"), answer
    return text


def test_django_prometheus_and_health_check_work_before_and_after_a_restart(
    request: pytest.FixtureRequest, project: Path, server: Server
) -> None:
    environ = {"DATABASE_URL": server.url, "DB_POOL_SIZE": "3", "DB_MAX_OVERFLOW": "2"}
    assert "no issues" in run(sys.executable, "manage.py", "check", cwd=project, **environ)
    run(sys.executable, "manage.py", "migrate", cwd=project, **environ)
    options = (f"--chdir={project}", "--worker-class=gthread", "--threads=8", "--log-level=warning")
    environ |= {"DJANGO_SETTINGS_MODULE": "shop.settings"}
    with web_server(GUNICORN, server, *options, **environ) as web:
        for _ in range(2):
            wait_until(lambda: is_healthy(web), "the checks to pass")
            metrics = body(web, "/metrics")
            assert 'django_db_pool_limit{alias="default"} 5.0' in metrics
            assert "django_http_requests_total_by_method_total" in metrics
            counted = 'django_db_execute_total{alias="default",vendor="postgresql"}' in metrics
            assert counted == ("both engines" in request.node.name)
            wait_until(lambda: server.sessions() <= 5, "no more sessions than the limit")
            server.restart()
