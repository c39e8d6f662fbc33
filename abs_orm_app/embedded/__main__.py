"""`python -m abs_orm_app.embedded start|stop DIRECTORY`."""

import argparse
import sys
from pathlib import Path

from abs_orm_app.embedded import EmbeddedError, embedded_url, stop


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m abs_orm_app.embedded", description="Control an embedded PostgreSQL."
    )
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("directory", type=Path, help="as in DATABASE_URL=embedded:///DIRECTORY")
    chosen = parser.parse_args()
    try:
        if chosen.action == "start":
            sys.stdout.write(f"{embedded_url(chosen.directory)}\n")
        else:
            sys.stdout.write("stopped\n" if stop(chosen.directory) else "was not running\n")
    except EmbeddedError as refusal:
        parser.exit(1, f"{refusal}\n")


if __name__ == "__main__":
    main()
