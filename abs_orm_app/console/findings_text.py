"""Formats findings as text, and which rules were not applied."""

from collections.abc import Sequence

from django.core.checks import ERROR, WARNING

from abs_orm_app.checks.finding import Finding
from abs_orm_app.console.layout import INDENT, Layout
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts


def findings_section(
    findings: Sequence[Finding],
    not_checked: Sequence[str],
    layout: Layout,
    *,
    everything: bool = True,
) -> str:
    """Format all findings, most severe first; `everything`: also why rules were not applied."""
    if not findings and not everything:
        some = " (-v 2 shows which rules were not applied)" if not_checked else ""
        return f"Findings: none{some}."
    worst = max((finding.level for finding in findings), default=0)
    signs = layout.signs
    mark = signs.bad if worst >= ERROR else signs.warning if worst >= WARNING else signs.good
    if not findings and not_checked:
        mark = ""  # nothing was found, but not everything was checked
    blocks = [
        _finding(finding, layout) for finding in sorted(findings, key=lambda found: -found.level)
    ]
    if not findings:
        blocks.append([f"{INDENT}No rule found a problem."])
    if not_checked and everything:
        blocks.append([line for why in not_checked for line in layout.wrap(f"Not checked: {why}")])
    heading = layout.heading("Findings", mark)
    return f"{heading}\n" + "\n\n".join("\n".join(block) for block in blocks)


def _finding(finding: Finding, layout: Layout) -> list[str]:
    style = layout.style
    paint = {ERROR: style.ERROR, WARNING: style.WARNING}.get(finding.level, style.NOTICE)
    return [
        INDENT + paint(finding.title),
        *layout.wrap(finding.message, 2),
        *layout.fix(finding.remedy, finding.fix, 2),
        INDENT * 2 + finding.explained_by,
    ]


def not_checked(reports: Sequence[Report], *, debug: bool) -> list[str]:
    """Return a sentence for each group of rules that could not be applied, or was left out."""
    broken = [report.configured.alias for report in reports if report.configured.error]
    reports = [report for report in reports if report.configured.vendor == "postgresql"]
    silent = [
        report.configured.alias for report in reports if not isinstance(report.server, ServerFacts)
    ]
    found = []
    if broken:
        found.append(f"the rules on {', '.join(broken)}, whose engine cannot be loaded.")
    if silent:
        found.append(f"the rules on the server of {', '.join(silent)}, which did not answer.")
    if debug:
        found.append(
            "while DEBUG is on, the rules for production (`manage.py check --deploy`), and the"
            " server's timeouts."
        )
    return found
