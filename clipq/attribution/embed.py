"""The embeddings of every stage, in stores on disk: images decoded once for all of them, what is there already used again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipq.artifact import Bundle
from clipq.attribution.pixels import Pixels, pixel_difference, read_pixels
from clipq.attribution.stages import Form, Plan
from clipq.attribution.towers import Run, Towers, form_facts
from clipq.calib_data.preprocess import Preprocess
from clipq.engines.base import Float32
from clipq.evaluate.datasets import EvalSet
from clipq.evaluate.embed import Tokens, Work, in_order
from clipq.evaluate.metrics.arrays import Bool
from clipq.evaluate.store import Store, Stores
from clipq.evaluate.zeroshot import classifier
from clipq.export.quantize.graph import scratch_folder
from clipq.files import sha256_bytes
from clipq.progress import bar


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What every stage is measured on.

    Attributes:
        images: The data set.
        tokens: Its prompts, int32 ``(classes * templates, context length)``.
        preprocess: How images become our pixels.
        embed_dim: Length of one embedding.
    """

    images: EvalSet
    tokens: Tokens
    preprocess: Preprocess
    embed_dim: int


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """The finished embeddings of every stage.

    Attributes:
        images: Form of the image tower -> store.
        texts: Form of the text tower -> store.
        differences: Largest difference and share of differing numbers of each image's pixels; None where they were not compared.
        readable: bool ``(n,)``: the images that could be decoded.
        templates: Texts per class.
    """

    images: Mapping[Form, Store]
    texts: Mapping[Form, Store]
    differences: Store | None
    readable: Bool
    templates: int

    def image_rows(self, form: Form) -> Float32:
        """Return raw embeddings of the readable images, float32 ``(n, dim)``."""
        return self.images[form].read()[self.readable]

    def classes(self, form: Form) -> Float32:
        """Return the zero-shot classifier, unit vectors, float32 ``(classes, dim)``."""
        return classifier(self.texts[form].read(), self.templates, f"texts at the stage {form}")

    def pixel_rows(self) -> Float32 | None:
        """Return ``(n, 2)``: largest absolute difference and share of differing numbers of each readable image's pixels."""
        return None if self.differences is None else self.differences.read()[self.readable]


def embed_stages(bundle: Bundle, plan: Plan, inputs: Inputs, work: Work, folder: Path, *, resume: bool) -> Embeddings:  # noqa: PLR0913
    """Embed what no store under ``folder`` holds yet, and return all of it.

    Raises:
        DataError: Too many images are unreadable.
        ExportError: A stage's graph cannot be made.
        EngineError: A stage gives NaN or infinity.
    """
    stores = Stores(folder / "embeddings", resume=resume)
    index, conditions = inputs.images.index, {"preprocess": inputs.preprocess.sha256(), "batch_size": work.batch_size}
    seen = {"data": index.digest, **conditions}
    images = {form: stores.of({**form_facts(bundle, plan, "image", form), **seen}) for form in plan.forms("image")}
    said = {"tokens": sha256_bytes(inputs.tokens.tobytes()), "batch_size": work.batch_size}
    texts = {form: stores.of({**form_facts(bundle, plan, "text", form), **said}) for form in plan.forms("text")}
    differences = (
        stores.of({**form_facts(bundle, plan, "image", "reference"), "difference": "pixels", **seen}) if "reference" in images else None
    )
    with scratch_folder(folder / "graphs") as scratch, Towers(bundle, plan, work, scratch) as towers:
        _fill_texts(towers, texts, inputs.tokens, work)
        _fill_images(towers, images, differences, inputs, work)
    readable = np.asarray(~np.isnan(next(iter(images.values())).read()).any(axis=1))
    return Embeddings(images, texts, differences, readable, len(inputs.images.source.templates))


def _unfinished(stores: Mapping[Form, Store]) -> dict[Form, Store]:
    """Return each unfinished store once, by a form that fills it."""
    found: dict[Path, Form] = {}
    for form, store in stores.items():
        if not store.finished:
            found.setdefault(store.folder, form)
    return {form: stores[form] for form in found.values()}


def _fill_texts(towers: Towers, stores: Mapping[Form, Store], tokens: Tokens, work: Work) -> None:
    for form, store in _unfinished(stores).items():
        run = towers.open("text", form)
        starts = range(store.rows, len(tokens), work.batch_size)

        def embed(start: int, run: Run = run, store: Store = store) -> list[tuple[Store, Float32]]:
            return [(store, run(np.ascontiguousarray(tokens[start : start + work.batch_size])))]

        _append(in_order(embed, starts, work.streams), [store], f"Embedding texts: {form}", len(tokens) - store.rows)


def _fill_images(towers: Towers, stores: Mapping[Form, Store], differences: Store | None, inputs: Inputs, work: Work) -> None:
    behind = _unfinished(stores)
    waiting = [*behind.values(), *([differences] if differences is not None and not differences.finished else [])]
    if not waiting:
        return
    compared = differences in waiting or "reference" in behind
    runs: dict[Form, Run] = {form: towers.open("image", form) for form in behind}
    first = min(waiting, key=lambda store: store.rows)
    skipped = int(np.isnan(first.partial()[: first.rows]).any(axis=1).sum())
    begin = {store.folder: store.rows for store in waiting}
    transform = towers.transform() if compared else None
    stream = read_pixels(inputs.images, inputs.preprocess, transform, work, (first.rows, skipped))

    def embed(pixels: Pixels) -> list[tuple[Store, Float32]]:
        wanted = {form: run for form, run in runs.items() if pixels.start >= begin[behind[form].folder]}
        rows = [(behind[form], _rows(pixels, values, inputs.embed_dim)) for form, values in _outputs(pixels, wanted)]
        if differences is not None and differences in waiting and pixels.start >= begin[differences.folder]:
            rows.append((differences, _rows(pixels, pixel_difference(pixels), 2)))
        return rows

    total = len(inputs.images.index) - first.rows
    _append(in_order(embed, stream, work.streams), waiting, f"Embedding {inputs.images.index.data_id} at {len(behind)} stages", total)


def _outputs(pixels: Pixels, runs: Mapping[Form, Run]) -> Iterator[tuple[Form, Float32]]:
    """Yield what each form makes of a batch; PyTorch sees pixels that are the same in both preprocessings only once."""
    if not pixels.readable.any():
        yield from ((form, np.empty((0, 0), np.float32)) for form in runs)
        return
    same = pixels.reference is not None and np.array_equal(pixels.reference, pixels.ours)
    known: Float32 | None = None
    for form, run in runs.items():
        values = pixels.reference if form == "reference" and pixels.reference is not None else pixels.ours
        made = known if form in {"reference", "torch"} and same and known is not None else run(values)
        known = made if form in {"reference", "torch"} else known
        yield form, made


def _rows(pixels: Pixels, values: Float32, width: int) -> Float32:
    """Return one row of ``width`` numbers per image, NaN for those that could not be read."""
    rows = np.full((len(pixels.readable), width), np.nan, np.float32)
    if len(values):
        rows[pixels.readable] = values
    return rows


def _append(results: Iterator[list[tuple[Store, Float32]]], stores: list[Store], title: str, total: int) -> None:
    try:
        with bar(title, total) as advance:
            for result in results:
                for store, rows in result:
                    store.append(rows)
                advance(max(len(rows) for _, rows in result))
    finally:
        for store in stores:
            store.flush()
    for store in stores:
        store.finish()
