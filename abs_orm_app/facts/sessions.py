"""Reads the sessions of a database from its server, for all processes and applications."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from abs_orm_app.config.application_name import Name, parse_name
from abs_orm_app.config.texts import printable

STATES = ("active", "idle", "idle in transaction")

# One round trip, and only what a role without privileges may read. Such a role sees the names of
# other roles' sessions, but neither address nor state.
# pg_blocking_pids is called only for sessions that wait for a lock, because it stops the lock
# manager for a moment; so does pg_locks, which is read once, for the first of them.
_QUERY = """
WITH waits AS MATERIALIZED (
    SELECT pid, min((to_jsonb(l) ->> 'waitstart')::timestamptz) AS since  -- PostgreSQL 14
    FROM pg_locks l WHERE NOT granted GROUP BY pid
)
SELECT coalesce(json_agg(json_build_object(
    'pid', pid,
    'here', datname = current_database(),
    'application_name', coalesce(application_name, ''),
    'address', host(client_addr),
    'state', state,
    'seconds', greatest(extract(epoch FROM clock_timestamp() - state_change), 0),
    'waits', CASE wait_event_type WHEN 'Lock' THEN (
        SELECT greatest(extract(epoch FROM clock_timestamp() - since), 0)
        FROM waits WHERE waits.pid = activity.pid AND since IS NOT NULL) END,
    'blockers', CASE wait_event_type WHEN 'Lock' THEN pg_blocking_pids(pid) ELSE '{}' END
)), '[]')::text
FROM pg_stat_activity activity
WHERE datname IS NOT NULL AND usesysid IS NOT NULL AND pid <> pg_backend_pid()
  AND coalesce(backend_type, 'client backend') = 'client backend'
"""


@dataclass(frozen=True, kw_only=True)
class Sessions:
    active: int
    idle: int
    in_transaction: int  # idle in it
    unknown: int  # whose state this role may not see

    @property
    def sessions(self) -> int:
        return self.active + self.idle + self.in_transaction + self.unknown


@dataclass(frozen=True, kw_only=True)
class Application(Sessions):
    application: str  # "" if they have no name
    host: str  # from the name of the process, else the address; "" for a Unix socket, or hidden
    processes: int | None  # None: their names do not tell

    # Seconds that the oldest of each state has been in it; None: there is none.
    oldest_active: float | None
    oldest_in_transaction: float | None


@dataclass(frozen=True, kw_only=True)
class Process(Sessions):
    """The sessions of one process that names itself PROJECT@HOST:PID."""

    application: str
    host: str
    pid: int  # on that host


@dataclass(frozen=True, kw_only=True)
class Session:
    """A session that blocks another, or is blocked."""

    pid: int  # of the server's process
    application: str
    host: str
    state: str | None  # None: this role may not see it, or it is no session of this database
    seconds: float | None  # in that state


@dataclass(frozen=True, kw_only=True)
class Blocked:
    session: Session
    seconds: float | None  # that it has waited; None on PostgreSQL 13
    blockers: tuple[Session, ...]


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All sessions of one database, without this one."""

    groups: tuple[Application, ...]  # the largest first
    blocked: tuple[Blocked, ...]  # the longest wait first
    processes: tuple[Process, ...] = ()  # that name themselves, by application, host and pid
    roots: tuple[tuple[Session, int], ...] = ()  # who blocks, not blocked, and how many in all
    longest: Session | None = None  # the statement that has run longest, and waits for no lock
    forgotten: Session | None = None  # the one that has been idle in transaction for longest
    everywhere: tuple[tuple[str, str, int], ...] = ()  # application, host, sessions: of the server

    @property
    def sessions(self) -> int:
        return sum(group.sessions for group in self.groups)


def read_fleet(connection: Any) -> Fleet:
    """Ask the server, in one round trip, over an open connection.

    Raises the driver's `Error`.
    """
    with connection.cursor() as cursor:
        cursor.execute(_QUERY)
        return fleet(json.loads(cursor.fetchone()[0]))


def fleet(rows: Iterable[Mapping[str, Any]]) -> Fleet:
    everywhere = list(rows)
    rows = [row for row in everywhere if row.get("here", True)]
    members: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        session = _session(row)
        members.setdefault((session.application, session.host), []).append(row)
    by_pid = {row["pid"]: _session(row) for row in rows}
    blocked = [
        Blocked(
            session=by_pid[row["pid"]],
            seconds=row["waits"],
            blockers=tuple(
                by_pid.get(pid) or _elsewhere(pid) for pid in dict.fromkeys(row["blockers"])
            ),
        )
        for row in rows
        if row["blockers"]
    ]
    groups = [_group(*key, sessions) for key, sessions in members.items()]
    waiting = {row["pid"] for row in rows if row["blockers"]}
    running = [each for each in by_pid.values() if each.pid not in waiting]
    return Fleet(
        roots=tuple(_roots(blocked)),
        longest=_oldest(running, "active"),
        forgotten=_oldest(running, "idle in transaction"),
        everywhere=tuple(_everywhere(everywhere)),
        groups=tuple(sorted(groups, key=lambda g: (-g.sessions, g.application, g.host))),
        blocked=tuple(sorted(blocked, key=_longest_first)),
        processes=tuple(_processes(rows)),
    )


def _oldest(sessions: Iterable[Session], state: str) -> Session | None:
    found = [session for session in sessions if session.state == state]
    return max(found, key=lambda session: session.seconds or 0.0, default=None)


def _roots(blocked: Iterable[Blocked]) -> list[tuple[Session, int]]:
    """Who blocks others and waits for nobody, with how many wait for it, also through others."""
    chains = {each.session.pid: each.blockers for each in blocked}
    counts: Counter[Session] = Counter()
    for pid in chains:
        seen: set[int] = set()
        ahead = list(chains[pid])
        while ahead:
            one = ahead.pop()
            if one.pid in seen:
                continue
            seen.add(one.pid)
            if one.pid in chains:
                ahead += chains[one.pid]
            else:
                counts[one] += 1
    return counts.most_common()


def _everywhere(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    counts = Counter((each.application, each.host) for each in map(_session, rows))
    return [(application, host, count) for (application, host), count in counts.most_common()]


def _processes(rows: Iterable[Mapping[str, Any]]) -> list[Process]:
    counts: dict[tuple[str, str, int], Counter[str]] = {}
    for row in rows:
        name = _name(row)
        if name.host is not None and name.pid is not None:
            key = (name.application, name.host, name.pid)
            counts.setdefault(key, Counter())[_state(row) or "unknown"] += 1
    return [
        Process(
            application=application,
            host=host,
            pid=pid,
            active=states["active"],
            idle=states["idle"],
            in_transaction=states["idle in transaction"],
            unknown=states["unknown"],
        )
        for (application, host, pid), states in sorted(counts.items(), key=lambda item: item[0])
    ]


def _group(application: str, host: str, rows: Iterable[Mapping[str, Any]]) -> Application:
    seconds: dict[str, list[float]] = {state: [] for state in (*STATES, "unknown")}
    pids = set()
    for row in rows:
        seconds[_state(row) or "unknown"].append(row["seconds"] or 0.0)
        pids.add(_name(row).pid)
    active, idle, in_transaction, unknown = seconds.values()
    return Application(
        application=application,
        host=host,
        processes=None if None in pids else len(pids),
        active=len(active),
        idle=len(idle),
        in_transaction=len(in_transaction),
        unknown=len(unknown),
        oldest_active=max(active, default=None),
        oldest_in_transaction=max(in_transaction, default=None),
    )


def _longest_first(blocked: Blocked) -> float:
    waits = blocked.session.seconds if blocked.seconds is None else blocked.seconds
    return -(waits or 0.0)


def _session(row: Mapping[str, Any]) -> Session:
    name = _name(row)
    return Session(
        pid=row["pid"],
        application=name.application,
        host=name.host or row["address"] or "",
        state=_state(row),
        seconds=row["seconds"],
    )


def _elsewhere(pid: int) -> Session:
    """A blocker that is no session of this database, such as a prepared transaction (pid 0)."""
    return Session(pid=pid, application="", host="", state=None, seconds=None)


def _name(row: Mapping[str, Any]) -> Name:
    return parse_name(printable(row["application_name"]))


def _state(row: Mapping[str, Any]) -> str | None:
    """Return one of STATES, or None if this role may not see it."""
    state = row["state"]
    if state == "idle in transaction (aborted)":
        return "idle in transaction"
    if state == "fastpath function call":
        return "active"
    return state if state in STATES else None
