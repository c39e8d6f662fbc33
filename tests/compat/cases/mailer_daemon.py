"""django-mailer's runmailer is a command that never ends: a daemon that somebody else wrote."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psycopg
from django.db import connection

from tests.compat.case import Case

KILL = """
SELECT count(pg_terminate_backend(pid, 20000)) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def check() -> None:
    from django.core.mail import send_mail
    from mailer.models import Message

    command = [sys.executable, "-m", "django", "runmailer"]
    daemon = subprocess.Popen(command, env={**os.environ, "COMPAT_CASE": "mailer_daemon"})
    try:
        for subject in ("before", "after the restart"):
            send_mail(subject, "", "a@example.com", ["b@example.com"])
            deadline = time.monotonic() + 20
            while Message.objects.exists():
                assert daemon.poll() is None, f"it ended {subject}"
                assert time.monotonic() < deadline, f"it sends nothing {subject}"
                time.sleep(0.1)
            connection.close()
            with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as admin:
                admin.execute(KILL)
    finally:
        daemon.kill()
        daemon.wait(30)


CASE = Case(
    packages=["django-mailer"],
    apps=["mailer"],
    settings={
        "EMAIL_BACKEND": "mailer.backend.DbBackend",
        "MAILER_EMAIL_BACKEND": "django.core.mail.backends.dummy.EmailBackend",
        "MAILER_EMPTY_QUEUE_SLEEP": 1,
    },
    tried="`runmailer` goes on after the server has ended its session",
    check=check,
)
