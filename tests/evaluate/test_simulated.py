"""Engines of fewer than 8 bits in a report: said in words beside speed and size, and outside of any ranking by them."""

from __future__ import annotations

import copy
import json
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from report_example import make_example

from clipq.evaluate.domination import dominated_by
from clipq.evaluate.report.html import render_html
from clipq.evaluate.report.markdown import render_markdown
from clipq.evaluate.report.ran import remarks
from clipq.evaluate.report.tables import bench_tables
from clipq.evaluate.report.view import engine_facts, who_may_ship
from clipq.evaluate.verdict import judge

ENGINE = "ort-int8-static"
WORDS = "computed in INT8, so speed and size are those of INT8"
SCHEMA = json.loads((files("clipq.evaluate.report") / "report.schema.json").read_text())


@pytest.fixture(scope="module")
def example() -> tuple[dict[str, Any], dict[str, Any]]:
    """A judged report in which the static INT8 engine stands for fewer bits, and its samples."""
    report, samples = make_example(300, 30)
    report = copy.deepcopy(report)
    report["engines"][ENGINE]["simulated"] = True
    report["gates"], report["verdict"] = judge(report, [])
    return report, samples


def test_the_schema_knows_the_field(example: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """True is allowed, anything else is not: an engine that is not simulated does not have the field."""
    plain = json.loads(json.dumps(example[0]))
    jsonschema.validate(plain, SCHEMA)
    plain["engines"][ENGINE]["simulated"] = False
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(plain, SCHEMA)


def test_speed_and_size_have_words_beside_them(example: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Each table of latency and size, the page, the Markdown and the facts say whose figures these are; other engines are not named."""
    report, samples = example
    tables = bench_tables(report)
    assert len(tables) >= 2
    for table in tables:
        assert f"{ENGINE}: {WORDS}." in table.note
        assert "ort-int8-dynamic: computed" not in table.note
    for text in (render_markdown(report), render_html(report, samples)):
        assert WORDS in text
    assert any(WORDS in line for line in remarks(report))
    assert "Simulated: fewer than 8 bits" in dict(engine_facts(report))[ENGINE]
    assert "Simulated" not in dict(engine_facts(report))["ort-int8-dynamic"]


def test_reports_without_such_engines_say_nothing() -> None:
    """No table of an ordinary report has the words."""
    assert not any("computed in INT8" in table.note for table in bench_tables(make_example(300, 30)[0]))


def _engine(p50_s: float, *, precision: str = "int8", simulated: bool = False) -> dict[str, Any]:
    same = {"value": 0.7, "ci95": None, "n": 100, "delta": 0.0, "delta_ci95": [-0.01, 0.01], "p_value": None}
    entry = {"precision": precision, "size_bytes": 50, **({"simulated": True} if simulated else {})}
    return {"entry": entry, "results": {"d": {"acc1": same}}, "ood": {}, "bench": {"image-b1": {"p50_s": p50_s}}}


def _report(**engines: dict[str, Any]) -> dict[str, Any]:
    parts = {part: {name: one[part] for name, one in engines.items()} for part in ("results", "ood", "bench")}
    return {"baseline": next(iter(engines)), "engines": {name: one["entry"] for name, one in engines.items()}, **parts}


def test_simulated_speed_decides_nothing() -> None:
    """A simulated engine is dominated by nobody and dominates nobody, where the same engine without the mark is and does."""
    for simulated in (False, True):
        slow = _report(base=_engine(0.1, precision="fp32"), fast=_engine(0.01), four=_engine(0.02, simulated=simulated))
        assert dominated_by(slow, "four") == (None if simulated else "fast")
        fast = _report(base=_engine(0.1, precision="fp32"), slow=_engine(0.02), four=_engine(0.01, simulated=simulated))
        assert dominated_by(fast, "slow") == (None if simulated else "four")


def test_the_fastest_that_may_ship_is_not_a_simulated_one() -> None:
    """The headline names the fastest engine whose speed is its own."""
    report = _report(base=_engine(0.1, precision="fp32"), eight=_engine(0.02), four=_engine(0.01, simulated=True))
    assert "fastest that may is eight." in who_may_ship(report, {"eight": "ship", "four": "ship"})
