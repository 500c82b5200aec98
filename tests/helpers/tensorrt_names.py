"""The names of each TensorRT version as its bindings have them, and stand-ins that have these names and no others."""

from __future__ import annotations

import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "engines" / "tensorrt" / "names"
VERSIONS = ("8.6", "10.16", "11.4", "rtx-1.7")
_ENUM_WORDS = {"name", "value", "itemsize"}


def read_names(version: str) -> dict[str, frozenset[str]]:
    """Return class -> its names, and ``module`` -> the classes, of one version."""
    pairs = [line.split(":", 1) for line in (FOLDER / f"{version}.txt").read_text().splitlines()]
    return {owner: frozenset(names.split()) for owner, names in pairs if owner != "version"}


NAMES = {version: read_names(version) for version in VERSIONS}


class Recorder:
    """An object with the names of one class of one version: what is set and called is written down, another name is an AttributeError.

    Args:
        version: E.g. ``8.6``.
        owner: E.g. ``IBuilderConfig``.
        answers: Name -> what a call of it returns, or a plain attribute's value.
    """

    def __init__(self, version: str, owner: str, **answers: Any) -> None:
        names = NAMES[version][owner]
        assert names.issuperset(answers), f"{owner} of {version} has no {set(answers) - names}"
        self.__dict__.update(_names=names, _answers=answers, calls=[], values={})

    def __getattr__(self, name: str) -> Any:
        if name not in self._names:
            raise AttributeError(name)
        if name in self.values:
            return self.values[name]
        answer = self._answers.get(name)
        if name in self._answers and not callable(answer):
            return answer

        def call(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            return answer(*arguments) if callable(answer) else None

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._names:
            raise AttributeError(name)
        self.values[name] = value


def stand_in(version: str, **more: Any) -> Any:
    """Return a module with the enumerations of a version, a bare ``ILogger``, and what else a test gives it."""
    owners = NAMES[version]
    enums = {
        owner: enum.IntEnum(owner, sorted(owners[owner] - _ENUM_WORDS), start=0)
        for owner in owners["module"]
        if _ENUM_WORDS - {"itemsize"} <= owners[owner] and owners[owner] - _ENUM_WORDS
    }
    bare = {owner: type(owner, (), {}) for owner in ("ILogger", "IProgressMonitor") if owner in owners["module"]}
    assert owners["module"].issuperset(more), f"{version} has no {set(more) - owners['module']}"
    return SimpleNamespace(__version__=version.removeprefix("rtx-"), **{**bare, **enums, **more})
