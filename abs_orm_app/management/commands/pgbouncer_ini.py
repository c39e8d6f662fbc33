"""`manage.py pgbouncer_ini`: writes the project's settings as a PgBouncer configuration."""

import os
import pwd
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from abs_orm_app.config.variables import whole_number
from abs_orm_app.console.arguments import add_database, argument, chosen_aliases
from abs_orm_app.environment import MOST_CONNECTIONS, pool_processes
from abs_orm_app.facts.databases import Configured, configured_databases
from abs_orm_app.pgbouncer.clients import FILE as USERLIST
from abs_orm_app.pgbouncer.clients import client_settings, is_exposed, userlist
from abs_orm_app.pgbouncer.ini import pgbouncer_ini, write_private
from abs_orm_app.pgbouncer.target import LISTEN_PORT, POOL_MODES, Plan, Target, is_private, target

INI = "pgbouncer.ini"
EXPOSED = (
    "Warning: other machines reach this port, and nothing encrypts what they send: set"
    " client_tls_sslmode, client_tls_key_file and client_tls_cert_file in the file."
)


class Command(BaseCommand):
    help = (
        "Writes a pgbouncer.ini that gives a PgBouncer the connections that the DB_* variables "
        "describe, for all processes together. Run it with the address of the server."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_database(parser, without="all on PostgreSQL")
        parser.add_argument(
            "--pool-mode",
            choices=POOL_MODES,
            default=POOL_MODES[0],
            help="How long a client keeps a server connection. Default: for a transaction.",
        )
        parser.add_argument(
            "--processes",
            type=argument(whole_number(1, MOST_CONNECTIONS)),
            metavar="N",
            help="Processes that will connect. Default: DB_POOL_PROCESSES, else WEB_CONCURRENCY.",
        )
        parser.add_argument(
            "--listen-addr",
            metavar="ADDRESS",
            help="Where PgBouncer listens on TCP; * for all addresses. Default: 127.0.0.1, or only "
            "the directory of the server's Unix socket if there is no password.",
        )
        parser.add_argument(
            "--listen-port",
            type=argument(whole_number(1, 65535)),
            default=LISTEN_PORT,
            metavar="PORT",
            help=f"Default: {LISTEN_PORT}.",
        )
        parser.add_argument(
            "--userlist",
            action="store_true",
            help="Write userlist.txt (names and passwords of clients) instead of pgbouncer.ini.",
        )
        parser.add_argument(
            "--with-password", action="store_true", help="Write the passwords, too."
        )
        parser.add_argument(
            "--output",
            type=Path,
            metavar="DIR",
            help="Write pgbouncer.ini and userlist.txt into this directory; only their owner can "
            "read them. Without --with-password, an existing userlist.txt is not changed.",
        )

    def handle(self, *_: Any, **options: Any) -> None:
        try:
            targets = [
                target(database, connections[database.alias].settings_dict, os.environ)
                for database in _databases(options["database"])
            ]
            plan = _plan(targets, options)
            if options["output"]:
                self._report(_write(options, targets, plan))
            else:
                write = userlist if options["userlist"] else pgbouncer_ini
                self.stdout.write(write(targets, plan))
        except (ImproperlyConfigured, ValueError) as error:
            raise CommandError(str(error)) from None
        if not options["userlist"]:
            self._report(["Through this PgBouncer:", *client_settings(targets, plan)])
            for warning in _warnings(targets, plan, options["output"]):
                self._report([warning])

    def _report(self, lines: Sequence[str]) -> None:
        """Print messages to stderr, because stdout may be redirected to the file."""
        self.stderr.write("\n  ".join(lines), lambda line: line)


def _write(options: dict[str, Any], targets: Sequence[Target], plan: Plan) -> list[str]:
    """Write the files to a directory; return what was done. Raises ValueError with one sentence."""
    directory: Path = options["output"]
    if options["userlist"]:
        raise ValueError("--output writes both files: leave out --userlist.")
    texts = {INI: pgbouncer_ini(targets, plan)}
    kept = not plan.with_password and (directory / USERLIST).exists()
    if not (kept or is_private(targets, plan)):
        texts[USERLIST] = userlist(targets, plan)
    try:
        done = [f"wrote {write_private(directory, name, text)}" for name, text in texts.items()]
    except ValueError as error:
        raise ValueError(f"--output {directory}: {error}") from None
    return ["Files:", *done, *([f"left {directory / USERLIST} as it is"] if kept else [])]


def _databases(names: Sequence[str] | None) -> list[Configured]:
    databases = configured_databases(chosen_aliases(names))
    if names:
        return databases
    found = [database for database in databases if database.vendor == "postgresql"]
    if not found:
        raise CommandError("DATABASES has no PostgreSQL alias; PgBouncer supports nothing else.")
    return found


def _plan(targets: Sequence[Target], options: dict[str, Any]) -> Plan:
    return Plan(
        pool_mode=options["pool_mode"],
        listen_addr=options["listen_addr"],
        listen_port=options["listen_port"],
        processes=options["processes"] or pool_processes(),
        account=_account(targets, options["output"]) if os.geteuid() == 0 else None,
        with_password=options["with_password"],
    )


def _account(targets: Sequence[Target], output: Path | None) -> str | None:
    """Return the account for root's PgBouncer: not root, but able to read the files or connect.

    None if that account is known, but has no name here, as in a container.
    """
    for directory in [output, *(each.host for each in targets)]:
        if directory and os.path.isdir(directory) and (owner := os.stat(directory).st_uid):
            try:
                return pwd.getpwuid(owner).pw_name
            except KeyError:
                return None
    return "nobody"


def _warnings(targets: Sequence[Target], plan: Plan, output: Path | None) -> list[str]:
    """Return what PgBouncer cannot do with these files, one sentence each."""
    found = [f"Warning: {sentence}" for each in targets for sentence in each.unkept]
    if output and os.geteuid() == 0 and output.stat().st_uid == 0:
        found.append(
            f"Warning: {output} belongs to root. PgBouncer does not run as root, and another"
            " account cannot reload these files. Give the directory to PgBouncer's account with"
            f" `chown pgbouncer {output}`, and run this again."
        )
    if is_exposed(plan):
        found.append(EXPOSED)
    return found
