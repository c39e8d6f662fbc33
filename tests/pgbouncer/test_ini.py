"""`manage.py pgbouncer_ini`: each setting, and that PgBouncer starts with the result."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import call_command

from abs_orm_app.config.address import session_options
from abs_orm_app.environment import database_from_env
from tests.support.pgbouncer_ini import NAMELESS, URL, entry, ini, written
from tests.support.pgbouncers import PgBouncer, needs_pgbouncer
from tests.support.ports import reserved_port
from tests.support.projects import OURS, SQLITE, STOCK, database, manage, python
from tests.support.servers import PASSWORD_OVER_TCP, Server

pytestmark = pytest.mark.server(
    hba=PASSWORD_OVER_TCP,
    roles=["app LOGIN PASSWORD 's3c''\"ret'", "reader NOLOGIN ROLE app"],
    sql=['CREATE DATABASE "we""ird-name"'],
)

OUTPUT = ("--with-password", "--output")


def test_the_command_does_not_load_the_pool() -> None:
    code = (
        "import django, sys; django.setup(); import abs_orm_app.management.commands.pgbouncer_ini;"
        "print('psycopg_pool' in sys.modules)"
    )
    environ = {"DATABASE_URL": URL, "DB_POOL_MODE": "pgbouncer"}
    done = python("-c", code, DJANGO_SETTINGS_MODULE="abs_project.settings", **environ)
    assert done.stdout == "False\n", done.stderr


# Settings


def test_the_five_settings_become_pgbouncers() -> None:
    settings = ini(
        shop=entry(
            DB_POOL_SIZE="12",
            DB_MAX_OVERFLOW="3",
            DB_POOL_RECYCLE="1800",
            DB_POOL_TIMEOUT="2.5",
            DB_POOL_PRE_PING="true",
        )
    )
    expected = {
        "default_pool_size": "12",
        "reserve_pool_size": "3",
        "max_db_connections": "15",
        "server_lifetime": "1800",
        "query_wait_timeout": "2.5",
        "server_check_query": ";",
        "server_check_delay": "0.5",
        "pool_mode": "transaction",
        "listen_port": "6432",
    }
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("variable", "value", "name", "theirs"),
    [
        ("DB_POOL_RECYCLE", "-1", "server_lifetime", "315360000"),  # 0 would mean: use it once
        ("DB_POOL_RECYCLE", "2147483647", "server_lifetime", "2147483647"),
        ("DB_POOL_PRE_PING", "false", "server_check_query", ""),
        ("DB_MAX_OVERFLOW", "0", "reserve_pool_size", "0"),
        ("DB_POOL_TIMEOUT", "86400", "query_wait_timeout", "86400"),
        ("DB_POOL_TIMEOUT", "0.25", "query_wait_timeout", "0.25"),
    ],
)
def test_special_values_keep_their_meaning(
    variable: str, value: str, name: str, theirs: str
) -> None:
    assert ini(shop=entry(**{variable: value}))[name] == theirs


def test_an_alias_without_a_pool_has_the_settings_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DB_POOL_SIZE", "7")
    monkeypatch.setenv("REPLICA_DB_POOL_SIZE", "5")
    plain = {"ENGINE": STOCK, "NAME": "shop", "HOST": "db", "USER": "app", "PASSWORD": "x"}
    assert ini(shop=plain)["default_pool_size"] == "7"
    given = {"REPLICA_DATABASE_URL": URL, "DB_POOL_MODE": "pgbouncer"}
    replica = database_from_env("REPLICA_", environ=given)
    assert ini(shop=replica)["default_pool_size"] == "5"


def test_a_stock_pool_written_by_hand_is_understood() -> None:
    pool = {"min_size": 2, "max_size": 6, "timeout": 4, "max_lifetime": 60}
    settings = ini(
        shop={"ENGINE": STOCK, "NAME": "a", "HOST": "db", "USER": "u", "OPTIONS": {"pool": pool}}
    )
    names = ("default_pool_size", "reserve_pool_size", "query_wait_timeout", "server_lifetime")
    assert [settings[name] for name in names] == ["2", "4", "4", "60"]


def test_clients_are_counted_from_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ini("--processes", "8", shop=entry())["max_client_conn"] == "800"
    monkeypatch.setenv("DB_POOL_PROCESSES", "3")
    assert ini(shop=entry())["max_client_conn"] == "300"


def test_pgbouncer_connects_with_the_parameters_of_the_alias() -> None:
    url = f"{URL}?sslmode=verify-full&sslrootcert=/etc/ca.pem&connect_timeout=3"
    settings = ini(shop=entry(url))
    expected = {
        "server_tls_sslmode": "verify-full",
        "server_tls_ca_file": "/etc/ca.pem",
        "server_connect_timeout": "3",
        "tcp_keepidle": "10",
        "tcp_user_timeout": "18000",
    }
    assert {name: settings[name] for name in expected} == expected
    assert ini(shop=entry())["server_tls_sslmode"] == "prefer"


def test_missing_settings_come_from_libpqs_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "pg.example.com")
    monkeypatch.setenv("PGSSLMODE", "require")
    monkeypatch.setenv("PGUSER", "me")
    settings = ini(shop={"ENGINE": OURS, "NAME": "shop"})
    assert settings["shop"] == "host=pg.example.com port=5432"
    assert (settings["server_tls_sslmode"], settings["stats_users"]) == ("require", "me")


def test_prepared_statements_are_switched_on_where_they_are_used() -> None:
    assert "max_prepared_statements" not in ini(shop=entry())  # PgBouncer 1.18 would not start
    prepares = {**entry(), "OPTIONS": {"prepare_threshold": 5, "server_side_binding": True}}
    assert ini(shop=prepares)["max_prepared_statements"] == "200"


def test_several_aliases_have_their_own_databases_and_sizes() -> None:
    settings = ini(
        primary=entry("postgresql://app:x@one/shop"),
        replica=entry("postgresql://app:x@two/shop", DB_POOL_SIZE="5", DB_MAX_OVERFLOW="0"),
        odd=entry("postgresql://app:x@three/we%22ird-name"),
    )
    assert settings["shop"] == "host=one port=5432"
    assert settings["shop_replica"] == (
        "host=two port=5432 dbname=shop pool_size=5 reserve_pool=0 max_db_connections=5"
    )
    assert settings["we_ird-name"] == "host=three port=5432 dbname='we\"ird-name'"
    assert settings["max_client_conn"] == "300"


def test_each_database_has_its_own_name() -> None:
    settings = ini(
        a=entry("postgresql://app:x@one/shop"),
        b=entry("postgresql://app:x@two/shop_c"),
        c=entry("postgresql://app:x@three/shop"),
        d=entry("postgresql://app:x@four/pgbouncer"),  # the name of the console
    )
    assert settings["shop"] == "host=one port=5432"
    assert settings["shop_c"] == "host=two port=5432"
    assert settings["shop_c_c"] == "host=three port=5432 dbname=shop"
    assert settings["pgbouncer_d"] == "host=four port=5432 dbname=pgbouncer"


def led(*arguments: str, **entries: dict[str, Any]) -> list[str]:
    """The lines that tell what to set in the project."""
    lines = written(*arguments, **entries).splitlines()
    return [line.removeprefix(";   ") for line in lines if line.startswith(";   ")]


def test_entries_written_by_hand_are_told_what_to_change() -> None:
    by_hand = {"ENGINE": STOCK, "USER": "app", "PASSWORD": "x"}
    lines = led(
        first={**by_hand, "HOST": "two", "NAME": "stock"},
        second={**by_hand, "HOST": "three", "NAME": "stock"},
    )
    rest = "'DISABLE_SERVER_SIDE_CURSORS': True, 'CONN_MAX_AGE': 0, and no pool in OPTIONS"
    where = "'HOST': '127.0.0.1', 'PORT': 6432"
    assert lines == [
        f"DATABASES['first']: {where}, 'NAME': 'stock', {rest}",
        f"DATABASES['second']: {where}, 'NAME': 'stock_second', {rest}",
        "and its present password",
    ]


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.3, ::1", "10.1.2.3"),
        ("::1,10.1.2.3", "[::1]"),
        ("*", "HOST"),
        ("0.0.0.0,::", "HOST"),
    ],
)
def test_clients_get_the_first_of_several_addresses(listen: str, host: str) -> None:
    assert f"DATABASE_URL=postgresql://app@{host}:6432/shop" in led(
        "--listen-addr", listen, shop=entry()
    )
    assert ini("--listen-addr", listen, shop=entry())["listen_addr"] == listen


# Secrets


def test_a_password_is_written_only_when_asked_for() -> None:
    given = entry("postgresql://app:s3c'%22ret@db/shop")
    assert "s3c" not in written(shop=given)
    assert written("--userlist", shop=given) == '"app" "PASSWORD"\n'
    assert written("--userlist", "--with-password", shop=given) == '"app" "s3c\'""ret"\n'
    # In [databases], it would let every role of userlist.txt in as this one.
    assert ini("--with-password", shop=given)["shop"] == "host=db port=5432"


def test_without_a_password_only_the_owner_of_the_socket_may_connect() -> None:
    given = entry("postgresql://app@%2Frun%2Fpg/shop")
    settings = ini(shop=given)
    assert settings["shop"] == "host=/run/pg port=5432 user=app"
    assert (settings["auth_type"], settings["unix_socket_mode"]) == ("any", "0700")
    assert "listen_addr" not in settings
    # Everybody can reach a TCP port, so a password is needed.
    settings = ini("--listen-addr", "127.0.0.1", shop=given)
    assert (settings["auth_type"], settings["auth_file"]) == ("scram-sha-256", "userlist.txt")


def test_both_files_are_written_for_their_owner_alone(tmp_path: Path) -> None:
    old = tmp_path / "userlist.txt"
    old.write_text("of before")
    old.chmod(0o644)
    umask = os.umask(0)
    try:
        out = written(*OUTPUT, str(tmp_path), shop=entry())
    finally:
        os.umask(umask)
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pgbouncer.ini", "userlist.txt"]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert old.read_text() == '"app" "s3cret"\n'
    assert "s3cret" not in (tmp_path / "pgbouncer.ini").read_text()


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """Whoever has the old file open, as a PgBouncer that reloads, reads the old one to its end."""
    written(*OUTPUT, str(tmp_path), shop=entry())
    with (tmp_path / "userlist.txt").open() as before:
        written(*OUTPUT, str(tmp_path), shop=entry("postgresql://app:other@db/shop"))
        assert before.read() == '"app" "s3cret"\n'
    assert (tmp_path / "userlist.txt").read_text() == '"app" "other"\n'


def test_a_userlist_that_was_filled_in_by_hand_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "userlist.txt").write_text('"app" "SCRAM-SHA-256$4096:..."\n')
    written("--output", str(tmp_path), shop=entry())
    assert "SCRAM" in (tmp_path / "userlist.txt").read_text()
    assert (tmp_path / "pgbouncer.ini").exists()


def test_without_a_password_there_is_no_userlist(tmp_path: Path) -> None:
    written(*OUTPUT, str(tmp_path), shop=entry("postgresql://app@%2Frun%2Fpg/shop"))
    assert [path.name for path in tmp_path.iterdir()] == ["pgbouncer.ini"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_that_root_writes_belong_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, NAMELESS, NAMELESS)
    written(*OUTPUT, str(tmp_path), shop=entry())
    assert {path.stat().st_uid for path in tmp_path.iterdir()} == {NAMELESS}


@pytest.mark.parametrize(
    ("listen", "warned"),
    [([], False), (["--listen-addr", "127.0.0.1,::1"], False), (["--listen-addr", "*"], True)],
)
def test_a_port_that_other_machines_reach_without_tls_is_warned_about(
    listen: list[str], warned: bool
) -> None:
    err = StringIO()
    with database(entry(), "shop"):
        arguments = ("pgbouncer_ini", "--database", "shop", *listen)
        call_command(*arguments, stdout=StringIO(), stderr=err)
    assert ("client_tls_sslmode" in err.getvalue()) is warned


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("target_session_attrs=read-write", "sets target_session_attrs=read-write, which"),
        ("target_session_attrs=prefer-standby", "RECONNECT"),
        ("channel_binding=require", "sets channel_binding=require, which PgBouncer has no"),
        ("target_session_attrs=any&channel_binding=prefer&sslmode=require", None),
    ],
)
def test_what_pgbouncer_cannot_keep_is_warned_about(query: str, sentence: str | None) -> None:
    errors = StringIO()
    with database(entry(f"{URL}?{query}"), "shop"):
        call_command("pgbouncer_ini", "--database", "shop", stdout=StringIO(), stderr=errors)
    if sentence is None:
        assert "Warning" not in errors.getvalue()
    else:
        assert "Warning: DATABASES['shop']" in errors.getvalue()
        assert sentence in errors.getvalue()


def test_a_name_with_a_comma_makes_no_other_role_an_observer() -> None:
    settings = ini(shop=entry("postgresql://a%2Cpostgres:x@db/shop"), stock=entry())
    assert settings["stats_users"] == "app"


# Missing settings


def test_databases_that_are_not_postgresql_are_left_out_unless_named() -> None:
    out = StringIO()
    with database(SQLITE, "cache"):
        call_command("pgbouncer_ini", stdout=out, stderr=StringIO())
    assert "postgres = host=" in out.getvalue()
    assert "cache" not in out.getvalue()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PgBouncer becomes somebody else")
def test_the_user_is_commented_out_where_the_account_has_no_name(tmp_path: Path) -> None:
    os.chown(tmp_path, NAMELESS, -1)
    directory = str(tmp_path).replace("/", "%2F")
    text = written(shop=entry(f"postgresql://app@{directory}/shop"))
    assert "\n;user = pgbouncer" in text


# With a real PgBouncer


@needs_pgbouncer
def test_the_file_starts_unchanged_and_serves_the_sample_project(server: Server) -> None:
    done = manage("pgbouncer_ini", DATABASE_URL=server.url)
    assert done.returncode == 0
    variables = [line.split("=", 1) for line in done.stderr.split() if "=" in line]
    through = dict(variables)
    assert through == {
        "DB_POOL_MODE": "pgbouncer",
        "DATABASE_URL": server.url.replace(f":{server.port}/", ":6432/"),
    }
    with PgBouncer(server, ini=done.stdout) as pooler:
        checked = manage("check_pool", "--fail-level", "WARNING", **through)
        assert checked.returncode == 0, checked.stdout
        assert "PgBouncer" in checked.stdout
        assert "transaction pooling" in checked.stdout
        ask = (
            "from django.core.management import call_command; call_command('migrate');"
            " from django.test import Client; print(Client().get('/', HTTP_HOST='localhost'))"
        )
        served = manage("shell", "-c", ask, **through)
        assert 'status_code=200, "application/json"' in served.stdout, served.stderr
        assert "WARNING" not in pooler.log


@needs_pgbouncer
def test_the_userlist_accepts_the_right_password_only(server: Server) -> None:
    given = entry(f"postgresql://app:s3c'%22ret@127.0.0.1:{server.port}/we%22ird-name")
    users = server.socket_dir / "userlist.txt"
    users.write_text(written("--userlist", "--with-password", shop=given))
    os.chown(users, server.socket_dir.stat().st_uid, -1)
    with (
        reserved_port() as port,
        PgBouncer(server, ini=written("--listen-port", str(port), shop=given), listen_port=port),
    ):
        address = f"host=127.0.0.1 port={port} user=app dbname=we_ird-name"
        with psycopg.connect(address, password="s3c'\"ret") as connection:
            row = connection.execute("SELECT current_user, current_database()").fetchone()
        assert row == ("app", 'we"ird-name')
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            psycopg.connect(address, password="wrong")


@needs_pgbouncer
def test_no_role_becomes_another_through_pgbouncer(server: Server) -> None:
    server.reload(hba="local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
    with server.admin() as admin:
        admin.execute("ALTER ROLE app PASSWORD 'app pw'")
        admin.execute("CREATE ROLE low LOGIN PASSWORD 'low pw'")
        admin.execute("CREATE DATABASE shop OWNER app")
        admin.execute("REVOKE CONNECT ON DATABASE shop FROM public")
        admin.execute("CREATE DATABASE stats")
    address = f"127.0.0.1:{server.port}"
    aliases = {
        "shop": entry(f"postgresql://app:app%20pw@{address}/shop"),
        "stats": entry(f"postgresql://low:low%20pw@{address}/stats"),
    }
    with reserved_port() as port:
        written("--listen-port", str(port), *OUTPUT, str(server.socket_dir), **aliases)
        text = (server.socket_dir / "pgbouncer.ini").read_text()
        with PgBouncer(server, ini=text, listen_port=port):
            here = f"host=127.0.0.1 port={port} connect_timeout=5"
            for user, name in (("app", "shop"), ("low", "stats")):
                login = f"{here} user={user} password='{user} pw' dbname={name}"
                with psycopg.connect(login) as connection:
                    row = connection.execute("SELECT current_user, current_database()").fetchone()
                assert row == (user, name)
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(f"{here} user=low password='low pw' dbname=shop")


@pytest.mark.parametrize(
    "options",
    [
        "-c a.b=x",
        "-ca.b=x",
        "--a.b=x",
        r"-c a.b=x\ y\\z  -c a.c='1'",
        "--a.b== --search-path=s",
        "-c a.b=",
    ],
)
def test_options_are_read_as_the_server_reads_them(server: Server, options: str) -> None:
    with psycopg.connect(server.conninfo, options=options) as connection:
        for name, text in session_options(options).items():
            row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
            assert row == (text,)


@needs_pgbouncer
def test_options_and_role_hold_in_every_transaction(server: Server) -> None:
    options = {"options": r"-c search_path=a,\ b -c work_mem=5MB", "assume_role": "reader"}
    given = {
        "ENGINE": OURS,
        "NAME": "postgres",
        "USER": "app",
        "HOST": str(server.socket_dir),
        "PORT": str(server.port),
        "OPTIONS": options,
    }
    with PgBouncer(server, ini=written(shop=given)) as pooler:
        ask = "SELECT current_setting('search_path'), current_setting('work_mem'), current_user"
        sent = f"{pooler.conninfo} options='-c search_path=a'"  # as the project still does
        with psycopg.connect(sent) as first, psycopg.connect(pooler.conninfo) as second:
            for connection in (first, second):  # both hold a session
                assert connection.execute(ask).fetchone() == ("a, b", "5MB", "reader")
