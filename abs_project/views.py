"""Pages that do one query each, for demos, tests and benchmarks."""

from asgiref.sync import sync_to_async
from django.db import connection
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, JsonResponse

from abs_orm_app.config.variables import whole_number

LONGEST = 60_000  # milliseconds


def index(_request: HttpRequest) -> HttpResponse:
    """Which server process answered: `{"pid": 4711}`."""
    return _answer(milliseconds=0)


def slow(request: HttpRequest) -> HttpResponse:
    """The same after a query that takes `?ms=20` (the default) milliseconds."""
    try:
        milliseconds = whole_number(0, LONGEST)(request.GET.get("ms", "20"))
    except ValueError as error:
        return HttpResponseBadRequest(f"ms {error}.")
    return _answer(milliseconds)


async def slow_async(request: HttpRequest) -> HttpResponse:
    """`slow` in a coroutine, which asks the database in a thread."""
    return await sync_to_async(slow)(request)


def _answer(milliseconds: int) -> JsonResponse:
    with connection.cursor() as cursor:
        if milliseconds:
            cursor.execute("SELECT pg_backend_pid(), pg_sleep(%s)", [milliseconds / 1000])
        else:
            cursor.execute("SELECT pg_backend_pid()")
        return JsonResponse({"pid": cursor.fetchone()[0]})
