"""The verdict of a run: whether all is well, the problems if not, and the exit code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abs_orm_app.checks.adoption_rules import OUR_ENGINES
from abs_orm_app.checks.finding import Finding
from abs_orm_app.checks.fixes import set_mode
from abs_orm_app.config.texts import counted
from abs_orm_app.console.layout import INDENT, Layout
from abs_orm_app.console.profiles import Comparison
from abs_orm_app.facts.active import Active
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import INSTALL_POOL, Failure
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts
from abs_orm_app.facts.wording import LEVELS, format_value, sessions_in_trouble, writes_fail
from abs_orm_app.pool.messages import SLOW_OR_LOCKED
from abs_orm_app.pool.server_errors import WRONG_SETTINGS

if TYPE_CHECKING:
    from abs_orm_app.drill.runner import Drilled


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One reason for an exit code of 1."""

    where: str  # an alias, or the level and number of a finding
    cause: str
    remedy: str
    fix: str = ""  # a line to copy
    explain: str = ""  # the command that prints more about it


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of a run in one line, and the problems that led to it."""

    summary: str
    problems: tuple[Problem, ...] = ()

    @property
    def exit_code(self) -> int:
        return 1 if self.problems else 0


def judge(
    reports: Sequence[Report],
    findings: Sequence[Finding],
    comparison: Comparison | None,
    drills: Sequence[Drilled] | None,
    fail_level: int,
) -> Verdict:
    """Judge a run. None: that part was not asked for.

    fail_level: of django.core.checks; a finding of this level or above is a problem.
    """
    unusable = [problem for report in reports if (problem := _unusable(report))]
    severe = [
        Problem(
            where=finding.title,
            cause=finding.message,
            remedy=finding.remedy,
            fix=finding.fix,
            explain=finding.explained_by,
        )
        for finding in findings
        if finding.level >= fail_level
    ]
    databases = {report.configured.alias: report.configured for report in reports}
    differing = [] if comparison is None else list(_differing(comparison, databases))
    unproven = [] if drills is None else list(_unproven(drills, databases))
    # If a pool cannot be created, the finding gives the reason.
    found = {f.alias for f in findings if f.level >= fail_level and f.number.startswith("E00")}
    vague = (WRONG_SETTINGS.hint, INSTALL_POOL)
    said = [p for p in unusable if p.where in found and p.remedy in vague]
    problems = (*(p for p in unusable if p not in said), *severe, *differing, *unproven)
    if not problems:
        but = [trouble for report in reports if (trouble := _trouble(report))]
        summary = f"OK: {_usable(reports)}{_below(findings)}."
        if but:
            more = f" (+{len(but) - 1})" if len(but) > 1 else ""
            summary = f"{summary[:-1]}, but requests may be waiting: {but[0].rstrip('.')}{more}."
        return Verdict(summary=summary)
    parts = []
    if unusable:
        cannot = "cannot be used"
        parts.append(f"{len(unusable)} of {counted(len(reports), 'database')} {cannot}")
    if severe:
        parts.append(f"{counted(len(severe), 'finding')} of level {LEVELS[fail_level]} or above")
    if differing:
        parts.append(f"the settings differ from {comparison and comparison.profile}")
    if unproven:
        parts.append("the drill did not prove every promise")
    return Verdict(summary=f"FAILED: {'; '.join(parts)}.", problems=problems)


def _unusable(report: Report) -> Problem | None:
    database = report.configured
    if database.error:
        return Problem(
            where=database.alias,
            cause=f"The engine cannot be loaded: {database.error}",
            remedy="Correct ENGINE, or install what it needs.",
        )
    if database.is_empty:
        return Problem(
            where=database.alias,
            cause="No database is set.",
            remedy="Set it in the settings:",
            fix='DATABASES = {"default": database_from_env()}',
        )
    if isinstance(report.server, ServerFacts) and (why := writes_fail(database, report.server)):
        return Problem(
            where=database.alias,
            cause=f"{why[0].upper()}{why[1:]}",
            remedy="Promote a standby, or correct the address; with several hosts, add:",
            fix="?target_session_attrs=read-write",
        )
    test = report.test.failure if report.test else None
    failure = report.active if isinstance(report.active, Failure) else test
    if not failure:
        return None
    cause = f"{failure.problem}: {failure.cause}" if failure is test else failure.cause
    return Problem(where=database.alias, cause=cause, remedy=failure.hint)


def _trouble(report: Report) -> str:
    """Return what may make requests wait, although the database can be used."""
    pool = report.active.trouble if isinstance(report.active, Active) else ""
    seen = sessions_in_trouble(report.now) if report.now else None
    return seen[0] if seen and (not pool or SLOW_OR_LOCKED in pool) else pool


def _differing(comparison: Comparison, databases: Mapping[str, Configured]) -> Iterator[Problem]:
    if not comparison.aliases:
        yield Problem(
            where=comparison.profile,
            cause="There is no PostgreSQL alias to compare.",
            remedy="Name one with --database.",
        )
    for alias in comparison.aliases:
        rows = [row for row in comparison.of(alias) if not row.matches]
        unused = any(row.here is None for row in rows)  # the profile's settings have no effect here
        wanted = [f"{row.name} to {format_value(row.field, row.wanted)}" for row in rows]
        remedy = f"Set {', '.join(wanted)}; or use another profile."
        if rows:
            yield Problem(
                where=alias,
                cause=f"The settings differ from {comparison.profile}.",
                remedy="Turn the pool on, or use another profile:" if unused else remedy,
                fix=set_mode(databases[alias], "pool") if unused else "",
            )


def _unproven(drills: Sequence[Drilled], databases: Mapping[str, Configured]) -> Iterator[Problem]:
    for drilled in drills:
        if drilled.refused and drilled.has_pool:
            yield Problem(
                where=drilled.alias,
                cause=f"The drill was refused: {drilled.refused.cause}",
                remedy=drilled.refused.hint,
            )
        elif drilled.ok is False:
            broken = [o.name for o in drilled.outcomes if o.result == "broken"]
            ours = OUR_ENGINES.get(databases[drilled.alias].engine)
            yield Problem(
                where=drilled.alias,
                cause=f"{counted(len(broken), 'promise')} broken: {', '.join(broken)}.",
                remedy="Use the engine of this app:" if ours else "Read the drill's broken rows.",
                fix=f'"ENGINE": "{ours}"' if ours else "",
            )
    if all(drilled.ok is None for drilled in drills):
        yield Problem(
            where="drill",
            cause="No alias has a pool, so nothing was proven.",
            remedy="Name an alias that has one, or turn its pool on.",
        )


def _usable(reports: Sequence[Report]) -> str:
    aliases = [r.configured.alias for r in reports if r.configured.vendor == "postgresql"]
    if not aliases:
        return "nothing to check, no database here is PostgreSQL"
    bare = [r.configured.alias for r in reports if r.configured.mode in ("null", "persistent")]
    bare = [alias for alias in bare if alias in aliases]
    without = f", but no pool is in use for {', '.join(bare)}" if bare else ""
    if len(aliases) == 1:
        return f"{aliases[0]} can be used{without.partition(' for ')[0]}"
    return f"{len(aliases)} databases can be used{without}"


def _below(findings: Sequence[Finding]) -> str:
    """Count the findings below the fail level, as in "; 1 warning"."""
    words = {"ERROR": "error", "WARNING": "warning"}
    levels = [words[LEVELS[f.level]] for f in findings if LEVELS[f.level] in words]
    found = [counted(levels.count(word), word) for word in words.values() if word in levels]
    return "".join(f"; {text}" for text in found)


def verdict_section(verdict: Verdict, layout: Layout) -> str:
    """Format one line and one fix per problem, and the verdict as the last line."""
    lines: list[str] = []
    for problem in verdict.problems:
        lines += layout.wrap(f"{problem.where}: {problem.cause}")
        lines += layout.fix(problem.remedy, problem.fix, 2)
        lines += [INDENT * 2 + problem.explain] * bool(problem.explain)
    paint = layout.style.ERROR if verdict.problems else layout.style.SUCCESS
    if lines:
        lines = [layout.heading("Problems", layout.signs.bad), *lines, ""]
    return "\n".join([*lines, paint(verdict.summary)])
