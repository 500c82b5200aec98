"""What the towers of a bundle take and give, by the names that its graphs and plans have for them."""

from __future__ import annotations

from collections.abc import Mapping

from clipq.artifact import Bundle
from clipq.calib_data.preprocess import Preprocess
from clipq.engines.base import Tower, TowerSpec

INPUT_NAMES: Mapping[Tower, str] = {"image": "pixels", "text": "tokens"}
OUTPUT_NAME = "embedding"


def tower_specs(bundle: Bundle) -> dict[Tower, TowerSpec]:
    """Return what each tower takes and gives, as the manifest and the preprocessing say.

    Raises:
        RefusedError: A file is not what the manifest says.
    """
    model = bundle.manifest.model
    preprocess = Preprocess.from_file(bundle.file("preprocess.json"))
    return {
        "image": TowerSpec("float32", (3, *preprocess.size), model.embed_dim),
        "text": TowerSpec("int32", (model.context_length,), model.embed_dim),
    }
