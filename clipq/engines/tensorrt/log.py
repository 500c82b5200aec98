"""What TensorRT says: one logger per library, whose lines a caller keeps for as long as it listens."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

FAILURES = ("INTERNAL_ERROR", "ERROR")
_NODE = re.compile(r"Parsing node: (?P<name>.*) \[\w+\]")
# Said on every build without a GPU, where it means nothing.
_NO_DEVICE = re.compile(r"CUDA driver version is insufficient|no CUDA-capable device|Thread context has not been set")


@dataclass(frozen=True, slots=True)
class Line:
    """One message: its severity, e.g. ``WARNING``, its text, and the graph's node that was being parsed (empty: none)."""

    severity: str
    text: str
    node: str = ""


class Log:
    """Keeps messages while somebody listens; verbose ones only tell which node is being parsed."""

    def __init__(self) -> None:
        self._listeners: list[list[Line]] = []
        self._node = ""

    @contextlib.contextmanager
    def listen(self) -> Iterator[list[Line]]:
        """Yield a list that grows by every message that is no mere detail; several may listen at once."""
        lines: list[Line] = []
        self._listeners.append(lines)
        try:
            yield lines
        finally:
            self._listeners = [other for other in self._listeners if other is not lines]
            self._node = ""

    def take(self, severity: str, text: str) -> None:
        """Take one message. Called from inside TensorRT, so it must not raise."""
        if severity != "VERBOSE":
            for lines in self._listeners:
                lines.append(Line(severity, text, self._node))
        elif parsing := _NODE.search(text):
            self._node = parsing["name"]


def make_logger(library: Any, log: Log) -> Any:
    """Return the library's logger that hands every message to ``log``.

    TensorRT keeps the first logger of a process for all its objects, so there is one per library and it is never released.
    """

    class Logger(library.ILogger):  # type: ignore[misc]  # the base is known only when the library is loaded
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.take(severity.name, message)

    return Logger()


def last_failure(lines: Sequence[Line]) -> str:
    """Return the last error, one that is not the echo of a missing GPU if there is any, in one line of at most 400 characters."""
    failures = [line.text for line in lines if line.severity in FAILURES]
    meant = [text for text in failures if not _NO_DEVICE.search(text)] or failures
    return one_line(meant[-1]) if meant else "no reason given"


def one_line(text: str) -> str:
    """Return a message without line breaks and without the echo of a missing GPU, at most 400 characters."""
    meant = [line for line in text.splitlines() if not _NO_DEVICE.search(line)] or [text]
    return " ".join(" ".join(meant).split())[:400]


def as_text(lines: Sequence[Line]) -> str:
    """Return a log as text, a message per line, its severity first."""
    return "".join(f"{line.severity}: {line.text}\n" for line in lines)
