"""Reads environment variables strictly, and reports all mistakes at once."""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, NoReturn, TypeVar

import environ  # type: ignore[import-untyped]
from django.core.exceptions import ImproperlyConfigured

from abs_orm_app.config.texts import did_you_mean

T = TypeVar("T")

TRUE = environ.Env.BOOLEAN_TRUE_STRINGS
FALSE = ("false", "off", "n", "no", "0")
EMPTY = "is empty: give it a value, or unset it"

_from_env_file: dict[str, str] = {}  # variables that this process has read from .env files


class SettingsError(ImproperlyConfigured):
    """Environment variables cannot be used; the message names each one.

    If not caught, it is printed without a traceback, which would not help. `--traceback`, or an
    exception hook of the project (such as an error reporter's), keeps the traceback.
    """


def refuse(problems: list[str]) -> NoReturn:
    """Raise SettingsError with these problems: sentences that each name a variable."""
    _print_settings_errors_plainly()
    if len(problems) == 1:
        raise SettingsError(problems[0])
    raise SettingsError("\n  ".join([f"{len(problems)} settings cannot be used.", *problems]))


@cache  # once per process, so that caught errors do not build up a chain of hooks
def _print_settings_errors_plainly() -> None:
    """Print an uncaught SettingsError without its traceback.

    With broken settings, Django finds none of our commands and lets the error through. If another
    hook is installed, such as an error reporter's, that one is called instead.
    """
    previous = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        ours = isinstance(error, SettingsError) and "--traceback" not in sys.argv
        if ours and previous is sys.__excepthook__:
            sys.stderr.write(f"{kind.__name__}: {error}\n")
            sys.stdout.write(verdict_on(error, sys.argv))
        else:
            previous(kind, error, traceback)

    sys.excepthook = hook


@dataclass(frozen=True, kw_only=True)
class Variable(Generic[T]):
    """An environment variable: its valid values and its default."""

    name: str  # without the prefix of a database
    parse: Callable[[str], T]  # raises ValueError: the end of a sentence that starts with the name
    default: T
    refused: Mapping[str, str] = field(default_factory=dict)  # value -> why, and what to set
    secret: bool = False  # never shown; may also come from the file that NAME_FILE names
    echo: bool = True  # False: messages do not show the value, which may be a password by mistake
    shared: bool = True  # if not set with the prefix, it is read without it
    prefixed: bool = True  # False: all databases share one variable, without a prefix
    # For a pool setting: the option of Django or psycopg_pool that it becomes, by mode.
    options: Mapping[str, str] = field(default_factory=dict)
    shown: Literal["always", "our pool", "if set"] = "always"
    unit: str = ""

    def why_not(self, value: object) -> str:
        """Return why a value in a handwritten entry is refused; "" if it is not."""
        try:
            parsed = self.default if value is self.default else self.parse(str(value))
        except ValueError as error:
            return str(error)
        known = isinstance(value, int | float | str | None)  # else even a Decimal could be equal
        return "" if known and parsed == value else f"is not {parsed!r}"


def setting(name: str, parse: Callable[[str], Any], default: Any, **more: Any) -> Any:
    """Define a field of PoolSettings and its variable."""
    variable = Variable[Any](name=name, parse=parse, default=default, **more)
    return field(default=default, metadata={"variable": variable})


class Reader:
    """Reads the variables of one database; records the source of each value, and each mistake."""

    def __init__(self, environ: Mapping[str, str] | None = None, prefix: str = "") -> None:
        self.environ: Mapping[str, str] = os.environ if environ is None else environ
        self.prefix = prefix
        self.problems: list[str] = []
        self.sources: dict[str, str] = {}  # by plain name: "environment", ".env" or "default"
        self.variables: dict[str, str] = {}  # by plain name: the variable that was read

    def read(self, variable: Variable[T]) -> T:
        """Return the value; if it is not valid, record the problem and return the default."""
        name = self._name(variable)
        try:
            if variable.secret and f"{name}_FILE" in self.environ:
                text = self._read_secret(name)
                name = f"{name}_FILE"
            elif name in self.environ:
                text = self.environ[name]
            else:
                self._note(variable, name, "default")
                return variable.default
            self._note(variable, name, self._source(name))
            return _parsed(variable, name, text)
        except ValueError as error:
            self.problems.append(str(error))
            return variable.default

    def secret_file(self, name: str) -> str | None:
        """Return the absolute path of the file that a secret comes from, or None."""
        path = self.environ.get(f"{self.prefix}{name}_FILE")
        return str(Path(path).absolute()) if path else None

    def stop_if_wrong(self) -> None:
        if self.problems:
            refuse(self.problems)

    def _name(self, variable: Variable[T]) -> str:
        own = self.prefix + variable.name if variable.prefixed else variable.name
        return variable.name if variable.shared and own not in self.environ else own

    def _note(self, variable: Variable[T], name: str, source: str) -> None:
        self.variables[variable.name] = name
        self.sources[variable.name] = source

    def _source(self, name: str) -> str:
        # Compared by value, because a child process (such as that of runserver's reloader) inherits
        # what its parent has read from the file.
        ours = self.environ is os.environ and _from_env_file.get(name) == self.environ[name]
        return ".env" if ours else "environment"

    def _read_secret(self, name: str) -> str:
        if name in self.environ:
            raise ValueError(f"{name} and {name}_FILE are both set: unset one of them.")
        path = self.environ[f"{name}_FILE"]
        if not path.strip():
            raise ValueError(f"{name}_FILE {EMPTY}.")
        return read_secret_file(path, f"{name}_FILE")


def _parsed(variable: Variable[T], name: str, text: str) -> T:
    # Another variable may contain an address, with its password, by mistake.
    hidden = variable.secret or not variable.echo or re.search("[:@=]", text)
    shown = name if hidden else f"{name}={text[:80]!r}"
    if not text.strip():
        raise ValueError(f"{name} {EMPTY}.")
    # Python replaces bytes that it cannot decode with surrogates.
    if "\0" in text or re.search("[\ud800-\udfff]", text):
        raise ValueError(f"{name} holds a NUL byte, or is not UTF-8 text.")
    if reason := variable.refused.get(text.strip()):
        raise ValueError(f"{shown} is refused: {reason}.")
    try:
        return variable.parse(text)
    except ValueError as error:
        raise ValueError(f"{shown} {error}.") from None


def read_secret_file(path: str, variable: str) -> str:
    """Return the secret in a file, without the line break at its end.

    variable: the one that names the file. Raises ValueError, with one sentence, if there is no
    secret; it does not show the path, which may be the secret itself by mistake.
    """
    try:
        secret = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"{variable} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{variable} does not hold UTF-8 text.") from None
    if not secret:
        raise ValueError(f"{variable} names an empty file.")
    return secret


def read_env_file(path: str | os.PathLike[str], *, variable: str = "") -> None:
    """Set the variables of a .env file that are not set yet. A missing file is ignored.

    variable: if it is set, it names the file to read instead of `path`; that file must exist.

    A line is `NAME=value`, a comment, or empty. Comments after a value are not supported, because a
    password may contain a `#`. Raises SettingsError, with the line number, for any other line.
    """
    named = os.environ.get(variable)
    if named is not None and not named.strip():
        refuse([f"{variable} {EMPTY}."])
    path, shown = (path, path) if named is None else (named, f"{variable}={named!r}")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        if named is None and isinstance(error, FileNotFoundError):
            return
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        refuse([f"{shown} cannot be read: {reason}."])
    content = {
        number: line.strip()
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.strip().startswith("#")
    }
    if problems := [
        f"{path}, line {number}, {reason}."
        for number, line in content.items()
        if (reason := _wrong_with(line))
    ]:
        refuse(problems)

    class File(environ.Env):  # type: ignore[misc]
        ENVIRON: dict[str, str] = {}  # noqa: RUF012

    File.read_env(io.StringIO("\n".join(content.values())))
    _from_env_file.update(File.ENVIRON)
    for name, value in File.ENVIRON.items():
        os.environ.setdefault(name, value)


def _wrong_with(line: str) -> str | None:
    """Return why a line of a .env file sets no variable, or None."""
    # django-environ would log such a line, with any secret in it, and skip it.
    if not re.match(r"(export )?[A-Za-z_0-9]+=", line):
        return "is not NAME=value (mind spaces before the =)"
    return "holds a NUL byte" if "\0" in line else None


def whole_number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if re.fullmatch(r"-?[0-9]{1,18}", text.strip()) and least <= int(text) <= most:
            return int(text)
        raise ValueError(f"is not a whole number from {least} to {most}")

    return parse


def seconds(most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if re.fullmatch(r"[0-9]*\.?[0-9]+", text.strip()) and 0 < float(text) <= most:
            return float(text)
        raise ValueError(f"is not a number of seconds above 0, up to {most:g}")

    return parse


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if (word := text.strip().lower()) in words:
            return word
        raise ValueError(f"is not one of {', '.join(words)}{did_you_mean(word, words)}")

    return parse


def true_or_false(text: str) -> bool:
    """Parse true/false, on/off, yes/no, y/n, ok or 1/0, and nothing else."""
    if (word := text.strip().lower()) in (*TRUE, *FALSE):
        return word in TRUE
    raise ValueError(f"is not true or false{did_you_mean(word, ('true', 'false'))}")


SCHEMA = 1  # of check_pool's JSON; changes when a key is renamed or removed, not when one is added
SUMMARY = "FAILED: the settings cannot be used."


def verdict_on(error: BaseException, argv: Sequence[str]) -> str:
    """Return the verdict to print, as text or JSON; "" if `argv` is another command."""
    if list(argv[1:2]) != ["check_pool"]:
        return ""
    if not ("--format=json" in argv or ("--format", "json") in pairwise(argv)):
        return f"{SUMMARY}\n"
    document = {
        "schema": SCHEMA,
        "ok": False,
        "exit_code": 1,
        "summary": SUMMARY,
        "error": str(error),
    }
    return f"{json.dumps(document, indent=2)}\n"
