"""Reads what PgBouncer must know about an alias of DATABASES."""

import getpass
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from abs_orm_app.config.address import libpq_parameters, session_options
from abs_orm_app.config.entry import app_options
from abs_orm_app.environment import PoolSettings
from abs_orm_app.facts.databases import Configured, pool_settings

POOL_MODES = ("transaction", "session")  # statement pooling forbids transactions
LISTEN_PORT = 6432

# PgBouncer's names for libpq's parameters; it has one value for all databases.
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

# Parameters of libpq that PgBouncer has no setting for, and the values that need none.
UNKEPT = {
    "load_balance_hosts": ("disable",),
    "channel_binding": ("prefer", "disable"),
    "require_auth": (),
    "sslcrl": (),
    "sslcrldir": (),
    "sslnegotiation": ("postgres",),
    "gssencmode": ("prefer", "disable"),
    "requirepeer": (),
}


@dataclass(frozen=True, kw_only=True)
class Target:
    alias: str
    prefix: str | None  # of its variables; None: the entry is handwritten
    scheme: str  # of its URL
    host: str  # or the directory of a Unix socket
    port: int
    name: str
    user: str
    password: str = field(repr=False)
    parameters: Mapping[str, str]  # PgBouncer's names, as in PARAMETERS
    options: Mapping[str, str]  # the settings in libpq's `options`
    role: str  # Django's assume_role, or ""
    prepares: bool  # psycopg prepares statements
    settings: PoolSettings
    unkept: Sequence[str] = ()  # what PgBouncer cannot do, one sentence each


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The PgBouncer to configure, according to the command line."""

    pool_mode: str = POOL_MODES[0]
    # In PgBouncer's syntax, separated by commas. None: this machine, or only a Unix socket if there
    # is no password.
    listen_addr: str | None = None
    listen_port: int = LISTEN_PORT
    processes: int = 1  # of clients
    account: str | None = None  # that PgBouncer changes to if root starts it
    with_password: bool = False

    @property
    def addresses(self) -> list[str]:
        return [address.strip() for address in (self.listen_addr or "").split(",")]


def is_private(targets: Sequence[Target], plan: Plan) -> bool:
    """Return True if only the permissions of a Unix socket protect PgBouncer."""
    return plan.listen_addr is None and all(
        each.host.startswith("/") and not each.password for each in targets
    )


def target(database: Configured, entry: Mapping[str, Any], environ: Mapping[str, str]) -> Target:
    """Read one entry of DATABASES, with Django's defaults, then libpq's variables.

    Raises ValueError, with one sentence, for anything that PgBouncer does not support.
    """
    where = f"DATABASES[{database.alias!r}]"
    if database.vendor != "postgresql":
        what = database.vendor or database.engine
        raise ValueError(f"{where} is {what}: PgBouncer supports PostgreSQL only.")
    if app_options(entry).get("password_provider"):
        raise ValueError(
            f"{where} has its password from a function, which PgBouncer cannot call:"
            " give PgBouncer its own role, with a password that does not change."
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
            "server_tls_sslmode": "prefer",  # libpq's default; PgBouncer's is "disable"
            **{name: _number(known[ours]) for ours, name in PARAMETERS.items() if ours in known},
        },
        options=_options(where, known.get("options", "")),
        role=str(given.get("assume_role") or ""),
        prepares=database.prepares,
        settings=pool_settings(database),
        unkept=list(_unkept(where, known)),
    )


def _own_name(where: str) -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        raise ValueError(
            f"{where} has no USER, and this account of the operating system has no name to use"
            " instead, as in a container: set USER."
        ) from None


def _check_parameters(where: str, known: Mapping[str, Any]) -> None:
    for name, value in known.items():
        if isinstance(value, str) and re.search(r"[\r\n\0]", value):
            raise ValueError(f"{where} has a line break in {name}, which the file cannot hold.")
    if "service" in known:
        raise ValueError(f"{where} uses a service, which only libpq reads: set host and port.")
    certificate = known.get("sslrootcert", "")
    if certificate == "system" or (known.get("sslmode", "")[:7] == "verify-" and not certificate):
        raise ValueError(
            f"{where} verifies the server's certificate with certificates that only libpq"
            " finds: set their file in sslrootcert"
            " (the system's are in /etc/ssl/certs/ca-certificates.crt on Debian)."
        )


def _unkept(where: str, known: Mapping[str, str]) -> Iterator[str]:
    wanted = known.get("target_session_attrs", "any")
    if wanted != "any":
        yield (
            f"{where} sets target_session_attrs={wanted}, which PgBouncer does not check: it uses"
            " whatever server the host leads to, and keeps such a connection for up to"
            " server_lifetime. Let the host lead only to servers that this alias needs, and run"
            " RECONNECT on PgBouncer's console when it moves."
        )
    for name, defaults in UNKEPT.items():
        if name in known and known[name] not in defaults:
            yield f"{where} sets {name}={known[name]}, which PgBouncer has no setting for."


def _host(where: str, host: str, known: Mapping[str, str]) -> str:
    host = known.get("hostaddr") or host or known.get("host", "")
    if not host:
        raise ValueError(f"{where} has no host: set one, or the directory of the Unix socket.")
    if not host.startswith(("/", "@")) and re.search("[@/]", host):
        raise ValueError(f"{where} has more than a host in HOST: set the host only.")
    if "," in host:
        raise ValueError(
            f"{where} has several hosts: libpq uses the first that answers, PgBouncer would use"
            " all of them in turn. Set one, or an address that moves with the primary."
        )
    return host


def _port(where: str, port: str) -> int:
    if not port.isdecimal():
        raise ValueError(f"{where} has no single port: set one whole number.")
    return int(port)


def _number(text: str) -> str:
    """Normalize a number: libpq reads 010 as 10 and negatives as 0, PgBouncer does not."""
    return str(max(0, int(text))) if re.fullmatch("-?[0-9]+", text) else text


def _options(where: str, text: str) -> dict[str, str]:
    try:
        return session_options(text)
    except ValueError as error:
        raise ValueError(f"{where} has options that are {error}.") from None
