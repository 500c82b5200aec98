"""Where in the spectrum of its embeddings an engine lost something: ``report["spectral"]``."""

from __future__ import annotations

from typing import Any

import numpy as np

from clipq.engines.base import Float32
from clipq.errors import DataError
from clipq.evaluate.embeddings import Embedded
from clipq.evaluate.metrics.arrays import Float64, Int64
from clipq.evaluate.metrics.spectral import (
    Band,
    Spectrum,
    accuracy_by_rank,
    effective_rank,
    rank_bands,
    singular_ratio_by_rank,
    spectrum,
    sqnr_by_rank,
)
from clipq.evaluate.zeroshot import l2_normalised


def diagnose(embedded: Embedded) -> dict[str, dict[str, Any]]:
    """Return ENGINE -> ID data set -> diagnosis of its image embeddings; the first engine is the baseline.

    Embeddings are unit vectors here, as where answers come from: a change of their length changes no answer. Embeddings without axes
    (a single image, or all the same) have no entry. Where there are patch tokens, their energy by spatial frequency stands beside.

    Cheap enough to be always on: at dim 512 and 1,000 classes about 1.3 million multiply-adds per image and engine, where the image
    tower of ViT-B/32 takes 4,400 million.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in embedded.engine_ids}
    for data in embedded.inside:
        for engine_id, entry in _diagnose_set(embedded, data).items():
            energy = embedded.patches.energy(engine_id, data, embedded.readable[data]) if embedded.patches else None
            found[engine_id][data] = {**entry, **({"fourier": energy} if energy else {})}
    return {name: entries for name, entries in found.items() if entries}


def _diagnose_set(embedded: Embedded, data: str) -> dict[str, dict[str, Any]]:
    labels = embedded.inside[data].index.labels[embedded.readable[data]]
    baseline, *others = embedded.engine_ids
    reference = _unit(embedded, baseline, data)
    axes = _axes(reference)
    if axes is None:
        return {}
    bands = rank_bands(axes.rank)
    found = {baseline: _own(reference, labels, embedded.classes(baseline, data), bands, axes)}
    for engine_id in others:
        unit = _unit(embedded, engine_id, data)
        if (own_axes := _axes(unit)) is None:
            continue
        entry = _own(unit, labels, embedded.classes(engine_id, data), bands, own_axes)
        _add(entry, "sqnr_db", sqnr_by_rank(reference, unit, bands, axes))
        _add(entry, "singular_ratio", singular_ratio_by_rank(axes, own_axes, bands))
        found[engine_id] = entry
    return found


def _unit(embedded: Embedded, engine_id: str, data: str) -> Float32:
    return l2_normalised(embedded.images(engine_id, data), f"{engine_id} on {data}")


def _axes(unit: Float32) -> Spectrum | None:
    try:
        return spectrum(unit)
    except DataError:  # finite and of two dimensions they are, so all rows are the same
        return None


def _own(unit: Float32, labels: Int64, classes: Float32, bands: list[Band], axes: Spectrum) -> dict[str, Any]:
    """Return what an engine's embeddings tell without the baseline's but for the bands."""
    entry = {"effective_rank": effective_rank(axes.singular_values[: axes.rank]), "bands": [{"ranks": list(band)} for band in bands]}
    energy = axes.singular_values**2 / (axes.singular_values**2).sum()
    _add(entry, "energy", np.array([energy[low:high].sum() for low, high in bands]))
    _add(entry, "acc1", accuracy_by_rank(unit, labels, classes, bands, axes))
    return entry


def _add(entry: dict[str, Any], name: str, values: Float64) -> None:
    """Put one value into each band; an infinite one, a ratio to no noise, is None."""
    for band, value in zip(entry["bands"], values.tolist(), strict=True):
        band[name] = value if np.isfinite(value) else None
