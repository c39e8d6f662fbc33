"""README's examples, and commands in projects made from them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = ("DB_", "DATABASE_URL", "DJANGO_", "PYTHON", "ENV_FILE")  # variables of the test suite
MOST = 300.0  # seconds: some commands download packages, on a machine that does much else


def ended(
    command: str | Sequence[str | Path], cwd: Path, within: float = MOST, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a command, or a line of a shell, without the suite's variables, to its end or failure.

    What it prints as errors is in its output.
    """
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(OURS)}
    return subprocess.run(
        command, shell=isinstance(command, str), cwd=cwd, env={**inherited, **environ}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=within, check=False,
    )  # fmt: skip


def run(*command: str | Path, cwd: Path, **environ: str) -> str:
    """Run a command and return its output; fail with the output if the command fails."""
    done = ended(command, cwd, MOST, **environ)
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def block(language: str, beginning: str) -> str:
    """The code block of README in this language that begins so."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (found,) = (text for name, text in blocks if name == language and text.startswith(beginning))
    return str(found)


def embed(settings: Path) -> None:
    """Append README's lines to a settings module."""
    with settings.open("a") as file:
        file.write("\n" + block("python", "# settings.py"))
