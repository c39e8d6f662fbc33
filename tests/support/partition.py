"""A network that can be cut between a process and a server: packets are lost, nobody says so.

    with Partition("/run/postgresql/.s.PGSQL.5432") as network:  # in a process of its own
        psycopg.connect(host=network.host, port=network.port)
        network.cut()

The process moves to a network namespace of its own, with two addresses of RFC 5737 on its loopback
device; a proxy on one of them forwards to the server's Unix socket. Cut means that nothing is
delivered to the other. Needs `ip` (iproute2), and privileges or unprivileged user namespaces:
`refusal()` is why that cannot be had here.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.support.names import CLONE_NEWUSER, ROOT, check
from tests.support.proxy import Proxy

CLONE_NEWNET = 0x40000000
CLIENT, SERVER = "192.0.2.1", "192.0.2.2"
DELIVERY = ("local", CLIENT, "dev", "lo", "table", "local", "src", CLIENT)
LOSS = ("blackhole", f"{CLIENT}/32")


class Partition:
    """The network, and a proxy at its other end for a server's Unix socket.

    port: the proxy's; 0: one that is free.
    """

    host = SERVER

    def __init__(self, target: str, port: int = 0) -> None:
        self._proxy = Proxy(target, host=SERVER)
        self._wanted = port

    def __enter__(self) -> Self:
        enter_namespace()
        _ip("link", "set", "lo", "up")
        for address in (CLIENT, SERVER):
            _ip("address", "add", f"{address}/32", "dev", "lo")
        # Whoever connects to the server does it from the client's address.
        _ip("route", "replace", "local", SERVER, "dev", "lo", "table", "local", "src", CLIENT)
        self._proxy.__enter__()
        if self._wanted:
            self._proxy.refuse()
            self._proxy.port = self._wanted
            self._proxy.resume()
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.__exit__()

    @property
    def port(self) -> int:
        return self._proxy.port

    def cut(self) -> None:
        """Lose each packet from the server from now on."""
        _ip("route", "delete", *DELIVERY)
        _ip("route", "add", *LOSS)

    def mend(self) -> None:
        _ip("route", "delete", *LOSS)
        _ip("route", "add", *DELIVERY)


def enter_namespace() -> None:
    """Move this process to a network of its own. Raises OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        check(libc.unshare(CLONE_NEWNET))
        return
    uid, gid = os.getuid(), os.getgid()
    check(libc.unshare(CLONE_NEWNET | CLONE_NEWUSER))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def refusal() -> str:
    """Why there can be no such network here, or "" if there can."""
    if not shutil.which("ip"):
        return "no command `ip`: apt install iproute2"
    source = "from tests.support.partition import Partition; Partition('').__enter__()"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, cwd=ROOT, text=True)
    return done.stderr.strip().rpartition("\n")[2]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
