"""Chains that make no sense are refused before anything runs, in one line that says why."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from purifiers.core.errors import UserError
from purifiers.plan.chains import check_method
from purifiers.plan.graph import component_spec

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


def check(
    name: str,
    shape: tuple[int, ...] = GREY,
    training: Any = ("natural", {}),
    classifier: str = "wide_resnet",
    **parameters: Any,
) -> None:
    setting = SimpleNamespace(
        where="toy/table_1",
        cell={"training": "t", "classifier": "c"},
        recipe=lambda kind, _: (
            component_spec(kind, classifier, {})
            if kind == "classifier"
            else component_spec(kind, training[0], training[1])
        ),
    )
    check_method(setting, "m", component_spec("method", name, parameters), shape)


def test_soap_wants_the_classifier_that_was_trained_for_it() -> None:
    check("soap", training=("soap", {}))
    check("soap", training=("soap", {"task": "rotation"}), task="rotation")
    needs = r"toy/table_1: method 'm' requires .* trained with soap, task label_consistency, but"
    mend = "choose another training$"
    with pytest.raises(UserError, match=rf"^{needs} 't' is natural, task None: {mend}"):
        check("soap")
    with pytest.raises(UserError, match=rf"^{needs} 't' is soap, task rotation: {mend}"):
        check("soap", training=("soap", {"task": "rotation"}))


@pytest.mark.parametrize("shape", [(1, 28, 20), (3, 4, 4)])
def test_defense_gan_has_networks_for_square_images(shape: tuple[int, ...]) -> None:
    check("defense_gan", COLOUR)
    height, width = shape[1:]
    with pytest.raises(UserError, match=f"no network for {height}x{width} images.*above 4x4"):
        check("defense_gan", shape)


def test_pixel_defend_halves_the_sides() -> None:
    check("pixel_defend", COLOUR)
    check("pixel_defend", (1, 30, 30), scales=2)
    with pytest.raises(UserError, match=r"sides of 30x30 images are not multiples of 4"):
        check("pixel_defend", (1, 30, 30))
    with pytest.raises(UserError, match="images of 1 or 3 channels; these have 4"):
        check("pixel_defend", (4, 32, 32))


def test_windows_are_at_most_as_large_as_the_images() -> None:
    check("feature_squeezing", GREY, median=28, nlm_search=None)
    check("feature_squeezing", GREY, nlm_search=27)
    for window, side in {"median": 29, "nlm_search": 29, "nlm_patch": 31}.items():
        with pytest.raises(
            UserError, match=f"^toy/table_1: method 'm': {window} is {side}, larger"
        ):
            check("feature_squeezing", GREY, **{window: side})
    with pytest.raises(UserError, match="images of 1 or 3 channels; these have 4"):
        check("jpeg", (4, 32, 32))


def test_atop_masks_whole_blocks_of_images_that_its_discriminator_can_halve() -> None:
    check("atop", GREY)
    check("atop", COLOUR, mask_block=8, discriminator_depth=5)
    with pytest.raises(UserError, match=r"^toy/table_1: .* 28x28 .* not multiples of 8 \(mask_b"):
        check("atop", GREY, mask_block=8)
    smaller = (
        r"^toy/table_1: method 'm': 28x28 images are smaller than 32 \(2 \*\* \(discriminator_"
    )
    with pytest.raises(UserError, match=smaller):
        check("atop", GREY, discriminator_depth=5)
    check("atop", GREY, side=256, mask_block=32, discriminator_depth=6)
    with pytest.raises(UserError, match="sides of 256x256 images are not multiples of 7"):
        check("atop", GREY, side=256, mask_block=7)


def test_atop_without_a_discriminator_has_no_depth() -> None:
    check("atop", GREY, discriminator_depth=6, gan_weight=0)


def test_atop_masks_at_least_one_block() -> None:
    check("atop", COLOUR, mask_share=1 / 64)
    with pytest.raises(
        UserError, match=r"a share of 0\.015 of 32x32 images is less than a block of"
    ):
        check("atop", COLOUR, mask_share=0.015)
    with pytest.raises(UserError, match="32x32 images have less than 5 blocks of mask_block 16"):
        check("atop", COLOUR, mask_block=16, mask_share=0.5, masks=5)


def test_taps_are_parts_of_the_classifier() -> None:
    check("aid", COLOUR, taps=["conv1", "stage2.0", "head"])
    check("aid", COLOUR, classifier="vgg", taps=["stage5"])
    check("aid", COLOUR, classifier="robustbench", taps=["layer.0"])  # unknown until it is built
    check("nrp", COLOUR)
    check("nrp", COLOUR, classifier="resnet18", tap="stage4")
    missing = (
        r"^toy/table_1: method 'm': taps: classifier 'c' has no 'conv1': choose among stage1, "
    )
    with pytest.raises(UserError, match=missing):
        check("aid", COLOUR, classifier="vgg")
    with pytest.raises(UserError, match=r"tap: .* has no 'stage9' \(did you mean 'stage3'\?\)"):
        check("nrp", COLOUR, tap="stage9")


def test_others_take_what_comes() -> None:
    check("aid", (4, 7, 9))


def test_me_net_wants_the_classifier_that_was_trained_for_it() -> None:
    check("me_net", COLOUR, training=("me_net", {}))
    check("me_net", GREY, training=("me_net", {"rank": 22}), rank=22)
    with pytest.raises(UserError, match=r"requires a classifier trained with me_net, completion"):
        check("me_net", COLOUR)
    with pytest.raises(UserError, match=r"rank 25, keep_start 0.8.* is me_net, .*rank 22"):
        check("me_net", GREY, training=("me_net", {"rank": 22}))
    with pytest.raises(UserError, match="rank is 25, larger than 16x16 images: lower it"):
        check("me_net", (1, 16, 16), training=("me_net", {}))


def test_hill_ebm_halves_the_sides_three_times() -> None:
    for shape in ((1, 8, 8), GREY, COLOUR):
        check("hill_ebm", shape)
    with pytest.raises(UserError, match="only for square images above 7x7"):
        check("hill_ebm", (1, 7, 7))


def test_a_detection_norm_that_no_score_reaches_is_refused() -> None:
    """The score is about minus the noise in units of its deviation: at most the root of 3072."""
    check("adp", COLOUR, detect=True, detection_norm=55.0)
    check("adp", GREY, detect=False, detection_norm=60.0)
    with pytest.raises(UserError, match=r"detection_norm is 55\.5, .* about 55\.4 at most"):
        check("adp", COLOUR, detect=True, detection_norm=55.5)
