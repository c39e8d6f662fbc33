"""djangorestframework with ATOMIC_REQUESTS."""

from __future__ import annotations

from tests.compat.case import Case, in_threads


def check() -> None:
    from django.contrib.auth.models import Group
    from rest_framework.serializers import ModelSerializer
    from rest_framework.test import APIRequestFactory
    from rest_framework.viewsets import ModelViewSet

    class Groups(ModelViewSet):
        queryset = Group.objects.all()
        serializer_class = type(
            "S",
            (ModelSerializer,),
            {"Meta": type("Meta", (), {"model": Group, "fields": ["name"]})},
        )

    view = Groups.as_view({"post": "create"})

    def post(number: int) -> int:
        request = APIRequestFactory().post("/", {"name": f"{number}"}, format="json")
        return int(view(request).status_code)

    assert in_threads(20, post) == [201] * 20
    assert Group.objects.count() == 20


CASE = Case(
    packages=["djangorestframework"],
    apps=["rest_framework"],
    tried="20 POST requests in 8 threads",
    check=check,
)
