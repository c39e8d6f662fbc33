"""The pages: their links, and those from the code, lead somewhere; their blocks can be used."""

from __future__ import annotations

import ast
import math
import re
from collections import namedtuple
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from abs_orm_app.checks.guide import entries
from abs_orm_app.environment import database_from_env
from abs_orm_app.integrations.admin_page.cards import GUIDE
from benchmarks.plot import NEVER, lengths
from tests.project.outputs import PAGES as OUTPUTS

Row = namedtuple("Row", "peer throughput")
ROOT = Path(__file__).resolve().parents[2]
README, DOCS = ROOT / "README.md", sorted((ROOT / "docs").glob("*.md"))
RESULTS = ROOT / "benchmarks" / "results.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", RESULTS, *DOCS]
MODULES = sorted((ROOT / "abs_orm_app").rglob("*.py"))
MOST_PAGES, MOST_WORDS = 18, 20_000


def anchors(page: Path) -> set[str]:
    """The anchors of a page, as GitHub names them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"<[^>]+>|[^\w\- ]", "", heading.lower()).strip() for heading in headings]
    return {*(heading.replace(" ", "-") for heading in plain), *re.findall(r'<a id="(.+?)"', text)}


def leads_somewhere(target: str, base: Path) -> bool:
    name, _, anchor = target.partition("#")
    page = base.parent / name if name else base
    return page.exists() and (not anchor or anchor in anchors(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_with_an_output_is_one_that_make_docs_runs(page: Path) -> None:
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    languages = {name for name, text in blocks if re.search(r"^ *\$ ", text, re.MULTILINE)}
    assert languages <= ({"console"} if page in OUTPUTS else set())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    inner = [link for link in links if not link.startswith(("http:", "https:"))]
    assert [link for link in inner if not leads_somewhere(link, page)] == []


def test_each_page_that_the_code_names_exists() -> None:
    spoken = {
        (module.name, path)
        for module in (*MODULES, ROOT / "docs" / "alerts.yml")
        for path in re.findall(r"docs/[\w-]+\.md(?:#[\w-]+)?", module.read_text())
    }
    assert spoken
    assert [each for each in spoken if not leads_somewhere(each[1], README)] == []


def topics(module: Path) -> Iterator[str]:
    """What a module names for `--explain`: in a message, by a finding's id, by a kind of error."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"--explain ([\w-]+)", node.value)
            if re.fullmatch(r"[EWI]\d{3}", node.value):
                yield node.value
        named: list[ast.expr | None] = []
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            named = [word.value for word in node.keywords if word.arg == "entry"]
            named += node.args[:1] if called == "explain" else []
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "entry":
            named = [node.value]
        for value in named:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


def test_each_topic_that_the_code_names_is_in_the_guide_and_in_the_docs() -> None:
    named = {topic for module in MODULES for topic in topics(module)} | {*GUIDE.values()}
    assert {"server-down", "pool-exhausted", "E021", "pgbouncer"} <= named
    assert named - entries().keys() == set()
    pages = {page.stem for page in DOCS}
    assert named - pages - {anchor for page in DOCS for anchor in anchors(page)} == set()


def test_each_message_of_the_pool_links_to_an_entry_of_the_troubleshooting_page() -> None:
    pool = (ROOT / "abs_orm_app" / "pool" / name for name in ("messages.py", "server_errors.py"))
    named = {topic for module in pool for topic in topics(module)}
    assert named
    assert named <= anchors(ROOT / "docs" / "troubleshooting.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_import_of_this_app_in_a_page_works(page: Path) -> None:
    for module, names in re.findall(
        r"^from (abs_orm_app[\w.]*) import (.+)$", page.read_text(), re.MULTILINE
    ):
        for name in names.split(", "):
            name = name.partition(" as ")[0]
            assert hasattr(import_module(module), name) or find_spec(f"{module}.{name}")


def test_the_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    table = re.findall(r"^\|.*\|$", README.read_text(), re.MULTILINE)
    figures = re.findall(r"\d+\.\d+(?: m?s)?(?= \||,|$| after|\b)", "\n".join(table[:7]))
    measured = (ROOT / "docs" / "benchmarks.md").read_text() + RESULTS.read_text()
    ours = [figure for figure in figures if figure != "30.00"]  # Django's message
    assert ours
    assert [figure for figure in ours if figure not in measured] == []


def test_a_bar_of_the_picture_is_as_long_as_its_value() -> None:
    rows = [Row("ours", 659.0), Row("stock", 112.0), Row("other", math.inf)]
    assert lengths(rows, "throughput") == [659.0, 112.0, NEVER]


def test_the_failover_page_names_figures_that_the_benchmark_has() -> None:
    page = (ROOT / "docs" / "failover.md").read_text()
    titles = re.findall(r'^Measured: "([^"]+)"', page, re.MULTILINE)
    benchmark = (ROOT / "benchmarks" / "failover.py").read_text()
    assert titles
    assert [title for title in titles if f'"{title}"' not in benchmark] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "Makefile"])
def test_each_test_that_a_developer_is_told_to_run_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    commands = re.findall(r"(tests/\S+\.py) -k (\w+)", text)
    assert commands
    for path, word in commands:
        assert re.search(rf"^def test_\w*{word}", (ROOT / path).read_text(), re.MULTILINE)
    everything = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in everything


@pytest.mark.parametrize("page", ["promises.md", "security.md"])
def test_each_test_that_a_promise_names_exists(page: str) -> None:
    modules = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / page).read_text())
    assert named
    assert set(named) - modules == set()


def test_the_house_in_contributing_has_each_room() -> None:
    house = (ROOT / "CONTRIBUTING.md").read_text().partition("## The house")[2]
    rooms = {path.name + "/" for path in (ROOT / "abs_orm_app").iterdir() if path.is_dir()}
    rooms |= {path.name for path in (ROOT / "abs_orm_app").glob("[!_]*.py")} | {"tests/"}
    assert {room for room in rooms - {"__pycache__/"} if room not in house} == set()


def test_the_site_has_each_page_once() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = re.findall(r": ([\w-]+\.md)$", nav, re.MULTILINE)
    pages = [page.name for page in DOCS]
    others = ["index.md", "results.md", "changelog.md", "contributing.md"]
    assert sorted(listed) == sorted([*pages, *others])


def test_the_docs_can_be_read_in_an_evening() -> None:
    assert len(DOCS) <= MOST_PAGES
    assert sum(len(page.read_text().split()) for page in (README, *DOCS)) <= MOST_WORDS


def test_the_readme_leads_to_six_pages() -> None:
    last = README.read_text().partition("## Read on")[2]
    assert len(re.findall(r"\]\(", last)) == 6


def test_other_projects_are_named_where_a_reader_looks_for_them() -> None:
    def naming(word: str) -> list[str]:
        return [page.name for page in PAGES for _ in range(page.read_text().count(word))]

    assert set(naming("fullon_orm")) == {"check_pool.md"}
    assert naming("check_pool_config") == ["migrating.md"]


def blocks_of_variables() -> list[str]:
    """The blocks of a platform: one variable a line."""
    text = (ROOT / "docs" / "embedding.md").read_text()
    return re.findall(r"^```sh\n((?:[A-Z_]+=\S+\n)+)```$", text, re.MULTILINE)


@pytest.mark.parametrize("block", blocks_of_variables())
def test_each_block_of_variables_can_be_used_as_it_is(block: str) -> None:
    environ = dict(line.split("=", 1) for line in block.splitlines())
    address = environ.setdefault("DATABASE_URL", "postgresql://app@db.example/shop")
    if address.startswith("embedded:"):  # which would start one
        environ["DATABASE_URL"] = "postgresql:///shop"
    prefixes = {"REPLICA_", ""} if "REPLICA_DATABASE_URL" in environ else {""}
    entries = [database_from_env(prefix, environ=environ) for prefix in prefixes]
    read = {name for entry in entries for name in entry["ABS_ORM_APP"]["variables"].values()}
    libpq = {name for name in environ if name.startswith("PG")}
    assert environ.keys() - libpq - {"DB_POOL_PROCESSES"} <= read


def test_each_platform_has_a_block() -> None:
    text = (ROOT / "docs" / "embedding.md").read_text()
    platforms = text.partition("\n## Platforms")[2].partition("\n## ")[0]
    assert len(blocks_of_variables()) >= len(re.findall("^### ", platforms, re.MULTILINE)) > 5
