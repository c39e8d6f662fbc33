"""A primary and a standby behind one address: switchover, crash, names and hosts that are gone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from threading import Barrier, Thread
from time import monotonic, sleep

from benchmarks.clients import Client, all_at_once, application_client, fill, peer, pool_client
from benchmarks.figure import Effort, Figure, column, duration
from benchmarks.peers import Peer
from benchmarks.worker import ROOM, Worker
from tests.support.names import Hosts
from tests.support.partition import SERVER, Partition
from tests.support.proxy import Proxy
from tests.support.replication import Standby, commit_on_both, follow
from tests.support.servers import Server

POOL = {"DB_POOL_SIZE": "6", "DB_MAX_OVERFLOW": "4"}
WRITERS = 12
PAUSE = 0.05  # seconds between two writes of a writer
BEFORE = 1.0  # seconds of writes before the fault
GRACE = 0.5  # seconds after the address is right again; what fails later is the pool's fault
CRASHED = 2.0  # seconds from the crash to the promotion
NAMELESS = 3.0  # seconds that the name is gone
NEW = 3  # connections that are opened one after the other
IN_USE = 4  # connections in use when the network is cut
FEW = {"DB_POOL_SIZE": str(IN_USE), "DB_MAX_OVERFLOW": "0", "DB_POOL_TIMEOUT": "15"}
PORT = 5432  # in a network namespace, where it is free
ADDRESS = f"{SERVER}:{PORT}"
COMPARED = ("none", "stock-checks", "ours")  # peers: a new connection for each write, and two pools


@dataclass(frozen=True)
class Fault:
    """When the server was gone, and when writes could work again (`monotonic`).

    What it interrupts no pool can save: writes that began before are not counted.
    """

    began: float
    right: float


@dataclass(frozen=True)
class Write:
    began: float
    ended: float
    key: int
    error: str  # class of the exception, or ""


@dataclass(frozen=True)
class Outcome:
    """How the writes of one peer fared."""

    peer: str = column("")
    during: int = column("writes during the fault")
    failed_during: int = column("failed")
    after: int = column(f"writes from {GRACE} s after it")
    failed_after: int = column("failed")
    first: float = column("first write after it", duration)
    lost: int = column("acknowledged and lost")


def switchover(peers: Sequence[Peer], effort: Effort) -> Figure:
    return Figure(
        "A switchover behind one address",
        f"{WRITERS} writers, pool size 6 + overflow 4. The primary is stopped, its standby is"
        f" promoted, and the old primary comes back as a standby. The address leads to it for"
        f" {effort.wrong:.0f} s more, then to the new primary; writing goes on for"
        f" {effort.after:.0f} s. {_REPLICATED}",
        _switchover(peers, effort, ""),
    )


def switchover_read_write(peers: Sequence[Peer], effort: Effort) -> Figure:
    return Figure(
        "A switchover behind one address, `target_session_attrs=read-write`",
        "The same, with `target_session_attrs=read-write` in DATABASE_URL.",
        _switchover(peers, effort, "?target_session_attrs=read-write"),
    )


_REPLICATED = "Replication is synchronous: what the primary has acknowledged, the standby has too."


def _switchover(peers: Sequence[Peer], effort: Effort, query: str) -> list[Outcome]:
    def fault(first: Server, second: Standby, address: Proxy) -> Fault:
        first.stop()
        began = monotonic()
        second.promote()
        follow(first, second)
        sleep(effort.wrong)
        address.target = second.port
        return Fault(began, monotonic())

    return _failover(peers, effort.wrong + effort.after, fault, query)


def crash(peers: Sequence[Peer], effort: Effort) -> Figure:
    def fault(first: Server, second: Standby, address: Proxy) -> Fault:
        first.kill()
        began = monotonic()
        sleep(CRASHED)
        second.promote()
        address.target = second.port
        return Fault(began, monotonic())

    return Figure(
        "A crash of the primary behind one address",
        f"All processes of the primary are killed; {CRASHED:.0f} s later its standby is promoted,"
        f" and the address leads there. Otherwise as the switchover.",
        _failover(peers, CRASHED + effort.after, fault),
    )


def _failover(
    peers: Sequence[Peer],
    seconds: float,
    fault: Callable[[Server, Standby, Proxy], Fault],
    query: str = "",
) -> list[Outcome]:
    """Write through one address while its server fails over."""
    with Server(ROOM) as first, Standby(first, ROOM) as second, Proxy(first.port) as address:
        _make_table(first)
        commit_on_both(first)
        url = f"postgresql://postgres@127.0.0.1:{address.port}/postgres{query}"
        with _writers(peers, url) as writers:
            for worker in writers:
                worker.start(write, BEFORE + seconds)
            sleep(BEFORE)
            happened = fault(first, second, address)
            written = [(worker.peer, worker.result()) for worker in writers]
        return [_outcome(peer, happened, writes, second) for peer, writes in written]


def name_is_gone(peers: Sequence[Peer], effort: Effort) -> Figure:
    with tempfile.TemporaryDirectory() as directory, Server(ROOM) as server:
        _make_table(server)
        hosts = Hosts(Path(directory, "hosts"))
        hosts.set({"db": "127.0.0.1"})
        url = f"postgresql://postgres@db:{server.port}/postgres"
        with _writers(peers, url, hosts) as writers:
            for worker in writers:
                worker.start(write, BEFORE + NAMELESS + effort.after)
            sleep(BEFORE)
            hosts.set({})
            server.stop()
            began = monotonic()
            sleep(NAMELESS)
            server.start()
            hosts.set({"db": "127.0.0.1"})
            happened = Fault(began, monotonic())
            written = [(worker.peer, worker.result()) for worker in writers]
        rows = [_outcome(peer, happened, writes, server) for peer, writes in written]
    return Figure(
        "The host's name is gone with its server",
        f"The server is stopped, and for {NAMELESS:.0f} s its name does not resolve; then both are"
        " back. Otherwise as the switchover.",
        rows,
    )


def _make_table(server: Server) -> None:
    with server.admin() as admin:
        admin.execute("CREATE TABLE written (peer text, key bigint, PRIMARY KEY (peer, key))")


@contextmanager
def _writers(
    peers: Sequence[Peer], url: str, hosts: Hosts | None = None, **variables: str
) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        compared = [each for each in peers if each.name in COMPARED]
        workers = [stack.enter_context(Worker(each, url, **POOL, **variables)) for each in compared]
        for worker in workers:
            if hosts:
                worker.call(use_hosts, hosts.path)
            worker.start(fill)
        for worker in workers:
            worker.result()
        yield workers


def _outcome(peer: Peer, fault: Fault, writes: Sequence[Write], server: Server) -> Outcome:
    with server.admin() as admin:
        kept = admin.execute("SELECT key FROM written WHERE peer = %s", [peer.name]).fetchall()
    acknowledged = {write.key for write in writes if not write.error}
    during = [write for write in writes if fault.began <= write.began < fault.right]
    after = [write for write in writes if write.began >= fault.right + GRACE]
    served = [write.ended for write in writes if write.ended > fault.right and not write.error]
    return Outcome(
        peer.name,
        len(during),
        _failed(during),
        len(after),
        _failed(after),
        min(served, default=inf) - fault.right,
        len(acknowledged - {key for (key,) in kept}),
    )


def _failed(writes: Sequence[Write]) -> int:
    return sum(bool(write.error) for write in writes)


# Several hosts


@dataclass(frozen=True)
class Opened:
    """Seconds that new connections took, one after the other."""

    peer: str = column("")
    first: float = column("the first", duration)
    longest: float = column("the longest of the next", duration)


def dead_host(peers: Sequence[Peer], _effort: Effort) -> Figure:
    with Server(ROOM) as server, Proxy(server.port) as dead, Proxy(server.port) as alive:
        dead.blackhole()
        url = f"postgresql://postgres@127.0.0.1:{dead.port},127.0.0.1:{alive.port}/postgres"
        with ExitStack() as stack:
            variables = {"DB_POOL_SIZE": "1", "DB_MAX_OVERFLOW": str(NEW)}
            workers = [
                stack.enter_context(Worker(each, url, **variables))
                for each in peers
                if each.name in COMPARED and each.pooled
            ]
            for worker in workers:
                worker.start(open_several, 1 + NEW)
            taken = [(worker.peer, worker.result()) for worker in workers]
    return Figure(
        "Two hosts, of which the first is dead",
        "The first host accepts connections and says nothing; `connect_timeout` is 10 s."
        f" {1 + NEW} connections are checked out of a new pool, and none is returned.",
        [Opened(each.name, seconds[0], max(seconds[1:])) for each, seconds in taken],
    )


# A network that is cut


@dataclass(frozen=True)
class Cut:
    """What those get who have a connection, and who waits for one, when the network is cut."""

    peer: str = column("")
    held: float = column("queries in use fail after", duration)
    waited: float = column("the waiting request fails after", duration)
    says: str = column("and says")


def network_is_cut(peers: Sequence[Peer], _effort: Effort) -> Figure:
    with Server(ROOM) as server, ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(each, f"postgresql://postgres@{ADDRESS}/postgres", **FEW))
            for each in peers
            if each.name in COMPARED and each.pooled
        ]
        for worker in workers:
            worker.start(cut_the_network, f"{server.socket_dir}/.s.PGSQL.{server.port}")
        rows = [Cut(worker.peer.name, *worker.result()) for worker in workers]
    return Figure(
        "A network that is cut, with all connections in use",
        "Packets from the server are lost, and nobody says so. Half of the connections wait for an"
        " answer, the others send a query just then; one more request waits for a connection, for"
        f" {FEW['DB_POOL_TIMEOUT']} s at most. Each peer has a network namespace of its own.",
        rows,
    )


# In the worker


def cut_the_network(target: str) -> tuple[float, float, str]:
    """Seconds until the last query in use has failed; what the waiting request got, and when."""
    with Partition(target, port=PORT) as network, ThreadPoolExecutor(IN_USE + 1) as threads:
        fill()
        ready = Barrier(IN_USE + 1)
        held = [threads.submit(hold, ready, number % 2 == 0) for number in range(IN_USE)]
        ready.wait()  # all have a connection
        sleep(0.5)
        network.cut()
        ready.wait()
        began = monotonic()
        waiting = threads.submit(check_out)
        seconds = max(each.result() for each in held) - began
        ended, says = waiting.result()
        return seconds, ended - began, says


def hold(ready: Barrier, asleep: bool) -> float:
    """Have a connection when the network is cut; returns when its query has failed."""
    client = application_client()
    connection = client.take()
    ready.wait()
    try:
        with connection.cursor() as cursor:
            if asleep:
                Thread(target=ready.wait).start()
                cursor.execute("SELECT pg_sleep(1000)")
            else:
                ready.wait()
                cursor.execute("SELECT 1")
    except Exception:  # whatever a peer raises
        ended = monotonic()
    client.give(connection)
    return ended


def check_out() -> tuple[float, str]:
    """Ask for one more connection: when that ended, and the reason in a few words."""
    client = application_client()
    try:
        client.give(client.take())
    except Exception as error:  # whatever a peer raises
        text = str(error)
        return monotonic(), text.partition(": ")[2].partition(". ")[0] or text
    return monotonic(), "nothing: it was served"


def use_hosts(path: Path) -> None:
    Hosts(path).enter()


def write(seconds: float) -> list[Write]:
    """Insert rows from all writers for so many seconds."""
    end = monotonic() + seconds

    def work(client: Client) -> list[Write]:
        writes = []
        while (began := monotonic()) < end:
            key = int(began * 1e9)
            error = ""
            try:
                _insert(client, key)
            except Exception as problem:  # whatever a peer raises
                error = type(problem).__name__
            writes.append(Write(began, monotonic(), key, error))
            sleep(PAUSE)
        return writes

    return [each for writes in all_at_once(WRITERS, work)[1] for each in writes]


def _insert(client: Client, key: int) -> None:
    connection = client.take()
    try:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO written VALUES (%s, %s)", [peer().name, key])
    finally:
        client.give(connection)


def open_several(count: int) -> list[float]:
    """Check out so many connections, and return none; the seconds that each took."""
    client = pool_client()
    seconds, taken = [], []
    for _ in range(count):
        began = monotonic()
        taken.append(client.take())
        seconds.append(monotonic() - began)
    return seconds
