"""Which of libpq's parameters are secrets, and parameters that show none where they are printed."""

import re
from collections.abc import Mapping
from typing import Any

# Options that are secrets themselves: passwords, sslpassword, oauth_client_secret, SCRAM keys.
_SECRET = re.compile(r"password|secret|scram_(?:client|server)_key")
# Those that libpq has.
_NAMES = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")


def is_secret(name: object) -> bool:
    return bool(_SECRET.search(str(name)))


class Secret(str):
    """A string whose `repr` does not show it: Sentry and rich write each value of a mapping."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Parameters(dict[str, Any]):
    """Parameters of one connection. Reports of errors print the variables of each frame."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__(given)
        for name in _NAMES:
            if self.get(name) is not None:
                self[name] = Secret(self[name])

    def __repr__(self) -> str:
        return repr({name: "***" if is_secret(name) else value for name, value in self.items()})
