"""The verdicts on half a page of Markdown, for a comment on a pull request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipq.evaluate.report.format import MISSING
from clipq.evaluate.report.markdown import escaped, table_row
from clipq.evaluate.report.view import headline, who_may_ship, worst_differences

_SHOWN_REASONS = 3


def render_summary(judged: Mapping[str, Any]) -> str:
    """Return verdicts, worst differences and what failed, of a report or of a comparison with gates and verdict."""
    verdicts = judged["verdict"]
    parts = [f"### clipq: {escaped(_answer(judged))}"]
    if verdicts:
        parts.append(_table(judged))
        parts.append(f"Differences to {escaped(judged['baseline'])} with 95 % intervals, each where it is worst.")
    reasons = [line for engine in verdicts for line in _reasons(engine, judged["gates"])]
    return "\n\n".join([*parts, *(["\n".join(reasons)] if reasons else [])]) + "\n"


def _answer(judged: Mapping[str, Any]) -> str:
    if "model" in judged.get("provenance", {}):
        return headline(judged)
    outcomes = {engine: verdict["outcome"] for engine, verdict in judged["verdict"].items()}
    return who_may_ship(judged, outcomes) if outcomes else "No engine was judged."


def _table(judged: Mapping[str, Any]) -> str:
    rows = []
    for engine, verdict in judged["verdict"].items():
        worst = worst_differences(judged, engine)
        cells = [" ".join(found[0][1:]) if found else MISSING for found in worst.values()]
        head = ["Engine", "Verdict", *worst, "Gates passed"]
        passed = [gate["outcome"] == "pass" for gate in judged["gates"] if gate["engine"] == engine]
        rows.append([escaped(engine), f"**{verdict['outcome']}**", *cells, f"{sum(passed)} of {len(passed)}"])
    return "\n".join(map(table_row, [head, ["---"] * len(head), *rows]))


def _reasons(engine: str, gates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the gates of an engine that did not pass, failures first, and how many more there are."""
    own = [gate for gate in gates if gate["engine"] == engine and gate["outcome"] != "pass"]
    own.sort(key=lambda gate: str(gate["outcome"]))
    lines = [f"- **{escaped(engine)}**, {gate['outcome']}: {escaped(gate['why'])} ({escaped(gate['rule'])})" for gate in own]
    more = len(lines) - _SHOWN_REASONS
    return [*lines[:_SHOWN_REASONS], *([f"- **{escaped(engine)}**: {more} more did not pass"] if more > 0 else [])]
