"""Decides which host a new connection tries first, and for how long: dead hosts come last.

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
from typing import Any, Generic, TypeVar

import psycopg
from psycopg.conninfo import timeout_from_conninfo

from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.liveness import ANSWERING, reach

DEFAULT_PORT = "5432"
DIRECTORY = ("/", "@")  # a host that starts with one of these is a Unix socket
TEST_AGAIN = 10.0  # seconds after which a dead host is tested again, while connections are opened
PROBATION = 30.0  # seconds that a dead host must answer again before it regains its position
PROBE_TIMEOUT = 2.0  # seconds that its answer may take
BRIEF = 0.5  # seconds that it may take while another host has answered
LOOKUPS = 4  # concurrent lookups that hang; then one more every `LOOKUP_INTERVAL` seconds
LOOKUP_INTERVAL = 2.0
LATE_ANSWER = 30.0  # seconds for which the result of a slow lookup is used again

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
        """libpq's parameters for this place only; empty ones override the environment's."""
        return {"host": self.host, "port": self.port, "hostaddr": self.address}

    @property
    def target(self) -> Any:
        """What `reach` probes: the path of a Unix socket, or host and port; None for libpq's own
        default, which only libpq knows.
        """
        if not (self.host or self.address):
            return None
        if self.host.startswith(DIRECTORY) and not self.address:
            return f"{self.host}/.s.PGSQL.{self.port}".replace("@", "\0", 1)
        return self.address or self.host, self.port

    def __str__(self) -> str:
        return f"host: {self.host!r}, port: {self.port!r}, hostaddr: {self.address or None!r}"


def listed(params: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> list[Place]:
    """The hosts of libpq's parameters, unresolved, in their order.

    A list of ports has one for each host, or one for all. If the lists do not match, the result is
    empty, and libpq then reports the mistake. It is also empty if a service file may name them.
    """
    environ = os.environ if environ is None else environ

    def values(name: str, variable: str) -> list[str]:
        value = params.get(name)
        return str(environ.get(variable, "") if value is None else value).split(",")

    if params.get("service") or environ.get("PGSERVICE"):
        return []
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


def resolved(places: Iterable[Place], resolver: Resolver | None = None) -> list[Place]:
    """Return each place once per address of its name.

    Raises `psycopg.OperationalError` if no name resolves; one that does is enough.
    """
    found: list[Place] = []
    error: psycopg.OperationalError | None = None
    for place in places:
        try:
            found += dict.fromkeys(_addresses(place, resolver or Resolver()))
        except OSError as problem:
            error = psycopg.OperationalError(f"failed to resolve host {place.host!r}: {problem}")
    if not found and error:
        raise error
    return found


def _addresses(place: Place, resolver: Resolver) -> Iterator[Place]:
    if place.address or not place.host or place.host.startswith(DIRECTORY):
        yield place
        return
    with suppress(ValueError):
        yield Place(place.host, place.port, str(ipaddress.ip_address(place.host)))
        return
    for address in resolver.addresses(place.host):
        yield Place(place.host, place.port, address)


def ordered(
    places: Sequence[Place], dead: Mapping[Place, float], *, shuffle: bool = False
) -> list[Place]:
    """Return the places in the order in which to try them: dead ones last, and among these the
    longest dead first. `dead`: when each was found dead.
    """
    places = random.sample(places, len(places)) if shuffle else list(places)
    return sorted(places, key=lambda place: dead.get(place, -inf))


def allotted(places: Sequence[Place], short: float, timeout: float) -> list[tuple[Place, float]]:
    """Return the seconds for each place: `short` while another place is left, then `timeout`.

    The caller tries a place a second time only if it did not answer in the short time.
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
    timeout: the limit for each place; `short`: the limit while another place is left.
    stubborn: wait for a dead place as well, even after another one has answered.
    fits: False for a connection to a server of the wrong role; it is used if there is no other.
    """

    connect: Callable[[dict[str, Any]], T]
    close: Callable[[T], object]
    fits: Callable[[T], bool]
    timeout: float
    short: float
    stubborn: bool = True


class Resolver:
    """Resolves names. A lookup that hangs is left to its thread, and other threads try again; but
    only some of them, because each such thread lasts until the resolver gives up.
    """

    def __init__(self) -> None:
        self._running: dict[object, float] = {}  # the lookups, and since when (`monotonic`)
        self._late: dict[str, tuple[float, list[str]]] = {}  # by name: when, and the addresses

    def addresses(self, host: str) -> list[str]:
        """The IP addresses of a name. Raises `OSError` if there are none."""
        now = monotonic()
        at, late = self._late.get(host, (-inf, []))
        if now - at < LATE_ANSWER:
            return late
        running = list(self._running.values())
        hung = [began for began in running if now - began > 1.0]
        if len(hung) >= LOOKUPS and now - max(running) < LOOKUP_INTERVAL:
            raise OSError(f"the resolver has not answered for {now - min(hung):.0f} s")
        me = object()
        self._running[me] = now
        try:
            found = [
                str(address[0])
                for *_, address in socket.getaddrinfo(
                    host, None, proto=socket.IPPROTO_TCP, type=socket.SOCK_STREAM
                )
            ]
        except UnicodeError as error:
            raise OSError(error) from None
        except OSError:
            _raise_if_out_of_descriptors()
            raise
        finally:
            del self._running[me]
        if not found:
            raise OSError("it has no address")
        if (done := monotonic()) - now > LOOKUP_INTERVAL:
            self._late[host] = done, found
        return found


class Hosts:
    """What one pool remembers about its hosts. Its connectors share this without a lock: each step
    is one operation on a dict.
    """

    def __init__(self) -> None:
        self._dead: dict[Place, float] = {}  # since when, or when last tested (`monotonic`)
        self._back: dict[Place, float] = {}  # dead ones that answer again: since when
        self._resolver = Resolver()
        self.fastest = inf  # the shortest time to open a connection, since the last failure
        self.connect_seconds = 0.0  # seconds to open the last connection, at its own place

    @property
    def any_dead(self) -> bool:
        return bool(self._dead)

    def connect(self, address: Address, how: Try[T]) -> T:
        """Return a connection to the first place that fits, or else to the first that accepts one.

        Raises what the last place raised, with the errors of all in its text.
        """
        places = address.places
        if not places or (len(places) == 1 and _has_one_address(places[0])):
            return self._timed(how, {"connect_timeout": round(how.timeout)})
        places = resolved(places, self._resolver)
        for place in self._dead.keys() - set(places):
            self._dead.pop(place, None)  # its name now has another address
        shuffle = address.spreads
        if address.wanted != "prefer-standby":
            return self._first(ordered(places, self._dead, shuffle=shuffle), how)
        with suppress(psycopg.Error):
            # libpq chooses among the hosts of one call, and here it gets one per call.
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
            if not how.stubborn and self._is_hopeless(place, errors):
                errors[place] = psycopg.errors.ConnectionTimeout("it does not answer")
                continue
            given = {**place.params, **(extra or {}), "connect_timeout": round(seconds)}
            began = monotonic()
            try:
                conn = self._timed(how, given)
            except psycopg.Error as error:
                errors[place] = error
                if not _WRONG_ROLE.search(str(error)):
                    self._dead[place] = monotonic()
                continue
            except (OSError, RuntimeError):  # not the fault of the place
                _close(how, spare)
                raise
            if self._dead.get(place, -inf) < began:  # else it was found dead meanwhile
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

    def _is_hopeless(self, place: Place, errors: Mapping[Place, Exception]) -> bool:
        """True for a dead place that still does not answer, although another one has answered."""
        others = [error for other, error in errors.items() if other != place]
        answered = any(not isinstance(e, psycopg.errors.ConnectionTimeout) for e in others)
        return answered and place in self._dead and not is_answering(place, BRIEF)

    def _timed(self, how: Try[T], params: dict[str, Any]) -> T:
        began = monotonic()
        try:
            conn = how.connect(params)
        except psycopg.Error:
            self.fastest = inf
            _raise_if_out_of_descriptors()
            raise
        self.connect_seconds = monotonic() - began
        self.fastest = min(self.fastest, self.connect_seconds)
        return conn

    def ask_again(self) -> None:
        """Test whether places that were dead for a while answer again. May take some seconds.

        The test opens no session. A place regains its old position only after it has answered for a
        while: a frozen server may believe for some seconds that it still is the primary.
        """
        now = monotonic()
        for place, since in list(self._dead.items()):
            if now - since < TEST_AGAIN:
                continue
            self._dead[place] = now  # so that no other thread tests it meanwhile
            if not is_answering(place):
                self._back.pop(place, None)
            elif now - self._back.setdefault(place, now) >= PROBATION:
                self._dead.pop(place, None)
                self._back.pop(place, None)


def is_answering(place: Place, timeout: float = PROBE_TIMEOUT) -> bool:
    """True if a server, or a pooler, answers there within `timeout` seconds, or cannot be asked."""
    return place.target is None or reach(place.target, timeout) == ANSWERING


def _has_one_address(place: Place) -> bool:
    """True if psycopg finds at most one address for it, without a resolver."""
    if place.address or not place.host or place.host.startswith(DIRECTORY):
        return True
    with suppress(ValueError):
        return bool(ipaddress.ip_address(place.host))
    return False


class Address:
    """What libpq's parameters and environment variables say about the servers.

    `wanted`: what a server must be (`target_session_attrs`); "" for nothing.
    `spreads`: connections are spread over the hosts at random.
    `in_service_file`: both may be in a service file, which only libpq reads.
    """

    def __init__(self, params: dict[str, Any]) -> None:
        self.places = listed(params)
        self.wanted = _setting(params, "target_session_attrs", "PGTARGETSESSIONATTRS")
        self.spreads = _setting(params, "load_balance_hosts", "PGLOADBALANCEHOSTS") == "random"
        self.in_service_file = bool(_setting(params, "service", "PGSERVICE"))
        self.timeout: float = timeout_from_conninfo(params)


def _setting(params: Mapping[str, Any], name: str, variable: str) -> str:
    return str(params.get(name) or os.environ.get(variable, ""))


def _raise_if_out_of_descriptors() -> None:
    """Raise `OSError` if this process has no descriptor left: libpq and resolvers may then report
    something else, such as an unknown name.
    """
    socket.socket().close()


def _close(how: Try[T], conns: Iterable[T]) -> None:
    for conn in conns:
        how.close(conn)


def _all_failed(errors: Mapping[Place, Exception]) -> Exception:
    """The last error, with the errors of all places in its text, as in psycopg."""
    last = list(errors.values())[-1]
    if len(errors) == 1:
        return last
    lines = [str(last), "Multiple connection attempts failed. All failures were:"]
    lines += [f"- {place}: {error}" for place, error in errors.items()]
    return type(last)("\n".join(lines))
