"""Progress on stderr: bars where a terminal can show them, silence elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Switch every bar and note off (or on again) for this process."""
    global _quiet  # noqa: PLW0603 - one process, one stderr
    _quiet = quiet


def note(text: str) -> None:
    """Print one line for the reader on stderr, unless quiet."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def bar(title: str, total: int | None, unit: str = "", speed: str = "") -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a progress bar by n steps; without a terminal it only counts.

    Args:
        title: What is being done.
        total: Number of steps, or None when unknown.
        unit: What is written after the number, e.g. `` %``.
        speed: Unit of the speed, e.g. ``steps/s``; empty for none.
    """
    if _quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        note(f"{title} ({total})" if total is not None and not unit else title)
        yield lambda _steps: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        """Steps per second of late."""

        def render(self, task: Task) -> Text:
            """Return the speed as soon as it is known."""
            return Text(f"{task.speed:.3g} {speed}" if speed and task.speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), Speed())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda steps: progress.advance(task, steps)
