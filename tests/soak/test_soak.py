"""A short soak; `make soak` is the long one."""

from __future__ import annotations

import logging

import pytest

from tests.soak.chaos import soak


def test_a_few_seconds_of_chaos(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    it = soak(15.0, seed=9)
    assert not it.faults, it.done
    assert it.done["rows"] > 100
