"""Trainings of smoothed classifiers and AugMix against their formulas, written plainly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from purifiers.core.augmix import AugMix
from purifiers.core.component import Classifier
from purifiers.core.loop import fit
from purifiers.core.noise import keys_on, normal_on
from purifiers.training.augmix import Augmix, jensen_shannon
from purifiers.training.gaussian_augmentation import GaussianAugmentation
from purifiers.training.natural import Natural
from purifiers.training.rst import Rst
from purifiers.training.smooth_adv import SmoothAdv, mean_log_probabilities

from .host_reads import host_reads

INDICES = torch.tensor([3, 8, 20, 21])
LABELS = torch.tensor([0, 1, 2, 1])


class Linear(Classifier):
    """Logits = W x."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__((1, 2, 3), weight.shape[0])
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def images() -> Tensor:
    images = torch.rand(4, 1, 2, 3, generator=torch.Generator().manual_seed(2))
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # the range binds too
    return images


def softmax(logits: np.ndarray) -> np.ndarray:
    exponential = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(softmax(logits)[np.arange(len(labels)), labels]).mean())


# Gaussian augmentation


def test_gaussian_augmentation_by_hand(weight, images):
    """The noise is not clipped: sigma 2 moves most pixels out of [0, 1]."""
    loss = GaussianAugmentation(sigma=2.0).loss(Linear(weight), images, LABELS, INDICES, 5)
    noise = normal_on(keys_on(5, INDICES, "gaussian_augmentation"), (1, 2, 3)).numpy()
    noisy = (images.numpy() + 2.0 * noise).reshape(4, 6)
    assert ((noisy < 0) | (noisy > 1)).mean() > 0.5
    expected = cross_entropy(noisy.astype(np.float64) @ weight.double().numpy().T, LABELS.numpy())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_without_noise_it_is_natural_training(weight, images):
    arguments = (Linear(weight), images, LABELS, INDICES, 5)
    natural = Natural().loss(*arguments)
    assert torch.equal(GaussianAugmentation(sigma=0.0).loss(*arguments), natural)


def test_the_noise_is_an_images_own():
    """From seed and index, of standard deviation sigma, whatever else is in the batch."""
    seen: list[Tensor] = []

    def classifier(inputs: Tensor) -> Tensor:
        seen.append(inputs)
        return torch.zeros(len(inputs), 3, requires_grad=True)

    training, many = GaussianAugmentation(sigma=0.5), torch.zeros(300, 1, 2, 3)
    labels = torch.zeros(300, dtype=torch.int64)
    training.loss(classifier, many, labels, torch.arange(300), 1)
    training.loss(classifier, many[:2], labels[:2], torch.tensor([7, 4]), 1)
    training.loss(classifier, many, labels, torch.arange(300), 2)
    assert float(seen[0].std()) == pytest.approx(0.5, abs=0.04)
    assert torch.equal(seen[1], seen[0][[7, 4]])
    assert not torch.isclose(seen[2], seen[0]).any()


def test_published_recipe_of_gaussian_augmentation():
    recipe = GaussianAugmentation().recipe
    rates = [recipe.rate(epoch * 125, 90 * 125) for epoch in (0, 29, 30, 59, 60, 89)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (90, 400, 1e-4)
    assert (recipe.optimizer, recipe.momentum) == ("sgd", 0.9)


# SmoothAdv


def test_mean_of_probabilities_by_hand():
    """(1/2, 1/2) and (1/4, 3/4): 3/8 and 5/8; a vanished probability stays finite."""
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)]], [[0.0, 900.0], [0.0, 900.0]]])
    logs = mean_log_probabilities(logits)
    assert logs[0].exp().tolist() == pytest.approx([3 / 8, 5 / 8])
    assert logs[1].tolist() == pytest.approx([math.log(1e-20), 0.0])


def plain_smooth_adv(weight, images, noise, radius: float, steps: int) -> np.ndarray:
    """PGD image by image, with the gradient of -log mean_k p_k,y of a linear model."""
    w, results = weight.double().numpy(), []
    for x, draws, label in zip(
        images.flatten(1).double().numpy(), noise.flatten(2).double().numpy(), LABELS, strict=True
    ):
        moved = x.copy()
        for _ in range(steps):
            p = softmax((moved + draws) @ w.T)
            slopes = p[:, [label]] * (w[label] - p @ w)
            gradient = -slopes.sum(0) / p[:, label].sum()
            moved = moved + 2 * radius / steps * gradient / np.linalg.norm(gradient)
            shift = np.clip(moved, 0, 1) - x
            moved = x + shift * min(1.0, radius / np.linalg.norm(shift))
        results.append(moved)
    return np.stack(results)


@pytest.mark.parametrize("samples", [1, 3])
def test_smooth_adv_by_hand(weight, images, samples):
    training = SmoothAdv(sigma=0.3, radius=0.4, steps=5, samples=samples)
    loss = training.loss(Linear(weight), images, LABELS, INDICES, 9)
    noise = 0.3 * normal_on(keys_on(9, INDICES, "smooth_adv"), (samples, 1, 2, 3))
    adversarial = plain_smooth_adv(weight, images, noise, 0.4, 5)
    lengths = np.linalg.norm(adversarial - images.flatten(1).numpy(), axis=1)
    assert lengths.max() == pytest.approx(0.4)  # the ball binds, and so does the range
    assert ((adversarial == 0.0) | (adversarial == 1.0)).any()
    logits = (adversarial[:, None] + noise.flatten(2).numpy()) @ weight.double().numpy().T
    expected = cross_entropy(logits.reshape(-1, 3), LABELS.repeat_interleave(samples).numpy())
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_smooth_adv_lowers_the_smoothed_probability(weight, images):
    training, classifier = SmoothAdv(sigma=0.2, radius=0.5, samples=4), Linear(weight)
    noise = 0.2 * normal_on(keys_on(1, INDICES), (4, 1, 2, 3))
    moved = training.adversarial(classifier, images, LABELS, INDICES, noise)

    def probability(inputs: Tensor) -> Tensor:
        logits = classifier((inputs[:, None] + noise).flatten(0, 1)).view(4, 4, 3)
        return logits.softmax(2).mean(1).gather(1, LABELS[:, None])

    assert (probability(moved) < probability(images) - 0.05).all()
    assert moved.min() >= 0.0 and moved.max() <= 1.0


@pytest.mark.parametrize(
    ("warm_up", "epoch", "share"), [(4, 0, 0.25), (4, 2, 0.75), (4, 3, 1), (4, 9, 1), (0, 0, 1)]
)
def test_the_radius_grows(weight, warm_up, epoch, share):
    training = SmoothAdv(sigma=0.1, radius=0.2, samples=1, warm_up=warm_up)
    training.starts(epoch)
    images, noise = torch.full((4, 1, 2, 3), 0.5), torch.zeros(4, 1, 1, 2, 3)
    moved = training.adversarial(Linear(weight), images, LABELS, INDICES, noise)
    lengths = (moved - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((4,), 0.2 * share), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kill_at", [2, 3, 5])
def test_a_killed_training_grows_the_radius_alike(tmp_path, weight, kill_at):
    """Epochs of two batches with 1/3, 2/3 and all of the radius."""
    pixels = np.random.RandomState(0).rand(8, 1, 2, 3).astype(np.float32)

    def train(folder: str, kill: int = -1) -> Tensor:
        training = SmoothAdv(radius=0.5, warm_up=3, steps=2, epochs=3, batch_size=4)
        classifier, calls = Linear(weight.clone()), []

        def loss(*batch) -> Tensor:
            if len(calls) == kill:
                raise KeyboardInterrupt
            calls.append(training._share)
            return training.loss(classifier, *batch)

        recipe = replace(training.recipe, checkpoint_seconds=0.0)
        checkpoint, labels = tmp_path / folder, np.arange(8) % 3
        arguments = (pixels, labels, recipe, 0, checkpoint, "run", "run")
        fit(classifier, loss, *arguments, quiet=True, starts=training.starts)
        assert calls == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1][-len(calls) :])
        return classifier.weight.detach()

    with pytest.raises(KeyboardInterrupt):
        train("killed", kill_at)
    assert torch.equal(train("killed"), train("whole"))


def test_published_recipe_of_smooth_adv():
    training = SmoothAdv()
    recipe = training.recipe
    rates = [recipe.rate(epoch * 391, 150 * 391) for epoch in (0, 49, 50, 100)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert (training.radius, training.steps, training.samples) == (0.25, 10, 2)
    assert recipe.batch_size * training.samples == 256


# AugMix


def test_jensen_shannon_by_hand():
    """Certain of one class, certain of the other, undecided: (ln 2 + ln 2 + 0) / 3."""
    predictions = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.full((1, 2), 0.5)]
    assert jensen_shannon(*predictions).item() == pytest.approx(2 / 3 * math.log(2.0))
    assert jensen_shannon(*predictions[:1] * 3).item() == pytest.approx(0.0, abs=1e-6)


def test_augmix_by_hand(weight, images):
    loss = Augmix(consistency=12.0).loss(Linear(weight), images, LABELS, INDICES, 3)
    copies = [AugMix(3.0, 3, -1)(images, 3, INDICES, tag) for tag in ("first", "second")]
    assert not torch.equal(*copies)
    logits = [
        part.flatten(1).double().numpy() @ weight.double().numpy().T for part in (images, *copies)
    ]
    p = [softmax(part) for part in logits]
    mean = sum(p) / 3
    divergence = sum((q * np.log(q / mean)).sum(1).mean() for q in p) / 3
    expected = cross_entropy(logits[0], LABELS.numpy()) + 12.0 * divergence
    assert divergence > 0.001
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_augmix_is_one_batch_for_batch_normalisation(images):
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 3))
    Augmix().loss(network, images, LABELS, INDICES, 3)
    assert int(network[1].num_batches_tracked) == 1


def test_published_recipe_of_augmix():
    recipe = Augmix().recipe
    assert [recipe.rate(step, 100) for step in (0, 50)] == pytest.approx([0.1, 0.0500005])
    assert recipe.rate(100, 100) == pytest.approx(1e-6)
    assert (recipe.epochs, recipe.weight_decay, recipe.optimizer) == (100, 5e-4, "nesterov")
    assert Augmix(depth=2).mixture.depth == 2 and Augmix().mixture.depth == -1


# all of them


@pytest.mark.parametrize(
    ("training", "reads"),
    [
        (GaussianAugmentation(), 0),
        (SmoothAdv(steps=2), 1),
        (SmoothAdv(steps=6), 1),
        (Augmix(), 0),
        (Rst(steps=6), 1),
    ],
)
def test_a_loss_reads_at_most_once_from_the_device(monkeypatch, weight, images, training, reads):
    """Whether the inner attack's model was finite; the start of RST's attack has host noise."""
    monkeypatch.setattr("purifiers.core.active.reads_are_free", lambda device: False)
    classifier = Linear(weight)
    with host_reads(monkeypatch) as counted:
        training.loss(classifier, images, LABELS, INDICES.clone(), 0)
    counted.pop("tolist", None)
    assert sum(counted.values()) <= reads
