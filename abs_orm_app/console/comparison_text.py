"""The comparison with a profile as text."""

from __future__ import annotations

from collections.abc import Sequence

from abs_orm_app.console.layout import Layout
from abs_orm_app.console.profiles import Compared, Comparison
from abs_orm_app.facts.wording import format_value


def comparison_section(comparison: Comparison, layout: Layout) -> str:
    """The settings of each alias next to the profile's, and whether they match."""
    mark = layout.signs.good if comparison.matches else layout.signs.bad
    heading = layout.heading(f"Comparison with {comparison.profile}", mark)
    if not comparison.aliases:
        return "\n".join([heading, *layout.wrap("There is no PostgreSQL alias to compare.")])
    blocks = ["\n".join(_alias(alias, comparison, layout)) for alias in comparison.aliases]
    return f"{heading}\n" + "\n\n".join(blocks)


def _alias(alias: str, comparison: Comparison, layout: Layout) -> list[str]:
    mode, rows = comparison.aliases[alias], comparison.of(alias)
    if all(row.here is None for row in rows):
        why = f"{alias} differs from {comparison.profile}: there is no pool here (mode {mode})."
        return list(map(layout.style.ERROR, layout.wrap(why)))
    columns = ("setting", "here", comparison.profile, "match")
    first, *others = layout.table([columns, *map(_row, rows)])
    lines = [
        line if row.matches else layout.style.ERROR(line)
        for row, line in zip(rows, others, strict=True)
    ]
    differing = [row.name for row in rows if not row.matches]
    if not differing:
        return [
            first,
            *lines,
            f"  {layout.style.SUCCESS(f'{alias} matches {comparison.profile}.')}",
        ]
    verdict = f"{alias} differs from {comparison.profile} in {', '.join(differing)}."
    return [first, *lines, *map(layout.style.ERROR, layout.wrap(verdict))]


def _row(row: Compared) -> Sequence[str]:
    match = "yes" if row.matches else "no"
    return row.name, format_value(row.field, row.here), format_value(row.field, row.wanted), match
