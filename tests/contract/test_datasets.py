"""What every data set promises; those that read files are only asked what they say without them."""

from __future__ import annotations

import numpy as np
import pytest

from purifiers.core.component import build
from purifiers.core.errors import UserError
from purifiers.datasets._base import SPLITS


@pytest.fixture
def without_files(monkeypatch, tmp_path):
    """An empty data folder, and a network that answers nobody."""
    monkeypatch.setenv("PURIFYBENCH_MIRROR", "http://127.0.0.1:9")
    return tmp_path


def load(dataset, split, root):
    try:
        return build(dataset.cls).load(split, root)
    except UserError as error:
        assert "\n" not in str(error) and str(root) in str(error)
        pytest.skip(f"{dataset.name} needs files; without them it says so in one line")


def test_traits_are_of_images(dataset):
    traits = dataset.description.traits
    channels, height, width = traits.shape
    assert channels in (1, 3) and height >= 1 and width >= 1
    for count in (traits.classes, traits.train, traits.test):
        if dataset.name != "image_folder":  # only its folders can tell
            assert type(count) is int and count > 1


def test_class_and_traits_agree(dataset):
    made, traits = build(dataset.cls), dataset.description.traits
    attributes = (tuple(made.shape), made.classes, made.train, made.test)
    assert attributes == (traits.shape, traits.classes, traits.train, traits.test)


def test_source_says_what_the_images_are(dataset, without_files):
    source = build(dataset.cls).source(without_files)
    assert source.text
    assert source.note in ("", dataset.description.traits.stand_in_note)


def test_images_and_labels(dataset, without_files):
    traits, seen = dataset.description.traits, {}
    for split in SPLITS:
        images, labels = load(dataset, split, without_files)
        assert images.dtype == np.uint8
        assert images.shape == ({"train": traits.train, "test": traits.test}[split], *traits.shape)
        assert labels.dtype == np.int64 and len(labels) == len(images)
        assert set(labels.tolist()) == set(range(traits.classes))
        assert images.max() > 127 and images.std() > 0
        again = load(dataset, split, without_files)
        assert np.array_equal(again[0], images) and np.array_equal(again[1], labels)
        seen[split] = [image.tobytes() for image in images]
    shared = set(seen["train"]) & set(seen["test"])
    assert len(shared) <= len(seen["test"]) // 100


def test_unknown_split_is_refused(dataset, without_files):
    with pytest.raises(UserError, match="did you mean 'train'"):
        build(dataset.cls).load("trian", without_files)
