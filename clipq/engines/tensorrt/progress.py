"""How far a build is, on the house's progress bar, and Ctrl-C during one."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from clipq.progress import note


@dataclass(slots=True)
class _Phase:
    """A phase's share of the whole build, and how many of its steps are done."""

    begin: float
    width: float
    steps: int
    done: int = 0

    @property
    def position(self) -> float:
        return self.begin + self.width * min(self.done / max(self.steps, 1), 1.0)


class Percent:
    """Nested phases as one percentage that only rises: a phase shares the step of its parent in which it began."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._phases: dict[str, _Phase] = {}
        self._shown = 0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase of ``steps`` steps inside ``parent``."""
        above = self._phases.get(parent) if parent else None
        width = above.width / max(above.steps, 1) if above else 1.0
        self._phases[name] = _Phase(above.position if above else 0.0, width, steps)

    def step(self, name: str, step: int) -> None:
        """Finish the step of a phase that is counted from 0."""
        if phase := self._phases.get(name):
            phase.done = max(phase.done, step + 1)
            self._show(phase.position)

    def finish(self, name: str) -> None:
        """End a phase."""
        if phase := self._phases.pop(name, None):
            self._show(phase.begin + phase.width)

    def _show(self, position: float) -> None:
        percent = int(100 * position + 1e-9)
        if percent > self._shown:
            self._advance(percent - self._shown)
            self._shown = percent


def make_monitor(library: Any, percent: Percent, stopped: Callable[[], bool]) -> Any:
    """Return the library's progress monitor that moves ``percent`` and ends the build once ``stopped()``."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]  # the base is known only when the library is loaded
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            percent.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            percent.step(phase_name, step)
            return not stopped()

        def phase_finish(self, phase_name: str) -> None:
            percent.finish(phase_name)

    return Monitor()


@contextlib.contextmanager
def interrupts(*, stoppable: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed; KeyboardInterrupt follows when the block has ended.

    An exception must not fly through TensorRT, which would abort the process. A build that cannot be stopped (8.6) ends the process
    with exit code 130 at its next message; nothing is half written then, because a plan is written when its build is over.

    Args:
        stoppable: The block asks the function and ends soon after it said yes.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: False
        return
    pressed: list[int] = []

    def on_interrupt(number: int, _frame: FrameType | None) -> None:
        pressed.append(number)
        if not stoppable:
            _leave()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _leave() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\n")  # the progress bar hid the cursor
    note("interrupted")
    os._exit(130)
