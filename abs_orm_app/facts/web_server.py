"""What can be known of the project's web server: from the environment and the command line."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

GUNICORN = "GUNICORN_CMD_ARGS"
GUNICORN_TIMEOUT = 30.0  # seconds; its default
ASGI_SERVERS = ("daphne", "granian", "hypercorn", "uvicorn")


@dataclass(frozen=True, kw_only=True)
class WebServer:
    """The known facts; None or "" if unknown."""

    # Seconds after which gunicorn kills a worker that handles one request.
    worker_timeout: float | None = None
    asgi: str = ""  # the sign that requests come by ASGI, such as "uvicorn"


def web_server(
    environ: Mapping[str, str] | None = None, argv: Sequence[str] | None = None
) -> WebServer:
    """Read the environment, the command line of this process, and the settings."""
    environ = os.environ if environ is None else environ
    program, *arguments = sys.argv if argv is None else argv
    name = Path(program).parent.name if Path(program).name == "__main__.py" else Path(program).name
    words = arguments if name == "gunicorn" else []
    try:
        words = [*shlex.split(environ.get(GUNICORN, "")), *words]
    except ValueError:  # an unclosed quote, with which gunicorn does not start
        words = []
    worker_class, timeout = _gunicorn(words) if words or name == "gunicorn" else ("", None)
    return WebServer(worker_timeout=timeout, asgi=_asgi(name, worker_class))


def _gunicorn(words: Sequence[str]) -> tuple[str, float | None]:
    """Return the class of the workers, and their timeout if it limits a request.

    Only a sync worker handles its request in the thread that reports to gunicorn. A configuration
    file may set anything, so with one, nothing is known.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config")
    parser.add_argument("-k", "--worker-class", default="sync")
    parser.add_argument("-t", "--timeout", type=float, default=GUNICORN_TIMEOUT)
    parser.add_argument("--threads", type=int, default=1)
    try:
        given, _ = parser.parse_known_args(list(words))
    except ArgumentError:
        return "", None
    in_file = given.config or Path("gunicorn.conf.py").exists()
    known = given.worker_class == "sync" and given.threads == 1 and not in_file
    return given.worker_class, given.timeout if known and given.timeout > 0 else None


def _asgi(program: str, worker_class: str) -> str:
    if program in ASGI_SERVERS:
        return program
    if "uvicorn" in worker_class.lower() or "asgi" in worker_class.lower():
        return f"gunicorn's {worker_class}"
    return "ASGI_APPLICATION" if getattr(settings, "ASGI_APPLICATION", None) else ""
