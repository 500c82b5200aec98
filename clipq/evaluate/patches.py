"""What is kept of patch tokens while images are embedded, because all of them are too many: a few numbers per image, in stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipq.artifact import Bundle
from clipq.engines.base import Float32
from clipq.engines.table import ENGINES
from clipq.engines.towers import patch_grid
from clipq.evaluate.embed import Reduction
from clipq.evaluate.metrics.arrays import Bool, Float64, blocks
from clipq.evaluate.metrics.patches import LOCAL_WEIGHT, TEMPERATURE, local_max
from clipq.evaluate.metrics.spectral import radial_energy
from clipq.evaluate.store import Store, Stores
from clipq.evaluate.zeroshot import l2_normalised

Facts = Mapping[str, Any]
_LOCAL = {"reducer": "local_max", "reducer_version": 1, "temperature": TEMPERATURE}
_FOURIER = {"reducer": "fourier_energy", "reducer_version": 1}


@dataclass(frozen=True, slots=True, eq=False)
class PatchStores:
    """The stores of what is reduced from patch tokens; engines without patch tokens have none.

    Attributes:
        grid: Rows and columns of patches.
        local: (images, ID data set whose classes they are compared with) -> engine id -> store of ``local_max``, ``(n, 1)``.
        fourier: ID data set -> engine id -> store of ``fourier_energy``, ``(n, rings)``.
        left_out: Engine id -> why it has no patch tokens.
    """

    grid: tuple[int, int]
    local: Mapping[tuple[str, str], Mapping[str, Store]]
    fourier: Mapping[str, Mapping[str, Store]]
    left_out: Mapping[str, str]

    @classmethod
    def planned(
        cls,
        bundle: Bundle,
        stores: Stores,
        images: Mapping[str, Mapping[str, Facts]],
        classifiers: Mapping[str, Mapping[str, Facts]],
    ) -> PatchStores | None:
        """Return the stores of a bundle with patch tokens, None of one without.

        Args:
            bundle: The bundle.
            stores: Where they are.
            images: Data id -> engine id -> facts that decide the engine's image embeddings.
            classifiers: ID data set -> engine id -> facts that decide the engine's class embeddings.
        """
        grid = patch_grid(bundle)
        if grid is None:
            return None
        engine_ids = {name for facts in images.values() for name in facts}
        left_out = {name: why for name in sorted(engine_ids) if (why := _why_none(name))}
        has = engine_ids - left_out.keys()
        return cls(
            grid,
            {
                (data, own): {n: stores.of({**facts[n], **_LOCAL, "classifier": theirs[n]}) for n in facts if n in has}
                for data, facts in images.items()
                for own, theirs in classifiers.items()
                if data == own or data not in classifiers  # classes score their own images and foreign ones
            },
            {
                data: {n: stores.of({**images[data][n], **_FOURIER, "grid": list(grid)}) for n in images[data] if n in has}
                for data in classifiers
            },
            left_out,
        )

    def unfinished(self) -> set[str]:
        """Return the engines that have something left to reduce."""
        rows = [*self.local.values(), *self.fourier.values()]
        return {name for row in rows for name, store in row.items() if not store.finished}

    def reductions(self, data: str, classes: Callable[[str, str], Float32]) -> dict[str, list[Reduction]]:
        """Return engine id -> what is still to be kept of the patch tokens of a data set's images.

        Args:
            data: The images.
            classes: Engine id and ID data set to class embeddings, unit vectors ``(classes, dim)``.
        """
        found: dict[str, list[Reduction]] = {}
        for name, store in _open(self.fourier.get(data, {})):
            found.setdefault(name, []).append(Reduction(store, _rings(self.grid), fourier_energy(self.grid)))
        for (images, own), row in self.local.items():
            for name, store in _open(row) if images == data else ():
                found.setdefault(name, []).append(Reduction(store, 1, local_scores(classes(name, own))))
        return found

    def local_scores(self, engine_id: str, data: str, classifier: str, readable: Bool) -> Float64 | None:
        """Return ``local_max`` of the readable images, ``(n,)``, or None for an engine without patch tokens."""
        store = self.local[data, classifier].get(engine_id)
        return None if store is None else store.read()[readable, 0].astype(np.float64)

    def energy(self, engine_id: str, data: str, readable: Bool) -> dict[str, list[float]] | None:
        """Return the mean ``fourier_energy`` of the readable images, as JSON; None for an engine without patch tokens.

        Returns:
            ``radius`` (cycles per image, rounded) and ``energy`` (share of the energy there; they sum to 1).
        """
        store = self.fourier.get(data, {}).get(engine_id)
        if store is None or not readable.any():
            return None
        energy = store.read()[readable].mean(axis=0, dtype=np.float64)
        return {"radius": [float(radius) for radius in range(len(energy))], "energy": energy.tolist()}

    def describe(self) -> dict[str, Any]:
        """Return ``report["provenance"]["patch_tokens"]``."""
        return {"grid": list(self.grid), "temperature": TEMPERATURE, "local_weight": LOCAL_WEIGHT, "left_out": dict(self.left_out)}


def local_scores(classes: Float32) -> Callable[[Float32], Float32]:
    """Return the reducer of GL-MCM's local part: patches ``(n, patches, dim)`` to ``(n, 1)``.

    Args:
        classes: Unit vectors, float32 ``(classes, dim)``.
    """

    def reduce(patches: Float32) -> Float32:
        unit = _unit(patches)
        rows = [local_max(unit[images] @ classes.T) for images in blocks(len(unit), unit.shape[1] * len(classes))]
        return np.concatenate(rows)[:, None].astype(np.float32)

    return reduce


def fourier_energy(grid: Sequence[int]) -> Callable[[Float32], Float32]:
    """Return the reducer to shares of energy by spatial frequency: patches ``(n, patches, dim)`` to ``(n, rings)``, rows that sum to 1.

    Patches are unit vectors here, as where GL-MCM compares them: their length tells no class. Ring 0 is their mean; it is kept, because
    a patch grid that loses what differs within an image moves energy there.

    Args:
        grid: (rows, columns) of patches.
    """
    rows, columns = grid

    def reduce(patches: Float32) -> Float32:
        shares: Float32 = (radial_energy(_unit(patches), (rows, columns)) * patches.shape[2]).astype(np.float32)
        return shares

    return reduce


def _rings(grid: tuple[int, int]) -> int:
    return len(radial_energy(np.ones((1, grid[0] * grid[1], 1)), grid)[0])


def _unit(patches: Float32) -> Float32:
    flat = l2_normalised(patches.reshape(-1, patches.shape[2]), "patch tokens")
    return flat.reshape(patches.shape)


def _why_none(engine_id: str) -> str:
    return "its plans give embeddings only" if ENGINES[engine_id].planned else ""


def _open(stores: Mapping[str, Store]) -> Iterable[tuple[str, Store]]:
    return [(name, store) for name, store in stores.items() if not store.finished]
