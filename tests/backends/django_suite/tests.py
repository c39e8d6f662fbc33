"""One class for each way in which Django's test runner handles the database."""

from django.contrib.auth.models import Group
from django.db import connection, connections, transaction
from django.test import TestCase, TransactionTestCase

from abs_orm_app.backends.pooled import PooledMixin
from abs_orm_app.pool.pool import HardenedPool


class InOneTransaction(TestCase):
    def test_writes_are_seen(self) -> None:
        Group.objects.create(name="a")
        assert Group.objects.count() == 1

    def test_writes_of_another_test_are_not_seen(self) -> None:
        assert Group.objects.count() == 0


class InManyTransactions(TransactionTestCase):
    def test_commits_are_kept(self) -> None:
        with transaction.atomic():
            Group.objects.create(name="a")
        connection.close()
        assert Group.objects.count() == 1

    def test_the_pool_is_ours_and_the_database_is_the_test_database(self) -> None:
        wrapper = connections["default"]
        assert isinstance(wrapper, PooledMixin)
        assert isinstance(wrapper.pool, HardenedPool)
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_database()")
            assert cursor.fetchone()[0].startswith("test_")
