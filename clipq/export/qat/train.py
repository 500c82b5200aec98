"""The training loop: AdamW over weights and quantizers, saved as it goes, the same after an interruption."""

from __future__ import annotations

import csv
import io
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipq.errors import ExportError
from clipq.export.qat.lesson import Lesson
from clipq.export.qat.plan import Plan
from clipq.export.qat.quantizers import LearnedBound
from clipq.export.qat.state import Progress, load_state, save_state
from clipq.export.qat.wrap import Wrapped
from clipq.progress import bar, note
from clipq.recipe import Recipe

WARM_UP = 0.05  # of the steps, from nothing to the full learning rate
DECAY_OF_BOUNDS = 1e-4  # weight of the squared bounds in PACT's loss
_EXAM = ("agreement", "cosine", "accuracy")


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run came to.

    Attributes:
        rows: Rows of ``training.csv``.
        steps: Steps behind the tower as it is now.
        stopped: Why there are fewer than were asked for; empty otherwise.
        seconds_per_step: Mean over the steps of this process; None where it took none.
    """

    rows: tuple[Mapping[str, float | None], ...]
    steps: int
    stopped: str
    seconds_per_step: float | None

    def csv(self, losses: Sequence[str]) -> str:
        """Return the rows as CSV: step, mean losses since the row before, and the exam on the pairs that are held out."""
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", "loss", *losses, *(f"held_out_{name}" for name in _EXAM)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in self.rows)
        return text.getvalue()


@dataclass
class Run:
    """One training run.

    Attributes:
        wrapped: The tower; trained in place.
        lesson: What it is taught.
        plan: The method.
        recipe: Steps, batch and learning rates.
        path: Where its state is saved.
        key: What it depends on.
    """

    wrapped: Wrapped
    lesson: Lesson
    plan: Plan
    recipe: Recipe
    path: Path
    key: str
    _rows: list[Mapping[str, float | None]] = field(default_factory=list)
    _since: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._scales = self.wrapped.scales()
        self._backbone = self.wrapped.backbone() if self.recipe.qat_train == "all" else {}
        groups = [
            {"params": list(self._backbone.values()), "peak": self.recipe.qat_lr},
            {"params": list(self._scales.values()), "peak": self.recipe.qat_scale_lr, "eps": 1e-12},  # their gradients are tiny
        ]
        for value in (*self._scales.values(), *self._backbone.values()):
            value.requires_grad_()
        self._optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
        self._values: dict[str, Tensor] = {**self._scales, **self._backbone, **self.wrapped.ranges()}

    def train(self, begin: Callable[[], None]) -> Trained:
        """Train, or go on where a killed run stopped, and return what came of it.

        Args:
            begin: Gives the quantizers their first ranges; called for a new run only.

        Raises:
            ExportError: The loss is NaN or infinite before anything good was saved.
        """
        done = load_state(self.path, self.key, self._values, self._optimizer)
        if done is None:
            begin()
            self._record(0)
        else:
            self._rows = list(done.rows)
            note(f"Training goes on behind step {done.step}")
        first, began, stopped = done.step if done else 0, time.perf_counter(), ""
        step, total = first, self.recipe.qat_steps
        with bar("Training", total, speed="steps/s") as advance:
            advance(first)
            while step < total and not stopped:
                stopped = self._step(step)
                step += 0 if stopped else 1
                advance(0 if stopped else 1)
                if not stopped and (step % self.recipe.qat_every == 0 or step == total):
                    stopped = self._record(step)
        taken = step - first
        seconds = (time.perf_counter() - began) / taken if taken else None
        return Trained(tuple(self._rows), self._last_good(stopped) if stopped else step, stopped, seconds)

    def _step(self, step: int) -> str:
        """Take one step; return why it cannot be taken."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * rate(step, self.recipe.qat_steps)
        rows = rows_of(step, self.recipe.qat_batch, self.lesson.pairs.trained, self.recipe.seed)
        self.wrapped.train(mode=True)
        losses = self.lesson.losses(self.plan.losses, self.wrapped.embed(self.lesson.inputs(self.lesson.stored[rows])), rows)
        if "bounds" in self.plan.losses:
            losses["bounds"] = DECAY_OF_BOUNDS * _squared_bounds(self.wrapped)
        loss = torch.stack(list(losses.values())).sum()
        if not math.isfinite(float(loss.detach())):
            return f"the loss of step {step + 1} is {float(loss.detach())}"
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        for name, value in {"loss": loss, **losses}.items():
            self._since[name].append(float(value.detach()))
        return ""

    def _record(self, step: int) -> str:
        """Add a row and save the state; return why the tower is no good."""
        self.wrapped.train(mode=False)
        answers = self.lesson.answers(self.wrapped.embed)
        if not np.isfinite(answers).all():
            return f"NaN or infinity in the embeddings after step {step}"
        exam = self.lesson.judge(answers)
        names = ("loss", *self.plan.losses)
        means = {name: float(np.mean(self._since[name])) if self._since[name] else None for name in names}
        self._rows.append({"step": step, **means, **{f"held_out_{name}": getattr(exam, name) for name in _EXAM}})
        self._since.clear()
        save_state(self.path, self.key, Progress(step, tuple(self._rows)), self._values, self._optimizer)
        return ""

    def _last_good(self, stopped: str) -> int:
        """Put the last saved step back and return its number."""
        saved = load_state(self.path, self.key, self._values, self._optimizer)
        if saved is None or saved.step == 0:
            raise ExportError(
                "training failed", found=stopped, fix="Lower --qat-lr and --qat-scale-lr, or save more often with --qat-every."
            )
        self._rows = list(saved.rows)
        note(f"Training stopped: {stopped}; step {saved.step} is kept")
        return saved.step


def rate(step: int, total: int) -> float:
    """Return the share of the learning rate at a step: a linear warm-up, then a cosine to 0.

    >>> [round(rate(step, 100), 2) for step in (0, 4, 5, 52, 99)]
    [0.2, 1.0, 1.0, 0.51, 0.0]
    """
    warm = max(1, round(WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, total - warm))) / 2


def rows_of(step: int, batch: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the rows of a step's batch: every row once per round, in an order that the seed and the round decide.

    Args:
        step: The step, from 0.
        batch: Its size, at most ``count``.
        count: How many rows there are.
        seed: Of the order.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    orders = {turn: np.random.default_rng([seed, turn]).permutation(count) for turn in {*(places // count).tolist()}}
    return np.asarray([orders[place // count][place % count] for place in places.tolist()], np.int64)


def _squared_bounds(wrapped: Wrapped) -> Any:
    return torch.stack([module.bound.square() for module in wrapped.model.modules() if isinstance(module, LearnedBound)]).sum()
