"""Vectors, enums and composite types, registered on each connection."""

from __future__ import annotations

import enum
from typing import Any

from django.db import connection

from tests.compat.case import Case, in_threads

TYPES = (
    "CREATE EXTENSION vector",
    "CREATE TYPE mood AS ENUM ('sad', 'glad')",
    "CREATE TYPE place AS (row int, seat int)",
)
READ = "SELECT 'glad'::mood, '(3,4)'::place, '[1,2]'::vector"


class Mood(enum.Enum):
    """As the type `mood`."""

    sad = "sad"
    glad = "glad"


def check() -> None:
    from django.db.backends.signals import connection_created
    from pgvector.psycopg import register_vector
    from psycopg.types.composite import CompositeInfo, register_composite
    from psycopg.types.enum import EnumInfo, register_enum

    found: dict[str, Any] = {}
    with connection.cursor() as cursor:
        for statement in TYPES:
            cursor.execute(statement)
    connection.close()

    def register(connection: Any, **_: Any) -> None:
        if "place" not in found:
            found["mood"] = EnumInfo.fetch(connection.connection, "mood")
            found["place"] = CompositeInfo.fetch(connection.connection, "place")
        register_enum(found["mood"], connection.connection, Mood)
        register_composite(found["place"], connection.connection)
        register_vector(connection.connection)

    connection_created.connect(register)

    def read(_: int) -> Any:
        with connection.cursor() as cursor:
            cursor.execute(READ)
            return cursor.fetchone()

    for mood, place, vector in in_threads(40, read):
        assert (mood, place.seat, vector.to_list()) == (Mood.glad, 4, [1.0, 2.0])


CASE = Case(
    packages=["pgvector", "numpy"],
    tried="a vector, an enum and a composite type are read in 8 threads",
    note="Call `register_vector` for each connection, as for [other types](#types).",
    check=check,
)
