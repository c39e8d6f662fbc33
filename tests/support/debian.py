"""Debian's PostgreSQL, which has TLS and PostGIS; the wheel has neither.

    with DebianServer(certificate=directory) as server: ...

Like `Server`, it is a new cluster, not the one that Debian runs as a service.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from abs_orm_app.embedded.wheel import Programs, programs
from tests.support.servers import Server

PACKAGE = "postgresql-postgis"
FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
POSTGIS = sorted(Path("/usr/share/postgresql").glob("*/extension/postgis.control"))
IN_CI = os.environ.get("CI") == "true"

needs_debian = pytest.mark.skipif(
    not FOUND and not IN_CI, reason=f"no PostgreSQL of Debian's: apt install {PACKAGE}"
)
needs_postgis = pytest.mark.skipif(
    not POSTGIS and not IN_CI, reason=f"no PostGIS of Debian's: apt install {PACKAGE}"
)


class DebianServer(Server):
    """A `Server` of Debian's newest PostgreSQL.

    certificate: a directory with server.crt and server.key, which turns TLS on.
    """

    def __init__(
        self, settings: Mapping[str, str] | None = None, *, certificate: Path | None = None
    ) -> None:
        super().__init__({**({"ssl": "on"} if certificate else {}), **(settings or {})})
        assert FOUND, f"apt install {PACKAGE}"
        self._programs = Programs(bin=FOUND[-1], account=programs().account)
        self._certificate = certificate

    def _make_cluster(self) -> None:
        arguments = ("--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8")
        self._programs.run(
            "initdb", "--pgdata=data", *arguments, "--locale=C", cwd=self.data.parent
        )
        if self._certificate:
            for name in ("server.crt", "server.key"):
                file = Path(shutil.copy(self._certificate / name, self.data / name))
                if account := self._programs.account:
                    os.chown(file, account.pw_uid, account.pw_gid)
                file.chmod(0o600)


def make_certificate(directory: Path, host: str) -> None:
    """Write the certificate of an authority, and a certificate for the host that it signs."""
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    common = ("openssl", "req", "-x509", "-days", "2", *new_key)
    ca = ("-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt")
    server = ("-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-keyout", "server.key", "-out", "server.crt")
    for arguments in (ca, (*server, *signed)):
        subprocess.run([*common, *arguments], cwd=directory, check=True, capture_output=True)
