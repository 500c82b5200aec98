"""Measures what is not measured yet: every draw calibrates, every form of it answers the same test images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.artifact import Bundle
from clipq.calibration_lab.cells import Answered, Cells, answered
from clipq.calibration_lab.draws import Pool
from clipq.calibration_lab.graphs import Graphs
from clipq.calibration_lab.options import Form, LabOptions
from clipq.calibration_lab.pixels import Decoder, Pixels
from clipq.engines.base import Float32, Tower
from clipq.engines.towers import INPUT_NAMES, OUTPUT_NAME
from clipq.errors import EngineError
from clipq.evaluate.datasets import EvalSet
from clipq.evaluate.embed import Tokens, Work, in_order
from clipq.evaluate.metrics.arrays import Array, Bool, Int64
from clipq.evaluate.zeroshot import classifier
from clipq.export.quantize.graph import open_on_cpu
from clipq.export.quantize.ptq import source_of
from clipq.files import sha256_bytes
from clipq.progress import bar

_CALIBRATION_BATCH = 8
FP32: Mapping[str, Any] = {"form": "fp32"}


@dataclass(frozen=True, slots=True, eq=False)
class Tested:
    """What every graph is judged on.

    Attributes:
        images: The test images.
        outside: OOD images, or None.
        tokens: Prompts of the classes, int32 ``(classes * templates, context length)``.
    """

    images: EvalSet
    outside: EvalSet | None
    tokens: Tokens

    @property
    def sets(self) -> list[EvalSet]:
        """The test images, and the OOD images where there are some."""
        return [self.images] if self.outside is None else [self.images, self.outside]


class Lab:
    """Fills the cells of one run; what is finished is never computed again.

    Args:
        bundle: The model.
        tested: What is judged on.
        decoder: Where pixels come from.
        cells: Where results go.
        graphs: Makes the quantized graphs.
        work: How the cores are shared.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of a run
        self, bundle: Bundle, tested: Tested, decoder: Decoder, cells: Cells, graphs: Graphs, work: Work
    ) -> None:
        self._bundle, self._tested, self._decoder = bundle, tested, decoder
        self._cells, self._graphs, self._work = cells, graphs, work

    def facts(self, pool: Pool, form: Form, n: int, seed: int) -> dict[str, Any]:
        """Return what names the cell of one draw and form: the images themselves, not the seed that drew them."""
        rows = pool.readable_rows(n, seed, self.readable(pool))
        return {"form": str(form), "images": pool.digest(rows)}

    def readable(self, images: Pool | EvalSet) -> Bool:
        """Return which images of an index can be decoded."""
        return self._decoder.readable(images.source, images.index)

    def fill(self, pools: Sequence[Pool], forms: Sequence[Form], options: LabOptions) -> None:
        """Measure every draw of every source in every form.

        Raises:
            DataError: Too many images are unreadable.
            ExportError: A graph cannot be made.
            EngineError: A graph gives NaN or infinity.
        """
        draws = [(pool, n, seed) for pool in pools for n in options.numbers for seed in options.draws]
        waiting = {(pool, n, seed): self._waiting(pool, forms, n, seed) for pool, n, seed in draws}
        if not self._cells.has(FP32):
            self._keep(FP32, self._fp32)
        for pool in pools:
            if any(forms for draw, forms in waiting.items() if draw[0] is pool):
                self._decoder.pixels(pool.source, pool.index)
        left = sum(map(len, waiting.values()))
        if not left:
            return
        self._decode_tested()  # here, because a terminal shows one bar at a time
        with bar("Calibrating, quantizing and measuring", left) as advance:
            for (pool, n, seed), due in waiting.items():
                for form, path in self._quantized(pool, (n, seed), due):
                    self._keep(self.facts(pool, form, n, seed), self._embed(path))
                    advance(1)

    def read(self, facts: Mapping[str, Any]) -> Answered:
        """Return a finished cell."""
        return self._cells.read(facts)

    def _waiting(self, pool: Pool, forms: Sequence[Form], n: int, seed: int) -> list[Form]:
        return [form for form in forms if not self._cells.has(self.facts(pool, form, n, seed))]

    def _quantized(self, pool: Pool, draw: tuple[int, int], forms: Sequence[Form]) -> Iterator[tuple[Form, Path]]:
        """Yield the graphs of one draw; forms that start from the same FP32 graph share its pass of calibration."""
        if not forms:
            return
        pixels, rows = self._decoder.pixels(pool.source, pool.index), pool.readable_rows(*draw, self.readable(pool))

        def inputs() -> Iterator[npt.NDArray[Any]]:
            return pixels.batches(rows, _CALIBRATION_BATCH)

        sources = {form: source_of(form.method, form.bits) for form in forms}
        for source in dict.fromkeys(sources.values()):
            observed = self._graphs.observed(source, inputs)
            for form in forms:
                if sources[form] == source:
                    yield form, self._graphs.write(observed, form)

    def _keep(self, facts: Mapping[str, Any], embeddings: Array) -> None:
        tested = int(self.readable(self._tested.images).sum())
        self._cells.write(facts, answered(embeddings, self._fp32, tested, self._classes, self._bundle.manifest.model))

    @cached_property
    def _fp32(self) -> Array:
        graph = checked_graph(self._bundle, "image")
        return self._cells.array("fp32", FP32, lambda: self._embed(graph))

    @cached_property
    def _classes(self) -> Float32:
        tokens, templates = self._tested.tokens, len(self._tested.images.source.templates)
        graph = checked_graph(self._bundle, "text")

        def embed() -> Float32:
            starts = range(0, len(tokens), self._work.batch_size)
            return self._run("text", graph, (tokens[start : start + self._work.batch_size] for start in starts))

        made = self._cells.array("texts", {"tokens": sha256_bytes(tokens.tobytes())}, embed)
        return classifier(made, templates, "the prompts of the test data")

    def _decode_tested(self) -> list[tuple[Pixels, Int64]]:
        """Return the pixels of the test images and of the OOD images, with their readable rows."""
        return [(self._decoder.pixels(one.source, one.index), np.flatnonzero(self.readable(one))) for one in self._tested.sets]

    def _embed(self, graph: Path) -> Float32:
        batches = (batch for pixels, rows in self._decode_tested() for batch in pixels.batches(rows, self._work.batch_size))
        return self._run("image", graph, batches)

    def _run(self, tower: Tower, graph: Path, batches: Iterator[npt.NDArray[Any]]) -> Float32:
        session = open_on_cpu(graph, threads=self._work.threads)

        def run(batch: npt.NDArray[Any]) -> Float32:
            output: Float32 = session.run([OUTPUT_NAME], {INPUT_NAMES[tower]: np.ascontiguousarray(batch)})[0]
            return output

        found = np.concatenate(list(in_order(run, batches, self._work.streams)))
        if not np.isfinite(found).all():
            bad = int((~np.isfinite(found).all(axis=1)).sum())
            raise EngineError(
                f"NaN or infinity in the {tower} tower", found=f"{bad} of {len(found)} embeddings", fix="Check the checkpoint."
            )
        return found


def checked_graph(bundle: Bundle, tower: Tower) -> Path:
    """Return the FP32 graph of a tower after checking it and the data beside it.

    Raises:
        EngineError: The bundle has none.
        RefusedError: A file is not what the manifest says.
    """
    name = f"towers/{tower}.fp32.onnx"
    for other in graph_hashes(bundle, tower):
        bundle.file(other)
    return bundle.file(name)


def graph_hashes(bundle: Bundle, tower: Tower) -> dict[str, str]:
    """Return the files of a tower's FP32 graph with their hashes.

    Raises:
        EngineError: The bundle has none.
    """
    name = f"towers/{tower}.fp32.onnx"
    if name not in bundle.manifest.files:
        raise EngineError(f"{bundle.folder} has no {name}", fix="Export it with an engine of ONNX Runtime, e.g. --engines ort-fp32.")
    return {file: entry.sha256 for file, entry in bundle.manifest.files.items() if file == name or file.startswith(f"{name}.data")}
