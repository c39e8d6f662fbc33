"""The cluster: three nodes of Patroni, one etcd, and HAProxy, each on an address of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg

from abs_orm_app.embedded.wheel import programs
from tests.cluster.packages import PATH
from tests.support.servers import FAST, wait_until

ETCD, PROXY = "127.0.0.10", "127.0.0.20"
PORT, REST, PROXY_PORT = 5432, 8008, 5000
NODES = {"n1": "127.0.0.11", "n2": "127.0.0.12", "n3": "127.0.0.13"}
TTL, LOOP_WAIT, RETRY_TIMEOUT = 20, 2, 5  # of Patroni, in seconds
HEALTHY = 120.0  # seconds, for a cluster to start or to be whole again
REQUEST = 40.0  # seconds, for an answer of the REST interface
DATABASE, ROLE = "postgres", "app"
TIMELINE = "('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int"

# As Patroni's documentation has it. The nodes reach etcd through it, each at an address of its own,
# so that a node without a network has no etcd either.
HAPROXY = f"""
defaults
    mode tcp
    retries 2
    timeout connect 4s
    timeout client 30m
    timeout server 30m
    timeout check 5s
listen primary
    bind {PROXY}:{PROXY_PORT}
    option httpchk OPTIONS /primary
    http-check expect status 200
    default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions
"""


class Node:
    """A Patroni with its PostgreSQL."""

    def __init__(
        self, name: str, home: Path, start: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        self.name, self.address = name, NODES[name]
        self.directory = programs().own(_made(home / name))
        self._start = start
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, python: Path) -> None:
        """Start Patroni, which starts PostgreSQL."""
        file = self.directory / "patroni.yml"
        file.write_text(json.dumps(self._configuration()))  # which is YAML, too
        file.chmod(0o644)
        account = {name: text for name, text in programs().process.items() if name != "env"}
        self._process = self._start(self.name, python, "-m", "patroni", file, **account)

    def kill(self) -> None:
        """SIGKILL to Patroni and PostgreSQL, as if the machine were gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(HEALTHY)
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP to PostgreSQL: the kernel accepts connections, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def timeline(self) -> int:
        """The timeline of a server that accepts writes; 0 for any other."""
        with (
            suppress(psycopg.Error),
            psycopg.connect(
                host=str(self.directory), port=PORT, user="postgres", dbname=DATABASE,
                connect_timeout=2, application_name="admin",
            ) as connection,
        ):  # fmt: skip
            row = connection.execute(
                f"SELECT CASE WHEN pg_is_in_recovery() THEN 0 ELSE {TIMELINE} END"
            ).fetchone()
            return int(row[0]) if row else 0
        return 0

    def admin(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(
            host=str(self.directory), port=PORT, user="postgres", dbname=DATABASE, autocommit=True
        )

    def _signal(self, number: signal.Signals) -> None:
        # The postmaster first: when it is stopped or gone, it starts no more backends.
        with suppress(OSError, psutil.NoSuchProcess):
            first = (self.directory / "data" / "postmaster.pid").read_text().split()[0]
            postmaster = psutil.Process(int(first))
            os.kill(postmaster.pid, signal.SIGSTOP)
            for process in [postmaster, *postmaster.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def _configuration(self) -> Mapping[str, Any]:
        trust = ["local all,replication all trust", "host all,replication all 127.0.0.0/8 trust"]
        return {
            "scope": "cluster",
            "name": self.name,
            "restapi": {
                "listen": f"{self.address}:{REST}",
                "connect_address": f"{self.address}:{REST}",
            },
            # A proxy, so that Patroni does not ask for the address of etcd itself.
            "etcd3": {"host": f"{self.address}:2379", "use_proxies": True},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL,
                    "loop_wait": LOOP_WAIT,
                    "retry_timeout": RETRY_TIMEOUT,
                    "synchronous_mode": True,
                    "postgresql": {
                        "use_pg_rewind": True,
                        "parameters": {
                            "max_connections": 100,
                            # A dead walreceiver is noticed while the case runs.
                            "wal_sender_timeout": "10s",
                            "wal_receiver_timeout": "10s",
                            "wal_keep_size": "512MB",
                            **FAST,
                        },
                    },
                },
                "initdb": ["no-sync", {"encoding": "UTF8"}, {"locale": "C"}],
            },
            "postgresql": {
                "listen": f"{self.address}:{PORT}",
                "connect_address": f"{self.address}:{PORT}",
                "data_dir": str(self.directory / "data"),
                "bin_dir": str(programs().bin),
                "pgpass": str(self.directory / "pgpass"),
                "use_unix_socket": True,
                "use_unix_socket_repl": True,
                "parameters": {"unix_socket_directories": str(self.directory)},
                "pg_hba": trust,
                "remove_data_directory_on_rewind_failure": True,
                "remove_data_directory_on_diverged_timelines": True,
                "authentication": {
                    "superuser": {"username": "postgres"},
                    "replication": {"username": "replicator"},
                },
            },
        }


class Cluster:
    """All of it, in this network namespace. It ends with the process namespace, not by itself."""

    def __init__(self, home: Path, python: Path) -> None:
        self._home, self._python = home, python
        self._logs = _made(home / "logs")
        self._etcd: subprocess.Popen[bytes] | None = None
        self.nodes = {name: Node(name, home, self._run) for name in NODES}

    def start(self) -> None:
        """Return when there is a primary with two standbys that stream, one of them synchronous."""
        _command("ip", "link", "set", "lo", "up")
        self.start_etcd()
        self._start_haproxy()
        for node in self.nodes.values():
            self.start_node(node)
        self.wait_until_healthy()
        with self.leader().admin() as admin:
            admin.execute(f"CREATE ROLE {ROLE} LOGIN")
            admin.execute("CREATE TABLE written (key uuid PRIMARY KEY)")
            admin.execute(f"GRANT SELECT, INSERT ON written TO {ROLE}")

    # Addresses

    def url(self, *, haproxy: bool, query: str) -> str:
        """HAProxy's port for writes, or all nodes, of which the primary is the first."""
        first = self.leader().address
        hosts = [first, *(address for address in NODES.values() if address != first)]
        address = f"{PROXY}:{PROXY_PORT}" if haproxy else ",".join(f"{h}:{PORT}" for h in hosts)
        return f"postgresql://{ROLE}@{address}/{DATABASE}{query}"

    # State

    def leader(self) -> Node:
        """The node that Patroni calls the leader."""
        names = [each["name"] for each in self._members() if each["role"] == "leader"]
        assert names, "the cluster has no leader"
        return self.nodes[names[0]]

    def wait_until_healthy(self) -> None:
        wait_until(self._is_healthy, f"the cluster to be whole; see {self._logs}", HEALTHY)

    def _is_healthy(self) -> bool:
        found = sorted((each["role"], each["state"]) for each in self._members())
        expected = [("leader", "running"), ("replica", "streaming"), ("sync_standby", "streaming")]
        return found == expected and self.leader().timeline() > 0

    def _members(self) -> list[dict[str, Any]]:
        for node in self.nodes.values():
            with suppress(OSError):
                members: list[dict[str, Any]] = _get(f"http://{node.address}:{REST}/cluster")[
                    "members"
                ]
                return members
        return []

    # Faults

    def switch_over(self) -> None:
        """Ask Patroni to make the synchronous standby the primary."""
        leader = self.leader().name
        candidates = [e["name"] for e in self._members() if e["role"] == "sync_standby"]
        body = {"leader": leader, "candidate": candidates[0]}
        _get(f"http://{NODES[leader]}:{REST}/switchover", body)

    def isolate(self, node: Node) -> None:
        """Lose each packet from and to a node's address."""
        for side in ("-s", "-d"):
            _command("iptables", "-A", "INPUT", side, node.address, "-j", "DROP")

    def rejoin(self) -> None:
        _command("iptables", "-F", "INPUT")

    def stop_etcd(self) -> None:
        assert self._etcd is not None
        self._etcd.kill()
        self._etcd.wait(HEALTHY)

    def start_etcd(self) -> None:
        client, peer = f"http://{ETCD}:2379", f"http://{ETCD}:2380"
        self._etcd = self._run(
            "etcd", "etcd",
            "--name=e", f"--data-dir={self._home / 'etcd'}",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=e={peer}",
        )  # fmt: skip

    def start_node(self, node: Node) -> None:
        node.start(self._python)

    # Inside

    def _start_haproxy(self) -> None:
        text = HAPROXY
        for name, address in NODES.items():
            text += f"    server {name} {address}:{PORT} check port {REST}\n"
        for name, address in NODES.items():
            text += f"listen etcd_{name}\n    bind {address}:2379\n    server etcd {ETCD}:2379\n"
        file = self._home / "haproxy.cfg"
        file.write_text(text)
        self._run("haproxy", "haproxy", "-db", "-f", file)

    def _run(self, name: str, *command: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        with (self._logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                env={"PATH": PATH, "LC_ALL": "C", "TZ": "UTC"}, **options,
            )  # fmt: skip


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _get(url: str, body: Mapping[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    timeout = 3.0 if body is None else REQUEST
    with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
        text = answer.read().decode()
    return text if body is not None else json.loads(text)


def _command(*command: str) -> None:
    subprocess.run(command, check=True, timeout=30, env={"PATH": PATH})
