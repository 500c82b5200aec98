"""Images classified among other class names: labels follow the names, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipq.calib_data.imagefolder import open_imagefolder
from clipq.calib_data.relabelled import ClassNames, Relabelled
from clipq.calib_data.synthetic import open_synthetic
from clipq.errors import DataError

TEMPLATES = ("a {c}.",)


def test_labels_follow_the_names(make_imagefolder: Callable[..., Path]) -> None:
    """Two class folders among four classes in another order: each image has the label of its name, known before it is read."""
    source = open_imagefolder(str(make_imagefolder()), None)
    found = Relabelled(source, ClassNames(("owl", "dog", "fish", "cat"), TEMPLATES))
    assert found.labels.tolist() == [3, 3, 1]
    assert [sample.label for sample in found.read()] == [3, 3, 1]
    assert [sample.id for sample in found.read([2])] == ["dog/deep/c.jpg"]
    assert (len(found), found.id, found.templates) == (3, source.id, TEMPLATES)


@given(st.permutations(range(60)))
def test_any_order_gives_back_the_name(order: list[int]) -> None:
    """Whatever the order of the classifier, an image's class has the name that it had."""
    source = open_synthetic("scenes")
    names = tuple(source.classnames[place] for place in order)
    found = Relabelled(source, ClassNames(names, TEMPLATES))
    assert [names[label] for label in found.labels] == [source.classnames[label] for label in source.labels]


def test_the_same_names_keep_their_labels_even_twice(make_imagefolder: Callable[..., Path]) -> None:
    """A data set with a name twice is its own classifier's, label by label."""
    folder = make_imagefolder()
    (folder / "classnames.txt").write_text("crane\ncrane\n")
    source = open_imagefolder(str(folder), None)
    assert Relabelled(source, ClassNames(("crane", "crane"), TEMPLATES)).labels.tolist() == source.labels.tolist() == [0, 0, 1]
    with pytest.raises(DataError, match="has a class that the classifier has twice; found 'crane'"):
        Relabelled(source, ClassNames(("crane", "crane", "owl"), TEMPLATES))


def test_a_name_that_is_not_there_is_refused_with_the_nearest(make_imagefolder: Callable[..., Path]) -> None:
    """A class that the classifier does not have would count every image of it as wrong."""
    source = open_imagefolder(str(make_imagefolder({"cat": ["a.png"], "dogs": ["b.png"]})), None)
    with pytest.raises(DataError, match="found 'dogs'; expected a name such as 'dog'"):
        Relabelled(source, ClassNames(("cat", "dog"), TEMPLATES))


def test_images_without_class_names_are_refused() -> None:
    """A folder without classes has no labels to follow."""
    with pytest.raises(DataError, match="has no class names"):
        Relabelled(open_synthetic("scenes-far"), ClassNames(("cat",), TEMPLATES))


def test_the_hash_is_of_names_order_and_words() -> None:
    """Another order, another name or another template is another classifier."""
    one = ClassNames(("cat", "dog"), TEMPLATES)
    assert one.sha256() == ClassNames(("cat", "dog"), TEMPLATES).sha256()
    others = [ClassNames(("dog", "cat"), TEMPLATES), ClassNames(("cat", "dogs"), TEMPLATES), ClassNames(("cat", "dog"), ("the {c}.",))]
    assert len({one.sha256(), *(other.sha256() for other in others)}) == 4
