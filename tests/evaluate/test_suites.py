"""Suites as data: what the packaged ones ask for, how a file is read and refused, and what is left out on this machine."""

from __future__ import annotations

import json
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from clipq.calib_data.table import SOURCES
from clipq.errors import ClipqError, DataError, MissingDataError, UsageError
from clipq.evaluate.gates.presets import read_gates
from clipq.evaluate.suites.read import describe_suites, packaged_suites, read_suite
from clipq.evaluate.suites.recipe import KEYS, Entry, Suite, suite_from_json
from clipq.evaluate.suites.resolve import resolve

FOLDER = files("clipq.evaluate.suites")
SUITE = {"schema": "clipq.suite/1", "about": "a test", "data": ["synthetic:scenes"]}


def refused(found: object, *words: str, kind: type[ClipqError] = UsageError) -> None:
    """Assert that a suite is refused with one line that names its file and holds these words."""
    with pytest.raises(kind) as caught:
        suite_from_json("mine", found, "mine.yaml")
    assert all(word in str(caught.value) for word in ("mine.yaml", *words)), str(caught.value)


@pytest.fixture(scope="module")
def schema() -> Any:
    """The published JSON Schema."""
    return json.loads((FOLDER / "suite.schema.json").read_text("utf-8"))


# --- the packaged ones ---


@pytest.mark.parametrize("name", packaged_suites())
def test_packaged_suites_can_be_used(name: str, schema: Any) -> None:
    """Each keeps the schema, names kinds of data that exist, and gates that can be read."""
    jsonschema.validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8")), schema, cls=jsonschema.Draft202012Validator)
    suite = read_suite(name)
    entries = [entry for value in suite.options().values() if isinstance(value, tuple) for entry in value if isinstance(entry, Entry)]
    assert entries
    assert len(entries) == len({entry.id for entry in entries})
    assert {entry.id.partition(":")[0] for entry in entries} <= set(SOURCES)
    assert all("{" not in entry.id.replace("{root}", "") for entry in entries)
    assert read_gates(suite.fail_on, suite.gates)
    assert f"{suite.name} " in describe_suites()


def test_quick_claims_nothing_below_a_percent_point() -> None:
    """1,000 images stand behind it, and its line says what they cannot show."""
    assert packaged_suites()[:3] == ("quick", "standard", "full")
    quick = read_suite("quick")
    assert quick.limit == 1000
    assert "shows no loss of accuracy below about a percent point" in quick.about


def test_openood_lists_are_those_of_its_version() -> None:
    """Near and far sets of OpenOOD v1.5, benchmark by benchmark."""
    lists = {
        "standard": {"ssb_hard", "ninco", "inaturalist", "textures", "openimage_o"},
        "cifar10": {"cifar100", "tin", "mnist", "svhn", "texture", "places365"},
        "cifar100": {"cifar10", "tin", "mnist", "svhn", "texture", "places365"},
    }
    for name, expected in lists.items():
        found = {value for value in read_suite(name).options().values() if isinstance(value, tuple) and isinstance(value[0], Entry)}
        ids = {entry.id for entries in found for entry in entries}
        assert {data_id.rpartition("/")[2] for data_id in ids if data_id.startswith("openood:")} == expected


def test_the_demo_needs_no_folder() -> None:
    """Everything it names is drawn on demand."""
    resolved = resolve(read_suite("demo"), None)
    assert resolved.options["data"][0] == "synthetic:scenes"
    assert resolved.record["left_out"] == {}


# --- reading ---


def test_reader_schema_and_record_know_the_same_keys(schema: Any) -> None:
    """What can be written, what is checked and what is kept are one list."""
    assert set(schema["properties"]) == set(KEYS) == {field.name for field in fields(Suite)} - {"name"}
    assert suite_from_json("mine", SUITE, "mine.yaml").options() == {"data": (Entry("synthetic:scenes"),)}


def test_equal_suites_have_equal_hashes(tmp_path: Path) -> None:
    """Spacing, comments and the order of keys do not count; a limit does."""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SUITE))
    (tmp_path / "mine.json").write_text(json.dumps(dict(reversed(SUITE.items()))))
    (tmp_path / "mine.yml").write_text(f"# a comment\n{yaml.safe_dump(SUITE)}limit: 10\n")
    one, two, three = (read_suite(str(tmp_path / f"mine.{suffix}")).sha256() for suffix in ("yaml", "json", "yml"))
    assert one == two != three


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"limits": 10}, ["unknown key", "Did you mean 'limit'?"]),
        ({"schema": "clipq.suite/2"}, ["another version", "clipq.suite/1"]),
        ({"schema": None}, ["has no schema"]),
        ({"about": ""}, ["has no about"]),
        ({"about": "two\nlines"}, ["one line of text"]),
        ({"data": []}, ["has no data"]),
        ({"data": "synthetic:scenes"}, ["data", "a list"]),
        ({"data": [{"id": "synthetic:scenes", "requird": True}]}, ["Did you mean 'required'?"]),
        ({"data": [{"id": "synthetic:scenes", "required": "yes"}]}, ["true or false"]),
        ({"data": [{"required": True}]}, ["a data id"]),
        ({"limit": "ten"}, ["limit", "'ten'", "a whole number"]),
        ({"limit": True}, ["a whole number"]),
        ({"limit": -1}, ["a whole number"]),
        ({"bench_seconds": float("inf")}, ["not negative"]),
        ({"gates": ["default", 3]}, ["gates", "3"]),
        ({"shift": ["synthetic:scenes"]}, ["shift", "= between them"]),
        ({"tune_scale": ["synthetic:scenes", "synthetic:scenes-shift"]}, ["tune_scale", "one data id"]),
        ({"severities": [1, "2"]}, ["severities", "a whole number"]),
        ({"neglabel": 1}, ["neglabel", "true or false"]),
    ],
)
def test_a_wrong_suite_is_told_in_one_line(change: dict[str, Any], words: list[str]) -> None:
    """What was found, and what belongs there."""
    refused({**SUITE, **change}, *words)


def test_what_is_no_suite(tmp_path: Path) -> None:
    """Lists, broken YAML, repeated keys, absent files and unknown names."""
    refused(["data"], "is no suite", "list")
    for text, words in (("data: [", "cannot read"), ("a: 1\na: 2\n", "the key a twice")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UsageError, match=words):
            read_suite(str(tmp_path / "bad.yaml"))
    with pytest.raises(UsageError, match="cannot read the suite"):
        read_suite(str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match=r"Did you mean 'quick'\?.*ends in .yaml"):
        read_suite("quik")


# --- on this machine ---


def _suite(**more: Any) -> Suite:
    return suite_from_json("mine", {**SUITE, **more}, "mine.yaml")


def test_absent_sets_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An absent set is a note and a line in the record; what is there stays, in order."""
    suite = _suite(ood=["folder:{root}/none", "synthetic:scenes-far", "openood:{root}:imagenet/ninco"])
    resolved = resolve(suite, tmp_path)
    assert resolved.options == {"data": ("synthetic:scenes",), "ood": ("synthetic:scenes-far",)}
    assert list(resolved.record["left_out"]) == [f"folder:{tmp_path}/none", f"openood:{tmp_path}:imagenet/ninco"]
    assert "no list imagenet/ninco" in resolved.record["left_out"][f"openood:{tmp_path}:imagenet/ninco"]
    assert f"left out folder:{tmp_path}/none: no data set at" in capsys.readouterr().err
    assert resolved.record["sha256"] == suite.sha256()


def test_required_and_broken_sets_are_errors(tmp_path: Path) -> None:
    """Required sets must be there; a set that is there but empty, or misspelt in kind or split, is never just left out."""
    with pytest.raises(MissingDataError, match="no data set"):
        resolve(_suite(ood=[{"id": "folder:{root}/none", "required": True}]), tmp_path)
    with pytest.raises(DataError, match="no images"):
        resolve(_suite(ood=["folder:{root}"]), tmp_path)
    with pytest.raises(UsageError, match="Did you mean 'folder'"):
        resolve(_suite(ood=["foldr:{root}"]), tmp_path)
    with pytest.raises(UsageError, match="unknown split"):
        resolve(_suite(ood=["synthetic:scenes:tset"]), tmp_path)


def test_pairs_stand_or_fall_together(tmp_path: Path) -> None:
    """A pair is left out when one of its two is not there, captions are looked for as captions, and what is left empty is no option."""
    more = {"shift": ["synthetic:scenes=folder:{root}/none"], "spurious": ["synthetic:scenes=synthetic:scenes-spurious"]}
    resolved = resolve(_suite(**more, retrieval=["synthetic:scenes-captions", "wds:{root}/coco"], tune_scale=["folder:{root}/t"]), tmp_path)
    assert resolved.options == {
        "data": ("synthetic:scenes",),
        "spurious": ("synthetic:scenes=synthetic:scenes-spurious",),
        "retrieval": ("synthetic:scenes-captions",),
    }
    assert list(resolved.record["left_out"]) == [f"wds:{tmp_path}/coco", f"synthetic:scenes=folder:{tmp_path}/none", f"folder:{tmp_path}/t"]


def test_neglabel_needs_foreign_data_that_is_there(tmp_path: Path) -> None:
    """Without any OOD set it is left out, and the record says so; OOD data given beside the suite is enough."""
    suite = _suite(neglabel=True, ood_near=["folder:{root}/none"])
    assert resolve(suite, tmp_path).record["left_out"]["neglabel"] == "no OOD data set is there"
    assert "neglabel" not in resolve(suite, tmp_path).options
    assert resolve(suite, tmp_path, {"ood"}).options["neglabel"] is True


def test_a_suite_without_any_data_is_an_error(tmp_path: Path) -> None:
    """No root where one is needed, or nothing below it; data given beside the suite takes its place."""
    suite = _suite(data=["folder:{root}/a", "folder:{root}/b"], limit=5)
    with pytest.raises(UsageError, match="--root"):
        resolve(suite, None)
    with pytest.raises(UsageError, match="none of the data sets") as caught:
        resolve(suite, tmp_path)
    assert f"folder:{tmp_path}/a or folder:{tmp_path}/b" in str(caught.value)
    assert resolve(suite, None, {"data"}).options == {"limit": 5}
