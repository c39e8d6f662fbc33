"""How processes name themselves in pg_stat_activity: PROJECT@HOST:PID as application_name."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass

LONGEST = 63  # bytes; PostgreSQL cuts off the rest
OF_PROCESS = "@[^@]*:[0-9]+$"  # what this process adds, in the words of Python and of PostgreSQL


@dataclass(frozen=True, kw_only=True)
class Name:
    """What an application_name tells."""

    application: str
    host: str | None  # None: it names no process
    pid: int | None


def process_name(project: str) -> str:
    """Name this process of a project. Too long names lose the begin of the host's, then of theirs.

    The end is what differs from host to host where an orchestrator names them.
    """
    project = _ascii(project)
    pid = f":{os.getpid()}"
    host = _ascii(socket.gethostname()).replace("@", "?")
    room = LONGEST - len(pid) - len("@")
    host = host[-max(room - len(project), room // 2) :]
    return f"{project[-(room - len(host)) :]}@{host}{pid}"


def parse_name(application_name: str) -> Name:
    """Take an application_name apart, of whichever application."""
    if not re.search(OF_PROCESS, application_name):
        return Name(application=application_name, host=None, pid=None)
    application, _, process = application_name.rpartition("@")
    host, _, pid = process.rpartition(":")
    return Name(application=application, host=host, pid=int(pid))


def _ascii(text: str) -> str:
    """As PostgreSQL would show it: nothing but printable ASCII."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)
