"""AID-Purifier: Algorithms 1 and 2 of the paper line by line, and its discriminators' sizes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from purifiers.attacks.cw_l2 import CwL2
from purifiers.attacks.deepfool_linf import DeepfoolLinf
from purifiers.attacks.pgd import Pgd
from purifiers.classifiers.wide_resnet import WideResnet
from purifiers.core.component import Classifier, frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.loop import fit
from purifiers.core.noise import derive_seed, uniform
from purifiers.methods.aid import Aid

SHAPE = (1, 6, 6)


class Toy(Classifier):
    """Two convolutions and a linear layer, small enough to differentiate by hand."""

    TAPS = ("conv1", "middle", "stage3")

    def __init__(self) -> None:
        super().__init__(SHAPE, 4)
        self.conv1 = nn.Conv2d(1, 3, 3, padding=1)
        self.middle = nn.Conv2d(3, 4, 3, padding=1)
        self.stage3 = nn.Conv2d(4, 5, 3, stride=2)
        self.head = nn.Linear(5, 4)

    def features(self, images: Tensor, taps: Any) -> list[Tensor]:
        found = {"conv1": self.conv1(images)}
        found["middle"] = self.middle(found["conv1"].tanh())
        found["stage3"] = self.stage3(found["middle"].tanh())
        return [found[tap] for tap in taps]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images, ("stage3",))[0].tanh().mean(dim=(2, 3)))


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    classifier = Toy()
    for parameter in classifier.parameters():
        parameter.data.mul_(3.0)
    frozen(classifier)
    return classifier


@pytest.fixture
def images() -> Tensor:
    made = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    made[0, 0, 0] = torch.tensor([0.0, 1.0, 0.01, 0.99, 0.5, 0.5])  # the range binds
    return made


LABELS = torch.tensor([0, 1, 2, 3, 0])
INDICES = torch.tensor([7, 3, 900, 4, 12])


def aid(classifier: Classifier, **parameters: Any) -> Aid:
    torch.manual_seed(5)
    method = Aid(**({"width": 16} | parameters))
    method.bind(classifier, classifier.shape)
    for module in method.modules():
        if isinstance(module, nn.Linear):  # lively, so that every input shows in the logit
            nn.init.kaiming_normal_(module.weight)
    return method


def fixed_attack(method: Aid, delta: Tensor) -> list[tuple[Any, ...]]:
    """Replace the training attack by one that adds ``delta``; returns the list of its calls."""
    calls: list[tuple[Any, ...]] = []

    def attack(target: Any, images: Tensor, *rest: Any) -> Tensor:
        calls.append((target, images, *rest))
        return images + delta

    method.attacks = [attack]
    return calls


def table_5(method: Aid, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The discriminator's probability with plain matrices, layer after layer as in Table 5."""
    state = {
        name: value.double().numpy() for name, value in method.discriminator.state_dict().items()
    }
    layers: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, weight in state.items():
        if name.endswith("weight"):
            part = "head" if name.startswith("head") else name[:10]
            layers.setdefault(part, []).append((weight, state[name[:-6] + "bias"]))

    def forward(x: np.ndarray, part: str, last_is_linear: bool = False) -> np.ndarray:
        for place, (weight, bias) in enumerate(layers[part]):
            x = x @ weight.T + bias
            if not (last_is_linear and place == len(layers[part]) - 1):
                x = np.maximum(x, 0)
        return x

    both = [forward(low, "branches.0"), forward(high, "branches.1")]
    logit = forward(np.concatenate(both, axis=1), "head", last_is_linear=True)[:, 0]
    return 1 / (1 + np.exp(-logit))


def pooled(classifier: Toy, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        low, high = classifier.features(images, ("conv1", "stage3"))
    return low.mean(dim=(2, 3)).double().numpy(), high.mean(dim=(2, 3)).double().numpy()


# Algorithm 1


@pytest.mark.parametrize("variant", ["paper", "upstream"])
def test_vertex_and_mixture_by_hand(toy, variant, monkeypatch):
    """Lines 6 to 9; the vertex 1.2 of the second pixel is clipped upstream and not in the paper."""
    method = aid(toy, variant=variant, gamma=2.0)
    share = torch.tensor([0.25])
    monkeypatch.setattr("purifiers.methods.aid.uniform", lambda *_, **__: share)
    x, adversarial = torch.tensor([0.5, 0.8, 0.1]), torch.tensor([0.6, 1.0, 0.0])
    mixed, kept = method.mix(x.view(1, 1, 1, 3), adversarial.view(1, 1, 1, 3), INDICES[:1], 0)
    expected = {"paper": [0.65, 1.1, -0.05], "upstream": [0.65, 0.95, 0.025]}[variant]
    torch.testing.assert_close(mixed.flatten(), torch.tensor(expected))
    assert torch.equal(kept, share)


@pytest.mark.parametrize("variant", ["paper", "upstream"])
def test_algorithm_1_step_by_step(toy, images, variant):
    """Lines 4 to 12, with the probability (paper) computed in NumPy; one SGD step with all of
    its loss's gradient."""
    method = aid(toy, variant=variant, gamma=1.5, extra_layers=0).train()
    delta = 0.1 * torch.rand_like(images) - 0.05
    calls = fixed_attack(method, delta)
    loss = method.fit_loss(images, LABELS, INDICES, 31)

    ((target, attacked, labels, seed, where),) = calls  # line 4
    assert target is toy and attacked is images and labels is LABELS
    assert seed == 31 and where is INDICES
    vertex = images + 1.5 * delta  # line 6
    if variant == "upstream":
        vertex = vertex.clamp(0.0, 1.0)
    u = uniform(31, INDICES, (), tag="aid")  # line 7
    assert ((u > 0) & (u < 1)).all() and u.unique().numel() == 5
    mixed = u.view(-1, 1, 1, 1) * images + (1 - u).view(-1, 1, 1, 1) * vertex  # line 8
    t = (u * 0.0 + (1 - u) * 1.0).double().numpy()  # line 9
    if variant == "paper":
        p = table_5(method, *pooled(toy, mixed))
    else:
        again = copy.deepcopy(method.discriminator)
        features = [f.mean(dim=(2, 3)) for f in toy.features(mixed, ("conv1", "stage3"))]
        p = torch.sigmoid(again(features)).detach().double().numpy()
    assert np.ptp(p) > 0.01
    expected = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()  # line 11
    assert loss.item() == pytest.approx(expected, rel=1e-5)

    before = [p.detach().clone() for p in method.parameters()]
    loss.backward()
    torch.optim.SGD(method.parameters(), lr=0.01).step()  # line 12
    for new, old in zip(method.parameters(), before, strict=True):
        assert new.grad is not None
        torch.testing.assert_close(new.detach(), old - 0.01 * new.grad)
    assert any(not torch.equal(n, o) for n, o in zip(method.parameters(), before, strict=True))


def test_fitting_lowers_the_loss_and_leaves_the_classifier(toy, images, tmp_path):
    method = aid(toy, epochs=100, learning_rate=0.03, batch_size=5, train_eps=0.3, train_step=0.1)
    kept = {name: value.clone() for name, value in toy.state_dict().items()}

    def mean_loss() -> float:
        losses = [method.fit_loss(images, LABELS, INDICES, seed).item() for seed in range(20)]
        return sum(losses) / len(losses)

    before, pixels = mean_loss(), (images * 255).byte().numpy()
    recipe, checkpoint = method.train().recipe, tmp_path / "checkpoint"
    fit(method, method.fit_loss, pixels, LABELS.numpy(), recipe, 0, checkpoint, "aid", "aid")
    assert mean_loss() < 0.95 * before
    assert not toy.training
    assert all(p.grad is None and not p.requires_grad for p in toy.parameters())
    assert all(torch.equal(value, kept[name]) for name, value in toy.state_dict().items())


def test_only_the_discriminator_is_saved(toy):
    method = aid(toy)
    assert all(name.startswith("discriminator.") for name in method.state_dict())
    ours, theirs = {id(p) for p in method.parameters()}, {id(p) for p in toy.parameters()}
    assert ours and not ours & theirs
    assert method.train().discriminator.training and not toy.training


# Table 14c, 14b and 18


@pytest.mark.parametrize(
    ("mixing", "gamma", "hard"),
    [("none", 1.0, True), ("av", 1.5, True), ("mixup", 1.0, False), ("avmixup", 1.5, False)],
)
def test_mixings(toy, images, mixing, gamma, hard):
    method = aid(toy, mixing=mixing, gamma=1.5)
    many, indices = images[:1].expand(40, *SHAPE), torch.arange(40)
    delta = 0.01 * torch.ones_like(many)
    mixed, share = method.mix(many, many + delta, indices, 3)
    expected = uniform(3, indices, (), tag="aid")
    if hard:
        expected = (expected > 0.5).float()
        assert set(share.tolist()) == {0.0, 1.0}
    assert torch.equal(share, expected)
    moved = (mixed - many) / delta
    torch.testing.assert_close(
        moved, (gamma * (1 - share)).view(-1, 1, 1, 1).expand_as(moved), atol=1e-4, rtol=1e-4
    )


def test_contrastive_target_by_hand(toy, images):
    """True pairs are 0, pairs of two different images 1; nothing is attacked."""
    method = aid(toy, target="contrastive", extra_layers=0)
    method.attacks = []
    loss = method.fit_loss(images, LABELS, INDICES, 2)
    low, high = pooled(toy, images)
    shift = 1 + derive_seed(2, "contrastive") % 4
    true, false = table_5(method, low, high), table_5(method, low, np.roll(high, shift, axis=0))
    expected = -np.concatenate([np.log(1 - true), np.log(false)]).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert not (low == np.roll(low, shift, axis=0)).all(axis=1).any()
    others = {method.fit_loss(images, LABELS, INDICES, seed).item() for seed in range(10)}
    assert 1 < len(others) <= 4  # as many as there are shifts


def test_training_attacks(toy, images):
    names = ("pgd", "cw_l2", "deepfool_linf")
    strong = {"train_cw_const": 2.0, "train_cw_learning_rate": 0.1}
    fewer = aid(toy, train_attacks=names[1:], train_cw_steps=3, train_deepfool_steps=4)
    assert [attack.steps for attack in fewer.attacks] == [3, 4]
    method = aid(toy, train_attacks=names, train_eps=0.1, train_step=0.02, **strong)
    pgd, cw, deepfool = method.attacks
    assert isinstance(pgd, Pgd) and (pgd.eps, pgd.step_size, pgd.steps) == (0.1, 0.02, 10)
    assert isinstance(cw, CwL2) and (cw.steps, cw.search_steps, cw.max_l2) == (20, 1, 3.0)
    assert (cw.initial_const, cw.learning_rate) == (2.0, 0.1)
    assert isinstance(deepfool, DeepfoolLinf) and (deepfool.eps, deepfool.steps) == (0.1, 20)
    used: list[int] = []
    method.attacks = [
        lambda target, x, *rest, mine=name: used.append(mine) or x for name in range(3)
    ]
    for seed in range(20):
        method.fit_loss(images, LABELS, INDICES, seed)
    assert len(used) == 20  # one per batch
    assert set(used) == {0, 1, 2}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"variant": "papr"}, "variant is 'papr'"),
        ({"target": "bse"}, "target is 'bse'"),
        ({"mixing": "cutmix"}, "mixing is 'cutmix'"),
        ({"train_attacks": ("pgdd",)}, "did you mean 'pgd'"),
        ({"augmentation": "flop"}, "augmentation is 'flop'"),
    ],
)
def test_wrong_choices_are_refused(parameters, message):
    with pytest.raises(UserError, match=message):
        Aid(**parameters)


def test_needs_a_classifier_with_its_taps(toy):
    with pytest.raises(UserError, match="give it one"):
        Aid().bind(None, SHAPE)
    with pytest.raises(UserError, match=r"aid: not bound; call \.bind"):
        Aid().detector_logit(torch.rand(1, *SHAPE))
    with pytest.raises(UserError, match=r"no tap 'stage4' \(did you mean 'stage"):
        Aid(taps=("conv1", "stage4")).bind(WideResnet(SHAPE, 4, depth=10, widen_factor=1), SHAPE)


# Algorithm 2


def test_algorithm_2_step_by_step(toy, images):
    """The descent of the probability, in double precision; the ball is around the input."""
    method = aid(toy, eps=0.05, step_size=0.02, iterations=6)
    frozen(method)
    found = method.purify(images)

    classifier, discriminator = copy.deepcopy(toy).double(), copy.deepcopy(method.discriminator)
    discriminator.double()
    x = images.double()
    purified = x.clone()  # line 1
    for _ in range(6):  # line 2
        leaf = purified.clone().requires_grad_(True)
        features = classifier.features(leaf, ("conv1", "stage3"))
        p = torch.sigmoid(discriminator([f.mean(dim=(2, 3)) for f in features]))  # line 3
        (gradient,) = torch.autograd.grad(p.sum(), leaf)
        purified = purified - 0.02 * gradient.sign()  # line 4
        purified = torch.minimum(torch.maximum(purified, x - 0.05), x + 0.05)  # line 5
        purified = purified.clamp(0.0, 1.0)  # line 6
    torch.testing.assert_close(found.double(), purified, atol=1e-6, rtol=0)
    assert (found - images).abs().max() == pytest.approx(0.05, abs=1e-6)
    assert (method.detector_logit(found) < method.detector_logit(images)).all()


def test_a_step_is_one_iteration(toy, images):
    single, many = (aid(toy, eps=0.05, step_size=0.02, iterations=n) for n in (1, 6))
    assert torch.equal(many.step(images), single.purify(images))
    assert not torch.equal(many.step(images), many.purify(images))


@pytest.mark.parametrize("iterations", [0, 1, 2, 3])
def test_number_of_iterations(toy, images, iterations):
    """Each moves a pixel by one step, so small steps in a large ball count them."""
    method = aid(toy, eps=0.5, step_size=0.001, iterations=iterations)
    frozen(method)
    inner = images.clamp(0.2, 0.8)
    moved = (method.purify(inner) - inner).abs().amax(dim=(1, 2, 3))
    torch.testing.assert_close(moved, torch.full((5,), 0.001 * iterations), atol=1e-6, rtol=0)


def test_purifying_needs_no_seed(toy, images):
    method = aid(toy)
    frozen(method)
    assert torch.equal(method.purify(images, 0), method.purify(images, 1, INDICES))


@pytest.mark.parametrize("variant", ["paper", "upstream"])
@pytest.mark.parametrize("gradient", ["exact", "bpda"])
def test_gradients_through_the_defence(toy, images, variant, gradient):
    method = aid(toy, variant=variant, eps=0.02, step_size=0.01, iterations=3)
    frozen(method)
    defence = Defence(toy, [method], gradient=gradient)
    inner = images.clamp(0.2, 0.8).requires_grad_(True)
    logits = defence(inner)
    purified = method.purify(inner.detach())
    assert torch.equal(logits, toy(purified))
    (found,) = torch.autograd.grad(logits[:, 0].sum(), inner)
    leaf = purified.clone().requires_grad_(True)
    (at_purified,) = torch.autograd.grad(toy(leaf)[:, 0].sum(), leaf)
    # a sign's derivative is zero, and the clip to the ball moves with the image: both are identity
    torch.testing.assert_close(found, at_purified, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(defence(inner), logits)


def test_second_order_gradient_is_the_product_of_its_jacobians(toy, images):
    """With J = I - step diag(tanh'(g / s) / s) H of each step, H the Hessian of the logit."""
    method = aid(toy, eps=0.3, step_size=0.01, iterations=2)
    frozen(method)
    inner = images[:1].clamp(0.2, 0.8).requires_grad_(True)
    logits = Defence(toy, [method], gradient="second_order")(inner)
    assert torch.equal(logits, toy(method.purify(inner.detach())))
    (found,) = torch.autograd.grad(logits[:, 0].sum(), inner)

    toy.double()
    method.double()
    shape, point = inner.shape, inner.detach().double()
    jacobian = torch.eye(point.numel(), dtype=torch.float64)
    for _ in range(2):
        g, h = (
            derivative(lambda x: method.detector_logit(x.view(shape)).sum(), point.flatten())
            for derivative in (
                torch.autograd.functional.jacobian,
                torch.autograd.functional.hessian,
            )
        )
        scale = g.abs().mean()
        slope = (1 - (g / scale).tanh() ** 2) / scale
        jacobian = (torch.eye(point.numel()) - 0.01 * slope[:, None] * h) @ jacobian
        point = point - 0.01 * g.sign().view(shape)
    leaf = point.requires_grad_(True)
    (outer,) = torch.autograd.grad(toy(leaf)[:, 0].sum(), leaf)
    expected = (outer.flatten() @ jacobian).view(shape).float()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert (found - outer.float()).abs().max() > 0.01 * outer.abs().max()


# sizes


def parameters(variant: str, extra_layers: int) -> int:
    classifier = WideResnet((3, 8, 8), 10, depth=10, widen_factor=10)
    frozen(classifier)
    method = Aid(variant=variant, extra_layers=extra_layers)
    method.bind(classifier, classifier.shape)
    return sum(p.numel() for p in method.parameters())


def linear(*widths: int) -> int:
    return sum(a * b + b for a, b in itertools.pairwise(widths))


def test_size_of_table_5():
    """5.40 M with the 16 and 640 channels of WRN-34-10."""
    by_hand = linear(16, 1024, 1024) + linear(640, 1024, 1024) + linear(2048, 1024, 512, 1)
    assert by_hand == 5_396_481
    assert parameters("paper", 0) == by_hand
    deeper = linear(16, *[1024] * 3) + linear(640, *[1024] * 3) + linear(2048, 1024, 1024, 512, 1)
    assert parameters("paper", 1) == deeper


@pytest.mark.parametrize(("extra_layers", "millions"), [(0, 11.67), (1, 16.40)])
def test_size_upstream(extra_layers, millions):
    assert round(parameters("upstream", extra_layers) / 1e6, 2) == millions


def test_upstream_feeds_zeros_to_the_unused_encoders(toy, images):
    method = aid(toy, variant="upstream", taps=("conv1", "stage3"))
    frozen(method)
    assert list(method.discriminator.branches) == ["conv1", "middle", "stage3"]
    before = method.detector_logit(images)
    first = method.discriminator.branches["middle"][0]
    first.weight.mul_(100.0)  # on zeros a weight means nothing
    assert torch.equal(method.detector_logit(images), before)
    first.bias.add_(1.0)
    assert not torch.equal(method.detector_logit(images), before)


def test_only_upstream_normalises(toy):
    for variant, normalised in (("paper", False), ("upstream", True)):
        kinds = {type(module) for module in aid(toy, variant=variant).modules()}
        assert (nn.BatchNorm1d in kinds) is normalised


@pytest.mark.parametrize("variant", ["paper", "upstream"])
def test_weights_start_with_variance_2_over_fan_in(toy, variant):
    """`yelobean/AIDPurifier`: normal, and a zero bias in the last layer."""
    torch.manual_seed(5)
    method = Aid(variant=variant, width=256)
    method.bind(toy, toy.shape)
    layers = [part for part in method.modules() if isinstance(part, nn.Linear)]
    large = [layer for layer in layers if layer.weight.numel() > 10_000]
    assert large
    for layer in large:
        spread = layer.weight * (layer.in_features / 2) ** 0.5
        assert float(spread.std()) == pytest.approx(1.0, abs=0.03)
        assert float(spread.abs().max()) > 3.0  # a uniform draw ends at 1.7
    (last,) = [layer for layer in layers if layer.out_features == 1]
    assert torch.equal(last.bias, torch.zeros(1))
