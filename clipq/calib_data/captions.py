"""Images with captions, for retrieval: the kinds of data ids, and what each opens."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from clipq.calib_data.source import Source
from clipq.errors import DataError, UsageError, unknown_name

# Each opens with (what follows the colon, split that was asked for or None) -> Captioned.
CAPTIONED: dict[str, str] = {
    "captions": "clipq.calib_data.caption_files:open_caption_file",
    "synthetic": "clipq.calib_data.scene_captions:open_scene_captions",
    "wds": "clipq.calib_data.wds_captions:open_wds_captions",
}


@dataclass(frozen=True, slots=True, eq=False)
class Captioned:
    """Images and what is said of each.

    Attributes:
        source: The images; their labels say nothing here.
        captions: The captions of each image, in the order of the source; at least one each.

    Raises:
        DataError: An image has no caption, or there are captions of more or fewer images.
    """

    source: Source
    captions: Sequence[tuple[str, ...]]

    def __post_init__(self) -> None:
        if len(self.captions) != len(self.source):
            raise DataError(f"captions of {self.source.id} do not fit its images", found=f"{len(self.captions)} and {len(self.source)}")
        bare = [row for row, texts in enumerate(self.captions) if not texts]
        if bare:
            name = next(iter(self.source.read(bare[:1]))).id
            raise DataError(f"{len(bare)} images of {self.source.id} have no caption", found=name, expected="at least one of each image")


def open_captioned(data_id: str, *, split: str | None = None) -> Captioned:
    """Return the images and captions that a data id names; nothing is decoded.

    Args:
        data_id: ``wds:PATH[:SPLIT]`` (CLIP_benchmark's layout for retrieval), ``captions:FILE.csv@ROOT``, ``captions:FILE.json@ROOT``
            or ``synthetic:scenes-captions``.
        split: Overrides the split that the id names.

    Raises:
        UsageError: The kind, the folder or the split is unknown, or the data set is one of classification.
        DataError: Captions cannot be read, or an image has none.
    """
    scheme, _, rest = data_id.partition(":")
    if scheme not in CAPTIONED:
        raise unknown_name("kind of data id with captions", scheme, CAPTIONED)
    if not rest:
        raise UsageError(f"nothing follows the colon in {data_id!r}", expected=f"{scheme}:PATH or {scheme}:NAME")
    module, opener = CAPTIONED[scheme].split(":")
    opened: Captioned = getattr(importlib.import_module(module), opener)(rest, split)
    return opened
