"""Only what pyproject.toml cannot say: a source distribution has no file that Git does not track."""

from __future__ import annotations

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent


class TrackedFiles(sdist):
    """The checkout of a developer also has .env files, dumps and notes."""

    def prune_file_list(self) -> None:
        super().prune_file_list()
        if (ROOT / ".git").exists():  # not in an unpacked source distribution
            tracked = _tracked()
            self.filelist.files = [
                name
                for name in self.filelist.files
                if Path(name) in tracked or Path(name).parts[0].endswith(".egg-info")
            ]


def _tracked() -> set[Path]:
    listed = subprocess.run(  # noqa: S603
        ["git", "ls-files", "-z"],  # noqa: S607
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return {Path(name) for name in listed.split("\0") if name}


setup(cmdclass={"sdist": TrackedFiles})
