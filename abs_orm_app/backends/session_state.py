"""Finds out whether a statement changes its session, so that the next holder would see it.

`change_of(text)` is a pure function of the statement's text. A statement that it cannot parse
counts as a change. It cannot look into functions: it only recognises those in `FUNCTIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from abs_orm_app.config.texts import printable

# Kinds of state that PostgreSQL keeps for a session; the reason of a pin and a metric's label.
SETTING = "setting"  # SET, set_config(..., false), SET ROLE, SET SESSION AUTHORIZATION, RESET
TEMPORARY = "temporary table"  # and views, sequences, types and functions in pg_temp
PREPARED = "prepared statement"  # PREPARE; not those that psycopg prepares by itself
LISTENING = "listen"
LOCK = "advisory lock"  # of the session, not of the transaction
CURSOR = "held cursor"  # DECLARE ... WITH HOLD
LIBRARY = "library"  # LOAD
OTHER = "other"  # setseed(), dblink_connect(), replication origins and slots
UNSEEN = "unseen"  # DO, CALL, and what cannot be parsed: it may have done anything


@dataclass(frozen=True, slots=True)
class Change:
    """What a statement changes in its session: the kind, and the statement in a few words.

    `lasts`: no statement undoes it, so the connection must be replaced.
    """

    kind: str
    what: str
    lasts: bool = False


_LOCKING = ("pg_advisory_lock", "pg_advisory_lock_shared", "pg_try_advisory_lock")
FUNCTIONS = {
    **{name: Change(LOCK, name) for name in (*_LOCKING, "pg_try_advisory_lock_shared")},
    "set_limit": Change(SETTING, "set_limit"),  # pg_trgm
    "setseed": Change(OTHER, "setseed", lasts=True),
    "dblink_connect": Change(OTHER, "dblink_connect", lasts=True),
    "dblink_connect_u": Change(OTHER, "dblink_connect_u", lasts=True),
    "pg_backup_start": Change(OTHER, "pg_backup_start", lasts=True),
    "pg_start_backup": Change(OTHER, "pg_start_backup", lasts=True),  # before PostgreSQL 15
    "pg_replication_origin_session_setup": Change(OTHER, "replication origin", lasts=True),
    "pg_create_logical_replication_slot": Change(OTHER, "replication slot", lasts=True),
    "pg_create_physical_replication_slot": Change(OTHER, "replication slot", lasts=True),
    "pg_copy_logical_replication_slot": Change(OTHER, "replication slot", lasts=True),
    "pg_copy_physical_replication_slot": Change(OTHER, "replication slot", lasts=True),
}

# First words of statements that leave nothing in a session, except by a function or temp table.
_PLAIN = frozenset(
    """
    abort alter analyze analyse begin checkpoint close cluster comment commit copy create delete
    drop end execute explain fetch grant import insert lock merge move notify reassign refresh
    reindex release revoke rollback savepoint security select show start table truncate unlisten
    update vacuum values with
    """.split()  # noqa: SIM905 - fifty quoted words are harder to read
)
_OFTEN = (
    "select ", "insert ", "update ", "delete ", "with ", "savepoint ", "release ", "rollback ",
)  # fmt: skip
# A statement that starts with one of `_OFTEN` and has none of these needs no parsing.
_SUSPECT = (
    ";", "temp", "advisory", "set_config", "set_limit", "setseed", "dblink", "pg_settings",
    "replication_", "backup", 'u&"',
)  # fmt: skip

_REMEMBERED = 1024  # statements; an application has a few hundred
_LONGEST_NAME = 63  # characters of a setting's name in the log, as in PostgreSQL's identifiers
_LONGEST = 4096  # characters of a statement that is remembered
_verdicts: dict[str, Change | None] = {}


def change_of(text: str) -> Change | None:
    """Return what the statement, or the worst of several, changes in its session; None if nothing.

    `text`: as it is given to `execute`, with placeholders. For a statement that was seen before,
    this is one lookup in a dictionary.
    """
    try:
        return _verdicts[text]
    except KeyError:
        change = _examine(text)
        if len(text) <= _LONGEST:
            if len(_verdicts) >= _REMEMBERED:
                _verdicts.clear()
            _verdicts[text] = change
        return change


def _examine(text: str) -> Change | None:
    lower = text.lower()
    try:
        if lower.startswith("/*"):  # some tools put a trace in a comment before each statement
            lower = lower[_end_of_comment(lower, 2) :].lstrip()
        if lower.startswith(_OFTEN) and not any(word in lower for word in _SUSPECT):
            return None
        statements = _statements(text)
    except _UnreadableError:
        return Change(UNSEEN, "a statement that cannot be read")
    worst: Change | None = None
    for statement in statements:
        change = _change_of_one(statement)
        if change and (worst is None or (change.lasts and not worst.lasts)):
            worst = change
    return worst


# Parsing

_TOKEN = re.compile(
    r"""
      (?P<space> \s+ | --[^\r\n]* )
    | (?P<comment> /\* )
    | (?P<string>
          [eE]' (?: [^'\\]++ | \\. | '' )*+ '
        | (?: [bBxXnN] | [uU]& )? ' (?: [^']++ | '' )*+ '
        | \$ (?P<tag> (?: [a-zA-Z_\x80-\U0010ffff] [\w\x80-\U0010ffff]* )? ) \$ .*? \$ (?P=tag) \$
      )
    | (?P<escaped> [uU]&" )
    | " (?P<quoted> (?: [^"]++ | "" )*+ ) "
    | (?P<word> [a-zA-Z_\x80-\U0010ffff] [\w$\x80-\U0010ffff]* )
    | (?P<endless> ['"] | \$ (?: [a-zA-Z_\x80-\U0010ffff] [\w\x80-\U0010ffff]* )? \$ )
    | (?P<sign> . )
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_COMMENT = re.compile(r"/\*|\*/")


class _UnreadableError(ValueError):
    """An unterminated quote or comment, or a name written in escapes."""


def _statements(text: str) -> list[list[str]]:
    """The words and signs of each statement. Raises `_UnreadableError`."""
    statements: list[list[str]] = [[]]
    for word in _tokens(text):
        if word == ";":
            statements.append([])
        else:
            statements[-1].append(word)
    return statements


def _tokens(text: str) -> Iterator[str]:
    """Yield words in lower case, `'` before a string, `"` before a quoted name, and signs."""
    position, end = 0, len(text)
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup in ("escaped", "endless"):
            raise _UnreadableError
        position = match.end()
        match match.lastgroup:
            case "comment":
                position = _end_of_comment(text, position)
            case "string":
                yield "'" + match["string"].lower()
            case "quoted":
                yield '"' + match["quoted"]
            case "word":
                yield match["word"].lower()
            case "sign":
                yield match["sign"]


def _end_of_comment(text: str, position: int) -> int:
    """Return the end of the comment that starts before `position`. Comments nest."""
    depth = 1
    while depth:
        match = _COMMENT.search(text, position)
        if match is None:
            raise _UnreadableError
        position = match.end()
        depth += 1 if match[0] == "/*" else -1
    return position


# Judging


def _change_of_one(statement: Sequence[str]) -> Change | None:
    first = next((word for word in statement if word != "("), "")
    if first == "set":
        return _set(statement)
    if first == "prepare" and statement[1:2] == ["transaction"]:
        return None
    if first in _BY_FIRST_WORD:
        return _BY_FIRST_WORD[first]
    if first == "declare":
        held = _has(statement, "with", "hold")
        return Change(CURSOR, "DECLARE ... WITH HOLD") if held else _called(statement)
    if first and first not in _PLAIN:
        return Change(UNSEEN, f"{printable(first[:20]).upper()} ...")
    return _called(statement) or _temporary(statement) or _updated_settings(statement)


_BY_FIRST_WORD = {
    "reset": Change(SETTING, "RESET"),
    "discard": Change(SETTING, "DISCARD"),
    "prepare": Change(PREPARED, "PREPARE"),
    "deallocate": Change(PREPARED, "DEALLOCATE"),
    "listen": Change(LISTENING, "LISTEN"),
    "load": Change(LIBRARY, "LOAD", lasts=True),
    "do": Change(UNSEEN, "DO"),
    "call": Change(UNSEEN, "CALL"),
}


# What is created under this setting is temporary, and outlives the setting.
_PG_TEMP = Change(TEMPORARY, "search_path = pg_temp")


def _names_pg_temp(words: Sequence[str]) -> bool:
    """True if a name or a string, such as a list of schemas, has pg_temp in it."""
    return any("pg_temp" in word for word in words)


def _set(statement: Sequence[str]) -> Change | None:
    """SET name = value; None for a SET that ends with the transaction."""
    words = list(statement[1:])
    if words[:1] == ["local"]:
        return _PG_TEMP if _names_pg_temp(words) else None
    if words[:1] in (["transaction"], ["constraints"]):
        return None
    if words[:2] == ["session", "characteristics"]:
        return Change(SETTING, "SET SESSION CHARACTERISTICS")
    if words[:1] == ["session"]:
        del words[0]
    name = "".join(word.removeprefix('"') for word in words[: 3 if words[1:2] == ["."] else 1])
    if name in ("role", "authorization", "time", "names", "xml", "seed", "schema", "catalog"):
        name = name.upper()
    name = {"AUTHORIZATION": "SESSION AUTHORIZATION", "TIME": "TIME ZONE"}.get(name, name)
    # A seed is the state of a random generator, which nothing can restore.
    return Change(SETTING, f"SET {printable(name[:_LONGEST_NAME])}", lasts=name in ("SEED", "seed"))


def _called(statement: Sequence[str]) -> Change | None:
    """Return the function of `FUNCTIONS` that the statement calls, or a session's `set_config`."""
    found: Change | None = None
    for number, word in enumerate(statement):
        if word != "(" or number == 0:
            continue
        name = statement[number - 1].removeprefix('"')
        change = FUNCTIONS.get(name)
        if name == "set_config":
            is_local = _is_local(statement, number + 1)
            local = _PG_TEMP if _names_pg_temp(statement) else None
            change = local if is_local else Change(SETTING, "set_config")
        if change and (found is None or change.lasts):
            found = change
    return found


def _is_local(statement: Sequence[str], position: int) -> bool:
    """True if there are three arguments from `position` on, the last of them `true`."""
    depth, commas, last = 1, 0, position
    for number in range(position, len(statement)):
        word = statement[number]
        if word in ("(", "["):
            depth += 1
        elif word in (")", "]"):
            depth -= 1
            if depth == 0:
                return commas == 2 and list(statement[last:number]) == ["true"]
        elif word == "," and depth == 1:
            commas, last = commas + 1, number + 1
    return False


def _temporary(statement: Sequence[str]) -> Change | None:
    """CREATE TEMP ..., SELECT INTO TEMP, or a name in pg_temp; not with ON COMMIT DROP."""
    made = any(
        word in ("temp", "temporary") and before in ("create", "replace", "local", "global", "into")
        for before, word in pairwise(statement)
    )
    named = any(word.removeprefix('"').startswith("pg_temp") for word in statement)
    if (made or named) and not _has(statement, "on", "commit", "drop"):
        return Change(TEMPORARY, "CREATE TEMPORARY" if made else "pg_temp")
    return None


def _updated_settings(statement: Sequence[str]) -> Change | None:
    """UPDATE pg_settings, which a rule turns into `set_config`."""
    named = any(word.removeprefix('"') == "pg_settings" for word in statement)
    return Change(SETTING, "UPDATE pg_settings") if named and "update" in statement else None


def _has(statement: Sequence[str], *words: str) -> bool:
    count = len(words)
    return any(tuple(statement[n : n + count]) == words for n in range(len(statement) - count + 1))
