"""`manage.py check_pool`: shows each database's settings, server, connection test, findings."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from abs_orm_app.checks.collect import all_findings
from abs_orm_app.config.variables import one_of
from abs_orm_app.console import arguments, json_output
from abs_orm_app.console.budget import add_arguments, budget_section, plan, refuse_half_a_load
from abs_orm_app.console.findings_text import findings_section, not_checked
from abs_orm_app.console.layout import Layout, signs_for, terminal_width
from abs_orm_app.console.profiles import compare, comparison_section, find_profile
from abs_orm_app.console.report_text import answer_sections, settings_section
from abs_orm_app.console.verdict import judge, verdict_section
from abs_orm_app.facts.active import Active
from abs_orm_app.facts.databases import Configured, configured_databases
from abs_orm_app.facts.report import Report, report
from abs_orm_app.facts.server import ServerFacts

if TYPE_CHECKING:
    from abs_orm_app.drill.runner import Drilled

EXAMPLES = """\
examples:
  manage.py check_pool                                     does it work, and what is happening now?
  manage.py check_pool -v 2                                with all settings and facts
  manage.py check_pool --explain E021                      what does this finding mean?
  manage.py check_pool --rps 50 --hold-ms 40               how large should the pool be?
  manage.py check_pool --format json --fail-level warning  in a pipeline

exit codes:
  0  all is well
  1  a database cannot be used, there is a finding of the fail level or above, the settings
     differ from the profile, or the drill did not prove every promise
  2  an argument is wrong
"""


class Command(BaseCommand):
    help = (
        "Shows the settings of each database and what its server reports,\n"
        "tests a connection, applies the rules, and ends with a verdict."
    )
    requires_system_checks = ()  # this command shows their results itself

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(
            prog_name,
            subcommand,
            usage=f"manage.py {subcommand} [--database ALIAS ...] [-v 2] [options]",
            epilog=EXAMPLES,
            formatter_class=arguments.HelpFormatter,
            **kwargs,
        )
        # An invalid value prints one sentence, without the usage above it.
        parser.print_usage = lambda *_: None  # type: ignore[method-assign]
        return parser

    def add_arguments(self, parser: CommandParser) -> None:
        scope = parser.add_argument_group("what to look at")
        arguments.add_database(scope, without="all")
        scope.add_argument(
            "--explain",
            nargs="?",
            const="",
            metavar="TOPIC",
            help="Instead, explain a finding, such as E021, or a message, offline."
            " Without TOPIC: list the topics.",
        )
        more = parser.add_argument_group("what else to check")
        more.add_argument(
            "--compare", metavar="PROFILE", help="Also compare the settings with this profile."
        )
        more.add_argument(
            "--drill",
            action="store_true",
            help="Also test the pool's promises on the live database, in separate pools.",
        )
        more.add_argument(
            "--yes",
            action="store_true",
            help="Let the drill use more than half of the free connections.",
        )
        add_arguments(parser.add_argument_group("how large the pools should be"))
        output = parser.add_argument_group("output and exit code")
        output.add_argument(
            "--format",
            type=arguments.argument(one_of("text", "json")),
            default="text",
            metavar="FORMAT",
            help="text or json. Default: text.",
        )
        output.add_argument(
            "--fail-level",
            type=arguments.argument(one_of("critical", "error", "warning", "info", "debug")),
            default="error",
            metavar="LEVEL",
            help="Exit with 1 on a finding of this level or above: critical, error, warning, info"
            " or debug. Default: error.",
        )

    def handle(self, *_: Any, **options: Any) -> None:
        _write_what_the_encoding_lacks_as_escapes(self.stdout)
        try:
            code = self._check(options) if options["explain"] is None else self._explain(options)
            self.stdout.flush()
        except (KeyboardInterrupt, RuntimeError) as error:
            if not _is_interrupt(error):
                raise
            self.stderr.write("Interrupted; all connections are closed.")
            raise SystemExit(130) from None
        except BrokenPipeError:
            # The reader has exited (`check_pool | head`); Python would report that at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        if code:
            raise SystemExit(code)

    def _layout(self) -> Layout:
        signs = signs_for(getattr(self.stdout, "encoding", None))
        return Layout(style=self.style, signs=signs, width=terminal_width())

    def _explain(self, options: dict[str, Any]) -> int:
        from abs_orm_app.checks.guide import entries, find_entry

        topic, layout = options["explain"], self._layout()
        if not topic:
            rows = [(entry.topic, entry.title) for entry in entries().values()]
            self.stdout.write("\n".join([layout.heading("Topics"), *layout.pairs(rows)]))
            return 0
        try:
            entry = find_entry(topic)
        except LookupError as error:
            raise CommandError(str(error), returncode=arguments.BAD_ARGUMENTS) from None
        self.stdout.write(f"{self.style.MIGRATE_HEADING(entry.title)}\n\n{entry.text}")
        return 0

    def _check(self, options: dict[str, Any]) -> int:
        databases = configured_databases(arguments.chosen_aliases(options["database"]))
        if options["yes"] and not options["drill"]:
            raise CommandError("--yes needs --drill.", returncode=arguments.BAD_ARGUMENTS)
        try:
            refuse_half_a_load(options, databases)
            profile = find_profile(options["compare"])
        except (ImproperlyConfigured, ValueError) as error:
            raise CommandError(str(error), returncode=arguments.BAD_ARGUMENTS) from None
        in_text = options["format"] == "text"
        layout = self._layout()
        reports: list[Report] = []
        drills: list[Drilled] | None = [] if options["drill"] else None
        for database in databases:
            reports.append(self._report(database, layout, options))
            if drills is not None:
                drills.append(self._drill(reports[-1], layout, options))
        findings = all_findings(reports, options["processes"])
        planned = plan(options, reports)
        comparison = None if profile is None else compare(databases, options["compare"], profile)
        level = getattr(checks, options["fail_level"].upper())
        verdict = judge(reports, findings, comparison, drills, level)
        if in_text:
            unchecked = not_checked(reports, debug=settings.DEBUG)
            everything = options["verbosity"] > 1
            # The problems list the findings of the fail level, and these two in other words.
            others = [f for f in findings if f.number not in ("W002", "W024")]
            shown = [f for f in others if everything or f.level < level]
            found = findings_section(shown, unchecked, layout, everything=everything)
            blocks = [
                *([] if planned.budgets is None else [budget_section(planned, layout)]),
                *([found] if shown or everything or not verdict.problems else []),
                *([comparison_section(comparison, layout)] if comparison else []),
                verdict_section(verdict, layout),
            ]
            self.stdout.write("\n\n".join(blocks))
        else:
            self.stdout.write(
                json_output.as_json(reports, findings, comparison, drills, planned, verdict)
            )
        return verdict.exit_code

    def _report(self, database: Configured, layout: Layout, options: dict[str, Any]) -> Report:
        in_text, everything = options["format"] == "text", options["verbosity"] > 1
        if in_text:  # before the server is queried: if it is down, that takes long
            self.stdout.write(settings_section(database, layout, everything=everything) + "\n\n")
            self.stdout.flush()
        gathered = _with_neighbours(report(database))
        if in_text and database.vendor == "postgresql":
            sections = answer_sections(gathered, layout, everything=everything)
            if sections:
                self.stdout.write(sections + "\n\n")
        return gathered

    def _drill(self, gathered: Report, layout: Layout, options: dict[str, Any]) -> Drilled:
        from abs_orm_app.console.drill_text import run_drill

        in_text = options["format"] == "text"
        drilled = run_drill(
            gathered,
            take_most=options["yes"],
            out=self.stdout if in_text else None,
            progress=self.stderr,
            layout=layout,
        )
        if in_text:
            self.stdout.write("\n")
        return drilled


def _with_neighbours(gathered: Report) -> Report:
    """Add what other processes on this machine report about their pools."""
    pool, server = gathered.active, gathered.server
    if not isinstance(pool, Active) or pool.trouble or not isinstance(server, ServerFacts):
        return gathered
    if not server.used_by_role:
        return gathered
    from abs_orm_app.integrations.admin_page.neighbours import trouble_of

    trouble = trouble_of(gathered.configured.alias)
    return replace(gathered, active=replace(pool, trouble=trouble))


def _is_interrupt(error: BaseException) -> bool:
    """Return True for Ctrl-C. In `threading`, Ctrl-C at the end of a wait may arrive before the
    wait has its lock again; releasing that lock then raises RuntimeError instead."""
    return isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)


def _write_what_the_encoding_lacks_as_escapes(stdout: Any) -> None:
    """Let a terminal without UTF-8 show a database named "é" as "\\xe9", instead of failing."""
    out = getattr(stdout, "_out", None)  # an attribute of Django's OutputWrapper
    if isinstance(out, TextIOWrapper):
        out.reconfigure(errors="backslashreplace")
