"""Finds variables that look like ours but are not read, and suggests the right names."""

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches

from abs_orm_app.config.texts import printable

# What other frameworks, images and platforms call the parts of an address.
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
POOL = "DB_POOL_"  # every name with this prefix is ours


def unread_variables(
    environ: Collection[str], prefix: str, known: Collection[str], read: Collection[str]
) -> Iterator[tuple[str, str | None]]:
    """Yield each unread variable of one database, with the name, without prefix, that was meant.

    known: the names without prefix of all variables and of their files; read: those that are read
    for this database. Variables of other programs may look like ours: without our prefix, a name
    counts only if the one it resembles is not set, and a synonym only if there is no URL either.
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
    # A name with such a prefix is likely ours, so a weaker resemblance is enough.
    cutoff = 0.75 if plain.startswith((POOL, "DB_MAX_")) else 0.85
    return next(iter(get_close_matches(plain, known, n=1, cutoff=cutoff)), None)


def _is_given(environ: Collection[str], prefix: str, plain: str, meant: str) -> bool:
    """Return True if the variable that was meant is set: this one may be another program's."""
    names = [meant.removesuffix("_FILE"), *(["DATABASE_URL"] if plain in SYNONYMS else [])]
    return any(f"{prefix}{name}{end}" in environ for name in names for end in ("", "_FILE"))


def did_you_mean_these(environ: Mapping[str, str], prefix: str, known: Collection[str]) -> str:
    """Return ` DB_PASWORD is set: did you mean DB_PASSWORD?` for parts of the address, else ""."""
    return "".join(
        f" {printable(name)} is set: did you mean {prefix}{meant}?"
        for name, meant in unread_variables(environ, prefix, known, known)
        if meant and meant.removesuffix("_FILE") in OF_THE_ADDRESS
    )
