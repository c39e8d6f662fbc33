"""Finds variables that look like ours but are not read, and the name that was meant."""

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches

from abs_orm_app.config.texts import printable

# Names that other frameworks, images and platforms give to parts of an address.
SYNONYMS = {
    "DATABASE_URI": "DATABASE_URL",
    "DB_URL": "DATABASE_URL",
    "DB_URI": "DATABASE_URL",
    "DB_HOSTNAME": "DB_HOST",
    "DB_DATABASE": "DB_NAME",
    "DB_USERNAME": "DB_USER",
    "DB_PASS": "DB_PASSWORD",
    "DB_PWD": "DB_PASSWORD",
}
OF_THE_ADDRESS = ("DATABASE_URL", "DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD")
POOL = "DB_POOL_"  # what begins so is ours, whatever follows


def unread_variables(
    environ: Collection[str], prefix: str, known: Collection[str], read: Collection[str]
) -> Iterator[tuple[str, str | None]]:
    """Yield each variable of one database that is not read, with the plain name that was meant.

    known: the plain names of all variables and of their files; read: those that are read for this
    database. Another program may have variables that look like ours: what does not begin like ours
    counts only while what it resembles is not set, a synonym only while there is no URL either.
    """
    for name in sorted(environ):
        plain = name.removeprefix(prefix)
        if not name.startswith(prefix) or plain in read:
            continue
        meant = _meant(plain, known)
        ours = plain.startswith(POOL) or meant == "DB_MAX_OVERFLOW"
        if ours or (meant and not _is_given(environ, prefix, plain, meant)):
            yield name, meant


def _meant(plain: str, known: Collection[str]) -> str | None:
    if plain in SYNONYMS:
        return SYNONYMS[plain]
    # What begins with POOL is ours in any case, so a weaker resemblance is enough.
    cutoff = 0.75 if plain.startswith((POOL, "DB_MAX_")) else 0.85
    return next(iter(get_close_matches(plain, known, n=1, cutoff=cutoff)), None)


def _is_given(environ: Collection[str], prefix: str, plain: str, meant: str) -> bool:
    """True if what a variable was meant for is set, so that it may be another program's."""
    names = [meant.removesuffix("_FILE"), *(["DATABASE_URL"] if plain in SYNONYMS else [])]
    return any(f"{prefix}{name}{end}" in environ for name in names for end in ("", "_FILE"))


def did_you_mean_these(environ: Mapping[str, str], prefix: str, known: Collection[str]) -> str:
    """` DB_PASWORD is set: did you mean DB_PASSWORD?` for parts of the address; else nothing."""
    return "".join(
        f" {printable(name)} is set: did you mean {prefix}{meant}?"
        for name, meant in unread_variables(environ, prefix, known, known)
        if meant and meant.removesuffix("_FILE") in OF_THE_ADDRESS
    )
