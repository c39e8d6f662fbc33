"""What the app needs of the server: a role that may log in and connect, and nothing else."""

from __future__ import annotations

import pytest

from tests.support.projects import POOL, Ran, database, entry
from tests.support.servers import Server

pytestmark = [
    pytest.mark.usefixtures("unblocked"),
    pytest.mark.server(
        {"max_connections": "100"},
        roles=["app LOGIN"],
        sql=[
            "REVOKE ALL ON DATABASE postgres FROM PUBLIC",
            "REVOKE ALL ON SCHEMA public FROM PUBLIC",
            "GRANT CONNECT ON DATABASE postgres TO app",
        ],
    ),
]


@pytest.mark.parametrize("arguments", [(), ("--drill",), ("-v", "2")], ids=" ".join)
def test_a_role_that_may_only_connect_is_enough(shared: Server, arguments: tuple[str, ...]) -> None:
    with database(entry(shared.conninfo, OPTIONS=POOL, USER="app")) as alias:
        ran = Ran("--database", alias, *arguments)
    assert ran.code == 0, ran.out
    assert ran.last.startswith("OK")
    assert "permission denied" not in ran.out
