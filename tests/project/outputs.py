"""Run the commands that the pages show, and compare their output with what the pages say.

    python -m tests.project.outputs            # fails where an output has another shape
    python -m tests.project.outputs --write    # write the present output

Blocks of the language `console` count: a line `$ COMMAND`, then its output. A line `...` stands for
any lines; --write replaces the sections that are shown, which it knows by their titles. Numbers,
units of time, bars and white space are not compared, because they differ from run to run.

The commands of a page run one after the other in the project that README's lines make, on a server
with the database `shop` and the role `app`, whose address is written as `db.example`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.readme import ROOT, embed, ended
from tests.support.servers import PASSWORD_OVER_TCP, Server

AS_SUPERUSER = ("README.md", "docs/tutorial.md")  # as on the embedded server
AS_APP = ("check_pool", "sizing", "settings", "pgbouncer")
PAGES = tuple(ROOT / page for page in (*AS_SUPERUSER, *(f"docs/{name}.md" for name in AS_APP)))
BLOCK = re.compile(
    r"(?<=^```console\n)\$ (?P<command>[^\n]+)\n(?P<output>.*?)(?=^```$)", re.MULTILINE | re.DOTALL
)
# The pages are for people who are not root.
ROOTS_WARNING = re.compile(r"^Warning: \S+ belongs to root.*\n", re.MULTILINE)
LEFT_OUT = re.compile(r"^\.\.\.\n", re.MULTILINE)
SECTION = re.compile(r"\n\n(?=\S)")  # what is between two
HOST = "db.example"
MOST = 60.0  # seconds for one command


def shape(text: str) -> str:
    """A text without what differs from run to run."""
    text = re.sub(r"\d+(\.\d+)*( (ms|s)\b)?", "0", text)
    return " ".join(re.sub("[─━█░▁▂▃▄▅▆▇]+", " ", text).split())


def matches(shown: str, printed: str) -> bool:
    expected = ".*".join(re.escape(shape(part)) for part in LEFT_OUT.split(shown))
    return re.fullmatch(expected, shape(printed)) is not None


def title(section: str) -> str:
    """The first line of a section, without a sign before it."""
    return shape(section.strip().partition("\n")[0]).lstrip("✓!✗ ")


def present(shown: str, printed: str) -> str:
    """What a page should show: all that is printed, or the same sections as it shows now."""
    parts = LEFT_OUT.split(shown)
    if len(parts) == 1:
        return printed
    fresh = {title(section): section.rstrip() for section in SECTION.split(printed)}
    return "...\n".join(
        "\n\n".join(fresh.get(title(each), each.rstrip()) for each in SECTION.split(part)) + "\n"
        if part
        else ""
        for part in parts
    )


@dataclass(frozen=True)
class Stage:
    """A project and its server."""

    project: Path
    server: Server

    def run(self, command: str, url: str) -> str:
        """Run a command line of a page, and return what it prints, with the page's names."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environ = {"PATH": path, "PYTHONPATH": str(ROOT), "DATABASE_URL": url}
        port = self.server.port
        line = command.replace(HOST, f"127.0.0.1:{port}")
        done = ended(line, self.project, MOST, **environ)
        named = re.sub(rf'127\.0\.0\.1(:|", port | port=){port}', rf"{HOST}\g<1>5432", done.stdout)
        return named.replace(f" on {HOST}:5432", f" on {HOST}")  # the default port is not shown

    def url(self, page: Path) -> str:
        if page in [ROOT / name for name in AS_SUPERUSER]:
            return self.server.tcp_url
        return f"postgresql://app:secret@127.0.0.1:{self.server.port}/shop"

    def differences(self, page: Path, *, write: bool) -> Iterator[str]:
        """The commands of a page whose output is another one now, each with that output."""

        def compare(found: re.Match[str]) -> str:
            command, shown = found["command"], found["output"]
            printed = ROOTS_WARNING.sub("", self.run(command, self.url(page)))
            if matches(shown, printed):
                return found[0]
            different.append(f"{page.name}: $ {command}\n{printed}")
            return f"$ {command}\n{present(shown, printed)}"

        different: list[str] = []
        text = BLOCK.sub(compare, page.read_text())
        if write:
            page.write_text(text)
        yield from different


@contextmanager
def stage() -> Iterator[Stage]:
    """A new project, migrated."""
    role = "app LOGIN PASSWORD 'secret' IN ROLE pg_monitor"
    database = ["CREATE DATABASE shop OWNER app"]
    with (
        tempfile.TemporaryDirectory() as directory,
        Server(hba=PASSWORD_OVER_TCP, roles=[role], sql=database) as server,
    ):
        subprocess.run(
            [sys.executable, "-m", "django", "startproject", "shop", directory], check=True
        )
        embed(Path(directory, "shop", "settings.py"))
        made = Stage(Path(directory), server)
        made.run("python manage.py migrate", server.tcp_url)
        yield made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the present output")
    write = parser.parse_args().write
    with stage() as made:
        found = [each for page in PAGES for each in made.differences(page, write=write)]
    for difference in found:
        sys.stdout.write(f"The output is another one now:\n{difference}\n")
    return bool(found) and not write


if __name__ == "__main__":
    sys.exit(main())
