"""The rules on when a connection is held."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from abs_orm_app.checks.finding import Finding
from abs_orm_app.checks.lease_rules import lease_findings
from abs_orm_app.checks.without_server import settings_findings
from abs_orm_app.facts.databases import configured
from abs_orm_app.facts.report import Report, Usage, report
from tests.support.aliases import facts, from_env, ids, pool
from tests.support.facts import server_facts
from tests.support.projects import OURS, STOCK, database, entry
from tests.support.servers import Server

SMALL = {"pool": {"min_size": 1, "max_size": 2, "timeout": 20}}


# ATOMIC_REQUESTS


@pytest.mark.parametrize(
    ("engine", "release", "atomic", "expected"),
    [
        (OURS, "transaction", True, ["I003"]),
        (OURS, "transaction", False, []),
        (OURS, "request", True, []),
        (STOCK, "transaction", True, []),
    ],
)
def test_atomic_requests_leave_nothing_to_gain(
    engine: str, release: str, atomic: bool, expected: list[str]
) -> None:
    extra = {"ABS_ORM_APP": {"release": release}, "ATOMIC_REQUESTS": atomic}
    alias = facts(engine, OPTIONS={"pool": True}, **extra)
    assert [n for n in ids(settings_findings([alias])) if n == "I003"] == expected


def findings_of(server: Server, alias: str, **more: Any) -> list[Finding]:
    with database(entry(server.conninfo, OPTIONS=SMALL, **more), alias):
        return lease_findings(found := configured(alias), report(found))


# Idle connections

BUSY = Usage(seconds=300.0, in_use=28.0, unused=24.6, waited=812)


def used(usage: Usage | None, release: str = "request") -> list[Finding]:
    alias = replace(from_env(DB_POOL_RELEASE=release), alias="default")
    return lease_findings(
        alias, Report(configured=alias, active=None, server=None, test=None, usage=usage)
    )


def test_a_pool_whose_connections_are_idle_while_requests_wait_would_gain() -> None:
    [finding] = used(BUSY)
    assert finding.id == "abs_orm_app.W005"
    assert "812 requests waited" in finding.message
    assert "24.6 of the 28.0 connections" in finding.message
    assert finding.fix == "DB_POOL_RELEASE=transaction"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        replace(BUSY, waited=0),
        replace(BUSY, unused=14.0),
        Usage(seconds=300.0, in_use=0.0, unused=0.0, waited=3),
    ],
)
def test_a_pool_that_is_large_enough_or_works_has_nothing_to_gain(usage: Usage | None) -> None:
    assert used(usage) == []


def test_in_transaction_mode_there_is_nothing_more_to_gain() -> None:
    assert used(BUSY, release="transaction") == []


def test_an_entry_by_hand_gets_a_line_to_copy_in_its_form() -> None:
    alias = pool(OURS)
    [finding] = lease_findings(
        alias, Report(configured=alias, active=None, server=None, test=None, usage=BUSY)
    )
    assert finding.fix == '"ABS_ORM_APP": {"release": "transaction"}'


# Server-side cursors


def test_a_pool_without_a_pooler_needs_server_side_cursors_no_less(server: Server) -> None:
    [finding] = findings_of(server, "off", DISABLE_SERVER_SIDE_CURSORS=True)
    assert finding.id == "abs_orm_app.I004"
    assert findings_of(server, "on") == []


def test_behind_a_pooler_or_an_unknown_server_they_may_be_off() -> None:
    alias = facts(OPTIONS={"pool": True}, DISABLE_SERVER_SIDE_CURSORS=True)
    pooled: Any = object()
    for server in (server_facts(pooler=pooled), None):
        one = Report(configured=alias, active=None, server=server, test=None)
        assert lease_findings(alias, one) == []
