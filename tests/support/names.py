"""A resolver of the test's own: a hosts file that only one process sees.

    hosts = Hosts(tmp_path / "hosts")
    hosts.set({"db": "127.0.0.1"})
    ... in the other process, before it starts threads: hosts.enter()
    hosts.set({})  # the name is gone

The file is mounted over /etc/hosts in a mount namespace of the process. That needs no privileges
where the kernel gives unprivileged user namespaces; `refusal()` is why a test is skipped elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
SIZE = 1024  # bytes of the file, always: it is replaced by one write, which nobody reads in part


class Hosts:
    """The file that takes the place of /etc/hosts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def set(self, addresses: Mapping[str, str]) -> None:
        """Have these names, and no others. Spaces separate the addresses of one name."""
        text = "".join(
            f"{address} {name}\n" for name, each in addresses.items() for address in each.split()
        )
        assert len(text) < SIZE
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.pwrite(file, text.ljust(SIZE, "\n").encode(), 0)  # in place: the mount is of this inode
        os.close(file)

    def enter(self, nameserver: str | None = None) -> None:
        """Let this thread, and those that it starts from now on, ask this file for names.

        nameserver: an address to ask, at port 53, for a name that is not in the file; without it,
        such a name does not exist.

        Raises OSError where the kernel does not allow that.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        user = 0 if os.geteuid() == 0 else CLONE_NEWUSER
        check(libc.unshare(CLONE_NEWNS | user))
        check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
        order = self.path.with_name("nsswitch.conf")
        order.write_text(f"hosts: files{' dns' if nameserver else ''}\n")
        servers = self.path.with_name("resolv.conf")
        servers.write_text(f"nameserver {nameserver}\noptions timeout:30 attempts:2\n")
        for path, mounted_over in (
            (self.path, b"/etc/hosts"),
            (order, b"/etc/nsswitch.conf"),
            (servers, b"/etc/resolv.conf"),
        ):
            check(libc.mount(bytes(path), mounted_over, None, MS_BIND, None))


def check(result: int) -> None:
    """Raise OSError if a function of the C library has failed."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def refusal() -> str:
    """Why a process cannot have a resolver of its own here, or "" if it can."""
    source = (
        "from pathlib import Path; from tempfile import mkdtemp;"
        " from tests.support.names import Hosts;"
        " hosts = Hosts(Path(mkdtemp(), 'hosts')); hosts.set({}); hosts.enter()"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, cwd=ROOT, text=True)
    return done.stderr.strip().rpartition("\n")[2]
