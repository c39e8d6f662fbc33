"""A TCP proxy between clients and a server that adds latency, breaks and counts.

    with Proxy(server.port, delay=0.0005) as proxy:  # a round trip takes 1 ms longer
        psycopg.connect(f"{server.tcp_conninfo} port={proxy.port}")
        proxy.blackhole()

For a latency that does not depend on what the clients' interpreter does, run it as a process of
its own: `python -m tests.support.proxy PORT DELAY` prints its port and works until its stdin is
closed.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from typing import Any, Self

from tests.support.ports import LOCALHOST, reserved_port

CHUNK = 65536
REPORTED = (b"in_hot_standby\0", b"default_transaction_read_only\0")


class Proxy:
    """Forwards TCP connections to `target`, a port of this machine or a Unix socket.

    host: the address where it listens.
    target: may be changed; a connection stays with the target that it was opened to, as behind a
    name or an address that moves.
    mute: the server reports no role: what it says of `in_hot_standby` and the like is renamed, as
    with a server older than 14.
    delay: seconds by which data is delayed, each way; a few 0.1 ms come on top.
    closing_delay: more seconds until a connection that one side has closed is closed for the other.
    port: where it listens; the same after `refuse` and `resume`.
    client_messages: number of packets from clients, which is one for each flush of libpq.
    """

    def __init__(
        self, target: int | str, delay: float = 0.0, *, mute: bool = False, host: str = LOCALHOST
    ) -> None:
        self.target = target
        self.host = host
        self.mute = mute
        self.delay = delay
        self.closing_delay = 0.0
        self.port = 0
        self.client_messages = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._listener: socket.socket | None = None
        self._reservation = ExitStack()

    def __enter__(self) -> Self:
        self.port = self._reservation.enter_context(reserved_port())
        self.resume()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self._flowing.set()  # the threads wake up and find their sockets closed
        self._reservation.close()

    @property
    def connections(self) -> int:
        """The number of client connections now, with those that `blackhole` keeps waiting."""
        with self._lock:
            return len(self._open) // 2

    def blackhole(self) -> None:
        """Stop forwarding, like a firewall that has dropped its connections from its table.

        Connections stay open. The kernel still accepts new ones, which get no answer.
        """
        self._flowing.clear()

    def refuse(self) -> None:
        """Close all connections and refuse new ones, like a machine without a running server."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes up accept(), close() would not
            self._listener.close()
            self._listener = None
        with self._lock:
            for each in self._open:
                _end(each)

    def resume(self) -> None:
        """Undo `blackhole` and `refuse`; data held back since `blackhole` is forwarded."""
        self._flowing.set()
        if self._listener is None:
            self._listener = socket.create_server((self.host, self.port))
            _run(self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # closed by `refuse`
            while True:
                client, _ = listener.accept()
                _run(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        """Serve one client until either side closes."""
        family = socket.AF_UNIX if isinstance(self.target, str) else socket.AF_INET
        with client, socket.socket(family) as server:
            with self._lock:
                self._open |= {client, server}
            self._flowing.wait()
            try:
                server.connect(
                    self.target if isinstance(self.target, str) else (LOCALHOST, self.target)
                )
                for each in (client, server):
                    if each.family == socket.AF_INET:
                        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                answers = _run(self._forward, server, client)
                self._forward(client, server, is_client=True)
                answers.join()
            except OSError:
                pass  # no server, or the client has gone: only close
            finally:
                with self._lock:
                    self._open -= {client, server}

    def _forward(self, source: socket.socket, sink: socket.socket, is_client: bool = False) -> None:
        """Copy until either side closes, then close both."""
        late: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
        sender = _run(self._send, sink, late)
        with suppress(OSError):
            while data := source.recv(CHUNK):
                if is_client:
                    with self._lock:
                        self.client_messages += 1
                if self.mute:
                    for name in REPORTED:
                        data = data.replace(name, name.upper())
                late.put((time.monotonic() + self.delay, data))
        late.put((time.monotonic() + self.delay + self.closing_delay, b""))
        sender.join()

    def _send(self, sink: socket.socket, late: SimpleQueue[tuple[float, bytes]]) -> None:
        with suppress(OSError):
            while True:
                due, data = late.get()
                time.sleep(max(0.0, due - time.monotonic()))
                self._flowing.wait()
                if not data:
                    break
                sink.sendall(data)
        _end(sink)


def _run(target: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def _end(connection: socket.socket) -> None:
    """Shut the socket down, which wakes the thread that reads from it; close() would not."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    with Proxy(int(sys.argv[1]), float(sys.argv[2])) as running:
        sys.stdout.write(f"{running.port}\n")
        sys.stdout.flush()
        sys.stdin.read()
