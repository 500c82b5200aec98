"""Which texts a text tower is calibrated with."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipq.calib_data.imagenet import imagenet_classes
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.table import open_source
from clipq.export.calibration import Calibration
from clipq.recipe import Recipe

DATA = "synthetic:scenes:calibration"


def _captions(folder: Path, count: int, seed: int = 0) -> list[str]:
    recipe = Recipe(model="", calib=DATA, calib_n=count, seed=seed)
    return Calibration(open_source(DATA), recipe, folder, Preprocess((8, 8), "squash", "bicubic", (0, 0, 0), (1, 1, 1)))._captions()


@pytest.mark.parametrize("more", [1, 40])
def test_few_class_names_are_topped_up_with_those_of_imagenet(tmp_path: Path, more: int) -> None:
    """By a loop: every class in every template once, then ImageNet's names in the same templates up to the number asked for."""
    source = open_source(DATA)
    own = {template.format(c=name) for name in source.classnames for template in source.templates}
    others = {template.format(c=known.name) for known in imagenet_classes() for template in source.templates}
    found = _captions(tmp_path, len(own) + more)
    assert set(found[: len(own)]) == own
    assert set(found[len(own) :]) <= others - own
    assert len(set(found)) == len(found) == len(own) + more


def test_many_class_names_need_no_others(tmp_path: Path) -> None:
    """Where the classes in their templates suffice, nothing else is read; the seed draws them."""
    source = open_source(DATA)
    own = [template.format(c=name) for name in source.classnames for template in source.templates]
    one, two = (_captions(tmp_path, len(own) // 2, seed) for seed in (0, 1))
    assert set(one) <= set(own)
    assert one != two
    assert one == _captions(tmp_path, len(own) // 2)
