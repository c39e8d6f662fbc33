"""GeoDjango on `abs_orm_app.backends.postgis`: geometries through pooled connections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.apps.registry import Apps
from django.db import connections
from pytest_django.plugin import DjangoDbBlocker

from abs_orm_app.facts.databases import configured_databases
from abs_orm_app.pool.pool import HardenedPool
from tests.support.debian import DebianServer, needs_postgis
from tests.support.pools import Call
from tests.support.projects import database, entry
from tests.support.servers import Server

pytestmark = needs_postgis

ENGINE = "abs_orm_app.backends.postgis"


@pytest.fixture(scope="module")
def module_server() -> Iterator[Server]:
    with DebianServer() as server:
        yield server


@pytest.fixture
def places(shared: Server, django_db_blocker: DjangoDbBlocker, release: str) -> Iterator[str]:
    """The alias of a database with the extension, of which two connections are kept open."""
    options = {"pool": {"min_size": 2, "max_size": 2, "timeout": 20}}
    extra = {"release": release}
    written = entry(shared.conninfo, ENGINE, OPTIONS=options, ABS_ORM_APP=extra)
    with django_db_blocker.unblock(), database(written, "places") as alias:
        connections[alias].prepare_database()
        yield alias


@pytest.fixture
def place(places: str) -> Iterator[Any]:
    """A model with a point, and its table."""
    from django.contrib.gis.db import models  # fails where GDAL is missing

    class Place(models.Model):
        name = models.TextField()
        point = models.PointField(geography=True)

        class Meta:
            app_label = "places"
            apps = Apps()  # a registry of its own
            managed = False

    with connections[places].schema_editor() as editor:
        editor.create_model(Place)
    try:
        yield Place
    finally:
        with connections[places].schema_editor() as editor:
            editor.delete_model(Place)


def backend(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def test_geometries_work_on_reused_connections(place: Any, places: str) -> None:
    from django.contrib.gis.geos import Point
    from django.contrib.gis.measure import D

    berlin, potsdam = Point(13.4, 52.5, srid=4326), Point(13.06, 52.4, srid=4326)

    def visit() -> set[int]:
        seen = set()
        for name, point in (("Berlin", berlin), ("Potsdam", potsdam)):
            place.objects.using(places).create(name=name, point=point)
            seen.add(backend(places))
            connections[places].close()  # as at the end of a request
            near = place.objects.using(places).filter(point__distance_lte=(point, D(km=5)))
            assert {(found.name, found.point.coords) for found in near} == {(name, point.coords)}
            seen.add(backend(places))
            connections[places].close()
        return seen

    used = [Call(visit) for _ in range(4)]
    assert len(set().union(*(call.result(within=20) for call in used))) <= 2
    assert place.objects.using(places).count() == 8


def test_a_connection_that_replaces_a_stale_one_knows_the_types(
    place: Any, places: str, shared: Server
) -> None:
    from django.contrib.gis.geos import Point

    point = Point(13.4, 52.5, srid=4326)
    connections[places].close()
    shared.restart()
    place.objects.using(places).create(name="Berlin", point=point)
    assert place.objects.using(places).get().point == point


def test_the_pool_is_ours(places: str) -> None:
    wrapper: Any = connections[places]
    assert type(wrapper.pool) is HardenedPool
    assert configured_databases([places])[0].hardened
