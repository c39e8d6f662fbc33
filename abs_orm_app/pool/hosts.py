"""Which host a new connection tries first, and for how long: working hosts before dead ones.

libpq and psycopg try the hosts of a list, and the addresses of a name, in the same order each time,
and give each the whole `connect_timeout`: if the first host is dead, every new connection takes
that long. A pool remembers dead hosts, tries them last, and tests them again in the background.
Otherwise the order is libpq's, or random with `load_balance_hosts=random`.

A name is resolved again for each connection.
"""

from __future__ import annotations

import ipaddress
import os
import random
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any, Generic, TypeVar

import psycopg

DEFAULT_PORT = "5432"
DIRECTORY = ("/", "@")  # what the host begins with where it is a Unix socket
ASK_AGAIN = 10.0  # seconds after which a dead host is tested again, while connections are opened
ASK_TIMEOUT = 2.0  # seconds that its answer may take
SSL_REQUEST = bytes.fromhex("0000000804d2162f")  # answered by every server with one byte

# The server answers, but does not have the role that `target_session_attrs` wants.
_WRONG_ROLE = re.compile(r"hot standby mode|session is (?:not )?read-only")

_NOT_TRIED = psycopg.errors.ConnectionTimeout()
_DOES_NOT_FIT = psycopg.OperationalError()

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """One address where a server may be."""

    host: str  # as it was given: TLS compares it with the certificate
    port: str
    address: str = ""  # IP address; "" for a Unix socket, and if libpq resolves the name itself

    @property
    def params(self) -> dict[str, str]:
        """libpq's parameters for only this place."""
        given = {"host": self.host, "port": self.port, "hostaddr": self.address}
        return {name: value for name, value in given.items() if value}

    def __str__(self) -> str:
        return f"host: {self.host!r}, port: {self.port!r}, hostaddr: {self.address or None!r}"


def listed(params: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> list[Place]:
    """The hosts of libpq's parameters, unresolved, in their order.

    A list of ports has one for each host, or one for all. If the lists do not match, the result is
    empty, and libpq then reports the mistake.
    """
    environ = os.environ if environ is None else environ

    def values(name: str, variable: str) -> list[str]:
        value = params.get(name)
        return str(environ.get(variable, "") if value is None else value).split(",")

    hosts, addresses = values("host", "PGHOST"), values("hostaddr", "PGHOSTADDR")
    ports = values("port", "PGPORT")
    count = max(len(hosts), len(addresses))
    lists = [each * count if len(each) == 1 else each for each in (hosts, addresses, ports)]
    if any(len(each) != count for each in lists):
        return []
    return [
        Place(host.strip(), port.strip() or DEFAULT_PORT, address.strip())
        for host, address, port in zip(*lists, strict=True)
    ]


def resolved(places: Iterable[Place]) -> list[Place]:
    """Each place once for each address of its name.

    Raises `psycopg.OperationalError` if no name resolves; one that does is enough.
    """
    found: list[Place] = []
    error: psycopg.OperationalError | None = None
    for place in places:
        try:
            found += dict.fromkeys(_addresses(place))
        except OSError as problem:
            error = psycopg.OperationalError(f"failed to resolve host {place.host!r}: {problem}")
    if not found and error:
        raise error
    return found


def _addresses(place: Place) -> Iterator[Place]:
    if place.address or not place.host or place.host.startswith(DIRECTORY):
        yield place
        return
    with suppress(ValueError):
        yield Place(place.host, place.port, str(ipaddress.ip_address(place.host)))
        return
    for *_, address in socket.getaddrinfo(
        place.host, place.port, proto=socket.IPPROTO_TCP, type=socket.SOCK_STREAM
    ):
        yield Place(place.host, place.port, str(address[0]))


def ordered(
    places: Sequence[Place], dead: Mapping[Place, float], *, shuffle: bool = False
) -> list[Place]:
    """The order to try them in: dead ones last, and of these the one that has been dead longest
    first. `dead`: when each was found dead.
    """
    places = random.sample(places, len(places)) if shuffle else list(places)
    return sorted(places, key=lambda place: dead.get(place, -inf))


def allotted(places: Sequence[Place], short: float, timeout: float) -> list[tuple[Place, float]]:
    """The seconds for each place: the short time while another place is left, then the timeout.

    A place is tried a second time only if it did not answer in the short time.
    """
    if not places:
        return []
    *others, last = places
    if short >= timeout:
        return [(place, timeout) for place in places]
    return [*((place, short) for place in others), *((place, timeout) for place in (last, *others))]


@dataclass(frozen=True)
class Try(Generic[T]):
    """How to connect to one place. Durations are in seconds.

    connect: called with libpq's parameters for the place; raises `psycopg.Error`.
    timeout: for each place at most; `short`: while another place is left.
    fits: False for a connection to a server of the wrong role; it is used if there is no other.
    """

    connect: Callable[[dict[str, Any]], T]
    close: Callable[[T], object]
    fits: Callable[[T], bool]
    timeout: float
    short: float


class Hosts:
    """What one pool remembers of its hosts. For its connectors, which share it without a lock:
    each step is one operation of a dict.
    """

    def __init__(self) -> None:
        self._dead: dict[Place, float] = {}  # since when, or when asked again (`monotonic`)
        self.connect_seconds = 0.0  # how long the last connection took to open, at its own place

    def connect(self, params: Mapping[str, Any], how: Try[T]) -> T:
        """Return a connection to the first place that accepts one; if one fits, the first of those.

        params: all of libpq's parameters that are given.

        Raises what the last place raised, with the errors of all in its text.
        """
        places = listed(params)
        if not places or (len(places) == 1 and _has_one_address(places[0])):
            return self._timed(how, {"connect_timeout": round(how.timeout)})
        places = resolved(places)
        for place in self._dead.keys() - set(places):
            self._dead.pop(place, None)  # its name now has another address
        shuffle = _setting(params, "load_balance_hosts", "PGLOADBALANCEHOSTS") == "random"
        if target_session_attrs(params) != "prefer-standby":
            return self._first(ordered(places, self._dead, shuffle=shuffle), how)
        with suppress(psycopg.Error):
            # libpq prefers among the hosts that it is given at once, and here it gets one.
            standby = {"target_session_attrs": "standby"}
            return self._first(ordered(places, self._dead, shuffle=shuffle), how, standby)
        any_server = {"target_session_attrs": "any"}
        return self._first(ordered(places, self._dead, shuffle=shuffle), how, any_server)

    def _first(
        self, places: Sequence[Place], how: Try[T], extra: Mapping[str, Any] | None = None
    ) -> T:
        spare: list[T] = []
        errors: dict[Place, Exception] = {}
        for place, seconds in allotted(places, how.short, how.timeout):
            # A second attempt only if it did not answer in the short time.
            if not isinstance(errors.get(place, _NOT_TRIED), psycopg.errors.ConnectionTimeout):
                continue
            given = {**place.params, **(extra or {}), "connect_timeout": round(seconds)}
            try:
                conn = self._timed(how, given)
            except psycopg.Error as error:
                errors[place] = error
                if not _WRONG_ROLE.search(str(error)):
                    self._dead[place] = monotonic()
                continue
            self._dead.pop(place, None)
            if how.fits(conn):
                _close(how, spare)
                return conn
            errors[place] = _DOES_NOT_FIT
            spare.append(conn)
        if not spare:
            raise _all_failed(errors)
        first, *others = spare
        _close(how, others)
        return first

    def _timed(self, how: Try[T], params: dict[str, Any]) -> T:
        began = monotonic()
        conn = how.connect(params)
        self.connect_seconds = monotonic() - began
        return conn

    def ask_again(self) -> None:
        """Test whether places that were dead for a while answer again. May take some seconds.

        The test opens no session. A place that answers returns to its old position.
        """
        now = monotonic()
        for place, since in tuple(self._dead.items()):
            if now - since < ASK_AGAIN:
                continue
            self._dead[place] = now  # no other thread tests it meanwhile
            if answers(place):
                self._dead.pop(place, None)


def answers(place: Place, timeout: float = ASK_TIMEOUT) -> bool:
    """True if a server, or a pooler, answers there within `timeout` seconds."""
    unix = place.host.startswith(DIRECTORY) and not place.address
    path = f"{place.host}/.s.PGSQL.{place.port}"
    target: Any = path.replace("@", "\0", 1) if unix else (place.address, int(place.port))
    try:
        if unix:
            peer = socket.socket(socket.AF_UNIX)
            peer.settimeout(timeout)
            peer.connect(target)
        else:
            peer = socket.create_connection(target, timeout)
        with peer:
            peer.sendall(SSL_REQUEST)
            return len(peer.recv(1)) == 1
    except (OSError, ValueError):
        return False


def _has_one_address(place: Place) -> bool:
    """True if psycopg finds at most one address for it, without a resolver."""
    if place.address or not place.host or place.host.startswith(DIRECTORY):
        return True
    with suppress(ValueError):
        return bool(ipaddress.ip_address(place.host))
    return False


def target_session_attrs(params: Mapping[str, Any]) -> str:
    """What libpq's parameters, or its environment variable, want a server to be; "" for nothing."""
    return _setting(params, "target_session_attrs", "PGTARGETSESSIONATTRS")


def names_service(params: Mapping[str, Any]) -> bool:
    """True if libpq reads more parameters from a service file, which only libpq knows."""
    return bool(_setting(params, "service", "PGSERVICE"))


def _setting(params: Mapping[str, Any], name: str, variable: str) -> str:
    return str(params.get(name) or os.environ.get(variable, ""))


def _close(how: Try[T], conns: Iterable[T]) -> None:
    for conn in conns:
        how.close(conn)


def _all_failed(errors: Mapping[Place, Exception]) -> Exception:
    """The last error, with the errors of all places in its text, as psycopg does it."""
    last = list(errors.values())[-1]
    if len(errors) == 1:
        return last
    lines = [str(last), "Multiple connection attempts failed. All failures were:"]
    lines += [f"- {place}: {error}" for place, error in errors.items()]
    return type(last)("\n".join(lines))
