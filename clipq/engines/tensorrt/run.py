"""TensorRT and TensorRT-RTX engines: a plan per tower, checked before it is loaded, run on one stream without torch."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from clipq.artifact import Bundle
from clipq.engines.base import Engine, Float32, Tower, TowerSpec
from clipq.engines.proof import TowerProof, read_work
from clipq.engines.tensorrt.adapter import load_api
from clipq.engines.tensorrt.cuda import Cuda, OutOfDeviceMemoryError, open_cuda, require_binding
from clipq.engines.tensorrt.device import require_device
from clipq.engines.tensorrt.inspector import read_inspector
from clipq.engines.tensorrt.plan import Plan
from clipq.engines.tensorrt.trust import CheckedPlan, check_plan, read_plan_facts, rebuild_command
from clipq.engines.towers import INPUT_NAMES, OUTPUT_NAME, tower_specs
from clipq.errors import EngineError, MissingRuntimeError
from clipq.progress import note

_TURN = threading.Lock()  # one device: engines take turns, so that none slows another, and TensorRT's log has one listener


class TensorrtEngine(Engine):
    """Both towers of a bundle as TensorRT plans on one CUDA stream; threads take turns on it.

    Attributes:
        largest: Largest batch per tower that fits into device memory; the profile's largest until memory runs out.
    """

    def __init__(
        self, engine_id: str, runtime: str, towers: Mapping[Tower, TowerSpec], files: Mapping[Tower, CheckedPlan], rebuild: str
    ) -> None:
        super().__init__(engine_id, towers)
        self.largest: dict[Tower, int] = {}
        self._runtime = runtime
        self._work: Mapping[str, Mapping[str, int]] = {}
        self._files = dict(files)
        self._rebuild = rebuild
        self._cuda: Cuda | None = None
        self._plans: dict[Tower, Plan] = {}

    @classmethod
    def from_bundle(cls, bundle: Bundle, engine_id: str, threads: int | None = None) -> Self:
        """Return the engine with device, library and plans checked; nothing is on the device yet.

        Args:
            bundle: The bundle.
            engine_id: ``trt-*`` or ``trtrtx-*``.
            threads: CPU threads; the device computes, so it is not used.

        Raises:
            UsageError: The bundle has no such engine.
            MissingRuntimeError: The plans are not built yet, or what they need is not here: device, library, CUDA binding.
            RefusedError: A file is not what the manifest says, or is no whole plan.
        """
        del threads
        entry, rebuild = bundle.engine(engine_id), rebuild_command(bundle, engine_id)
        if not entry.towers:
            raise MissingRuntimeError(f"the plans of {engine_id} are not built yet", found="its graphs only", fix=f"Run: {rebuild}")
        device = require_device()
        version = load_api(entry.runtime).version
        require_binding()
        facts = read_plan_facts(bundle, engine_id)
        files: dict[Tower, CheckedPlan] = {
            tower: check_plan(bundle, engine_id, entry.towers[tower], facts.get(tower, {}), (version, device))
            for tower in INPUT_NAMES
            if tower in entry.towers
        }
        engine = cls(engine_id, entry.runtime, tower_specs(bundle), files, rebuild)
        engine._work = read_work(bundle, engine_id)
        return engine

    def prove(self, tower: Tower) -> TowerProof:
        """Return the layers that TensorRT's inspector lists for an opened engine's tower."""
        with _TURN:
            text = self._plans[tower].inspect(self.towers[tower].embed_dim)
        return read_inspector(text, load_api(self._runtime).version, self._work.get(tower, {}))

    def device_seconds(self, tower: Tower, batch: npt.NDArray[Any], calls: int) -> list[float]:
        """Return how long the device computes a batch, for each of ``calls`` inferences, by events on its stream.

        Args:
            tower: ``image`` or ``text``.
            batch: As for ``run``; it is on the device before the clock starts, and embeddings stay there.
            calls: Number of inferences.

        Raises:
            EngineError: The batch is outside the profile, or it does not fit into device memory.
        """
        self._check_batch(tower, len(batch))
        with _TURN:
            return self._plans[tower].device_seconds(np.ascontiguousarray(batch), self.towers[tower].embed_dim, calls)

    def _open(self) -> None:
        self._cuda = open_cuda(spinning=not self.shares_cores)
        try:
            for tower, checked in self._files.items():
                plan = self._plans[tower] = Plan(load_api(self._runtime), self._cuda, checked, f"Run: {self._rebuild}")
                plan.check_signature(INPUT_NAMES[tower], OUTPUT_NAME, self.towers[tower])
                plan.uses_graphs = self.uses_graphs
                self.largest[tower] = plan.batch[2]
                self.batches = max(self.batches[0], plan.batch[0]), min(self.batches[1], plan.batch[2])
        except BaseException:
            self._close()
            raise
        self.towers = {tower: spec for tower, spec in self.towers.items() if tower in self._plans}
        self.provider = "cuda"

    def _close(self) -> None:
        for plan in self._plans.values():
            plan.close()
        self._plans.clear()
        if self._cuda is not None:
            self._cuda.close()
            self._cuda = None

    def _run(self, tower: Tower, batch: npt.NDArray[Any]) -> Float32:
        self._check_batch(tower, len(batch))
        with _TURN:
            return self._fitting(tower, np.ascontiguousarray(batch))

    def _fitting(self, tower: Tower, batch: npt.NDArray[Any]) -> Float32:
        """Run a batch whole, or in pieces once it did not fit into device memory."""
        if len(batch) <= self.largest[tower]:
            try:
                return self._plans[tower].run(batch, self.towers[tower].embed_dim)
            except OutOfDeviceMemoryError as error:
                self._halve(tower, len(batch), error)
        size, smallest = self.largest[tower], self._plans[tower].batch[0]
        pieces = []
        for start in range(0, len(batch), size):
            first = min(start, len(batch) - smallest)  # the last piece begins earlier where the plan takes none as small as what is left
            pieces.append(self._fitting(tower, batch[first : start + size])[start - first :])
        return np.concatenate(pieces)

    def _halve(self, tower: Tower, n: int, error: OutOfDeviceMemoryError) -> None:
        """Allow half the batch from now on, and say so.

        Raises:
            EngineError: Half of it would be below the profile.
        """
        smallest = self._plans[tower].batch[0]
        if n // 2 < smallest:
            raise EngineError(
                f"{self.id}: out of device memory at a batch of {n}, and its plan takes none below {smallest}",
                found=error,
                fix=f"Free device memory, or run: {self._rebuild} --batch 1,1,{smallest}",
            ) from error
        note(f"{self.id}: out of device memory at a batch of {n} of the {tower} tower; trying {n // 2}")
        self.largest[tower] = n // 2

    def _check_batch(self, tower: Tower, n: int) -> None:
        if tower not in self._plans:
            raise EngineError(f"engine {self.id} is not open", fix="Use it in a with block.")
        smallest, usual, largest = self._plans[tower].batch
        if not smallest <= n <= largest:
            raise EngineError(
                f"{self.id} cannot run a batch of {n} of the {tower} tower",
                found=n,
                expected=f"{smallest} to {largest}, the profile its plan was built for",
                fix=f"Choose another batch size, or run: {self._rebuild} --batch {min(n, smallest)},{usual},{max(n, largest)}",
            )
