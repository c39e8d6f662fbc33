"""What pyproject.toml cannot say: which files are packed: those of today that Git tracks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build import build
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


class NewBuild(build):  # type: ignore[misc]
    """A build of an older version left its modules behind, which this one may not have."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


def _tracked() -> set[Path]:
    command = ["git", "ls-files", "-z"]
    listed = subprocess.check_output(command, cwd=ROOT, text=True)  # noqa: S603 - no input
    return {Path(name) for name in listed.split("\0") if name}


setup(cmdclass={"sdist": TrackedFiles, "build": NewBuild})
