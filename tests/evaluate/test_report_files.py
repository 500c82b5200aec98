"""report.json, samples.parquet, report.md and report.html: complete, true to the samples, readable, safe."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from html.parser import HTMLParser
from importlib.resources import files
from xml.etree import ElementTree as ET

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_example import ENGINES, ID, OOD, auroc, ece15, make_example

from clipq.errors import ClipqError, DataError, MissingRuntimeError, UsageError
from clipq.evaluate.metrics.calibration import ece_by_chance
from clipq.evaluate.report import names, svg, tables, view
from clipq.evaluate.report.format import difference, interval, p_value, quantity
from clipq.evaluate.report.html import render_html
from clipq.evaluate.report.markdown import render_markdown
from clipq.evaluate.report.read import read_report
from clipq.evaluate.report.samples import grouped, read_samples, select, stacked, write_samples
from clipq.evaluate.report.write import require_report_libraries, tell_missing_libraries, write_report
from clipq.evaluate.verdict import judge

SCHEMA = json.loads((files("clipq.evaluate.report") / "report.schema.json").read_text())


def judged(**options):
    """The example with gates and verdict, and its samples."""
    report, samples = make_example(**options)
    gates, verdict = judge(report)
    return {**report, "gates": gates, "verdict": verdict}, samples


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a written report."""
    folder = tmp_path_factory.mktemp("report")
    write_report(*judged(), folder)
    return folder


def test_four_files_and_nothing_else(written):
    """A report is four files; no temporary file stays."""
    assert sorted(path.name for path in written.iterdir()) == ["report.html", "report.json", "report.md", "samples.parquet"]


def test_report_json_follows_the_schema(written):
    """What is written is what the published schema promises."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads((written / "report.json").read_text()), SCHEMA)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda report: report.pop("verdict"),
        lambda report: report.update(schema="clipq.report/2"),
        lambda report: report.update(extra=1),
        lambda report: report["results"]["ort-fp32"][ID].update(accuracy=report["results"]["ort-fp32"][ID]["acc1"]),
        lambda report: report["ood"]["ort-fp32"].update({"no-bar": {}}),
        lambda report: report["results"]["ort-fp32"][ID]["acc1"].pop("n"),
        lambda report: report["gates"][0].update(outcome="maybe"),
    ],
)
def test_schema_refuses_what_is_wrong(break_it):
    """The schema is no formality: each broken report is refused."""
    report = json.loads(json.dumps(judged()[0]))
    break_it(report)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, SCHEMA)


def test_schema_and_names_agree():
    """Every metric the schema allows has a label and a meaning, and the other way round."""
    definitions = SCHEMA["$defs"]
    assert set(definitions["metrics"]["propertyNames"]["enum"]) == set(names.METRICS)
    assert set(definitions["ood_metrics"]["propertyNames"]["enum"]) == set(names.OOD_METRICS)


def test_samples_survive_the_file(written):
    """The table on disk is the table in memory."""
    _, samples = judged()
    stored = read_samples(written / "samples.parquet")
    for name, column in samples.items():
        np.testing.assert_array_equal(stored[name], column)


def test_figures_can_be_computed_from_the_samples(written):
    """Accuracy, ECE and AUROC of report.json come out of samples.parquet again."""
    report = json.loads((written / "report.json").read_text())
    stored = read_samples(written / "samples.parquet")
    for engine in ENGINES:
        rows = select(stored, engine=engine, data=ID, role="id")
        correct = rows["prediction"] == rows["label"]
        assert correct.mean() == pytest.approx(report["results"][engine][ID]["acc1"]["value"])
        assert ece15(rows["confidence"], correct) == pytest.approx(report["results"][engine][ID]["ece15"]["value"])
        foreign = select(stored, engine=engine, data=OOD[0], classifier=ID)
        assert auroc(rows["mcm"], foreign["mcm"]) == pytest.approx(report["ood"][engine][f"{ID}|{OOD[0]}"]["mcm"]["auroc"]["value"])


def test_incomplete_samples_are_refused(tmp_path):
    """A missing column or one of another length is an error, and leaves no file."""
    _, samples = judged()
    with pytest.raises(DataError, match="no confidence"):
        write_samples({name: column for name, column in samples.items() if name != "confidence"}, tmp_path / "s.parquet")
    with pytest.raises(DataError, match="differ in length"):
        write_samples({**samples, "label": samples["label"][:-1]}, tmp_path / "s.parquet")
    assert list(tmp_path.iterdir()) == []


def test_scores_that_are_absent_have_no_column(tmp_path):
    """A score that no engine has is left out; one that some engines lack is NaN there, and has no panel for them."""
    report, samples = judged()
    first = samples["engine"] == "torch-fp32"
    some = {**samples, "gl_mcm": np.where(first, samples["mcm"], np.nan)}
    del some["entropy"]
    write_samples(some, tmp_path / "s.parquet")
    stored = read_samples(tmp_path / "s.parquet")
    assert "entropy" not in stored
    np.testing.assert_array_equal(stored["gl_mcm"], some["gl_mcm"])
    page = render_html(report, stored)
    assert page.count("GL-MCM as OOD score") == len(OOD)
    assert "Entropy as OOD score" not in page
    assert page.count("MaxLogit as OOD score") == len(OOD) * len(ENGINES)


def test_parts_of_the_samples_are_stacked():
    """Rows of an engine without a score get NaN, not another engine's values."""
    whole = {name: column[:2] for name, column in judged()[1].items()}
    table = stacked([whole, {name: column for name, column in whole.items() if name != "mcm"}])
    assert table["mcm"][:2].tolist() == whole["mcm"].tolist()
    assert np.isnan(table["mcm"][2:]).all()
    assert "neglabel" not in table


def test_energy_of_older_reports_is_that_of_logits(tmp_path):
    """A report from before there were two energies reads as one of today."""
    report, samples = judged()
    old = json.loads(json.dumps(report).replace('"energy_logit"', '"energy"').replace('"energy_cos"', '"other"'))
    write_report(report, samples, tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(old))
    table = pq.read_table(tmp_path / "samples.parquet").drop_columns(["energy_cos"])
    pq.write_table(table.rename_columns(["energy" if n == "energy_logit" else n for n in table.column_names]), tmp_path / "samples.parquet")
    stored = read_report(tmp_path)
    pair = f"{ID}|{OOD[0]}"
    assert stored.report["ood"]["torch-fp32"][pair]["energy_logit"] == report["ood"]["torch-fp32"][pair]["energy_logit"]
    np.testing.assert_array_equal(stored.samples["energy_logit"], samples["energy_logit"])


def test_report_json_is_written_first(tmp_path, monkeypatch):
    """When a rendering breaks, the numbers are already safe."""

    def broken(*_, **__):
        raise RuntimeError("no page")

    monkeypatch.setattr("clipq.evaluate.report.html.render_html", broken)
    with pytest.raises(RuntimeError, match="no page"):
        write_report(*judged(), tmp_path)
    assert read_report(tmp_path).report["schema"] == "clipq.report/1"


def test_missing_library_names_the_extra(monkeypatch):
    """Without the report extra the error comes first and says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jinja2" else object())
    with pytest.raises(MissingRuntimeError, match=r"jinja2 is not installed. Run: pip install 'clipq\[report\]'"):
        require_report_libraries()


@pytest.mark.parametrize(
    ("missing", "files"), [("jinja2", {"samples.parquet"}), ("pyarrow", {"report.html"}), ("", {"report.html", "samples.parquet"})]
)
def test_without_a_library_its_file_is_left_out_and_told(monkeypatch, tmp_path, capsys, missing, files):
    """On a device without the report extra the report is report.json and report.md, and a line says so before the work."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else find(name))
    tell_missing_libraries()
    told = capsys.readouterr().err
    write_report(*judged(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md"} | files
    assert missing in told
    assert ("clipq[report]" in told) == bool(missing)


def test_a_report_without_pyarrow_has_a_page_that_says_so(tmp_path, monkeypatch):
    """The table of an earlier report in the folder goes, the page says that there is none, and all else is the same."""
    report, samples = judged()
    write_report(report, samples, tmp_path)
    first = {name: (tmp_path / name).read_text() for name in ("report.json", "report.md", "report.html")}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else object())
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    write_report(report, samples, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
    second = {name: (tmp_path / name).read_text() for name in first}
    assert "could not be written" in second["report.html"].split("<footer>")[1]
    assert second["report.html"].split("<footer>")[0] == first["report.html"].split("<footer>")[0]
    assert {**second, "report.html": ""} == {**first, "report.html": ""}
    assert read_report(tmp_path).samples is None


def test_rows_are_grouped_as_by_hand():
    """Every row stands in the group of its engine, data set and classifier, in its order."""
    _, samples = judged()
    groups = grouped(samples)
    keys = list(zip(*(samples[name].tolist() for name in ("engine", "data", "classifier")), strict=True))
    assert set(groups) == set(keys)
    for key, part in groups.items():
        rows = [i for i, own in enumerate(keys) if own == key]
        assert part["image_id"].tolist() == [samples["image_id"][i] for i in rows]
    assert grouped({name: column[:0] for name, column in samples.items()}) == {}


class Page(HTMLParser):
    """What a page loads and says."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href", "action"}]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_self_contained(written):
    """The page loads nothing, runs nothing, forbids both, and every tag is closed."""
    text = (written / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|https?://", text)


def test_page_links_lead_somewhere(written):
    """Every entry of the navigation has its section."""
    text = (written / "report.html").read_text()
    assert all(f'id="{link[1:]}"' in text for link in Page(text).links)


def test_page_says_the_verdict_first(written):
    """Verdicts in words stand before everything else, and engines that may ship before those that may not."""
    text = (written / "report.html").read_text()
    places = [text.index(word) for word in ('badge">Ship<', 'badge">Not shown<', 'badge">Do not ship<', "What was compared</h2>")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("outcomes", "sentence"),
    [
        (("ship", "do not ship"), "1 of 2 engines may ship. The fastest that may is ort-fp32."),
        (("ship", "not shown"), "1 of 2 engines may ship, 1 not shown. The fastest that may is ort-fp32."),
        (("not shown", "do not ship"), "No engine is shown to be fit to ship."),
        (("do not ship", "do not ship"), "No engine may ship."),
    ],
)
def test_headline_answers_the_question(outcomes, sentence):
    """The first sentence says how many engines may ship and which of them is the fastest."""
    report, _ = make_example()
    engines = ("ort-fp32", "ort-int8-static")
    verdict = {
        engine: {"ship": outcome == "ship", "outcome": outcome, "why": []} for engine, outcome in zip(engines, outcomes, strict=True)
    }
    assert view.headline({**report, "verdict": verdict}) == sentence


def test_every_figure_is_well_formed(written):
    """Each SVG parses, has a name for screen readers, and there is one per engine, data set and score."""
    text = (written / "report.html").read_text()
    figures = [ET.fromstring(part) for part in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)]
    assert all(figure.get("aria-label") for figure in figures)
    assert len(figures) == 2 + len(ENGINES) * 4 + len(ENGINES) * len(OOD) * 6
    assert "nan" not in "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))


def test_reliability_bars_are_the_bins(written):
    """The bars of the first reliability diagram name the images of each bin, and all of them."""
    text = (written / "report.html").read_text()
    first = re.search(r'<svg[^>]*aria-label="torch-fp32".*?</svg>', text, flags=re.DOTALL)[0]
    counts = [int(number.replace(",", "")) for number in re.findall(r"<title>([\d,]+) images</title>", first)]
    assert sum(counts) == 1500


def test_names_are_escaped():
    """A class or data name with markup in it stays text."""
    report, samples = judged()
    evil = "wds:<script>alert(1)</script>&\"'"
    report = json.loads(json.dumps(report).replace('"' + ID + '"', json.dumps(evil)).replace(ID + "|", json.dumps(evil)[1:-1] + "|"))
    samples = {**samples, **{name: np.where(samples[name] == ID, evil, samples[name]) for name in ("data", "classifier")}}
    page = render_html(report, samples)
    assert "script" not in Page(page).tags
    assert "<script>" not in page
    assert "<script>" not in render_markdown(report)


def test_random_weights_are_said():
    """A model that was never trained carries a warning in both renderings."""
    report, samples = judged(random_weights=True)
    page = render_html(report, samples)
    assert "weights of this model are random" in page
    assert re.search("<h1>(.*?)</h1>", page)[1].startswith("Random weights")
    assert "weights are random" in render_markdown(report)


def test_report_without_ood_bench_and_engines():
    """With one engine, no OOD data and no latency the page still stands and says what was not measured."""
    report, samples = judged()
    only = {
        **report,
        "engines": {"torch-fp32": report["engines"]["torch-fp32"]},
        "results": {"torch-fp32": {ID: report["results"]["torch-fp32"][ID]}},
    }
    only |= {"ood": {}, "paired": {}, "bench": {}, "gates": [], "verdict": {}, "datasets": {ID: report["datasets"][ID]}}
    page = render_html(only, select(samples, engine="torch-fp32", data=ID))
    assert Page(page).open == []
    assert "Not measured in this run" in page
    assert "No engine was judged" in page
    jsonschema.validate(only, SCHEMA)
    assert ID in render_markdown(only)


def test_undefined_numbers_are_dashes():
    """Null values and intervals become a dash in every rendering."""
    report, samples = judged()
    report = json.loads(json.dumps(report))
    report["results"]["ort-fp32"][ID]["acc5"] = {"value": None, "ci95": None, "n": 0, "delta": None, "delta_ci95": None, "p_value": None}
    report["bench"]["ort-fp32"]["image-b1"]["p99_s"] = None
    jsonschema.validate(report, SCHEMA)
    assert "too few runs" in render_html(report, samples)
    assert "| – |" in render_markdown(report)


def test_markdown_tables_are_regular(written):
    """Every row of a Markdown table has as many cells as its head."""
    blocks = re.findall(r"(?:^\|.*\n)+", (written / "report.md").read_text(), flags=re.MULTILINE)
    assert len(blocks) >= 10
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


@pytest.mark.parametrize(
    ("delta", "ends", "better", "value", "word"),
    [
        (-0.01, [-0.02, -0.005], "high", 0.7, "worse"),
        (0.01, [0.005, 0.02], "high", 0.7, "better"),
        (0.01, [0.005, 0.02], "low", 0.1, "worse"),
        (-0.01, [-0.02, 0.001], "high", 0.7, "within noise"),
        (0.000001, [0.0000001, 0.000002], "low", 0.1, "equal"),
        (-0.02, [-0.03, -0.01], "zero", -0.05, "worse"),
        (-0.02, [-0.03, -0.01], "zero", 0.05, "better"),
        (-0.02, None, "high", 0.05, "no interval"),
    ],
)
def test_words_follow_the_interval(delta, ends, better, value, word):
    """Better and worse stand only where the interval excludes zero, and know the direction of each metric."""
    entry = {"value": value, "delta": delta, "delta_ci95": ends}
    assert tables.meaning(entry, names.Quantity("x", better, "x"))[1] == word


def test_expected_ece_matches_simulation():
    """The closed form agrees with perfectly calibrated answers drawn a thousand times."""
    rng = np.random.default_rng(0)
    confidence = rng.beta(4, 1.2, 800)
    drawn = [ece15(confidence, (rng.random(800) < confidence).astype(float)) for _ in range(1000)]
    assert ece_by_chance(confidence) == pytest.approx(np.mean(drawn), rel=0.05)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_inside_and_even(low, width, count):
    """Ticks lie in the range, evenly, and neither too few nor too many."""
    ticks = svg.nice_ticks(low, low + width, count)
    assert all(low - 1e-6 * width - 1e-9 <= tick <= low + width + 1e-6 * width + 1e-9 for tick in ticks)
    assert len(ticks) <= 3 * count + 1
    if len(ticks) > 2:
        assert np.diff(ticks) == pytest.approx(np.diff(ticks)[0], rel=1e-3, abs=1e-9)


def test_numbers_read_well():
    """Units, signs and rounding are what a reader expects."""
    assert [difference(x, "fraction") for x in (-0.0123, 0.0, 0.00001)] == ["−1.23 pp", "0.00 pp", "0.00 pp"]
    assert [quantity(x, "seconds") for x in (2.5, 0.0123, 0.000004)] == ["2.50 s", "12.3 ms", "4 µs"]
    assert interval([-0.01, 0.02], "fraction", signed=True) == "[−1.00, +2.00]"
    assert (quantity(None, "fraction"), p_value(0.5), p_value(1e-9)) == ("–", "p = 0.500", "p < 0.001")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, UsageError, "no report at"),
        ("{", ClipqError, "cannot read"),
        ("[]", ClipqError, "schema None"),
        ('{"schema": "clipq.report/9"}', ClipqError, "found schema 'clipq.report/9'; expected clipq.report/1"),
        ('{"schema": "clipq.report/1"}', ClipqError, "is incomplete"),
    ],
)
def test_unreadable_reports_are_one_line(tmp_path, content, error, message):
    """Whatever is wrong with a report.json, the error is one line that says it."""
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(error, match=message) as caught:
        read_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_broken_samples_are_one_line(written, tmp_path):
    """A samples.parquet that is no Parquet file is an error, not a traceback."""
    (tmp_path / "report.json").write_bytes((written / "report.json").read_bytes())
    (tmp_path / "samples.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ClipqError, match=r"samples\.parquet"):
        read_report(tmp_path)


def test_engines_left_out_are_named():
    """An engine of the bundle that could not run stands in the report, with its reason."""
    report, _ = make_example()
    origin = {**report["provenance"], "left_out": {"trt-int8": "no NVIDIA driver"}}
    assert ("Left out: trt-int8", "no NVIDIA driver") in view.facts({**report, "provenance": origin})


def test_every_metric_has_one_family():
    """No metric is lost between the tables, and none stands twice."""
    members = [metric for family in names.FAMILIES.values() for metric in family]
    assert sorted(members) == sorted(names.METRICS)
    assert max(len(family) for family in names.FAMILIES.values()) <= 8


def test_page_says_what_a_comparison_means():
    """Figures that compare with the baseline themselves have their word on the page too, "within noise" with what would have shown."""
    report, samples = judged()
    found = {"value": -0.02, "ci95": [-0.03, -0.01], "n": 1500, "delta": None, "delta_ci95": None, "p_value": 0.01}
    found["minimum_detectable"] = 0.014
    part = {"accuracy_drop": found, "effective_robustness": found, "relative_loss_shifted": {**found, "ci95": [-0.03, 0.01]}}
    shift = {"ort-int8-static": {"shift": {f"{ID}|{ID}-shift": part}}}
    page = render_html({**report, "robustness": shift}, samples)
    assert re.search(r'−2\.00 pp<span class="delta worse">worse</span><span class="ends">\[−3\.00, −1\.00\]', page)
    assert '−2.00 %<span class="delta same">within noise (1.40 % would show)</span>' in page


def test_foreign_images_are_counted_beside_their_tables():
    """Average precision depends on the ratio of known and foreign images: each table of OOD detection says it, page and Markdown."""
    report, samples = judged()
    n = {data: report["datasets"][data]["n"] for data in (ID, *OOD)}
    for text in (render_html(report, samples), render_markdown(report)):
        for foreign in OOD:
            assert f"{n[ID]:,} known and {n[foreign]:,} foreign images; AUPR depends on this ratio." in text
