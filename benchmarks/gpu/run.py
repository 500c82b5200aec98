"""Runs parts in processes of their own within a time limit; what fails or does not fit is a line in the record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schedule import Part

from clipq.files import sha256_json, write_json
from clipq.machine import usable_cores
from clipq.progress import note

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_POLL_S = 0.2
_END_S = 5.0  # kept for writing the record
_PATIENCE, _LEAST_S = 5.0, 120.0  # a part is stopped after so many times its estimate, but not before the second


@dataclass(slots=True)
class _Running:
    part: Part
    process: subprocess.Popen[bytes]
    started: float
    output: Path
    log: Path


class Runner:
    """Runs parts in order: those that measure time alone, exports and one user of the GPU beside each other.

    Args:
        parts: The most important first.
        pythons: Interpreter to its program.
        work: Folder for results and logs.
        deadline: Of ``time.monotonic()``; nothing runs longer, a part that would is not started.
        changed: Called with all outcomes whenever one is added.
        known: Outcomes of an earlier run that hold still.
    """

    def __init__(  # noqa: PLR0913 - each is one choice of the caller
        self,
        *,
        parts: Sequence[Part],
        pythons: Mapping[str, str],
        work: Path,
        deadline: float,
        changed: Callable[[dict[str, Any]], None],
        known: Mapping[str, Any],
    ) -> None:
        self._pending = [part for part in parts if not self._keep(part, known)]
        self._pythons = pythons
        self._work = work
        self._deadline = deadline
        self._changed = changed
        self._running: list[_Running] = []
        self.outcomes = {part.name: known[part.name] for part in parts if part not in self._pending}

    def run(self) -> dict[str, Any]:
        """Run everything that fits and return the outcomes: name -> status, seconds, result or the reason why there is none."""
        try:
            while self._pending or self._running:
                self._start_what_can()
                self._collect()
                time.sleep(_POLL_S)
        finally:
            for running in self._running:
                _kill(running.process)
        return self.outcomes

    @staticmethod
    def _keep(part: Part, known: Mapping[str, Any]) -> bool:
        found = known.get(part.name, {})
        return found.get("status") == "done" and found.get("arguments_sha256") == sha256_json(dict(part.arguments))

    def _left_s(self) -> float:
        return self._deadline - time.monotonic() - _END_S

    def _start_what_can(self) -> None:
        for part in list(self._pending):
            bad = [name for name in part.needs if self.outcomes.get(name, {}).get("status", "done") != "done"]
            if bad:
                self._add(part, "not run", why=f"it needs {bad[0]}, which is {self.outcomes[bad[0]]['status']}")
            elif part.estimate_s > self._left_s():
                self._add(part, "left out", why=f"about {part.estimate_s:.0f} s, {max(self._left_s(), 0):.0f} s were left")
            elif all(name in self.outcomes for name in part.needs):
                if self._has_room(part):
                    self._start(part)
                if part.kind == "measure":
                    return  # nothing that comes later may keep it waiting

    def _has_room(self, part: Part) -> bool:
        kinds = [other.part.kind for other in self._running]
        if part.kind == "measure" or "measure" in kinds:
            return not kinds
        if part.kind == "build" or "build" in kinds:
            return part.kind == "export" or kinds.count("export") == len(kinds)
        return kinds.count(part.kind) < max(1, usable_cores() // 4)

    def _start(self, part: Part) -> None:
        self._pending.remove(part)
        arguments, output = (self._work / folder / f"{part.name}.json" for folder in ("arguments", "results"))
        log = self._work / "logs" / f"{part.name}.txt"
        for path in (output, log):
            path.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)
        write_json(arguments, dict(part.arguments))
        command = [self._pythons[part.interpreter], str(HERE), "part", part.worker, str(arguments), str(output)]
        note(f"{part.name} ...")
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        self._running.append(_Running(part, process, time.monotonic(), output, log))

    def _collect(self) -> None:
        for running in list(self._running):
            code, seconds = running.process.poll(), time.monotonic() - running.started
            if code is None and self._left_s() > 0 and seconds < max(_LEAST_S, _PATIENCE * running.part.estimate_s):
                continue
            self._running.remove(running)
            if code is None:
                _kill(running.process)
                self._add(running.part, "stopped", seconds, why="the time was up" if self._left_s() <= 0 else "it took far too long")
            elif code == 0 and running.output.is_file():
                self._add(running.part, "done", seconds, result=json.loads(running.output.read_text()))
            else:
                self._add(running.part, "failed", seconds, why=_last_line(running.log, code))

    def _add(self, part: Part, status: str, seconds: float = 0.0, *, result: Any = None, why: str = "") -> None:
        if part in self._pending:
            self._pending.remove(part)
        facts = {"status": status, "seconds": round(seconds, 1), "estimate_s": part.estimate_s}
        said = {"result": result, "arguments_sha256": sha256_json(dict(part.arguments))} if status == "done" else {"why": why}
        self.outcomes[part.name] = {**facts, **said}
        note(f"{part.name}: {status}" + (f", {seconds:.0f} s" if seconds else "") + (f": {why}" if why else ""))
        self._changed(self.outcomes)


def call(worker: str, arguments: Mapping[str, Any], python: str, timeout_s: float) -> dict[str, Any]:
    """Run one worker with another Python and return its result, or ``{"failed": reason}``."""
    command = [python, str(HERE), "part", worker, "-", "-"]
    try:
        run = subprocess.run(command, input=json.dumps(arguments), capture_output=True, text=True, check=False, timeout=timeout_s)
        lines = [line for line in (run.stderr if run.returncode else run.stdout).splitlines() if line.strip()]
        result: dict[str, Any] = (
            {"failed": lines[-1] if lines else f"exit code {run.returncode}"} if run.returncode else json.loads(lines[-1])
        )
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return {"failed": str(error)}
    return result


def tidy(text: str) -> str:
    """Return a line without where on this machine things lie."""
    for folder, name in ((str(ROOT), "."), (str(ROOT.parent), ".."), (str(Path.home()), "~")):
        text = text.replace(folder, name)
    return text


def _last_line(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    reason = lines[-1][:400] if lines else ""
    killed = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return tidy(f"{killed}: {reason}" if reason else killed)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a part with the processes it started: a session of its own, so nobody else's."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
