"""What the cluster needs of others, and why it cannot be had here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from abs_orm_app.embedded.wheel import programs

# Each program, and Debian's package of it.
PROGRAMS = {
    "etcd": "etcd-server",
    "haproxy": "haproxy",
    "iptables": "iptables",
    "ip": "iproute2",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
PATRONI = ("patroni[etcd3]>=4", "psycopg[binary]")
INSTALL = 240.0  # seconds


def refusal() -> str:
    """Why there can be no cluster here, or "" if there can."""
    missing = [package for name, package in PROGRAMS.items() if not shutil.which(name, path=PATH)]
    if missing:
        return f"apt-get install {' '.join(dict.fromkeys(missing))}"
    if os.geteuid() != 0:
        return "only root can make its namespaces, and run PostgreSQL as another account there"
    try:
        made = subprocess.run(
            [
                "unshare",
                "--net",
                "--ipc",
                "--pid",
                "--mount-proc",
                "--fork",
                "iptables",
                "-L",
                "-n",
            ],
            env={"PATH": PATH},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "the kernel makes no namespaces"
    return made.stderr.strip().rpartition("\n")[2] if made.returncode else ""


def with_patroni(home: Path) -> Path:
    """An interpreter that has Patroni, below `home`, and that the server's account can run.

    Raises RuntimeError, the end of a sentence, if it cannot be had.
    """
    base = next((each for each in _interpreters() if programs().can_run(each, "-c", "")), None)
    if base is None:
        raise RuntimeError("the server's account can run no Python; apt-get install python3")
    environment = home / "patroni"
    _run(str(base), "-m", "venv", "--without-pip", str(environment))
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python))
    _run(*pip, "install", "--quiet", *PATRONI)
    return python


def _interpreters() -> list[Path]:
    own = Path(sys.base_prefix, "bin", "python3")
    return [own, Path("/usr/bin/python3")]


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL, check=False, umask=0o022
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(str(error)) from None
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().rpartition("\n")[2])
