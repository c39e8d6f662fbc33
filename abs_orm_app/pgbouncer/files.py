"""Writes files that hold secrets: readable by their owner only, each replaced atomically."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def write_private(directory: Path, name: str, text: str) -> Path:
    """Write a file with mode 0600, or replace it atomically, and return its path.

    What root writes gets the owner of the directory, such as the account of PgBouncer's package.
    Raises ValueError: the end of a sentence that begins with the directory.
    """
    path, temporary = directory / name, None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)  # mode 0600
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
            if os.geteuid() == 0:
                owner = directory.stat()
                os.fchown(handle, owner.st_uid, owner.st_gid)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise ValueError(f"{name} cannot be written: {error.strerror}.") from None
    return path
