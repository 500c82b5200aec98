"""The kinds of data sources by the first word of a data id: each loaded only when it is opened."""

from __future__ import annotations

import importlib

from clipq.calib_data.source import Source
from clipq.errors import UsageError, unknown_name

# Each opens with (what follows the colon, split that was asked for or None) -> Source.
SOURCES: dict[str, str] = {
    "cifar10": "clipq.calib_data.cifar:open_cifar10",
    "cifar10-c": "clipq.calib_data.cifar_c:open_cifar10_c",
    "cifar100": "clipq.calib_data.cifar:open_cifar100",
    "cifar100-c": "clipq.calib_data.cifar_c:open_cifar100_c",
    "folder": "clipq.calib_data.folder:open_folder",
    "corrupt-synth": "clipq.calib_data.corrupted:open_corrupted",
    "counteranimal": "clipq.calib_data.counteranimal:open_counteranimal",
    "hf": "clipq.calib_data.parquet:open_parquet",
    "imagefolder": "clipq.calib_data.imagefolder:open_imagefolder",
    "imagenet": "clipq.calib_data.imagenet_family:open_imagenet",
    "imagenet-a": "clipq.calib_data.imagenet_family:open_imagenet_a",
    "imagenet-r": "clipq.calib_data.imagenet_family:open_imagenet_r",
    "imagenet-sketch": "clipq.calib_data.imagenet_family:open_imagenet_sketch",
    "imagenet-v2": "clipq.calib_data.imagenet_family:open_imagenet_v2",
    "imglist": "clipq.calib_data.imglist:open_imglist",
    "objectnet": "clipq.calib_data.objectnet:open_objectnet",
    "openood": "clipq.calib_data.openood:open_openood",
    "synthetic": "clipq.calib_data.synthetic:open_synthetic",
    "waterbirds": "clipq.calib_data.waterbirds:open_waterbirds",
    "wds": "clipq.calib_data.wds:open_wds",
}


def open_source(data_id: str, *, split: str | None = None) -> Source:
    """Return the images that a data id names; nothing is decoded.

    Args:
        data_id: ``wds:PATH[:SPLIT]``, ``imagefolder:PATH``, ``imglist:FILE[@ROOT]``, ``hf:PATH[@REVISION][:SPLIT]`` (local parquet),
            ``folder:PATH`` (no labels), ``cifar10:PATH[:SPLIT]``, ``cifar100:PATH[:SPLIT]``, ``cifar10-c:PATH:NAME/SEVERITY`` (and 100),
            ``openood:ROOT:BENCHMARK/LIST``, ``synthetic:NAME[:SPLIT]``, ``imagenet:PATH[:SUBSET]``, ``imagenet-v2:PATH`` (and ``r``, ``a``,
            ``sketch``), ``objectnet:PATH``, ``waterbirds:PATH[:GROUP]`` or ``counteranimal:PATH[:GROUP]``;
            before any of them ``corrupt-synth:NAME/SEVERITY:`` for altered pictures.
        split: Overrides the split that the id names; ignored by kinds without splits.

    Raises:
        UsageError: The kind, the folder or the split is unknown.
        DataError: The folder is empty, a class has no images, or labels and class names do not fit each other.
        MissingRuntimeError: ``hf:`` without pyarrow.
    """
    scheme, _, rest = data_id.partition(":")
    if scheme not in SOURCES:
        raise unknown_name("kind of data id", scheme, SOURCES)
    if not rest:
        raise UsageError(f"nothing follows the colon in {data_id!r}", expected=f"{scheme}:PATH or {scheme}:NAME")
    module, opener = SOURCES[scheme].split(":")
    source: Source = getattr(importlib.import_module(module), opener)(rest, split)
    return source
