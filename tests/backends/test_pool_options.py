"""`OPTIONS["pool"]` as a project writes it for Django's own engine."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from tests.support.databases import Database, ask


def test_a_name_is_that_of_the_pool_or_refused_in_a_sentence(database: Database) -> None:
    """Django's own engine takes it."""
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 2, "name": "mine"}})
    refusal = ""
    try:
        ask(wrapper)
    except ImproperlyConfigured as refused:
        refusal = str(refused)
    assert "name" in refusal if refusal else wrapper.pool.name == "mine"


@pytest.mark.parametrize("options", ["yes", 20, [4]])
def test_a_pool_that_is_no_dict_is_refused_in_a_sentence(database: Database, options: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"\['pool'\] must be a dict or True"):
        ask(database(OPTIONS={"pool": options}))


def test_an_unknown_option_is_refused_in_a_sentence(database: Database) -> None:
    with pytest.raises(ImproperlyConfigured, match="min_sise"):
        ask(database(OPTIONS={"pool": {"min_sise": 1}}))


@pytest.mark.parametrize("given", [{"release": "transactions"}, {"leak_seconds": "60"}])
def test_an_impossible_value_of_our_key_is_refused_in_a_sentence(
    database: Database, given: dict[str, Any]
) -> None:
    [(name, value)] = given.items()
    with pytest.raises(ImproperlyConfigured, match=rf"\['{name}'\] is '{value}', which is not"):
        ask(database(ABS_ORM_APP=given))
