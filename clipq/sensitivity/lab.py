"""Measures what the towers answer when some of their blocks stay unquantized, each choice once."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from clipq.engines.base import Float32, Tower
from clipq.evaluate.metrics.arrays import Array
from clipq.export.keep import KeepRequest
from clipq.export.quantize.blocks import parts_of
from clipq.export.quantize.graph import open_on_cpu
from clipq.export.quantize.observe import Observed
from clipq.export.quantize.static import write_int8
from clipq.export.work import work_of
from clipq.files import atomic_path, sha256_json
from clipq.sensitivity.damage import Reading, read, worsening
from clipq.sensitivity.data import SearchData

PARTIAL = "sensitivity.partial"  # no dot: a resumed export sweeps half-written files that begin with one
_BATCH = 8
_REASON = "kept by the search"


@dataclass(frozen=True, slots=True)
class Block:
    """What is quantized or kept as a whole.

    Attributes:
        tower: ``image`` or ``text``.
        name: As in the graph.
        nodes: Its nodes that can be quantized.
        multiply_adds: Of all of them, per image or text.
    """

    tower: Tower
    name: str
    nodes: tuple[str, ...]
    multiply_adds: int

    def __str__(self) -> str:
        """Return how a reader sees it."""
        return f"{self.tower} {self.name}"


@dataclass(frozen=True, slots=True)
class Step:
    """One measured choice.

    Attributes:
        kept: The blocks that stay FP32, in the order in which they were chosen.
        damage: METRIC -> worsening from FP32.
    """

    kept: tuple[Block, ...]
    damage: Mapping[str, float]


def blocks_of_tower(tower: Tower, graph: Path, observed: Observed) -> list[Block]:
    """Return the blocks of a tower in graph order: parts of residual blocks, because one part, fc2, carries most of the error."""
    work = work_of(graph)
    return [Block(tower, name, nodes, sum(work[node] for node in nodes)) for name, nodes in parts_of(observed).items()]


class Lab:
    """Writes candidate graphs, runs them, and remembers their embeddings on disk, so that a killed search goes on where it was.

    Attributes:
        blocks: The blocks of all quantized towers.
        data: What is measured on.
    """

    def __init__(self, request: KeepRequest, data: SearchData, observed: Mapping[Tower, Observed], scratch: Path) -> None:
        self._request, self._observed, self._scratch = request, observed, scratch
        self._partial = request.folder / PARTIAL
        self.data = data
        self.blocks = [block for tower in observed for block in blocks_of_tower(tower, request.graphs[tower], observed[tower])]

    @cached_property
    def before(self) -> Reading:
        """What the FP32 towers say."""
        return self.reading(self.blocks)

    def without(self, block: Block) -> list[Block]:
        """Return all other blocks."""
        return [other for other in self.blocks if other != block]

    def measure(self, kept: Sequence[Block]) -> Step:
        """Return the damage of quantizing all blocks but these."""
        return Step(tuple(kept), worsening(self.before, self.reading(kept)))

    def reading(self, kept: Collection[Block]) -> Reading:
        """Return what the towers say when these blocks stay FP32 and all others are INT8; a tower with all blocks kept is FP32."""
        return read({tower: self._embeddings(tower, kept) for tower in self.data.inputs}, self.data, self._request.model)

    def close(self) -> None:
        """Forget everything; call it when the search is done."""
        shutil.rmtree(self._partial)

    def _embeddings(self, tower: Tower, kept: Collection[Block]) -> Float32:
        own = [block for block in self.blocks if block.tower == tower]
        nodes = sorted(node for block in own if block in kept for node in block.nodes)
        quantized = any(block not in kept for block in own)
        path = self._partial / f"{sha256_json([self.data.digest, tower, nodes if quantized else None])}.npy"
        if not path.exists():
            self._partial.mkdir(exist_ok=True)
            found = self._compute(tower, dict.fromkeys(nodes, _REASON) if quantized else None)
            with atomic_path(path) as part, part.open("wb") as stream:
                np.save(stream, found, allow_pickle=False)
        embeddings: Float32 = np.load(path, allow_pickle=False)
        return embeddings

    def _compute(self, tower: Tower, keep: dict[str, str] | None) -> Float32:
        if keep is None:
            return embed(self._request.graphs[tower], self.data.inputs[tower])
        recipe, graph = self._request.recipe, self._scratch / f"{tower}.candidate.onnx"
        write_int8(self._observed[tower], graph, recipe.calib_method, mha=recipe.mha, keep=keep)
        return embed(graph, self.data.inputs[tower])


def embed(graph: Path, inputs: Array) -> Float32:
    """Return a graph's output for all inputs, float32 ``(n, dim)``, on ONNX Runtime's CPU provider."""
    session = open_on_cpu(graph)
    name = session.get_inputs()[0].name
    starts = range(0, len(inputs), _BATCH)
    return np.concatenate([session.run(None, {name: np.ascontiguousarray(inputs[start : start + _BATCH])})[0] for start in starts])
