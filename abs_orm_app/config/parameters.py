"""Knows which of libpq's parameters are secrets, and keeps them out of printed parameters."""

import re
from collections.abc import Mapping
from typing import Any

# Matches options that are secrets: passwords, sslpassword, oauth_client_secret, SCRAM keys.
_SECRET = re.compile(r"password|secret|scram_(?:client|server)_key")
# The secrets among libpq's parameters.
_NAMES = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")


def is_secret(name: object) -> bool:
    return bool(_SECRET.search(str(name)))


class Secret(str):
    """A string with a masked `repr`: Sentry and rich print each value of a mapping."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Parameters(dict[str, Any]):
    """Parameters of one connection, masked because error reports print each frame's variables."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__(given)
        for name in _NAMES:
            if self.get(name) is not None:
                self[name] = Secret(self[name])

    def __repr__(self) -> str:
        return repr({name: "***" if is_secret(name) else value for name, value in self.items()})
