"""Which of libpq's parameters are secrets, and parameters that show none where they are printed."""

from __future__ import annotations

import re
from typing import Any

# Options that are secrets themselves: passwords, sslpassword, oauth_client_secret, SCRAM keys.
_SECRET = re.compile(r"password|secret|scram_(?:client|server)_key")


def is_secret(name: object) -> bool:
    """True for a parameter of libpq whose value must not be shown."""
    return bool(_SECRET.search(str(name)))


class Parameters(dict[str, Any]):
    """Parameters of one connection. Reports of errors print the variables of each frame."""

    def __repr__(self) -> str:
        return repr({name: "***" if is_secret(name) else value for name, value in self.items()})
