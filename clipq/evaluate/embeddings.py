"""All embeddings of one evaluation: what is missing is computed, then everything is read from the stores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipq.artifact import Bundle
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.relabelled import ClassNames
from clipq.calib_data.tokenizer import Tokenizer
from clipq.engines.base import Engine, Float32
from clipq.engines.table import open_engine
from clipq.evaluate.datasets import EvalSet
from clipq.evaluate.embed import Tokens, Work, embed_images, embed_texts
from clipq.evaluate.metrics.arrays import Bool, Float64, Lazy, blocks
from clipq.evaluate.metrics.patches import gl_mcm
from clipq.evaluate.neglabel import Negatives, NegLabelPlan
from clipq.evaluate.patches import PatchStores
from clipq.evaluate.provenance import tower_facts
from clipq.evaluate.store import Store, Stores
from clipq.evaluate.zeroshot import classifier, cosines, prompts
from clipq.files import sha256_bytes

EngineStores = dict[str, dict[str, Store]]  # data id -> engine id -> store


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """The finished embeddings of every engine on every data set.

    Attributes:
        engine_ids: The baseline first.
        inside: ID data sets by data id.
        outside: OOD data sets by data id.
        readable: Data id -> bool ``(n,)``: the images that could be decoded, the same for every engine.
        image_stores: Data id -> engine id -> store of the image embeddings.
        text_stores: The same for the prompts of the ID data sets.
        negatives: The negative words of NegLabel, where it was asked for.
        patches: What is kept of patch tokens, where the bundle has them.
        given: Engine id -> class embeddings that the bundle has, unit vectors; for every ID data set, whose texts are then not embedded.
    """

    engine_ids: Sequence[str]
    inside: Mapping[str, EvalSet]
    outside: Mapping[str, EvalSet]
    readable: Mapping[str, Bool]
    image_stores: EngineStores
    text_stores: EngineStores
    negatives: Negatives | None = None
    patches: PatchStores | None = None
    given: Mapping[str, Float32] | None = None

    def images(self, engine_id: str, data: str) -> Float32:
        """Return an engine's raw embeddings of the readable images, float32 ``(n, dim)``."""
        return self.image_stores[data][engine_id].read()[self.readable[data]]

    def image_rows(self, engine_id: str, data: str) -> Lazy:
        """Return the same, read from disk whenever some of them are asked for."""
        store, positions = self.image_stores[data][engine_id], np.flatnonzero(self.readable[data])

        def read(rows: slice) -> Float32:
            wanted = positions[rows]
            block: Float32 = store.block(slice(int(wanted[0]), int(wanted[-1]) + 1))[wanted - wanted[0]]
            return block

        return Lazy((len(positions), store.dim()), read, f"embeddings of {data} with {engine_id}")

    def classes(self, engine_id: str, data: str) -> Float32:
        """Return an engine's zero-shot classifier for an ID data set, unit vectors, float32 ``(classes, dim)``."""
        if self.given is not None:
            return self.given[engine_id]
        return _classes(self.inside[data], self.text_stores[data][engine_id], engine_id)

    def extra_scores(self, engine_id: str, data: str, classifier: str) -> dict[str, Float64]:
        """Return OOD scores that need more than image and class embeddings.

        Args:
            engine_id: The engine.
            data: The images.
            classifier: The ID data set whose class texts score them.

        Returns:
            SCORE -> ``(n,)`` of the readable images, higher = more OOD; empty where there is nothing more to score with.
        """
        scores = self._gl_mcm(engine_id, data, classifier)
        if self.negatives is None:
            return scores
        return scores | {"neglabel": self.negatives.scores(engine_id, self.image_rows(engine_id, data), classifier)}

    def _gl_mcm(self, engine_id: str, data: str, classifier: str) -> dict[str, Float64]:
        local = self.patches.local_scores(engine_id, data, classifier, self.readable[data]) if self.patches else None
        if local is None:
            return {}
        images, classes = self.image_rows(engine_id, data), self.classes(engine_id, classifier)
        what = f"{engine_id} on {data}"
        whole = Lazy((len(images), len(classes)), lambda rows: cosines(images[rows], classes, what), f"cosines of {what}")
        return {"gl_mcm": gl_mcm(whole, local)}

    def describe_sets(self) -> dict[str, Any]:
        """Return ``report["datasets"]``."""
        return {
            name: {
                "n": int(self.readable[name].sum()),
                "classes": len(images.source.classnames) if name in self.inside else 0,
                "sha256": images.index.digest,
                "skipped": [images.index.ids[row] for row in np.flatnonzero(~self.readable[name])],
                "templates": list(images.source.templates) if name in self.inside else [],
                "role": "id" if name in self.inside else "ood",
                **({"class_texts_sha256": _class_texts(images)} if name in self.inside else {}),
                **({"distance": images.distance} if images.distance else {}),
            }
            for name, images in {**self.inside, **self.outside}.items()
        }


def embed_everything(  # noqa: PLR0913 - each is one choice of the caller
    bundle: Bundle,
    engine_ids: Sequence[str],
    sets: tuple[Mapping[str, EvalSet], Mapping[str, EvalSet]],
    work: Work,
    root: Path,
    *,
    resume: bool,
    neglabel: NegLabelPlan | None = None,
    given: Mapping[str, Float32] | None = None,
) -> Embedded:
    """Embed what no store under ``root`` holds yet, with every engine, and return all of it.

    Args:
        bundle: Where the engines are.
        engine_ids: The baseline first.
        sets: ID and OOD data sets by data id.
        work: How the cores are shared.
        root: Folder of the stores.
        resume: Go on with unfinished stores.
        neglabel: Which words to embed too, for NegLabel.
        given: As in ``Embedded``.
    """
    inside, outside = sets
    everything = {**inside, **outside}
    preprocess = Preprocess.from_file(bundle.file("preprocess.json"))
    texts = {} if given else {data: prompts(images.source.classnames, images.source.templates) for data, images in inside.items()}
    foreign = neglabel.texts({data: images.source.classnames for data, images in inside.items()}) if neglabel else {}
    tokens = tokenise(bundle, texts | foreign)
    stores = Stores(root, resume=resume)
    facts = {
        data: {name: image_facts(bundle, name, images.index.digest, preprocess, work) for name in engine_ids}
        for data, images in everything.items()
    }
    image_stores: EngineStores = {data: {name: stores.of(own) for name, own in row.items()} for data, row in facts.items()}
    text_stores: EngineStores = {
        data: {name: stores.of({**tower_facts(bundle, name, "text"), **text_facts(ids, work)}) for name in engine_ids}
        for data, ids in tokens.items()
    }
    described = _given_facts(given, inside) if given else _classifier_facts(bundle, engine_ids, inside, tokens, work)
    patches = PatchStores.planned(bundle, stores, facts, described)
    missing = {name for table in (image_stores, text_stores) for row in table.values() for name, store in row.items() if not store.finished}
    missing |= patches.unfinished() if patches else set()

    def classes_of(name: str, own: str) -> Float32:
        return given[name] if given else _classes(inside[own], text_stores[own][name], name)

    with opened(bundle, [name for name in engine_ids if name in missing], work) as engines:
        for data, ids in tokens.items():
            embed_texts(engines, text_stores[data], ids, work)
        for data, images in everything.items():
            kept = patches.reductions(data, classes_of) if patches else {}
            embed_images(engines, image_stores[data], images, preprocess, work, kept)
    readable = {data: readable_images(row) for data, row in image_stores.items()}
    negatives = Negatives.mined(neglabel, engine_ids[0], list(inside), text_stores) if neglabel else None
    return Embedded(engine_ids, inside, outside, readable, image_stores, text_stores, negatives, patches, given)


def tokenise(bundle: Bundle, texts: Mapping[str, Sequence[str]]) -> dict[str, Tokens]:
    """Return name -> token ids of every text, int32 ``(texts, context length)``; without texts no tokenizer is loaded."""
    if not texts:
        return {}
    folder = bundle.folder / "tokenizer"
    for name in bundle.manifest.files:
        if name.startswith("tokenizer/"):
            bundle.file(name)
    tokenizer = Tokenizer.from_files(folder)
    return {name: tokenizer.tokens(listed) for name, listed in texts.items()}


def image_facts(bundle: Bundle, engine_id: str, digest: str, preprocess: Preprocess, work: Work) -> dict[str, Any]:
    """Return everything that decides the image embeddings of one engine on the data with this digest."""
    conditions = {"data": digest, "preprocess": preprocess.sha256(), "batch_size": work.batch_size}
    return {**tower_facts(bundle, engine_id, "image"), **conditions}


def _classes(images: EvalSet, texts: Store, engine_id: str) -> Float32:
    return classifier(texts.read(), len(images.source.templates), f"texts of {images.index.data_id} with {engine_id}")


def _classifier_facts(
    bundle: Bundle, engine_ids: Sequence[str], inside: Mapping[str, EvalSet], tokens: Mapping[str, Tokens], work: Work
) -> dict[str, dict[str, Any]]:
    """Return ID data set -> engine id -> everything that decides its class embeddings."""
    facts = {data: {**text_facts(tokens[data], work), "templates": len(images.source.templates)} for data, images in inside.items()}
    return {data: {name: {**tower_facts(bundle, name, "text"), **own} for name in engine_ids} for data, own in facts.items()}


def _class_texts(images: EvalSet) -> str:
    return ClassNames(images.source.classnames, images.source.templates).sha256()


def _given_facts(given: Mapping[str, Float32], inside: Mapping[str, EvalSet]) -> dict[str, dict[str, Any]]:
    """Return the same for class embeddings that the bundle has."""
    facts = {name: {"classes": sha256_bytes(np.ascontiguousarray(vectors).tobytes())} for name, vectors in given.items()}
    return {data: dict(facts) for data in inside}


def text_facts(tokens: Tokens, work: Work) -> dict[str, Any]:
    """Return what decides the embeddings of texts beside the tower."""
    return {"tokens": sha256_bytes(tokens.tobytes()), "batch_size": work.batch_size}


@contextlib.contextmanager
def opened(bundle: Bundle, engine_ids: Sequence[str], work: Work) -> Iterator[dict[str, Engine]]:
    """Yield engines by id, open while the block runs."""
    with contextlib.ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for name in engine_ids:
            engines[name] = stack.enter_context(open_engine(bundle, name, work.threads, shares_cores=True))
        yield engines


def readable_images(stores: Mapping[str, Store]) -> Bool:
    """Return the images that every engine has: decoding decides, so they agree."""
    readable = [
        np.concatenate([~np.isnan(store.block(rows)).any(axis=1) for rows in blocks(len(store), store.dim())]) for store in stores.values()
    ]
    return np.asarray(np.logical_and.reduce(readable))
