"""`manage.py check_pool`: what is configured, what is active, and what the server says to it."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from abs_orm_app.checks.collect import all_findings
from abs_orm_app.checks.finding import Finding
from abs_orm_app.console import capacity_options, capacity_text, json_output, text
from abs_orm_app.console.arguments import (
    BAD_ARGUMENTS,
    above_zero,
    add_database,
    chosen_aliases,
    refuse_unknown,
)
from abs_orm_app.console.capacity_options import Question
from abs_orm_app.console.profiles import Compared, Profile, compare, profiles
from abs_orm_app.facts.databases import Configured, configured_databases
from abs_orm_app.facts.report import Report, report

if TYPE_CHECKING:
    from abs_orm_app.drill.runner import Drilled

INTERVAL = 2.0  # seconds between two looks of --watch
FAIL_LEVEL = "ERROR"
NOT_WITH_WATCH = (
    "drill",
    "yes",
    "compare",
    "advise",
    "processes",
    "rps",
    "query_ms",
    "target_wait_ms",
    "fail_level",
)


class Command(BaseCommand):
    help = (
        "Shows the connection pool of each database as configured, as active and as its server "
        "sees it, and tests a connection. Exits with 1 on a failed connection, a finding of the "
        "fail level, a difference from the profile or a broken promise, and with 2 on bad "
        "arguments."
    )
    requires_system_checks = ()  # what they would stop at is shown

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_database(parser, without="all")
        parser.add_argument(
            "--compare", metavar="PROFILE", help="Also compare with these reference settings."
        )
        parser.add_argument(
            "--drill",
            action="store_true",
            help="Also prove on the live database, in pools of its own, what the pool promises.",
        )
        parser.add_argument(
            "--yes",
            action="store_true",
            help="Let the drill take more than half of the connections that are free.",
        )
        capacity_options.add_arguments(parser)
        parser.add_argument(
            "--watch",
            nargs="?",
            const=INTERVAL,
            type=above_zero,
            metavar="SECONDS",
            help="Show nothing but who is connected, again and again, until q or Ctrl-C.",
        )
        parser.add_argument("--format", choices=("text", "json"), default="text")
        parser.add_argument(
            "--fail-level",
            choices=("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"),
            help=f"Exit with 1 on a finding of this level or above. Default: {FAIL_LEVEL}.",
        )

    def handle(self, *_: Any, **options: Any) -> None:
        databases = configured_databases(chosen_aliases(options["database"]))
        run = self._check if options["watch"] is None else self._watch
        try:
            code = run(databases, options)
            self.stdout.flush()
        except KeyboardInterrupt:
            self.stderr.write("Interrupted; all connections are closed.")
            raise SystemExit(130) from None
        except BrokenPipeError:
            # The reader has left (`check_pool | head`); Python would complain about that at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        if code:
            raise SystemExit(code)

    def _check(self, databases: Sequence[Configured], options: dict[str, Any]) -> int:
        if options["yes"] and not options["drill"]:
            raise CommandError("--yes goes with --drill.", returncode=BAD_ARGUMENTS)
        profile = _profile(options["compare"])
        question = _question(options, databases)
        in_text = options["format"] == "text"
        reports: list[Report] = []
        drills: list[Drilled] | None = [] if options["drill"] else None
        for database in databases:
            reports.append(self._report(database, in_text))
            if drills is not None:
                drills.append(self._drill(reports[-1], in_text, options["yes"]))
        findings = all_findings(reports, question.processes)
        planned = capacity_options.answer(question, reports)
        compared = _compared(databases, profile)
        level = getattr(checks, options["fail_level"] or FAIL_LEVEL)
        code = _exit_code(reports, findings, compared, drills, level)
        if not in_text:
            comparison = None if compared is None else (options["compare"], compared)
            self.stdout.write(
                json_output.as_json(reports, findings, comparison, drills, planned, code)
            )
            return code
        blocks = [
            *capacity_text.sections(planned, self.style),
            text.findings_section(findings, self.style),
        ]
        if compared is not None:
            blocks.append(text.comparison_section(options["compare"], compared, self.style))
        self.stdout.write("\n\n".join(blocks))
        return code

    def _report(self, database: Configured, in_text: bool) -> Report:
        if in_text:  # at once: a server that is down may take its time
            self.stdout.write(text.configured_section(database, self.style) + "\n\n")
            self.stdout.flush()
        gathered = report(database)
        if in_text and database.vendor == "postgresql":
            self.stdout.write(text.answer_sections(gathered, self.style) + "\n\n")
        return gathered

    def _watch(self, databases: Sequence[Configured], options: dict[str, Any]) -> int:
        if any(options[name] is not None and options[name] is not False for name in NOT_WITH_WATCH):
            raise CommandError("--watch goes with --database alone.", returncode=BAD_ARGUMENTS)
        if options["format"] == "json":
            raise CommandError("--watch is for people: it has no JSON.", returncode=BAD_ARGUMENTS)
        try:
            database = capacity_options.one_alias(databases, "--watch")
        except ValueError as error:
            raise CommandError(str(error), returncode=BAD_ARGUMENTS) from None
        try:
            from abs_orm_app.console import watch_view
        except ImportError as error:
            wanted = "pip install 'abs-orm-app[watch]'"
            raise CommandError(f"--watch cannot be done: {error}. {wanted}") from error
        if self.stdout.isatty():
            watch_view.live(database, options["watch"], no_color=options["no_color"])
            return 0
        seen, answered = watch_view.once(database, getattr(self.stdout, "encoding", None))
        self.stdout.write(seen)
        return 0 if answered else 1

    def _drill(self, gathered: Report, in_text: bool, take_most: bool) -> Drilled:
        try:
            from abs_orm_app.console.drill_text import run_drill
        except ImportError as error:
            wanted = "pip install 'psycopg[binary,pool]'"
            raise CommandError(f"--drill cannot be done: {error}. {wanted}") from error
        out = self.stdout if in_text else None
        drilled = run_drill(
            gathered, take_most=take_most, out=out, progress=self.stderr, style=self.style
        )
        if in_text:
            self.stdout.write("\n")
        return drilled


def _profile(name: str | None) -> Profile | None:
    if name is None:
        return None
    try:
        known = profiles()
    except ImproperlyConfigured as error:
        raise CommandError(str(error), returncode=BAD_ARGUMENTS) from None
    refuse_unknown(name, tuple(known), "There is no profile", "there is")
    return known[name]


def _question(options: dict[str, Any], databases: Sequence[Configured]) -> Question:
    try:
        return capacity_options.read_question(options, databases)
    except ValueError as error:
        raise CommandError(str(error), returncode=BAD_ARGUMENTS) from None


def _compared(databases: Sequence[Configured], profile: Profile | None) -> list[Compared] | None:
    if profile is None:
        return None
    return [
        row
        for database in databases
        if database.vendor == "postgresql"
        for row in compare(database, profile)
    ]


def _exit_code(
    reports: Sequence[Report],
    findings: Sequence[Finding],
    compared: Sequence[Compared] | None,
    drills: Sequence[Drilled] | None,
    fail_level: int,
) -> int:
    failed = any(report.failed for report in reports)
    found = any(finding.level >= fail_level for finding in findings)
    differs = compared is not None and not (compared and all(row.matches for row in compared))
    verdicts = {drilled.ok for drilled in drills or ()} - {None}  # of the aliases with a pool
    unproven = drills is not None and verdicts != {True}
    return 1 if failed or found or differs or unproven else 0
