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

from django.core.exceptions import ImproperlyConfigured

from abs_orm_app.embedded.wheel import Programs, programs
from tests.support.servers import Server
from tests.support.system import needs

PACKAGE = "postgresql-postgis"
FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
POSTGIS = Path("/usr/share/postgresql") / FOUND[-1].parent.name if FOUND else None


def has_postgis() -> bool:
    """Whether Debian's newest PostgreSQL has PostGIS, and Django finds the libraries."""
    if POSTGIS is None or not (POSTGIS / "extension" / "postgis.control").exists():
        return False
    try:
        import django.contrib.gis.gdal  # noqa: F401
    except ImproperlyConfigured:  # or knows none of this version
        return False
    return True


needs_debian = needs(PACKAGE, found=FOUND)
needs_postgis = needs(PACKAGE, found=has_postgis())


class DebianServer(Server):
    """A `Server` of Debian's newest PostgreSQL.

    certificate: a directory with server.crt, server.key and ca.crt, which turns TLS on.
    """

    def __init__(
        self, settings: Mapping[str, str] | None = None, *, certificate: Path | None = None
    ) -> None:
        tls = {"ssl": "on", "ssl_ca_file": "ca.crt"} if certificate else {}
        super().__init__({**tls, **(settings or {})})
        assert FOUND, f"apt install {PACKAGE}"
        self._programs = Programs(bin=FOUND[-1], account=programs().account)
        self._certificate = certificate

    def _make_cluster(self) -> None:
        arguments = ("--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8")
        self._programs.run(
            "initdb", "--pgdata=data", *arguments, "--locale=C", cwd=self.data.parent
        )
        if self._certificate:
            self.use_certificate(self._certificate)

    def use_certificate(self, directory: Path) -> None:
        """Replace the certificate; a server that runs uses it after `reload`."""
        for name in ("server.crt", "server.key", "ca.crt"):
            file = Path(shutil.copy(directory / name, self.data / name))
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


def make_client_certificate(directory: Path, role: str, *, days: int) -> None:
    """Write a certificate for a role, of the authority in the directory; expired with days=-1."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    request = ("req", "-new", *key, "-subj", f"/CN={role}", "-keyout", "client.key")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-set_serial", "1", "-days", str(days))
    for arguments in (
        (*request, "-out", "client.csr"),
        ("x509", "-req", "-in", "client.csr", *signed, "-out", "client.crt"),
    ):
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)
    (directory / "client.key").chmod(0o600)
