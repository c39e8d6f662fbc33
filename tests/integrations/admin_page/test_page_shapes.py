"""The page's gauges, sparklines and words, and the docs that it brings along."""

from __future__ import annotations

import re

import pytest
from django.utils.html import escape

from abs_orm_app.integrations.admin_page import charts, guide
from abs_orm_app.integrations.admin_page.filters import amount, duration
from abs_orm_app.integrations.admin_page.history import SPAN, Second
from abs_orm_app.pool.pool import HardenedPool
from abs_orm_app.pool.snapshot import snapshot
from tests.support.pools import opened, ours
from tests.support.servers import Server


def test_the_gauge_shows_where_the_overflow_begins(server: Server) -> None:
    with opened(ours, server.conninfo, min_size=2, max_size=4) as pool:
        assert isinstance(pool, HardenedPool)
        taken = [pool.getconn() for _ in range(3)]
        shape = charts.gauge(snapshot(pool))
        for conn in taken:
            pool.putconn(conn)
    parts = [(part.kind, part.x, part.width) for part in shape.segments]
    assert parts == [("in-use", 0, 500), ("in-use over", 500, 250)]
    assert shape.mark == 500


def test_a_spark_ends_on_the_right_and_is_as_high_as_its_peak() -> None:
    past = [
        Second(age=age, in_use=used, checkouts=0.0, waits=0.0)
        for age, used in ((SPAN, 0), (SPAN / 2, 8), (0.0, 4))
    ]
    spark = charts.sparks(past)[0]
    assert (spark.latest, spark.peak) == (4, 8)
    assert spark.line == "0.0,46.0 150.0,2.0 300.0,24.0"


def test_a_spark_without_a_past_is_empty() -> None:
    assert {(spark.line, spark.latest) for spark in charts.sparks([])} == {("", None)}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "-"),
        (0.0004, "0.4 ms"),
        (0.025, "25 ms"),
        (1.5, "1.5 s"),
        (84.2, "84 s"),
        (720, "12 min"),
        (86400, "24 h"),
    ],
)
def test_durations_are_short(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"), [(None, "-"), (0, "0"), (7.04, "7.0"), (12.6, "13"), (12345, "12,345")]
)
def test_amounts_are_short(number: float | None, words: str) -> None:
    assert amount(number) == words


def test_the_guide_is_as_much_markdown_as_the_docs_use() -> None:
    page = """# Title

## A *part*

One `<code>`, a [link](https://example.com/?a=1&b=2), [here](checks.md#E001), [not here](other.md),
and **bold with `code`**.

- first
  goes on
- second

| a | |
|---|---|
| `x` | [y](#z) |

```python
if a < b: **not bold**
```

> said
> so
"""
    assert guide.title(page) == "Title"
    html = guide.render(page)
    for part in (
        "<h2 id='a-part'>A <em>part</em></h2>",
        "One <code>&lt;code&gt;</code>, a",
        '<a href="https://example.com/?a=1&amp;b=2">link</a>',
        '<a href="../checks/#E001">here</a>, not here,',
        "<strong>bold with <code>code</code></strong>",
        "<ul><li>first goes on</li><li>second</li></ul>",
        "<th>a</th><th></th>",
        '<td><code>x</code></td><td><a href="#z">y</a></td>',
        "<pre><code>if a &lt; b: **not bold**</code></pre>",
        "<blockquote>said so</blockquote>",
    ):
        assert part in html


def test_the_guide_has_a_place_for_each_finding_and_no_markup_is_left() -> None:
    pages = {name: guide.render(path.read_text()) for name, path in guide.FILES.items()}
    assert pages.keys() >= {"checks", "troubleshooting"}
    for html in pages.values():
        text = re.sub(r"<(pre|code)>.*?</\1>", "", html, flags=re.DOTALL)
        assert not re.search(r"`|\]\(|\*\*|&lt;a id|^#", text, re.MULTILINE)
        for anchor in re.findall(r'href="#([^"]*)"', html):
            assert f"id='{escape(anchor)}'" in html
