"""Links between the pages, and from the code to the pages, lead somewhere."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from abs_orm_app.environment import database_from_env
from tests.project.outputs import PAGES as OUTPUTS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted((ROOT / "abs_orm_app").rglob("*.py"))


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
        for module in MODULES
        for path in re.findall(r"docs/[\w-]+\.md", module.read_text())
    }
    assert [(module, path) for module, path in spoken if not (ROOT / path).exists()] == []


def test_each_message_of_the_pool_links_to_an_entry_of_the_troubleshooting_page() -> None:
    source = (ROOT / "abs_orm_app" / "pool" / "messages.py").read_text()
    named = set(re.findall(r"\{explain\('([\w-]+)'\)\}", source))
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
    table = re.findall(r"^\|.*\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    figures = re.findall(r"\d+\.\d+(?: m?s)?(?= \||,|$| after|\b)", "\n".join(table[:7]))
    measured = (ROOT / "docs" / "benchmarks.md").read_text()
    ours = [figure for figure in figures if figure != "30.00"]  # Django's message
    assert ours
    assert [figure for figure in ours if figure not in measured] == []


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


def test_the_site_has_each_page_once() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = re.findall(r": ([\w-]+\.md)$", nav, re.MULTILINE)
    pages = [page.name for page in (ROOT / "docs").glob("*.md")]
    assert sorted(listed) == sorted([*pages, "index.md", "changelog.md", "contributing.md"])


def blocks_of_variables() -> list[str]:
    """The blocks of the scenarios: one variable a line."""
    text = (ROOT / "docs" / "scenarios.md").read_text()
    return re.findall(r"^```sh\n((?:[A-Z_]+=\S+\n)+)```$", text, re.MULTILINE)


@pytest.mark.parametrize("block", blocks_of_variables())
def test_each_block_of_the_scenarios_can_be_used_as_it_is(block: str) -> None:
    environ = dict(line.split("=", 1) for line in block.splitlines())
    address = environ.setdefault("DATABASE_URL", "postgresql://app@db.example/shop")
    if address.startswith("embedded:"):  # which would start one
        environ["DATABASE_URL"] = "postgresql:///shop"
    entry = database_from_env(environ=environ)
    read = entry["ABS_ORM_APP"]["variables"].values()
    assert {name for name in environ if name != "DB_POOL_PROCESSES"} <= set(read)


def test_the_scenarios_are_as_many_as_their_headings() -> None:
    text = (ROOT / "docs" / "scenarios.md").read_text()
    assert len(blocks_of_variables()) >= len(re.findall("^## ", text, re.MULTILINE))
