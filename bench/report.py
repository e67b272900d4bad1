"""Writes the results: latest.json, a table in Markdown, a chart in SVG."""

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.plan import (
    APPEND,
    CASES,
    CLIENTS,
    DRIVEN,
    EVENT,
    LIST,
    PEERS,
    RECIPESTEP,
    REMINDERS,
    STUB,
    SUBSCRIBER,
    SYNC,
    Cell,
    Pace,
)
from bench.stats import Round, summarise
from bench.targets import Check, verdict

_OURS = "#d9480f"
_PEER = "#5c7cfa"
_BARE = "#adb5bd"


def rows_of(samples: Mapping[Cell, Sequence[Round]]) -> list[dict[str, Any]]:
    """Sum every cell up."""
    found = []
    for cell, rounds in samples.items():
        if not rounds or not all(one.latencies_ms for one in rounds):
            continue
        summary = summarise(rounds)
        found.append(
            {
                "case": cell.case,
                "system": cell.system,
                "callers": cell.callers,
                "history": cell.history,
                "per_second": round(summary.per_second, 1),
                "p50_ms": round(summary.p50_ms, 3),
                "p99_ms": round(summary.p99_ms, 3),
                "spread": round(summary.spread, 3),
            }
        )
    return found


def write(
    directory: Path, found: Sequence[Mapping[str, Any]], targets: Sequence[Check], pace: Pace, took: float
) -> None:
    """Write all three files."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = ",\n  ".join(json.dumps(row) for row in found)
    (directory / "latest.json").write_text(f"[\n  {lines}\n]\n" if found else "[]\n")
    (directory / "latest.md").write_text(markdown(found, targets, pace, took))
    (directory / "latest.svg").write_text(chart(found))


def markdown(found: Sequence[Mapping[str, Any]], targets: Sequence[Check], pace: Pace, took: float) -> str:
    """Write the tables, one a case."""
    lines = [
        "# Results of the bench",
        "",
        (
            f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}. "
            f"Rounds a cell: {pace.rounds}, of {pace.seconds:g} s each; {took / 60:.1f} minutes in all."
        ),
        "",
        "How it was measured and what to distrust: [README](../README.md).",
        "",
        "![The last 50 messages, and an append](latest.svg)",
    ]
    for case in CASES:
        own = [row for row in found if row["case"] == case]
        if not own:
            continue
        lines += [
            "",
            f"## {case}",
            "",
            "| system | callers | history | per second | p50 ms | p99 ms | spread | client |",
            "|---|---:|---:|---:|---:|---:|---:|---|",
        ]
        lines += [
            f"| {row['system']} | {row['callers']:,} | {row['history']:,} | {row['per_second']:,.0f} "
            f"| {row['p50_ms']:.2f} | {row['p99_ms']:.2f} | {row['spread']:.0%} | {_client(row)} |"
            for row in own
        ]
    lines += ["", "## Targets", "", "| what | value | wanted | |", "|---|---:|---:|---|"]
    for check in targets:
        value = "" if check.value is None else f"{check.value:.2f}"
        goal = " (goal)" if check.goal else ""
        lines.append(f"| {check.what} | {value} | {check.relation} {check.limit:g}{goal} | {verdict(check)} |")
    return "\n".join(lines) + "\n"


_SUMMED = (
    (LIST, 1, 50, "p50_ms", "last 50, 1 caller: p50 ms"),
    (LIST, 32, 50, "per_second", "last 50, 32 callers: a second"),
    (LIST, 32, 1_000, "per_second", "of 1,000: a second"),
    (APPEND, 1, 50, "p50_ms", "append, 1 caller: p50 ms"),
    (APPEND, 32, 50, "per_second", "append, 32 callers: a second"),
    (APPEND, 32, 1_000, "per_second", "to 1,000: a second"),
)

README = Path(__file__).parents[1] / "README.md"
_BLOCK = re.compile(r"(?<=<!-- bench -->\n).*?(?=<!-- /bench -->)", re.DOTALL)


def summary(found: Sequence[Mapping[str, Any]]) -> str:
    """Write the few columns that README shows, a line a system."""
    lines = [
        f"| | {' | '.join(title for *_, title in _SUMMED)} |",
        f"|---|{'---:|' * len(_SUMMED)}",
    ]
    for system in CLIENTS:
        cells = []
        for case, callers, history, value, _ in _SUMMED:
            row = next(
                (
                    one
                    for one in found
                    if (one["case"], one["system"], one["callers"], one["history"]) == (case, system, callers, history)
                ),
                None,
            )
            cells.append("" if row is None else f"{row[value]:.2f}" if value == "p50_ms" else f"{row[value]:,.0f}")
        if any(cells):
            lines.append(f"| `{system}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_into_readme(found: Sequence[Mapping[str, Any]], readme: Path = README) -> None:
    """Put the summary between README's marks."""
    readme.write_text(_BLOCK.sub(lambda _: summary(found), readme.read_text()))


def results_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """Draw the results for a terminal."""
    drawn = Table(title="Results")
    for name in ("case", "system", "callers", "history", "per second", "p50 ms", "p99 ms", "spread"):
        drawn.add_column(name, justify="left" if name in {"case", "system"} else "right")
    last = None
    for row in found:
        place = (row["case"], row["callers"], row["history"])
        if last not in {None, place}:
            drawn.add_section()
        last = place
        drawn.add_row(
            row["case"],
            row["system"],
            f"{row['callers']:,}",
            f"{row['history']:,}",
            f"{row['per_second']:,.0f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['spread']:.0%}",
        )
    return drawn


def _client(row: Mapping[str, Any]) -> str:
    others = {
        EVENT: SUBSCRIBER,
        REMINDERS: SUBSCRIBER,
        SYNC: SUBSCRIBER,
        RECIPESTEP: STUB,
        **dict.fromkeys(DRIVEN, STUB),
    }
    return others.get(row["case"]) or CLIENTS[row["system"]]


_PANELS = (
    (LIST, 1, 50, "p50_ms", "Last 50 messages, one caller: median in ms (less is better)"),
    (LIST, 32, 50, "per_second", "Last 50 messages, 32 callers: a second (more is better)"),
    (LIST, 32, 1_000, "per_second", "The same of a history of 1,000"),
    (APPEND, 1, 50, "p50_ms", "Append one message, one caller: median in ms (less is better)"),
    (
        APPEND,
        32,
        1_000,
        "per_second",
        "Append one message to a history of 1,000, 32 callers: a second (more is better)",
    ),
)


def chart(found: Sequence[Mapping[str, Any]]) -> str:
    """Draw bars."""
    width, left, bar, gap = 760, 200, 16, 6
    parts: list[str] = []
    y = 24
    for case, callers, history, key, title in _PANELS:
        own = [row for row in found if (row["case"], row["callers"], row["history"]) == (case, callers, history)]
        if not own:
            continue
        parts.append(f'<text x="12" y="{y}" class="title">{escape(title)}</text>')
        y += 12
        most = max(row[key] for row in own)
        for row in sorted(own, key=lambda one: one[key], reverse=key == "per_second"):
            length = max((width - left - 90) * row[key] / most, 1)
            system = row["system"]
            colour = _OURS if system.startswith("gaggle") else _PEER if system in PEERS else _BARE
            value = f"{row[key]:.2f}" if key == "p50_ms" else f"{row[key]:,.0f}"
            parts += [
                f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(system)}</text>',
                f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar}" rx="2" fill="{colour}"/>',
                f'<text x="{left + length + 6:.1f}" y="{y + 12}">{value}</text>',
            ]
            y += bar + gap
        y += 26
    style = "text{font:12px system-ui,sans-serif;fill:#343a40}.title{font-weight:600;font-size:13px}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}" role="img">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
