"""ddtrace wraps psycopg and Django."""

from __future__ import annotations

from tests.compat.case import Case, in_threads


def setup() -> None:
    import ddtrace.auto  # noqa: F401


def check() -> None:
    from ddtrace.trace import TraceFilter, tracer
    from django.contrib.auth.models import Group

    spans = []

    class Kept(TraceFilter):
        def process_trace(self, trace: list[object]) -> None:
            spans.extend(trace)

    tracer.configure(trace_processors=[Kept()])
    in_threads(10, lambda _: Group.objects.count())
    queries = [span for span in spans if getattr(span, "span_type", "") == "sql"]
    assert len(queries) >= 10, spans


CASE = Case(
    packages=["ddtrace"],
    variables={
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
        "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    },
    tried="an SQL span for each of 10 queries in threads, by `import ddtrace.auto`",
    setup=setup,
    check=check,
)
