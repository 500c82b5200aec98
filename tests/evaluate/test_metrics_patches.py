"""GL-MCM against hand-made numbers and a loop with scipy; its local part keeps its bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from clipq.errors import DataError
from clipq.evaluate.metrics.ood import mcm
from clipq.evaluate.metrics.patches import gl_mcm, local_max

COSINES = st.floats(-1, 1, width=32)
GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=COSINES)
)


def test_two_images_by_hand() -> None:
    """exp(log 3) = 3 against exp(0) = 1: three quarters; the best patch counts, whatever its class."""
    log3 = np.log(3)
    whole = np.array([[0.0, log3], [0.0, 0.0]])
    patches = np.array([[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [log3, 0.0]]])
    np.testing.assert_allclose(local_max(patches), [0.5, 0.75])
    np.testing.assert_allclose(gl_mcm(whole, local_max(patches)), [-0.75 - 0.5, -0.5 - 0.75])
    np.testing.assert_allclose(gl_mcm(whole, local_max(patches), local_weight=0.5), [-0.75 - 0.25, -0.5 - 0.375])


@given(patches=GRIDS, temperature=st.sampled_from([0.01, 1.0, 3.0]))
def test_equal_to_a_loop_with_scipy(patches: np.ndarray, temperature: float) -> None:
    """Image by image and patch by patch, as the formula is written."""
    expected = [max(softmax(patch.astype(np.float64) / temperature).max() for patch in image) for image in patches]
    np.testing.assert_allclose(local_max(patches, temperature), expected, rtol=1e-9)


@given(patches=GRIDS)
def test_order_of_patches_and_classes_does_not_matter(patches: np.ndarray) -> None:
    """Bounds hold, and neither turning the grid nor renaming the classes changes anything."""
    found = local_max(patches)
    assert (found >= 1 / patches.shape[2] - 1e-9).all()
    assert (found <= 1 + 1e-12).all()
    np.testing.assert_allclose(local_max(patches[:, ::-1, ::-1]), found, rtol=1e-12)
    np.testing.assert_allclose(local_max(np.repeat(patches, 2, axis=1)), found, rtol=1e-12)


@given(patches=GRIDS)
def test_one_patch_equal_to_the_image_doubles_mcm(patches: np.ndarray) -> None:
    """Where the only patch says what the whole image says, GL-MCM is twice MCM; with a weight of 0 it is MCM."""
    whole = patches[:, 0]
    np.testing.assert_allclose(gl_mcm(whole, local_max(whole[:, None])), 2 * mcm(whole), rtol=1e-12)
    np.testing.assert_array_equal(gl_mcm(whole, local_max(patches), local_weight=0), mcm(whole))


def test_blocks_change_nothing() -> None:
    """Forty images of many patches, reduced in blocks, are those reduced one by one."""
    patches = np.random.default_rng(0).uniform(-1, 1, (40, 50, 300)).astype(np.float32)
    np.testing.assert_array_equal(local_max(patches), np.concatenate([local_max(patches[row : row + 1]) for row in range(len(patches))]))


@pytest.mark.parametrize("wrong", [np.zeros((0, 2, 2)), np.zeros((2, 0, 2)), np.zeros((2, 2)), np.full((1, 2, 2), np.nan)])
def test_unusable_cosines_are_an_error(wrong: np.ndarray) -> None:
    """Nothing, two dimensions and NaN."""
    with pytest.raises(DataError, match="patch cosines"):
        local_max(wrong)


@pytest.mark.parametrize("local", [[0.5], [0.0, 0.5], [0.5, 1.5], [np.nan, 0.5]])
def test_unusable_local_scores_are_an_error(local: list[float]) -> None:
    """Too few, none at all, beyond a probability, NaN."""
    with pytest.raises(DataError, match="local scores"):
        gl_mcm(np.zeros((2, 3)), np.array(local))
