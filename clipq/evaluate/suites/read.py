"""Suites from where they stand: packaged ones by name, anyone's own as a YAML file."""

from __future__ import annotations

import importlib.util
from importlib.resources import files
from pathlib import Path
from typing import Any

from clipq.errors import UsageError, missing_extra, unknown_name
from clipq.evaluate.suites.recipe import Suite, suite_from_json

_SUFFIXES = (".yaml", ".yml", ".json")
_ORDER = ("quick", "standard", "full")


def packaged_suites() -> tuple[str, ...]:
    """Return the names of the suites that come with clipq, the usual ones first."""
    names = {Path(file.name).stem for file in files("clipq.evaluate.suites").iterdir() if file.name.endswith(".yaml")}
    return (*_ORDER, *sorted(names.difference(_ORDER)))


def read_suite(name: str) -> Suite:
    """Return a packaged suite by its name, or the one in a file (YAML; JSON is YAML too).

    Raises:
        UsageError: There is no such suite or file, or the file cannot be read.
        MissingRuntimeError: PyYAML is not installed.
    """
    if not name.endswith(_SUFFIXES):
        if name not in packaged_suites():
            error = unknown_name("suite", name, packaged_suites())
            raise UsageError(f"{error}", fix="A suite of your own is a file that ends in .yaml.")
        return _parse(name, (files("clipq.evaluate.suites") / f"{name}.yaml").read_text("utf-8"), f"suite {name}")
    path = Path(name).expanduser()
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the suite {path}", found=error, expected="a YAML file") from error
    return _parse(path.stem, text, str(path))


def describe_suites() -> str:
    """Return a line for each packaged suite: its name and what it is for."""
    suites = [read_suite(name) for name in packaged_suites()]
    width = max(len(suite.name) for suite in suites)
    return "\n".join(f"{suite.name:<{width}}  {suite.about}" for suite in suites)


def _parse(name: str, text: str, where: str) -> Suite:
    return suite_from_json(name, _load(text, where), where)


def _load(text: str, where: str) -> Any:
    if importlib.util.find_spec("yaml") is None:
        raise missing_extra("pyyaml", "report")
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"cannot read {where}", found=error, expected="YAML") from error
    keys = [key.value for key, _ in node.value] if isinstance(found, dict) else []
    if repeated := [key for key in keys if keys.count(key) > 1]:
        raise UsageError(f"{where} has the key {repeated[0]} twice", expected="each key once")
    return found
