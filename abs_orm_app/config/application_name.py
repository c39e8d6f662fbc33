"""The application_name of a process in pg_stat_activity: PROJECT@HOST:PID."""

import os
import re
import socket
from dataclasses import dataclass

LONGEST = 63  # bytes; PostgreSQL cuts off the rest
OF_PROCESS = "@[^@]*:[0-9]+$"  # matches the part that names the process, in Python and PostgreSQL


@dataclass(frozen=True, kw_only=True)
class Name:
    application: str
    host: str | None  # None: the name does not contain a process
    pid: int | None


def process_name(project: str) -> str:
    """Return the name of this process of a project.

    If it is too long, the starts of host and project are cut off, because the hosts of an
    orchestrator differ at the end.
    """
    project = _ascii(project)
    pid = f":{os.getpid()}"
    host = _ascii(socket.gethostname()).replace("@", "?")
    room = LONGEST - len(pid) - len("@")
    host = host[-max(room - len(project), room // 2) :]
    return f"{project[-(room - len(host)) :]}@{host}{pid}"


def parse_name(application_name: str) -> Name:
    if not re.search(OF_PROCESS, application_name):
        return Name(application=application_name, host=None, pid=None)
    application, _, process = application_name.rpartition("@")
    host, _, pid = process.rpartition(":")
    return Name(application=application, host=host, pid=int(pid))


def _ascii(text: str) -> str:
    """Return the text as PostgreSQL shows it: printable ASCII only."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)
