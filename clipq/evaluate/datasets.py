"""The data sets of one evaluation: opened, indexed, and checked against the images the engines were calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from clipq.artifact import Bundle
from clipq.calib_data.index import DataIndex, build_index
from clipq.calib_data.relabelled import ClassNames, Relabelled
from clipq.calib_data.sampling import CALIBRATION_LIST, OOD_LIST, TRAINING_LIST, read_calibration_list, refuse_overlap
from clipq.calib_data.source import Source
from clipq.calib_data.table import open_source
from clipq.errors import DataError, UsageError


@dataclass(frozen=True, slots=True)
class EvalSet:
    """One data set: its source and the images of it that are used; of OOD data ``near`` or ``far`` where it is named so."""

    source: Source
    index: DataIndex
    distance: str | None = None


def load_sets(  # noqa: PLR0913 - each is one choice of the caller
    bundle: Bundle,
    id_data: Sequence[str],
    ood_data: Sequence[str],
    *,
    limit: int | None,
    seed: int,
    near: Sequence[str] = (),
    far: Sequence[str] = (),
    classes: ClassNames | None = None,
) -> tuple[dict[str, EvalSet], dict[str, EvalSet]]:
    """Return the ID and the OOD data sets by their canonical ids, in the order they were named: near, far, then those without a distance.

    With ``classes``, ID images are classified among these and not among those of their data set.

    Raises:
        UsageError: No ID data set is named, one is named as two kinds, or an id is unknown.
        DataError: Images were used for calibration, or an ID data set has images without a label or no class names.
    """
    if not id_data:
        raise UsageError("no data set to evaluate on", fix="Name one with --data.")
    inside = _by_id(id_data)
    if classes is not None:
        inside = {name: Relabelled(source, classes) for name, source in inside.items()}
    placed = {"near": _by_id(near), "far": _by_id(far)}
    if twice := placed["near"].keys() & placed["far"].keys():
        raise UsageError(f"{', '.join(sorted(twice))} is named by --ood-near and by --ood-far", fix="Name it once.")
    distances = {data: distance for distance, sources in placed.items() for data in sources}
    outside = placed["near"] | placed["far"] | _by_id(ood_data)
    if both := inside.keys() & outside.keys():
        raise UsageError(f"{', '.join(sorted(both))} is named by --data and by --ood", fix="An OOD data set has other images.")
    for source in inside.values():
        _check_labels(source)
    seen = calibration_hashes(bundle)
    sets = {name: load_set(source, seen, limit, seed) for name, source in (inside | outside).items()}
    return {name: sets[name] for name in inside}, {name: replace(sets[name], distance=distances.get(name)) for name in outside}


def _by_id(data_ids: Sequence[str]) -> dict[str, Source]:
    return {source.id: source for source in map(open_source, data_ids)}


def _check_labels(source: Source) -> None:
    if not source.classnames:
        raise DataError(f"{source.id} has no class names, so nothing can be classified", fix="Use it with --ood.")
    if (source.labels < 0).any() or (source.labels >= len(source.classnames)).any():
        raise DataError(
            f"{source.id} has images whose label is none of its classes",
            found=f"labels {source.labels.min()} to {source.labels.max()}",
            expected=f"0 to {len(source.classnames) - 1}",
        )


def calibration_hashes(bundle: Bundle) -> set[str]:
    """Return the SHA-256 of every image that the engines were calibrated or trained on."""
    lists = [name for name in (CALIBRATION_LIST, OOD_LIST, TRAINING_LIST) if name in bundle.manifest.files]
    return {sha256 for name in lists for sha256 in read_calibration_list(bundle.file(name)).values()}


def load_set(source: Source, seen: set[str], limit: int | None, seed: int) -> EvalSet:
    """Return a source with the images of it that are used.

    Raises:
        DataError: It has none, or one of them is among the ``seen`` hashes.
    """
    index = build_index(source, limit=limit, seed=seed)
    if not len(index):
        raise DataError(f"{source.id} has no images", expected="at least one")
    refuse_overlap(seen, index)
    return EvalSet(source, index)
