"""Parses DATABASE_URL, or the parts of an address, into libpq's parameters."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from urllib.parse import quote, unquote

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

from abs_orm_app.config.texts import did_you_mean
from abs_orm_app.config.unread import did_you_mean_these
from abs_orm_app.config.variables import Reader, Variable, refuse, whole_number

POSTGRESQL = "abs_orm_app.backends.postgresql"
POSTGIS = "abs_orm_app.backends.postgis"
DRIVERS = ("asyncpg", "psycopg", "psycopg2")  # in URLs of SQLAlchemy

SCHEMES = {
    **dict.fromkeys(("postgres", "postgresql", "pgsql", "psql"), POSTGRESQL),
    **{f"{name}+{driver}": POSTGRESQL for name in ("postgres", "postgresql") for driver in DRIVERS},
    "postgis": POSTGIS,
}
OTHER_SCHEMES = (
    *("mysql", "mysql2", "mysqlgis", "mariadb", "sqlite", "sqlite3", "spatialite", "oracle"),
    *("mssql", "cockroach", "cockroachdb", "redshift", "mongodb", "redis"),
)
# Parameters of asyncpg, SQLAlchemy, Prisma, JDBC and Rails.
FOREIGN_PARAMETERS = (
    *("command_timeout", "statement_cache_size", "prepared_statement_cache_size", "min_size"),
    *("max_size", "pool_size", "max_overflow", "pool_timeout", "pool_recycle", "pool_pre_ping"),
    *("schema", "connection_limit", "pgbouncer", "socket_timeout", "sslaccept", "charset"),
    *("encoding", "pool", "reconnect", "prepared_statements", "conn_max_age", "ssl_require"),
)

URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)"
    r"(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?",
    re.IGNORECASE | re.DOTALL,
)
EXAMPLE = "postgresql://USER:PASSWORD@HOST:PORT/NAME"
ENCODE = "percent-encode : / ? # @ in its user name and password (as %3A %2F %3F %23 %40)"
IN_BRACKETS = "put an IPv6 address into brackets"

TLS_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
DJANGO_OPTIONS = ("assume_role",)  # options of Django's engine that a URL may also set

# A connection attempt ends after 10 s. A server that vanishes is detected within 20 s: by probes
# while we wait for its answer (10 + 3 * 3 s), and by tcp_user_timeout while it has not acknowledged
# what we sent (Linux's default is a quarter of an hour). So after a failover, the old host is known
# to be dead before a pool's timeout of 30 s expires.
DEFAULT_OPTIONS = {
    "connect_timeout": "10",  # seconds
    "keepalives": "1",
    "keepalives_idle": "10",  # seconds
    "keepalives_interval": "3",  # seconds
    "keepalives_count": "3",
    "tcp_user_timeout": "18000",  # milliseconds
}


@dataclass(frozen=True, kw_only=True)
class Address:
    """The address of a database. Commas separate multiple hosts and their ports."""

    engine: str = POSTGRESQL
    name: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    host: str = ""
    port: str = ""
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    embedded: str = ""  # the directory of the embedded server; if set, the rest is empty
    password_provider: str = ""  # dotted path of the function that returns the password


def parse_url(url: str) -> Address:
    """Parse a database URL.

    Raises ValueError: the end of a sentence that starts with "DATABASE_URL". It shows no part of
    the password, even if an unencoded character splits the password.
    """
    url = url.strip()
    if url[:1] in ("'", '"'):
        raise ValueError("begins with a quotation mark: remove it")
    if re.search(r"\s#", url):
        raise ValueError("contains a comment: it needs a line of its own")
    match = URL.fullmatch(url)
    if not match:
        raise ValueError(f"is not a URL like {EXAMPLE}")
    scheme, authority, path, query, fragment = match.groups(default="")
    scheme = scheme.lower()
    if scheme == "embedded":
        return _embedded(authority, path, query + fragment)
    if scheme not in SCHEMES:
        other = scheme in OTHER_SCHEMES
        what = f"{scheme}://" if other else f"an unknown scheme{did_you_mean(scheme, (*SCHEMES,))}"
        raise ValueError(f"begins with {what}; this app supports PostgreSQL only: {EXAMPLE}")
    if fragment or "@" in path + query:
        raise ValueError(f"is ambiguous: {ENCODE}")
    if re.search(r"[;&\s]\w+=", path):  # would be shown as the database name
        raise ValueError("has parameters after its name: put ? before the first, & between them")
    user_info, _, hosts = authority.rpartition("@")
    options = _options(query)
    host, port = _hosts(hosts)
    # Without the hosts: dj-database-url cannot parse several, and lowercases them, even the
    # directory of a Unix socket. Without the query: it parses "007" as 7.
    parsed = dj_database_url.parse(
        f"postgres://{quote(user_info, safe=':%')}@{quote(path, safe='/%')}"
    )
    address = Address(
        engine=SCHEMES[scheme],
        name=_one("dbname", parsed["NAME"], options),
        user=_one("user", parsed["USER"], options),
        password=_one("password", parsed["PASSWORD"], options),
        host=_one("host", host, options),
        port=_one("port", port, options),
        options=options,
    )
    texts = [address.name, address.user, address.password, address.host, *options.values()]
    if any("\0" in text or "\N{REPLACEMENT CHARACTER}" in text for text in texts):
        raise ValueError("holds a percent-encoding that is not UTF-8 text")
    return address


def _embedded(authority: str, path: str, rest: str) -> Address:
    directory = unquote(path[1:])
    if authority or rest or not directory:
        raise ValueError("is not like embedded:///RELATIVE/DIR or embedded:////ABSOLUTE/DIR")
    return Address(embedded=directory)


def _options(query: str) -> dict[str, str]:
    """Return the connection parameters in a query, each known to libpq or to Django.

    A + is a plus, as in libpq, not a space, as in HTML forms.
    """
    if re.search(r";\w+=", query):
        raise ValueError("separates parameters by a semicolon: put & between them")
    pairs = [
        (unquote(name), unquote(value))
        for name, _, value in (part.partition("=") for part in query.split("&") if part)
    ]
    options = dict(pairs)
    if len(options) < len(pairs):
        raise ValueError("gives a parameter twice")
    if empty := [
        f"number {n}{_known(name)}" for n, (name, text) in enumerate(pairs, 1) if not text
    ]:
        raise ValueError(f"gives no value for its parameter {', '.join(empty)}")
    if "currentSchema" in options and "options" in options:
        raise ValueError("gives both currentSchema and options: put search_path into the options")
    accepted = {*libpq_parameters(), *DJANGO_OPTIONS, "ssl", "currentSchema"}
    if unknown := [
        f"number {n}{_known(name)}" for n, (name, _) in enumerate(pairs, 1) if name not in accepted
    ]:
        raise ValueError(
            f"has parameters that libpq does not know: {', '.join(unknown)}. Remove them;"
            " those of asyncpg, SQLAlchemy or another framework have no meaning here"
        )
    dj_database_url.apply_current_schema({"OPTIONS": options})
    _translate_tls(options)
    for name in DEFAULT_OPTIONS.keys() & options.keys():
        if not re.fullmatch(r"-?[0-9]+", options[name]):
            raise ValueError(f"gives {name} a value that is not a whole number")
    if "port" in options:
        try:
            _ports(options["port"])
        except ValueError as error:
            raise ValueError(f"gives port a value that {error}") from None
    return options


def _known(name: str) -> str:
    """Return the name of a known parameter in parentheses, or a suggestion.

    No other name is shown: after an & in a password, the rest of it looks like a parameter.
    """
    ours = (*libpq_parameters(), *DJANGO_OPTIONS)
    known = name in ours or name in FOREIGN_PARAMETERS
    return f" ({name})" if known else did_you_mean(name, ours)


def _translate_tls(options: dict[str, str]) -> None:
    """Convert asyncpg's `ssl` to libpq's `sslmode`; true and false as in JDBC's URLs."""
    if "ssl" in options:
        if "sslmode" in options:
            raise ValueError("gives both ssl and sslmode: keep sslmode")
        ssl = options.pop("ssl")
        options["sslmode"] = {"true": "require", "false": "disable"}.get(ssl.lower(), ssl)
    mode = options.get("sslmode", TLS_MODES[0])
    if mode not in TLS_MODES:
        accepted = ", ".join(TLS_MODES) + did_you_mean(mode, TLS_MODES)
        raise ValueError(f"gives sslmode a value that is not one of {accepted}")


def _hosts(text: str) -> tuple[str, str]:
    """Split `h1:1,[::2]:2,h3` into `h1,::2,h3` and `1,2,5432`."""
    hosts, ports = [], []
    for part in text.split(","):
        match = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::(.*))?", part, re.DOTALL)
        if not match:
            raise ValueError(f"has an invalid host: {IN_BRACKETS}")
        # Not shown: if the host is missing, it is the password.
        if match[3] and not (re.fullmatch("[0-9]+", match[3]) and 1 <= int(match[3][:6]) <= 65535):
            raise ValueError(f"has a port that is not a number from 1 to 65535; {IN_BRACKETS}")
        hosts.append(unquote(match[1] or match[2] or ""))
        ports.append(match[3] or "")
    if any(ports) and not all(ports):
        ports = [port or "5432" for port in ports]
    return ",".join(hosts), ",".join(ports) if any(ports) else ""


def _ports(text: str) -> str:
    return ",".join(str(whole_number(1, 65535)(port)) for port in text.split(","))


def _one(parameter: str, value: str, options: dict[str, str]) -> str:
    """Return a value from the authority or path of a URL, or from its query, but not both."""
    second = options.pop(parameter, "")
    if value and second not in ("", value):
        raise ValueError(f"gives two values for its {parameter}")
    return value or second


@cache
def libpq_parameters() -> dict[str, str]:
    try:
        from psycopg import pq  # imported here so that a failure can be reported
    except ImportError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        refuse([f"psycopg does not work here ({reason}): pip install 'psycopg[binary]'."])
    return {
        option.keyword.decode(): (option.envvar or b"").decode()
        for option in pq.Conninfo.get_defaults()
    }


def with_default_options(options: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Add the default options that neither the URL nor libpq's variables (PGAPPNAME) set."""
    project = environ.get("DJANGO_SETTINGS_MODULE", "").partition(".")[0] or "django"
    variables = libpq_parameters()
    defaults = {**DEFAULT_OPTIONS, "application_name": project}
    unset = {name: text for name, text in defaults.items() if variables.get(name) not in environ}
    return {**unset, **options}


def _host(text: str) -> str:
    """Validate one or more hosts: names, addresses, or directories of Unix sockets."""
    hosts = text.strip()
    for host in hosts.split(","):
        is_socket = host.startswith(("/", "@"))  # @: Linux's abstract sockets
        if not is_socket and ("://" in host or set("@[]") & set(host) or host.count(":") == 1):
            raise ValueError(
                "is more than a host: a URL goes into DATABASE_URL, a user into DB_USER, a port"
                " into DB_PORT; an IPv6 address has no brackets here"
            )
    return hosts


def _name(text: str) -> str:
    """Validate the name of a database or role; everything but a colon is allowed."""
    if ":" in text:
        raise ValueError(
            "holds a colon, as a URL does or a user with a password: a URL goes into DATABASE_URL,"
            " a password into DB_PASSWORD, and a name with a colon into DATABASE_URL, as %3A"
        )
    return text


def _dotted_path(text: str) -> str:
    if all(part.isidentifier() for part in text.split(".")) and "." in text:
        return text
    raise ValueError("is not the dotted path of a function, like package.module.function")


DATABASE_URL = Variable[Address | None](
    name="DATABASE_URL", parse=parse_url, default=None, secret=True, shared=False
)
# By the field of Address that each variable sets.
PARTS = {
    "host": Variable(name="DB_HOST", parse=_host, default="", echo=False, shared=False),
    "port": Variable(name="DB_PORT", parse=_ports, default="", echo=False, shared=False),
    "name": Variable(name="DB_NAME", parse=_name, default="", echo=False, shared=False),
    "user": Variable(name="DB_USER", parse=_name, default="", echo=False, shared=False),
    "password": Variable(name="DB_PASSWORD", parse=str, default="", secret=True, shared=False),
}
DB_PASSWORD_PROVIDER = Variable(
    name="DB_PASSWORD_PROVIDER", parse=_dotted_path, default="", echo=False, shared=False
)
KNOWN = (
    *(DATABASE_URL.name, f"{DATABASE_URL.name}_FILE", DB_PASSWORD_PROVIDER.name),
    *(part.name for part in PARTS.values()),
    f"{PARTS['password'].name}_FILE",
)


def read_address(reader: Reader, default_url: str | None) -> Address:
    """Return the address that the variables set. The reader records their mistakes.

    The parts add what the URL lacks, such as a password from a file. The default URL is used only
    if none of the variables is set.
    """
    problems = len(reader.problems)
    url = reader.read(DATABASE_URL)
    parts = {name: text for name, part in PARTS.items() if (text := reader.read(part))}
    provider = reader.read(DB_PASSWORD_PROVIDER)
    if len(reader.problems) > problems:
        return Address()
    if url is None and not parts and not provider and default_url is not None:
        try:
            url = parse_url(default_url)
        except ValueError as error:
            reader.problems.append(f"The default URL {error}.")
            return Address()
    if url and url.embedded:
        others = [PARTS[name] for name in parts] + [DB_PASSWORD_PROVIDER] * bool(provider)
        reader.problems += [
            f"{reader.variables[other.name]} cannot be set together with the embedded server of"
            f" {reader.variables['DATABASE_URL']}: unset it."
            for other in others
        ]
        return url
    reader.problems += _contradictions(url or Address(), parts, reader)
    given = {name: text for name, text in parts.items() if not getattr(url, name, "")}
    address = replace(url or Address(), password_provider=provider, **given)  # type: ignore[arg-type]
    reader.problems += _gaps(address, url, parts, reader)
    return address


def _contradictions(url: Address, parts: Mapping[str, str], reader: Reader) -> list[str]:
    found = []
    for name, text in parts.items():
        in_url = getattr(url, name)
        if in_url and in_url != text:
            both = " and ".join(
                f"{reader.variables[plain]} (from {reader.sources[plain]})"
                for plain in ("DATABASE_URL", PARTS[name].name)
            )
            found.append(f"{both} contradict each other: unset one of them.")
    return found


def _gaps(
    address: Address, url: Address | None, parts: Mapping[str, str], reader: Reader
) -> list[str]:
    """Return sentences on what is missing in an address, or does not fit together."""
    found = []
    prefix, hosts, ports = reader.prefix, address.host.split(","), address.port.split(",")
    if not address.name and "service" not in address.options:
        if url:
            gap = f"{reader.variables['DATABASE_URL']} names no database: add /NAME to it."
        elif parts:
            gap = f"{prefix}DB_NAME is not set: give it the name of the database."
        else:
            gap = (
                f"No database is set: set {prefix}DATABASE_URL={EXAMPLE}, or {prefix}DB_HOST,"
                f" {prefix}DB_NAME, {prefix}DB_USER and {prefix}DB_PASSWORD."
            )
        found.append(gap + did_you_mean_these(reader.environ, prefix, KNOWN))
    if len(ports) > 1 and len(ports) != len(hosts):
        found.append(
            f"{len(ports)} ports do not go with {len(hosts)} hosts:"
            " give one port for all, or one for each."
        )
    if address.password_provider and address.password:
        found.append(
            f"{prefix}{DB_PASSWORD_PROVIDER.name} is set, and so is a password"
            f" ({reader.variables[PARTS['password'].name]} or the URL): unset one of them."
        )
    return found


def running(address: Address, base_dir: Path, variable: str) -> Address:
    from abs_orm_app.embedded import embedded_url  # imported here: production lacks this extra

    try:
        return parse_url(embedded_url(base_dir / address.embedded))
    except ImproperlyConfigured as error:
        refuse([f"{variable}: {error}"])


def session_options(text: str) -> dict[str, str]:
    """Parse libpq's `options`: the session settings of `-c NAME=VALUE`, in any spelling."""
    words = [re.sub(r"\\(.)", r"\1", word) for word in re.findall(r"(?:\\.|[^\s\\])+", text)]
    found = {}
    while words:
        word = words.pop(0)
        setting = words.pop(0) if word == "-c" and words else re.sub("^(-c|--)", "", word)
        name, equals, value = setting.partition("=")
        if setting == word or not equals:
            raise ValueError("not all like -c NAME=VALUE")
        found[name.replace("-", "_")] = value
    return found
