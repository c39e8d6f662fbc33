"""What pyproject.toml cannot say: a source distribution has only files that Git tracks."""

from __future__ import annotations

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent


class TrackedFiles(sdist):  # type: ignore[misc]
    """The checkout of a developer also has .env files, dumps and notes."""

    def make_distribution(self) -> None:
        if (ROOT / ".git").exists():  # not in an unpacked source distribution
            tracked = _tracked()
            self.filelist.files = [
                name
                for name in self.filelist.files
                if Path(name) in tracked or Path(name).parts[0].endswith(".egg-info")
            ]
        super().make_distribution()


def _tracked() -> set[Path]:
    command = ["git", "ls-files", "-z"]
    listed = subprocess.check_output(command, cwd=ROOT, text=True)  # noqa: S603 - no input
    return {Path(name) for name in listed.split("\0") if name}


setup(cmdclass={"sdist": TrackedFiles})
