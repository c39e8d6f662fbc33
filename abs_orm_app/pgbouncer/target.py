"""What a PgBouncer in front of the databases of a project has to know of them, as facts."""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from abs_orm_app.config.address import libpq_parameters, session_options
from abs_orm_app.config.entry import app_options
from abs_orm_app.environment import PoolSettings
from abs_orm_app.facts.databases import Configured, pool_settings

POOL_MODES = ("transaction", "session")  # statement pooling forbids the transactions of Django
LISTEN_PORT = 6432

# libpq's parameters that PgBouncer has as well, under other names, once for all its databases.
PARAMETERS = {
    "connect_timeout": "server_connect_timeout",
    "keepalives": "tcp_keepalive",
    "keepalives_idle": "tcp_keepidle",
    "keepalives_interval": "tcp_keepintvl",
    "keepalives_count": "tcp_keepcnt",
    "tcp_user_timeout": "tcp_user_timeout",
    "sslmode": "server_tls_sslmode",
    "sslrootcert": "server_tls_ca_file",
    "sslcert": "server_tls_cert_file",
    "sslkey": "server_tls_key_file",
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """An alias as PgBouncer needs to know it."""

    alias: str
    prefix: str | None  # of its variables; None: its entry is written by hand
    scheme: str  # of its URL
    host: str  # or the directory of a Unix socket
    port: int
    name: str
    user: str
    password: str = field(repr=False)
    parameters: Mapping[str, str]  # PgBouncer's names, as in PARAMETERS
    options: Mapping[str, str]  # what libpq's `options` set in each session
    role: str  # Django's assume_role, or ""
    prepares: bool  # psycopg prepares statements
    settings: PoolSettings

    @property
    def is_private(self) -> bool:
        """True if nothing but the permissions of a Unix socket keeps strangers out."""
        return self.host.startswith("/") and not self.password


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What PgBouncer is to be, beyond what the settings say."""

    pool_mode: str = POOL_MODES[0]
    # As PgBouncer takes it, so with commas between several. None: this machine, or a Unix socket
    # alone where that will do.
    listen_addr: str | None = None
    listen_port: int = LISTEN_PORT
    processes: int = 1  # of clients
    account: str | None = None  # of the operating system, which it becomes if started as root
    with_password: bool = False

    @property
    def addresses(self) -> list[str]:
        """Those of `listen_addr`."""
        return [address.strip() for address in (self.listen_addr or "").split(",")]


def is_private(targets: Sequence[Target], plan: Plan) -> bool:
    """True if only the permissions of a Unix socket keep strangers out of PgBouncer."""
    return plan.listen_addr is None and all(each.is_private for each in targets)


def target(database: Configured, entry: Mapping[str, Any], environ: Mapping[str, str]) -> Target:
    """Read one entry of DATABASES, as Django completes it; what it leaves out, as libpq does.

    Raises ValueError, one sentence, for what PgBouncer cannot do.
    """
    where = f"DATABASES[{database.alias!r}]"
    if database.vendor != "postgresql":
        what = database.vendor or database.engine
        raise ValueError(f"{where} is {what}: PgBouncer is for PostgreSQL alone.")
    if app_options(entry).get("password_provider"):
        raise ValueError(
            f"{where} has its password from a function, which PgBouncer cannot call:"
            " give PgBouncer a role of its own, with a password that lasts."
        )
    given = entry["OPTIONS"] or {}
    known = {name: environ[env] for name, env in libpq_parameters().items() if env in environ}
    known |= {name: str(given[name]) for name in libpq_parameters() if given.get(name) is not None}
    _check_parameters(where, {**given, **known, **entry})
    user = str(entry["USER"] or known.get("user") or _own_name(where))
    return Target(
        alias=database.alias,
        prefix=database.prefix if "sources" in app_options(entry) else None,
        scheme="postgis" if entry["ENGINE"].endswith("postgis") else "postgresql",
        host=_host(where, str(entry["HOST"] or ""), known),
        port=_port(where, str(entry["PORT"] or known.get("port", 5432))),
        name=str(entry["NAME"] or known.get("dbname") or user),
        user=user,
        password=str(entry["PASSWORD"] or known.get("password", "")),
        parameters={
            "server_tls_sslmode": "prefer",  # libpq's default; PgBouncer's own is "disable"
            **{name: _number(known[ours]) for ours, name in PARAMETERS.items() if ours in known},
        },
        options=_options(where, known.get("options", "")),
        role=str(given.get("assume_role") or ""),
        prepares=database.prepares,
        settings=pool_settings(database),
    )


def _own_name(where: str) -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the latter since Python 3.13
        raise ValueError(
            f"{where} names no USER, and this account of the operating system has no name, which"
            " would stand for it, as in a container: name one."
        ) from None


def _check_parameters(where: str, known: Mapping[str, Any]) -> None:
    for name, value in known.items():
        if isinstance(value, str) and re.search(r"[\r\n\0]", value):
            raise ValueError(f"{where} has a {name} with a line break, which no file can hold.")
    if "service" in known:
        raise ValueError(f"{where} names a service, which only libpq reads: give host and port.")
    certificate = known.get("sslrootcert", "")
    if certificate == "system" or (known.get("sslmode", "")[:7] == "verify-" and not certificate):
        raise ValueError(
            f"{where} has the server's certificate verified with certificates that only libpq"
            " finds: name their file in sslrootcert"
            " (the system's are in /etc/ssl/certs/ca-certificates.crt on Debian)."
        )


def _host(where: str, host: str, known: Mapping[str, str]) -> str:
    host = known.get("hostaddr") or host or known.get("host", "")
    if not host:
        raise ValueError(f"{where} names no host: name one, or the directory of the Unix socket.")
    if not host.startswith(("/", "@")) and re.search("[@/]", host):
        raise ValueError(f"{where} has more than a host as its HOST: give the host alone.")
    if "," in host:
        raise ValueError(
            f"{where} names several hosts: libpq takes the first that answers, PgBouncer would use"
            " them all in turn. Name one, or an address that moves with the primary."
        )
    return host


def _port(where: str, port: str) -> int:
    if not port.isdecimal():
        raise ValueError(f"{where} has the port {port!r}: give one whole number.")
    return int(port)


def _number(text: str) -> str:
    """PgBouncer takes 010 for 8, and does not know libpq's "negative is 0"."""
    return str(max(0, int(text))) if re.fullmatch("-?[0-9]+", text) else text


def _options(where: str, text: str) -> dict[str, str]:
    try:
        return session_options(text)
    except ValueError as error:
        raise ValueError(f"{where} has options that are {error}.") from None
