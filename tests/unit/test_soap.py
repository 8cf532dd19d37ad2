"""SOAP: its tasks, its joint training, its networks, and the radius that each image chooses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.attacks.auxiliary_aware import AuxiliaryAware
from purifiers.classifiers.soap_cae import SoapCae
from purifiers.classifiers.soap_resnet import SoapResnet
from purifiers.core.component import Classifier, frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.self_supervision import Views, auxiliary_losses, head_of, rotated
from purifiers.methods.soap import Soap
from purifiers.training.soap import Soap as JointTraining

from .toys import INDICES, LABELS, SHAPE, toy


class Grey(Classifier):
    """Reconstructs every image as ``level``: the loss pulls all pixels there."""

    task = "reconstruction"

    def __init__(self, level: float) -> None:
        super().__init__(SHAPE, 3)
        self.level = level

    def forward(self, images: Tensor) -> Tensor:
        return self.joint(images)[0]

    def joint(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.flatten(1)[:, :3], torch.full_like(images, self.level)


def cae(shape: tuple[int, ...] = SHAPE, task: str = "reconstruction") -> SoapCae:
    torch.manual_seed(0)
    made = SoapCae(shape, 3, task=task, width=4, units=16)
    frozen(made)
    return made


def resnet() -> SoapResnet:
    torch.manual_seed(0)
    made = SoapResnet(SHAPE, 3, task="rotation", width=4)
    frozen(made)
    return made


def soap(classifier: Classifier, **parameters: Any) -> Soap:
    method = Soap(**parameters)
    method.bind(classifier, classifier.shape)
    return method


def tasks() -> list[tuple[str, Classifier]]:
    return [("label_consistency", toy()), ("reconstruction", cae()), ("rotation", resnet())]


# --- networks -----------------------------------------------------------------------------------


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_sizes_of_the_convolutional_autoencoder():
    encoder = (9 * 1 + 1) * 32 + (9 * 32 + 1) * 64 + (7 * 7 * 64 + 1) * 1024 + 1025 * 10
    decoder = 1025 * 7 * 7 * 64 + (9 * 64 * 32 + 32) + (9 * 32 * 1 + 1)
    with torch.device("meta"):
        assert count(SoapCae((1, 28, 28), 10)) == encoder == 3_241_354
        whole = SoapCae((1, 28, 28), 10, task="reconstruction")
    assert count(whole) == encoder + decoder == 6_474_507


def test_sizes_of_the_residual_network():
    def block(inputs: int, outputs: int) -> int:
        shortcut = 0 if inputs == outputs else inputs * outputs + outputs + 2 * outputs
        return 9 * inputs * outputs + 9 * outputs**2 + 2 * outputs + 4 * outputs + shortcut

    stages = sum(block(i, o) + block(o, o) for i, o in ((16, 16), (16, 32), (32, 64)))
    labels = (27 * 16 + 16) + 32 + stages + 65 * 10
    with torch.device("meta"):
        assert count(SoapResnet((3, 32, 32), 10)) == labels == 175_818
        assert count(SoapResnet((3, 32, 32), 10, task="rotation")) == labels + 65 * 4 == 176_078


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 7, 10)])
def test_reconstructions_have_the_images_shape(shape):
    given = torch.rand(2, *shape)
    logits, made = cae(shape).joint(given)
    assert made.shape == given.shape and made.min() >= 0 and made.max() <= 1
    assert torch.equal(logits, cae(shape)(given))


def test_joint_logits_are_the_classifiers(images):
    logits, guesses = resnet().joint(images)
    assert guesses.shape == (6, 4)
    assert torch.equal(logits, resnet()(images))


# --- views and rotations ------------------------------------------------------------------------


def test_the_whole_box_is_the_image_and_mirrors_it(images):
    box = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(6, 4)
    assert torch.equal(Views(box, torch.zeros(6, dtype=torch.bool))(images), images)
    mirrored = Views(box, torch.tensor([True, False] * 3))(images)
    assert torch.equal(mirrored[0::2], images[0::2].flip(3))
    assert torch.equal(mirrored[1::2], images[1::2])


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_box_is_cut_out_and_enlarged_as_torch_does(mirrored):
    given = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    box = torch.tensor([[3 / 32, 5 / 32, 24 / 32, 26 / 32]])
    made = Views(box, torch.tensor([mirrored]))(given)
    source = given.flip(3) if mirrored else given
    cut = source[..., 3:27, 5:31]
    # `Mishne-Lab/SOAP` calls interpolate with its default mode
    assert torch.equal(made, functional.interpolate(cut, (32, 32)))


@pytest.mark.parametrize("side", [32, 28])
def test_the_fixed_view_is_upstreams(side):
    """Mirrored, then 28 of 32 pixels from the third on, enlarged: pixel i is 2 + floor(.875 i)."""
    given = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side)
    sources = [int(2 / 32 * side + 0.875 * place) for place in range(side)]
    expected = given.flip(3)[..., sources, :][..., sources]
    assert torch.equal(Views.fixed(given)(given), expected)
    if side == 32:
        assert sources[:9] == [2, 2, 3, 4, 5, 6, 7, 8, 9] and sources[-1] == 29
        cut = given.flip(3)[..., 2:30, 2:30]
        assert torch.equal(expected, functional.interpolate(cut, [32, 32]))


@pytest.mark.parametrize("indices", [torch.arange(400), None])
def test_drawn_views_are_within_upstreams_bounds(indices):
    given = torch.full((400, 1, 4, 4), 0.5)
    views = Views.drawn(given, 0, indices, "tag")
    top, left, height, width = views.boxes.unbind(dim=1)
    for offset, side in ((top, height), (left, width)):
        assert offset.min() >= 0 and offset.max() <= 8 / 32 and offset.std() > 0.05
        assert side.min() >= 24 / 32 - 1e-6 and (offset + side).max() <= 1 + 1e-6
    assert 0.4 < float(views.mirrored.float().mean()) < 0.6
    assert views.noise is not None
    assert float(views.noise.std()) == pytest.approx(0.1, rel=0.05)
    assert abs(float(views.noise.mean())) < 0.01  # upstream's is never negative


def test_drawn_views_are_each_images_own():
    given = torch.full((400, 1, 4, 4), 0.5)
    views = Views.drawn(given, 0, torch.arange(400), "tag")
    assert views.noise is not None
    again = Views.drawn(given[:2], 0, torch.tensor([399, 7]), "tag")
    assert torch.equal(again.boxes, views.boxes[[399, 7]])
    assert again.noise is not None and torch.equal(again.noise, views.noise[[399, 7]])


def test_rotations_are_quarter_turns(images):
    turned = rotated(images).view(4, 6, *SHAPE)
    assert torch.equal(turned[0], images)
    assert torch.equal(turned[2], images.flip(2).flip(3))
    for turns in range(3):
        assert torch.equal(turned[turns + 1], turned[turns].transpose(2, 3).flip(2))
    with pytest.raises(UserError, match="square"):
        rotated(torch.rand(2, 1, 4, 5))


# --- losses -------------------------------------------------------------------------------------


def test_auxiliary_losses_at_purification(images):
    network, guesser, classifier = cae(), resnet(), toy()
    found = auxiliary_losses(network, network, images, None)
    expected = [functional.mse_loss(network.joint(x[None])[1], x[None]) for x in images]
    torch.testing.assert_close(found, torch.stack(expected))

    found = auxiliary_losses(guesser, guesser, images, None)
    for image, loss in zip(images, found, strict=True):
        total = torch.zeros(())
        for turns in range(4):
            guess = guesser.joint(torch.rot90(image[None], turns, (2, 3)))[1].softmax(dim=1)[0]
            total = total + (guess - torch.eye(4)[turns]).square().sum()
        torch.testing.assert_close(loss, total / 16)

    views = Views.drawn(images, 0, INDICES, "tag")
    found = auxiliary_losses(classifier, None, images, views)
    difference = classifier(images) - classifier(views(images))
    torch.testing.assert_close(found, difference.square().mean(dim=1))


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
def test_joint_training_adds_alpha_times_the_task(images, alpha):
    for task, classifier in tasks():
        made = JointTraining(task=task, alpha=alpha)
        plain = JointTraining(task=task, alpha=0.0)
        full = made.loss(classifier, images, LABELS, INDICES, 3)
        labels = plain.loss(classifier, images, LABELS, INDICES, 3)
        unit = JointTraining(task=task).loss(classifier, images, LABELS, INDICES, 3) - labels
        assert float(unit) > 0
        torch.testing.assert_close(full, labels + alpha * unit, rtol=1e-4, atol=1e-5)


def test_joint_loss_of_reconstruction_is_against_the_clean_images(images, monkeypatch):
    network, given = cae(), []
    joint = network.joint

    def spy(noisy: Tensor) -> tuple[Tensor, Tensor]:
        given.append(noisy)
        return joint(noisy)

    monkeypatch.setattr(network, "joint", spy)
    made = JointTraining(task="reconstruction", alpha=0.5)
    loss = made.loss(network, images, LABELS, INDICES, 3)
    (noisy,) = given
    assert noisy.min() >= 0 and noisy.max() <= 1 and float((noisy - images).std()) > 0.2
    logits, pixels = joint(noisy)
    expected = functional.cross_entropy(logits, LABELS) + 0.5 * functional.mse_loss(pixels, images)
    torch.testing.assert_close(loss, expected)


def test_joint_loss_of_rotation_knows_label_and_rotation_of_each(images, monkeypatch):
    network, given = resnet(), []
    joint = network.joint

    def spy(noisy: Tensor) -> tuple[Tensor, Tensor]:
        given.append(noisy)
        return joint(noisy)

    monkeypatch.setattr(network, "joint", spy)
    loss = JointTraining(task="rotation").loss(network, images, LABELS, INDICES, 3)
    logits, guesses = joint(given[0])
    truth = torch.tensor([turn for turn in range(4) for _ in range(6)])
    expected = functional.cross_entropy(guesses, truth)
    expected = expected + functional.cross_entropy(logits, torch.cat([LABELS] * 4))
    torch.testing.assert_close(loss, expected)
    assert float((given[0] - rotated(images)).std()) < 0.11


# --- purification -------------------------------------------------------------------------------


def test_pixels_go_to_where_the_loss_is_lowest():
    """Grey .5 within 5 x .05: what is nearer gets there, what is farther goes as far as it may."""
    classifier = Grey(0.5)
    given = torch.stack([torch.full(SHAPE, level) for level in (0.1, 0.3, 0.5, 0.9)])
    purified = soap(classifier, task="reconstruction", delta=0.05).purify(given)
    reached = purified.flatten(1).mean(dim=1)
    torch.testing.assert_close(reached, torch.tensor([0.35, 0.5, 0.5, 0.65]))


def test_each_image_chooses_its_own_radius():
    """From .4 one step of .1 reaches .5, from .1 it takes four."""
    given = torch.stack([torch.full(SHAPE, level) for level in (0.4, 0.1, 0.5)])
    method = soap(Grey(0.5), task="reconstruction", delta=0.1)
    together = method.purify(given)
    alone = torch.cat([method.purify(image[None]) for image in given])
    assert torch.equal(together, alone)
    moved = (together - given).flatten(1).abs().amax(dim=1)
    torch.testing.assert_close(moved, torch.tensor([0.1, 0.4, 0.0]))


def by_definition(method: Soap, images: Tensor, seed: int) -> Tensor:
    """Every image and every radius 0 ... levels, one by one."""
    chosen = []
    classifier, head = method._bound()
    for image, index in zip(images.split(1), INDICES, strict=True):
        views = None
        if method.task == "label_consistency":
            views = Views.drawn(image, seed, index[None], "soap")
        found = []
        for level in range(method.levels + 1):
            made = image
            for _ in range(method.steps):
                leaf = made.clone().requires_grad_(True)
                loss = auxiliary_losses(classifier, head, leaf, views).sum()
                (gradient,) = torch.autograd.grad(loss, leaf)
                shift = (made - method.delta * gradient.sign() - image).clamp(
                    -level * method.delta, level * method.delta
                )
                made = (image + shift).clamp(0.0, 1.0)
            found.append((float(auxiliary_losses(classifier, head, made, views)), level, made))
        chosen.append(min(found, key=lambda row: (round(row[0], 7), row[1]))[2])
    return torch.cat(chosen)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("levels", [2, 6])
def test_purification_is_the_papers_loop(images, number, levels):
    """Radii beyond ``steps`` are left out and change nothing."""
    task, classifier = tasks()[number]
    method = soap(classifier, task=task, delta=0.05, steps=3, levels=levels)
    with torch.no_grad():
        purified = method.purify(images, 4, INDICES)
    with torch.enable_grad():
        expected = by_definition(method, images, 4)
    assert float(((purified - expected).abs() > 1e-4).float().mean()) < 0.01
    assert float((purified - images).abs().max()) <= 3 * 0.05 + 1e-6
    assert not torch.equal(purified, images)


def test_purification_never_raises_the_loss(images):
    for task, classifier in tasks():
        method = soap(classifier, task=task, delta=0.1)
        views = method._views(images, 4, INDICES)
        purified = method.purify(images, 4, INDICES)
        before, after = method._losses(images, views), method._losses(purified, views)
        assert (after <= before).all() and after.sum() < before.sum()


def test_only_label_consistency_is_random(images):
    for task, classifier in tasks():
        method = soap(classifier, task=task, delta=0.1)
        same = torch.equal(method.purify(images, 0), method.purify(images, 1))
        assert method.random is not same
        assert Defence(classifier, [method]).stochastic is method.random


def test_gradients_reach_the_image(images):
    for task, classifier in tasks():
        leaf = images.clone().requires_grad_(True)
        purified = soap(classifier, task=task, delta=0.02).purify(leaf, 0, INDICES)
        (gradient,) = torch.autograd.grad(purified.sum(), leaf)
        assert gradient.min() >= 0 and 0.5 < float(gradient.mean()) <= 1.0


def test_the_verdict_is_a_hundred_losses(images):
    network = cae()
    verdict = soap(network, task="reconstruction").detector_logit(images)
    torch.testing.assert_close(verdict, 100 * auxiliary_losses(network, network, images, None))
    guesser = resnet()
    turned = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
    guesses = guesser.joint(turned)[1].softmax(dim=1)
    truth = torch.eye(4).repeat_interleave(len(images), dim=0)
    verdict = soap(guesser, task="rotation").detector_logit(images)
    # upstream: -100 beta F.mse_loss, a mean over images, classes and rotations
    torch.testing.assert_close(verdict.mean(), 100 * functional.mse_loss(guesses, truth))
    consistency = soap(toy()).detector_logit(images)
    views = Views.fixed(images)
    torch.testing.assert_close(consistency, 100 * auxiliary_losses(toy(), None, images, views))


def test_an_auxiliary_aware_attack_lowers_the_loss(images):
    network = cae()
    method = soap(network, task="reconstruction")
    attack = AuxiliaryAware(eps=0.1, step_size=0.02, steps=10, trade_off=1.0)
    fooling = attack(Defence(network, [], auxiliary=method), images, LABELS)
    assert (method.detector_logit(fooling) < method.detector_logit(images)).all()


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["reconstruction", "rotation"])
def test_a_classifier_without_the_head_is_refused(task):
    others = [toy(), cae(task="label_consistency")]
    others += [cae()] if task == "rotation" else [resnet()]
    for classifier in others:
        with pytest.raises(UserError, match=f"has no head for {task}.*such as soap_cae"):
            soap(classifier, task=task)
        with pytest.raises(UserError, match=f"has no head for {task}"):
            JointTraining(task=task).loss(classifier, torch.rand(6, *SHAPE), LABELS, INDICES, 0)


def test_label_consistency_takes_any_classifier():
    for classifier in (toy(), cae(), resnet()):
        assert head_of(classifier, "label_consistency", "soap") is None


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"task": "rotations"}, "did you mean 'rotation'"),
        ({"steps": 0}, "steps is 0"),
        ({"levels": 0}, "levels is 0"),
        ({"delta": 4}, "lengths lie in"),
    ],
)
def test_bad_parameters_are_refused(parameters, words):
    with pytest.raises(UserError, match=words):
        Soap(**parameters)


def test_bad_trainings_and_networks_are_refused():
    with pytest.raises(UserError, match="alpha is -1"):
        JointTraining(alpha=-1.0)
    with pytest.raises(UserError, match="choose one of"):
        JointTraining(task="jigsaw")
    with pytest.raises(UserError, match="SoapCae: task is 'rotation'"):
        SoapCae(SHAPE, 3, task="rotation")
    with pytest.raises(UserError, match="SoapResnet: task is 'reconstruction'"):
        SoapResnet(SHAPE, 3, task="reconstruction")
    with pytest.raises(UserError, match="there is no decoder"):
        SoapCae(SHAPE, 3, width=4, units=8).joint(torch.rand(1, *SHAPE))
    with pytest.raises(UserError, match="no rotation head"):
        SoapResnet(SHAPE, 3, width=4).joint(torch.rand(1, *SHAPE))
    with pytest.raises(UserError, match="give it one"):
        Soap().bind(None, SHAPE)
    with pytest.raises(UserError, match=r"soap: not bound; call \.bind"):
        Soap().purify(torch.rand(1, *SHAPE))
