"""What an attack is given: draws, expectations, pieces, confirmations and loud failure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from purifiers.attacks._losses import cross_entropy
from purifiers.core.component import Method, default_indices
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.noise import uniform
from purifiers.core.target import Target, as_target, contribution, input_gradient
from purifiers.core.traits import MethodTraits

INDICES = torch.tensor([5, 9, 70, 3])
LABELS = torch.tensor([0, 1, 2, 0])


class Shaken(Method):
    """Adds noise to each pixel."""

    traits = MethodTraits(version=1, random=True)

    def purify(self, images, seed=0, indices=None):
        where = default_indices(images, indices)
        return images + uniform(seed, where, images.shape[1:], tag="shaken").to(images.device)


class Indexed(Method):
    """Not random: remembers which indices it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[list[int]] = []

    def purify(self, images, seed=0, indices=None):
        self.told.append(default_indices(images, indices).tolist())
        return images


@pytest.fixture
def network() -> nn.Module:
    """Not linear, so that a gradient shows where it was taken; double precision inside."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()


@pytest.fixture
def classifier(network):
    return lambda images: network(images.double()).float()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def shaken(classifier, **arguments) -> Target:
    return Target(Defence(classifier, [Shaken()], seed=2, **arguments))


def single(target: Target, images: Tensor, draws: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Gradient, logits and losses of one draw after the other."""
    return [input_gradient(target, images, LABELS, INDICES, cross_entropy) for _ in range(draws)]


# Draws


def test_every_query_of_a_random_defence_is_another_draw(classifier, images):
    target = shaken(classifier)
    first, second = target(images, INDICES), target(images, INDICES)
    assert ((first - second).abs().amax(dim=1) > 0).all()


def test_a_draw_is_the_images_own(classifier, images):
    """Its n-th answer is the same alone, in another order, and however often others were asked."""
    whole = shaken(classifier)
    expected = [whole(images, INDICES) for _ in range(3)]
    other = shaken(classifier)
    for _ in range(5):
        other(images[:1], INDICES[:1])
    order = torch.tensor([3, 1])
    found = [other(images[order], INDICES[order])]
    found += [
        torch.cat([other(images[i : i + 1], INDICES[i : i + 1]) for i in (3, 1)]) for _ in range(2)
    ]
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two[order])


def test_purifying_draws_too(classifier, images):
    target, other = shaken(classifier), shaken(classifier)
    purified = target.purify(images, INDICES)
    torch.testing.assert_close(target.classify(purified), other(images, INDICES))
    assert not torch.equal(target.purify(images, INDICES), purified)


def test_a_defence_that_is_not_random_is_told_the_true_indices(classifier, images):
    method = Indexed()
    target = Target(Defence(classifier, [method]))
    target(images, INDICES)
    target.purify(images, INDICES)
    assert method.told == [INDICES.tolist()] * 2 and not target.stochastic


def test_a_plain_function_is_given_the_images_alone(classifier, images):
    target = as_target(classifier)
    assert as_target(target) is target
    assert torch.equal(target(images, INDICES), classifier(images))
    assert torch.equal(target.classify(images), classifier(images))
    assert target.purify(images, INDICES) is images


# Expectation over the draws


def test_eot_answers_with_the_mean_of_its_draws(classifier, images):
    one = shaken(classifier)
    expected = torch.stack([one(images, INDICES) for _ in range(4)]).mean(dim=0)
    found = shaken(classifier, eot_samples=4)(images, INDICES)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("combine", ["mean", "sign"])
def test_eot_gradient_is_the_mean_of_gradients_or_of_their_signs(classifier, images, combine):
    gradients, logits, losses = zip(*single(shaken(classifier), images, 4), strict=True)
    stacked = torch.stack(gradients)
    if combine == "sign":
        stacked = stacked.sign()
    target = shaken(classifier, eot_samples=4, eot_combine=combine)
    found = input_gradient(target, images, LABELS, INDICES, cross_entropy)
    torch.testing.assert_close(found[0], stacked.mean(dim=0))
    torch.testing.assert_close(found[1], torch.stack(logits).mean(dim=0))
    torch.testing.assert_close(found[2], torch.stack(losses).mean(dim=0))


def test_a_displacement_is_the_step_within_the_image():
    """A step of .02 from pixels at and near the ends of [0, 1], worked by hand."""
    pixels = torch.tensor([0.0, 0.0, 0.01, 0.01, 0.5, 0.99, 0.99, 1.0, 1.0, 0.3])
    slopes = torch.tensor([-3.0, 3.0, -3.0, 3.0, -3.0, -3.0, 3.0, -3.0, 3.0, 0.0])
    moved = contribution(slopes, pixels, "displacement", step_size=0.02)
    expected = torch.tensor([0.0, 0.02, -0.01, 0.02, -0.02, -0.02, 0.01, -0.02, 0.0, 0.0])
    torch.testing.assert_close(0.02 * moved, expected)


def test_opposite_displacements_cancel_exactly():
    """In steps of 2/255 their sums would leave a residue, whose sign would count."""
    slopes = torch.cat([torch.ones(3, 4), -torch.ones(3, 4)])
    moved = contribution(slopes, torch.full((6, 4), 0.4), "displacement", step_size=2 / 255)
    assert torch.equal(moved.mean(dim=0), torch.zeros(4))


@pytest.mark.parametrize("combine", ["mean", "sign", "displacement"])
def test_saturated_draws_have_no_vote(combine):
    """Two draws of 1 are pushed upwards, one of .5 downwards: the displacements point down."""

    class Uneven(Method):
        traits = MethodTraits(version=1, random=True)

        def purify(self, images, seed=0, indices=None):
            return torch.tensor([1.0, 1.0, 0.5]).view(3, 1, 1, 1) + 0 * images

    def rises_only_at_1(images: Tensor) -> Tensor:
        return ((images - 0.7) ** 2).flatten(1)

    defence = Defence(
        rises_only_at_1, [Uneven()], gradient="bpda", eot_samples=3, eot_combine=combine
    )
    gradient, _, _ = input_gradient(
        Target(defence),
        torch.full((1, 1, 1, 1), 0.6),
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([0]),
        lambda logits, labels: logits[:, 0],
        step_size=0.03,
    )
    # slopes of .6, .6 and -.4; displacements in steps
    expected = {"mean": 0.8 / 3, "sign": 1 / 3, "displacement": -1 / 3}
    assert gradient.item() == pytest.approx(expected[combine])


def test_displacements_need_signed_steps(classifier, images):
    target = shaken(classifier, eot_combine="displacement")
    with pytest.raises(UserError, match="combine is displacement, which needs an attack of signed"):
        input_gradient(target, images, LABELS, INDICES, cross_entropy)


def test_signs_and_means_can_disagree():
    """One draw of gradient +4 outweighs two of -1 in the mean, not in the signs."""
    slopes = iter([4.0, -1.0, -1.0] * 2)

    class Steep:
        stochastic, per_image, eot_samples = True, True, 3

        def __init__(self, combine: str) -> None:
            self.eot_combine = combine

        def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
            slope = torch.tensor([next(slopes) for _ in images]).view(-1, 1)
            return slope * images.flatten(1)

    for combine, expected in (("mean", 2 / 3), ("sign", -1 / 3)):
        gradient, _, _ = input_gradient(
            Target(Steep(combine)),
            torch.zeros(1, 1, 1, 1),
            torch.zeros(1, dtype=torch.int64),
            torch.tensor([0]),
            lambda logits, labels: logits[:, 0],
        )
        assert gradient.item() == pytest.approx(expected)


@pytest.mark.parametrize("draws", [1, 3])
def test_no_images(classifier, images, draws):
    target = shaken(classifier, eot_samples=draws)
    assert target(images[:0], INDICES[:0]).shape == (0, 3)
    gradient, logits, losses = input_gradient(
        target, images[:0], LABELS[:0], INDICES[:0], cross_entropy
    )
    assert gradient.shape == (0, 3, 2, 2) and logits.shape == (0, 3) and losses.shape == (0,)


# Pieces


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_a_gradient_in_pieces_is_the_whole_gradient(classifier, images, chunk, draws):
    whole, pieces = (shaken(classifier, eot_samples=draws) for _ in range(2))
    pieces.chunk = chunk
    expected = input_gradient(whole, images, LABELS, INDICES, cross_entropy)
    found = input_gradient(pieces, images, LABELS, INDICES, cross_entropy)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


def test_pieces_are_as_small_as_the_model_says(network, images):
    sizes = []

    def counting(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return network(images.double())

    counting.chunk = 3  # as of a prepared classifier
    target = Target(Defence(counting))
    assert target.chunk == target.bare().chunk == 3
    input_gradient(target, images, LABELS, INDICES, cross_entropy)
    input_gradient(target.bare(), images, LABELS, INDICES, cross_entropy)
    assert sizes == [3, 1, 3, 1]


@pytest.mark.parametrize("draws", [1, 4])
def test_a_gradient_that_passes_unchanged_is_that_of_purified_images(classifier, images, draws):
    """As an attack finds it that differentiates the defence by itself, draw by draw."""
    pieces = shaken(classifier, eot_samples=draws, gradient="bpda")
    pieces.chunk = 3
    gradient, logits, losses = input_gradient(pieces, images, LABELS, INDICES, cross_entropy)
    whole = shaken(classifier, gradient="bpda")
    expected = []
    for _ in range(draws):
        leaf = images.clone().requires_grad_(True)
        answer = whole.draw(leaf, INDICES)
        loss = cross_entropy(answer, LABELS)
        expected.append((*torch.autograd.grad(loss.sum(), leaf), answer, loss))
    for found, parts in zip((gradient, logits, losses), zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(parts).mean(dim=0))


def test_images_are_purified_together_where_no_gradient_goes_through(classifier, images):
    for gradient, sizes in (("bpda", [4]), ("exact", [3, 1])):
        seen = Indexed()
        target = Target(Defence(classifier, [seen], gradient))
        target.chunk = 3
        input_gradient(target, images, LABELS, INDICES, cross_entropy)
        assert [len(told) for told in seen.told] == sizes
        assert [index for told in seen.told for index in told] == INDICES.tolist()


def test_the_bare_classifier_is_asked_without_purifying(classifier, images):
    bare = shaken(classifier, eot_samples=5).bare()
    assert bare.eot_samples == 1 and not bare.stochastic
    assert torch.equal(bare(images, INDICES), classifier(images))


def test_gradients_are_the_images_own_and_parameters_get_none(network, images):
    target = Target(lambda x: network(x.double()))
    whole, _, losses = input_gradient(target, images, LABELS, INDICES, cross_entropy)
    alone, _, loss = input_gradient(target, images[2:3], LABELS[2:3], INDICES[2:3], cross_entropy)
    torch.testing.assert_close(alone, whole[2:3])
    torch.testing.assert_close(loss, losses[2:3])
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert not whole.requires_grad and not losses.requires_grad


# A model of low precision


class Rounded:
    """Answers 0 for every image; in full precision the true answer is the first pixel's side."""

    def __init__(self, **settings) -> None:
        self.asked: list[int] = []
        self.exact = self._exact
        self.__dict__.update(settings)

    def __call__(self, images: Tensor, indices: Tensor | None = None) -> Tensor:
        return torch.tensor([1.0, 0.0]).expand(len(images), 2)

    def _exact(self, images: Tensor, indices: Tensor | None = None) -> Tensor:
        self.asked.append(len(images))
        bright = images[:, 0, 0, 0] > 0.5
        return torch.stack([(~bright).float(), bright.float()], dim=1)


def test_successes_in_low_precision_are_confirmed():
    """Label 1: the low answer is always wrong, the true one where the pixel is dark."""
    images = torch.tensor([0.9, 0.1, 0.8, 0.2]).view(4, 1, 1, 1)
    labels = torch.tensor([1, 1, 0, 0])
    model = Rounded()
    target = Target(model)
    logits = target(images, INDICES)
    assert target.unbroken(logits, images, labels, INDICES).tolist() == [True, False, True, True]
    assert model.asked == [2]  # a failure needs no confirmation
    assert target.unbroken(logits[2:], images[2:], labels[2:], INDICES[2:]).all()
    assert model.asked == [2]
    only_first = torch.tensor([True, False, False, False])
    kept = target.unbroken(logits, images, labels, INDICES, only_first)
    assert kept.tolist() == [True, False, True, True] and model.asked == [2, 1]


def test_a_random_model_is_confirmed_with_as_many_draws():
    model = Rounded(stochastic=True, per_image=True, eot_samples=6)
    images = torch.tensor([0.9, 0.1]).view(2, 1, 1, 1)
    labels = torch.ones(2, dtype=torch.int64)
    target = Target(model)
    kept = target.unbroken(target(images, INDICES[:2]), images, labels, INDICES[:2])
    assert kept.tolist() == [True, False] and model.asked == [12]


def test_full_precision_needs_no_confirmation(classifier, images):
    target = Target(classifier)
    logits = target(images, INDICES)
    kept = target.unbroken(logits, images, LABELS, INDICES)
    assert torch.equal(kept, logits.argmax(dim=1) == LABELS)


# Broken models


def test_a_gradient_that_is_not_finite_is_an_error(images):
    """sqrt has an infinite slope at 0, where its value is fine."""
    dark = images.clone()
    dark[1, 0, 0, 0] = 0.0
    target = Target(lambda x: x.flatten(1).sqrt()[:, :3])
    assert torch.isfinite(target(dark, INDICES)).all()
    with pytest.raises(RuntimeError, match="gradients that are not finite"):
        input_gradient(target, dark, LABELS, INDICES, cross_entropy)
    input_gradient(target, images, LABELS, INDICES, cross_entropy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(classifier, images, value):
    """Also in one draw of many."""
    calls = []

    class Sometimes(Shaken):
        def purify(self, images, seed=0, indices=None):
            calls.append(len(images))
            made = super().purify(images, seed, indices).clone()
            made[-1] *= value
            return made

    target = Target(Defence(classifier, [Sometimes()], eot_samples=5))
    with pytest.raises(RuntimeError, match="not finite"):
        input_gradient(target, images, LABELS, INDICES, cross_entropy)
    assert calls == [20]


@pytest.mark.parametrize("part", ["detector_logit", "score"])
def test_a_part_that_is_not_there_is_told(classifier, images, part):
    with pytest.raises(UserError, match=f"goes against a {part} and the model has none"):
        getattr(Target(classifier), part)(images)
    with pytest.raises(UserError, match=f"goes against a method's {part}"):
        getattr(shaken(classifier), part)(images)
