"""A server that speaks PostgreSQL's protocol, and answers with what may harm who shows it."""

from __future__ import annotations

import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Escape sequences of a terminal, line ends, formats, HTML, a text that runs backwards.
HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x1b[31m\r\x9b1mOK: forged\x85\u2028{0} {self.secret} %s %(x)d %n"
    " \u202e<script>alert(1)</script>\"'&\x00"
).replace("\x00", "")
SSL_REQUEST, GSS_REQUEST = 80877103, 80877104


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def error(text: str, severity: str = "FATAL", state: str = "57P03") -> bytes:
    fields = {"S": severity, "V": severity, "C": state, "M": text, "D": text, "H": text}
    body = b"".join(f"{key}{value}".encode() + b"\0" for key, value in fields.items())
    return message(b"E", body + b"\0")


def row(*values: str) -> bytes:
    """A result of one row of text."""
    described = struct.pack("!h", len(values)) + b"".join(
        b"column\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0) for _ in values
    )
    data = struct.pack("!h", len(values)) + b"".join(
        struct.pack("!i", len(value.encode())) + value.encode() for value in values
    )
    return message(b"T", described) + message(b"D", data) + message(b"C", b"SELECT 1\0")


READY = message(b"Z", b"I")


def welcome(version: str) -> bytes:
    given = {
        "server_version": version,
        "server_encoding": "UTF8",
        "client_encoding": "UTF8",
        "integer_datetimes": "on",
        "standard_conforming_strings": "on",
        "TimeZone": "UTC",
        "is_superuser": HOSTILE,
        "session_authorization": HOSTILE,
    }
    statuses = [message(b"S", f"{name}\0{value}\0".encode()) for name, value in given.items()]
    return b"".join(
        (message(b"R", struct.pack("!i", 0)), *statuses, message(b"K", struct.pack("!ii", 1, 1)))
    )


class Handler(socketserver.StreamRequestHandler):
    """Refuses each client (`accepts` is False), or each statement."""

    server: Hostile

    def handle(self) -> None:
        with suppress(OSError, struct.error):
            self._start()
            if not self.server.accepts:
                self.wfile.write(error(self.server.text))
                return
            self.wfile.write(welcome(self.server.version) + READY)
            self._answer()

    def _start(self) -> None:
        while True:
            length, code = struct.unpack("!ii", self.rfile.read(8))
            self.rfile.read(length - 8)
            if code not in (SSL_REQUEST, GSS_REQUEST):
                return
            self.wfile.write(b"N")

    def _answer(self) -> None:
        while kind := self.rfile.read(1):
            (length,) = struct.unpack("!i", self.rfile.read(4))
            self.rfile.read(length - 4)
            if kind == b"X":
                return
            if kind == b"Q":
                self.wfile.write(error(self.server.text, "ERROR", "XX000") + READY)
            elif kind == b"P":
                self.wfile.write(error(self.server.text, "ERROR", "XX000"))
            elif kind == b"S":
                self.wfile.write(READY)


class Hostile(socketserver.ThreadingTCPServer):
    """`port` says where it listens."""

    allow_reuse_address = True
    daemon_threads = True
    accepts = False
    text = HOSTILE
    version = f"18.1 {HOSTILE}"

    @property
    def port(self) -> int:
        return int(self.server_address[1])


@contextmanager
def hostile_server(*, accepts: bool) -> Iterator[Hostile]:
    with Hostile(("127.0.0.1", 0), Handler) as server:
        server.accepts = accepts
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)
