"""Run the commands that the pages show, and compare their output with what the pages say.

    python -m tests.project.outputs            # fails where an output has another shape
    python -m tests.project.outputs --write    # write the present output, where none is left out

Only blocks of the language `console` count: a line `$ COMMAND`, then its output. A line `...`
stands for any lines. The shape of each line is compared, without its numbers and spaces.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.readme import OURS, ROOT, embed
from tests.support.servers import Server

PAGES = (ROOT / "README.md", ROOT / "docs" / "tutorial.md")
BLOCK = re.compile(
    r"(?<=^```console\n)\$ (?P<command>[^\n]+)\n(?P<output>.*?)(?=^```$)",
    re.MULTILINE | re.DOTALL,
)
MOST = 60.0  # seconds for one command


def shape(line: str) -> str:
    """A line without what differs from run to run: numbers, and how wide they make a column."""
    line = re.sub(r"\d+(\.\d+)*", "0", line)
    return re.sub(r"[\s─━]+", " ", line).strip()


def pattern(lines: list[str]) -> str:
    """A regular expression for the lines of an output, each by its shape."""
    parts = (".*" if line.strip() == "..." else re.escape(shape(line)) + "\n" for line in lines)
    return "".join(parts)


def matches(shown: str, printed: str) -> bool:
    actual = "".join(f"{shape(line)}\n" for line in printed.splitlines() if line.strip())
    expected = pattern([line for line in shown.splitlines() if line.strip()])
    return re.fullmatch(expected, actual, re.DOTALL) is not None


def run(command: str, project: Path, url: str) -> str:
    """Run a command line of a page in the project that README's lines make."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(OURS)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = {**inherited, "PATH": path, "PYTHONPATH": str(ROOT), "DATABASE_URL": url}
    done = subprocess.run(
        command,
        shell=True,
        cwd=project,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=MOST,
        check=False,
    )
    return done.stdout


def differences(page: Path, project: Path, url: str, *, write: bool) -> Iterator[str]:
    """The commands of a page whose output is another one now, each with that output."""

    def compare(found: re.Match[str]) -> str:
        printed = run(found["command"], project, url)
        if matches(found["output"], printed):
            return found[0]
        different.append(f"{page.name}: $ {found['command']}\n{printed}")
        shortened = "\n...\n" in f"\n{found['output']}"  # only its author knows where
        return found[0] if shortened else f"$ {found['command']}\n{printed}"

    different: list[str] = []
    text = BLOCK.sub(compare, page.read_text())
    if write:
        page.write_text(text)
    yield from different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the present output")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as directory, Server() as server:
        subprocess.run(
            [sys.executable, "-m", "django", "startproject", "shop", directory], check=True
        )
        embed(Path(directory, "shop", "settings.py"))
        run("python manage.py migrate", Path(directory), server.tcp_url)
        found = [
            difference
            for page in PAGES
            for difference in differences(page, Path(directory), server.tcp_url, write=write)
        ]
    for difference in found:
        sys.stdout.write(f"The output is another one now:\n{difference}\n")
    return bool(found) and not write


if __name__ == "__main__":
    sys.exit(main())
