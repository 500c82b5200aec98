"""clipq eval --suite: what comes from the suite, what the command line replaces, and what the report says of it."""

from __future__ import annotations

import argparse
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from toy_bundle import make_toy_bundle

from clipq.cli import evaluate
from clipq.cli.main import main
from clipq.cli.suite_options import apply_suite
from clipq.errors import UsageError
from clipq.evaluate.suites.recipe import KEYS

SUITE = """
schema: clipq.suite/1
about: a test
data: [synthetic:scenes]
ood: [synthetic:scenes-far, "folder:{root}/none"]
limit: 40
resamples: 50
bench_seconds: 0
gates: [default]
fail_on: ["acc1.delta_pp<-100"]
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle that the tests only read."""
    return make_toy_bundle(tmp_path_factory.mktemp("suite") / "bundle").folder


@pytest.fixture
def suite(tmp_path: Path) -> str:
    """A suite of one's own."""
    (tmp_path / "mine.yaml").write_text(SUITE)
    return str(tmp_path / "mine.yaml")


def _parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args(["bundle", "-o", "out", *arguments])


def test_every_key_of_a_suite_is_an_option() -> None:
    """A suite can say nothing that clipq eval has no option for."""
    assert set(_parsed().suite_defaults) == set(KEYS) - {"schema", "about"}


def test_defaults_stay_without_a_suite() -> None:
    """Options that were not given get the defaults their help texts name."""
    args = _parsed("--data", "a:b,c:d")
    assert apply_suite(args) is None
    assert (args.data, args.ood, args.limit, args.seed) == (("a:b", "c:d"), (), None, 0)
    assert (args.bench_seconds, args.resamples, args.fail_on, args.gates) == (2.0, 2000, [], [])


def test_the_command_line_takes_the_place_of_the_suite(suite: str, tmp_path: Path) -> None:
    """What is given counts, even where it equals the default; the rest comes from the suite."""
    args = _parsed("--suite", suite, "--root", str(tmp_path), "--resamples", "2000", "--fail-on", "acc1.value<0")
    record = apply_suite(args)
    assert record is not None
    assert (args.resamples, args.fail_on) == (2000, ["acc1.value<0"])
    assert (args.data, args.ood, args.limit, args.bench_seconds) == (("synthetic:scenes",), ("synthetic:scenes-far",), 40, 0.0)
    assert args.gates == ["default"]
    assert record["replaced"] == ["fail_on", "resamples"]
    assert list(record["left_out"]) == [f"folder:{tmp_path}/none"]


def test_a_suite_says_the_same_as_the_command_line(tmp_path: Path) -> None:
    """Every kind of option (lists, numbers, flags, repeated ones) is read from a suite as from the command line."""
    (tmp_path / "all.yaml").write_text(
        SUITE + "shift: [synthetic:scenes=synthetic:scenes-shift]\nspurious: [synthetic:scenes=synthetic:scenes-spurious]\n"
        "corruptions: [fog, snow]\nseverities: [1, 3]\nneglabel: true\ntune_scale: [synthetic:scenes:calibration]\nseed: 4\n"
        "ood_near: [synthetic:scenes-near]\nretrieval: [synthetic:scenes-captions]\n"
    )
    told = _parsed("--suite", str(tmp_path / "all.yaml"), "--root", str(tmp_path))
    typed = _parsed(
        *("--data", "synthetic:scenes", "--ood", "synthetic:scenes-far", "--ood-near", "synthetic:scenes-near", "--limit", "40"),
        *("--shift", "synthetic:scenes=synthetic:scenes-shift", "--spurious", "synthetic:scenes=synthetic:scenes-spurious"),
        *("--corruptions", "fog,snow", "--severities", "1,3", "--neglabel", "--tune-scale", "synthetic:scenes:calibration", "--seed", "4"),
        *("--retrieval", "synthetic:scenes-captions", "--resamples", "50", "--bench-seconds", "0"),
        *("--gates", "default", "--fail-on", "acc1.delta_pp<-100"),
    )
    for args in (told, typed):
        apply_suite(args)
    names = [name for name in vars(told) if not name.startswith("suite") and name != "root"]
    assert {name: getattr(told, name) for name in names} == {name: getattr(typed, name) for name in names}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--suite"),
        (["--root", "."], "--root belongs to a suite"),
        (["--suite", "quick"], "--root"),
        (["--suite", "quikc", "--root", "."], "Did you mean 'quick'?"),
    ],
)
def test_what_is_missing_is_told(arguments: list[str], words: str) -> None:
    """Neither data nor suite, a root without a suite, a suite without its root, a suite nobody knows."""
    with pytest.raises(UsageError) as caught:
        apply_suite(_parsed(*arguments))
    assert words in str(caught.value)


def test_suites_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, without a bundle."""
    with pytest.raises(SystemExit) as ended:
        main(["eval", "--list-suites"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["quick", "standard", "full"]
    assert all(len(line.split()) > 3 for line in lines)


def test_the_report_says_which_suite_and_what_was_left_out(bundle: Path, suite: str, tmp_path: Path) -> None:
    """Provenance by hash, left-out sets with the reason, in report.json and in words."""
    out = tmp_path / "out"
    arguments = ["--suite", suite, "--root", str(tmp_path), "--baseline", "ort-fp32", "-o", str(out), "-q"]
    assert main(["eval", str(bundle), *arguments]) in {0, 3}
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    schema = json.loads((resources.files("clipq") / "evaluate/report/report.schema.json").read_text())
    jsonschema.validate(report, schema, cls=jsonschema.Draft202012Validator)
    origin = report["provenance"]
    assert (origin["suite"]["name"], origin["limit"], origin["resamples"]) == ("mine", 40, 50)
    assert list(origin["suite"]["left_out"]) == [f"folder:{tmp_path}/none"]
    assert origin["gates"] == {"presets": ["default"], "rules": ["acc1.delta_pp<-100", *origin["gates"]["rules"][1:]]}
    page = (out / "report.md").read_text()
    assert f"Suite: mine (sha256 {origin['suite']['sha256'][:12]})" in page
    assert f"Left out: folder:{tmp_path}/none: no data set at" in page


def test_the_demo_suite_runs_on_any_bundle(bundle: Path, tmp_path: Path) -> None:
    """Every set of it, on the toy bundle."""
    arguments = ["--suite", "demo", "--limit", "60", "--resamples", "20", "--no-bench", "--baseline", "ort-fp32", "-o", str(tmp_path), "-q"]
    assert main(["eval", str(bundle), *arguments]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["results"]["ort-int8-static"]) == 4
    assert report["provenance"]["suite"]["replaced"] == ["limit", "resamples"]
