"""IDFR: the wiring of Table 6, the mixtures of Eq. 6, and the two trainings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import purifiers
from purifiers.core import fitting
from purifiers.core.component import frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.snapshots import weights_of
from purifiers.methods._idfr_mixing import Mixing
from purifiers.methods._idfr_networks import FeatureRestorer, InputDenoiser
from purifiers.methods.idfr import Idfr

SHAPE = (1, 16, 16)
DRAW = torch.Generator().manual_seed(0)
IMAGES = torch.rand(24, *SHAPE, generator=DRAW)
LABELS = torch.arange(24) % 3
SMALL = {"width": 4, "restorer_width": 64, "eps": 0.1, "steps": 2, "step_size": 0.05}
SHORT = {"epochs": 2, "batch_size": 8, "restore_epochs": 2, "restore_batch_size": 8}


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return frozen(purifiers.classifier("vgg", SHAPE, 3, depth=11, width=4))


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_networks_have_the_published_sizes():
    assert size(InputDenoiser(3)) == 669_033
    assert size(InputDenoiser(3, residual="signed")) == 669_033 - 6  # without BN of 3 channels
    assert size(FeatureRestorer()) == 337_184
    full = purifiers.method("idfr")
    full.bind(None, (3, 32, 32))
    assert size(full) == 669_033 + 337_184


def test_layers_read_what_table_6_says():
    network = frozen(InputDenoiser(3, width=4))
    read: dict[str, Tensor] = {}
    gave: dict[str, Tensor] = {}

    def hook_of(name):
        def hook(part, inputs, output):
            read[name], gave[name] = inputs[0], output

        return hook

    for name, part in network.named_children():
        part.register_forward_hook(hook_of(name))
    network(torch.rand(2, 3, 18, 18))
    sides = [gave[f"layer{number}"].shape[-1] for number in range(1, 10)]
    assert sides == [18, 18, 9, 9, 5, 9, 9, 18, 18]
    channels = [gave[f"layer{number}"].shape[1] for number in range(1, 10)]
    assert channels == [4, 4, 8, 8, 16, 24, 8, 12, 3]
    assert torch.equal(read["layer6"][:, :8], gave["layer3"])
    assert torch.equal(read["layer8"][:, :4], gave["layer1"])
    upsampled = nn.functional.interpolate(gave["layer7"], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(read["layer8"][:, 4:], upsampled)


def test_the_three_outputs():
    images = torch.rand(2, 3, 8, 8)
    outputs = {}
    for residual in ("none", "signed", "positive"):
        network = frozen(InputDenoiser(3, width=4, residual=residual))
        last = network.layer9 if residual == "signed" else network.layer9[0]
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, -0.1)
        outputs[residual] = network(images)
    assert torch.equal(outputs["none"], torch.zeros_like(images))
    torch.testing.assert_close(outputs["signed"], (images - 0.1).clamp_min(0.0))
    assert torch.equal(outputs["positive"], images)


def test_mixtures_by_hand():
    embeddings = torch.tensor([[0.0], [10.0], [20.0], [30.0], [40.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    correct = torch.tensor([True, False, False, True, True])
    mixing = Mixing(embeddings, labels, correct)
    rows = torch.tensor([0, 0, 1, 2, 3, 3])
    draws = torch.tensor([0.49, 0.5, 0.99, 0.0, 0.0, 0.6])
    # class 0: the other side; class 1 has no wrongly classified embedding: its own side
    assert mixing.partners(rows, draws).tolist() == [1, 2, 0, 0, 3, 4]
    alphas = torch.tensor([1.0, 0.25, 0.5, 0.75, 0.0, 0.25])
    mixed = mixing.mixed(rows, draws, alphas).squeeze(1).tolist()
    assert mixed == [0.0, 15.0, 5.0, 15.0, 30.0, 37.5]


def fitted(network: nn.Module, **parameters):
    method = purifiers.method("idfr", **{**SMALL, **SHORT, **parameters})
    return purifiers.fit(method, network, IMAGES, LABELS, progress=False)


def test_the_ablation_has_the_same_denoiser(network):
    with_restorer, alone = fitted(network), fitted(network, restore=False)
    state = with_restorer.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in alone.state_dict().items())
    assert Defence(network, [alone]).network is network
    assert not any(parameter.requires_grad for parameter in with_restorer.parameters())


def test_the_second_training_changes_the_restorer_alone(network):
    short, long = (fitted(network, restore_epochs=n).state_dict() for n in (1, 2))
    for name, value in short.items():
        assert torch.equal(value, long[name]) is not name.startswith("restorer."), name


def test_the_defence_restores_the_embedding(network):
    method = fitted(network)
    denoised = method.purify(IMAGES)
    embedding = network.features(denoised, ("stage5",))[0].mean(dim=(2, 3))
    expected = network.head(method.restorer(embedding))
    torch.testing.assert_close(Defence(network, [method])(IMAGES), expected)


def test_training_images_are_adversarial_and_noisy_clean(network):
    method = purifiers.method("idfr", **SMALL, sigma=0.05, noise_rounds=2)
    method.bind(network, SHAPE)
    adversarial = method.example(0, IMAGES, LABELS, torch.arange(24))
    assert 0.05 < float((adversarial - IMAGES).abs().max()) <= 0.1 + 1e-6
    method.stored_examples = [adversarial.numpy()]
    seen = []
    method.denoiser.register_forward_pre_hook(lambda part, inputs: seen.append(inputs[0]))
    for seed in (0, 1):  # made once: the step's seed does not matter
        method.fit_loss(IMAGES, LABELS, torch.arange(24), seed)
    assert torch.equal(*seen)
    copies = seen[0].chunk(3)
    assert torch.equal(copies[0], adversarial)
    inside = (IMAGES > 0.2) & (IMAGES < 0.8)
    for copy in copies[1:]:
        assert float((copy - IMAGES)[inside].std()) == pytest.approx(0.05, rel=0.1)
    assert not torch.equal(copies[1], copies[2])


def test_the_loss_of_features_is_zero_where_nothing_changes(network):
    method = purifiers.method("idfr", **SMALL, residual="signed", loss="features", noise_rounds=0)
    method.bind(network, SHAPE)
    nn.init.zeros_(method.denoiser.layer9.weight)
    nn.init.zeros_(method.denoiser.layer9.bias)
    method.stored_examples = [IMAGES.numpy()]
    assert method.fit_loss(IMAGES, LABELS, torch.arange(24), 0).item() < 1e-5
    method.stored_examples = [IMAGES.flip(3).numpy()]
    assert method.fit_loss(IMAGES, LABELS, torch.arange(24), 0).item() > 1e-4


def test_another_embedding_is_refused(network):
    method = purifiers.method("idfr", **SMALL)
    method.bind(network, SHAPE)
    wider = frozen(purifiers.classifier("vgg", SHAPE, 3, depth=11, width=8))
    with pytest.raises(UserError, match="reads embeddings of 32, but those of Vgg have 64"):
        Defence(wider, [method])
    with pytest.raises(UserError, match="restorer_width is 4"):
        purifiers.method("idfr", restorer_width=4)


class Killed(Exception):
    pass


def snapshots(network: nn.Module, snapshot: int = 0) -> Idfr:
    parameters = {**SMALL, **SHORT, "restore": False, "snapshots": 3, "snapshot": snapshot}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = purifiers.method("idfr", **parameters)
        method.bind(network, SHAPE)
    return method  # type: ignore[return-value]


def steps_of(method: Idfr, network: nn.Module, folder: Path, kill_at: int = -1) -> list[Tensor]:
    """Fit a method on six steps; ID's weights before each step."""
    folder.mkdir(exist_ok=True)
    before: list[Tensor] = []
    step = method.fit_loss

    def seen(*given: Tensor) -> Tensor:
        if len(before) == kill_at:
            raise Killed
        before.append(weights_of(method.denoiser))
        return step(*given)

    method.fit_loss = seen  # type: ignore[method-assign]
    at = fitting.Workplace(folder, "idfr", "idfr", "cpu", 8, 0.0, quiet=True)
    pixels = (IMAGES * 255).to(torch.uint8).numpy()
    fitting.fit_method(method, [network], pixels, LABELS.numpy(), 4, at)
    return before


def test_copies_are_id_during_its_training(network: nn.Module, tmp_path: Path) -> None:
    method = snapshots(network)
    before = steps_of(method, network, tmp_path)
    assert len(before) == 6
    assert torch.equal(method.copies, torch.stack([before[0], before[2], before[4]]))
    for number, weights in enumerate([weights_of(method.denoiser), *method.copies]):
        chosen = snapshots(network, number)
        chosen.load_state_dict(method.state_dict())
        assert torch.equal(weights_of(chosen.denoiser), weights)


@pytest.mark.parametrize("kill_at", [1, 3])
def test_a_killed_training_keeps_the_same_copies(
    network: nn.Module, tmp_path: Path, kill_at: int
) -> None:
    whole, first, again = (snapshots(network) for _ in range(3))
    steps_of(whole, network, tmp_path / "whole")
    with pytest.raises(Killed):
        steps_of(first, network, tmp_path / "killed", kill_at)
    assert len(steps_of(again, network, tmp_path / "killed")) == 6 - kill_at
    assert all(torch.equal(v, whole.state_dict()[n]) for n, v in again.state_dict().items())


def test_refused_snapshots() -> None:
    with pytest.raises(UserError, match="FR is fitted behind the last ID: set restore to false"):
        purifiers.method("idfr", snapshots=2)
    with pytest.raises(UserError, match="snapshot is 3, but the training keeps 2"):
        purifiers.method("idfr", restore=False, snapshots=2, snapshot=3)
