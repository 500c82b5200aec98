"""What the towers of a bundle take and give, by the names that its graphs and plans have for them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from clipq.artifact import Bundle
from clipq.calib_data.preprocess import Preprocess
from clipq.engines.base import Tower, TowerSpec
from clipq.errors import RefusedError

INPUT_NAMES: Mapping[Tower, str] = {"image": "pixels", "text": "tokens"}
OUTPUT_NAME = "embedding"
PATCHES_NAME = "patches"  # second output of an image graph that was exported with patch tokens


def tower_specs(bundle: Bundle, *, patches: bool = False) -> dict[Tower, TowerSpec]:
    """Return what each tower takes and gives, as the manifest and the preprocessing say.

    Args:
        bundle: The bundle.
        patches: Whether the engine gives the patch tokens where the bundle has them.

    Raises:
        RefusedError: A file is not what the manifest says.
    """
    model = bundle.manifest.model
    preprocess = Preprocess.from_file(bundle.file("preprocess.json"))
    return {
        "image": TowerSpec("float32", (3, *preprocess.size), model.embed_dim, math.prod(patch_grid(bundle) or (0,)) if patches else 0),
        "text": TowerSpec("int32", (model.context_length,), model.embed_dim),
    }


def patch_grid(bundle: Bundle) -> tuple[int, int] | None:
    """Return rows and columns of the patch tokens of a bundle's image graphs, or None where they have none.

    Raises:
        RefusedError: The manifest says something else of them.
    """
    grid = bundle.manifest.recipe.get("patch_grid")
    if grid is None:
        return None
    if not isinstance(grid, list) or len(grid) != 2 or not all(type(side) is int and side > 0 for side in grid):
        raise RefusedError(
            f"the manifest of {bundle.folder} names no grid of patches", found=grid, expected="[rows, columns]", fix="Export it again."
        )
    return grid[0], grid[1]
