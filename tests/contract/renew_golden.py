"""Golden outputs: a few numbers that each component gives on a tiny problem of fixed numbers.

``make register`` writes ``golden.json`` anew, with all else that a new component needs. It refuses
while an output has moved and the component's ``traits.version`` has not, for then stored results
would be taken for those of the new code. (Only after a change of the problems below, delete
``golden.json`` first.)

An entry keeps the parameters it was made with: a new default, or another budget of the smoke
scale, is another run anyway and moves nothing here. Everything runs in double precision where it
can, and is compared with a tolerance, so that the processor does not matter.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from purifiers.core import registry
from purifiers.core.component import Classifier, Method, build, frozen
from purifiers.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden.json")
COMMAND = "make register"
RELATIVE, ABSOLUTE = 1e-4, 1e-6
# Long iterations in float32 amplify rounding, which depends on the instruction set. Measured
# between processors: 6e-5 and 3e-4, of outputs around .1.
AMPLIFIED = {"attack.autoattack_l2": 3e-4, "attack.stadv": 1e-3}
SEED, CLASSES = 5, 5
LENGTHS: dict[str, dict[str, float]] = {
    "attack": {"eps": 0.1, "step_size": 0.004, "learning_rate": 0.05},
    "method": {"eps": 0.05, "step_size": 0.02},
}
MOST = 24  # of anything that traits.budget names in an attack or a method
# Side of the images for components that need larger ones than the others.
SIDES = {"method.atop": 8, "method.hill_ebm": 8, "method.me_net": 12, "training.me_net": 12}
# Settings besides the defaults that are other algorithms in the same file.
MODES: dict[str, tuple[dict[str, Any], ...]] = {
    "attack.apgd": ({"stop": "success"}, {"loss": "dlr_targeted", "targets": 3}),
    "attack.autoattack": ({"version": "rand", "apgd_steps": 4},),
    "attack.autoattack_l2": ({"version": "rand", "apgd_steps": 4},),
    "attack.bim": ({"stop": "success"},),
    "attack.mim": ({"stop": "success"},),
    "attack.pgd": ({"stop": "success"},),
    "attack.pgd_l2": ({"stop": "success"},),
    "attack.spsa": ({"stop": "success"},),
    "attack.square": ({"stop": "success"},),
    "attack.stadv": ({"stop": "success"},),
    "method.adv_ae": ({"variant": "unet", "reconstruction_weight": 1.0}, {"variant": "unet_paper"}),
    "method.aid": ({"variant": "upstream"}, {"target": "contrastive"}),
    "method.hgd": ({"guidance": "logits"},),
    "training.madry": ({"attack_mode": "eval"},),
    "training.trades": ({"attack_mode": "train"},),
}


def numbers(*shape: int, phase: float = 0.0) -> Tensor:
    """Scattered numbers in (0, 1) that no random generator is needed for, float64."""
    place = np.arange(int(np.prod(shape)), dtype=np.float64) + phase
    return torch.from_numpy(np.sin(place * 12.9898) * 43758.5453 % 1.0).reshape(shape)


def fill(module: nn.Module) -> None:
    """Overwrite all weights with fixed numbers of a usual size."""
    for position, (name, value) in enumerate(module.state_dict().items()):
        if not value.is_floating_point():
            continue
        spread = 2.0 * numbers(*value.shape, phase=1000.0 * position) - 1.0
        if value.dim() > 1:
            new = spread * (6.0 / value[0].numel()) ** 0.5  # He's, uniform
        else:
            new = 0.1 * spread + float("var" in name or ("norm" in name and "weight" in name))
        value.copy_(new)


class Net(Classifier):
    """Two convolutions in double precision, float32 outside; taps named as AID's defaults."""

    TAPS = ("conv1", "stage3")

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__(shape, CLASSES)
        self.conv1 = nn.Conv2d(shape[0], 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.stage3 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6 * ((shape[1] + 1) // 2) * ((shape[2] + 1) // 2), CLASSES)
        self.double()
        fill(self)

    def features(self, images: Tensor, taps: Any) -> list[Tensor]:
        early = self.conv1(images.double())
        late = self.stage3(torch.tanh(self.norm(early)))
        return [{"conv1": early, "stage3": late}[tap].float() for tap in taps]

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.stage3(torch.tanh(self.norm(self.conv1(images.double()))))
        return 0.3 * self.head(torch.tanh(hidden).flatten(1)).float()

    def detector_logit(self, images: Tensor) -> Tensor:
        """A detector, for attacks that go against one."""
        return self.stage3(self.conv1(images.double())).mean(dim=(1, 2, 3)).float()

    def score(self, images: Tensor) -> Tensor:
        """Of a normal density around grey, for attacks that go along one."""
        return 0.5 - images


class Ended(Net):
    """The same with a linear layer in single precision as its end, for restorers of embeddings."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__(shape)
        self.last = nn.Linear(CLASSES, CLASSES)
        fill(self.last)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(super().forward(images))


def problem(count: int, side: int, kind: type[Net] = Net) -> tuple[Net, Tensor, Tensor, Tensor]:
    """A network, images (count, 1, side, side) from dark to bright, its own labels, and indices."""
    net = kind((1, side, side))
    frozen(net)
    brightness = torch.linspace(0.2, 0.7, count, dtype=torch.float64).view(-1, 1, 1, 1)
    images = (0.1 + 0.2 * numbers(count, 1, side, side) + brightness).float()
    return net, images, net(images).argmax(dim=1), torch.arange(count) + 70


def small_parameters(kind: str, name: str) -> dict[str, Any]:
    """Every parameter of a new entry: the smoke scale's budget, and at most ``MOST`` of anything
    else that its ``budget`` counts in an attack or a method."""
    described = registry.describe(kind, name)
    smoke = yaml.safe_load((ROOT / "workflow/scales/smoke.yaml").read_text())["budgets"]
    budget = smoke.get(f"{kind}.{name}", {})
    reduced = {n: v["at_most"] if isinstance(v, dict) else v for n, v in budget.items()}
    chosen = described.parameters | reduced
    for size in described.traits.budget if kind in ("attack", "method") else ():
        if type(chosen[size]) is int:
            chosen[size] = min(chosen[size], MOST)
    return chosen | {n: v for n, v in LENGTHS.get(kind, {}).items() if n in chosen}


def construct(kind: str, name: str, parameters: dict[str, Any], *context: Any) -> Any:
    """A component with those of the parameters that it still has."""
    known = registry.describe(kind, name).parameters
    given = {key: value for key, value in parameters.items() if key in known}
    return build(registry.load(kind, name), *context, **given)


def attack_output(name: str, parameters: dict[str, Any]) -> Tensor:
    net, images, labels, indices = problem(3, 5)
    attack = construct("attack", name, parameters)
    return attack(net, images, labels, SEED, indices) - images


def method_output(name: str, parameters: dict[str, Any]) -> Tensor:
    restores = registry.describe("method", name).traits.restores
    net, images, labels, indices = problem(
        4, SIDES.get(f"method.{name}", 6), Ended if restores else Net
    )
    torch.manual_seed(SEED)
    method: Method = construct("method", name, parameters)
    method.bind(net, net.shape)
    initial = spreads(method)
    fill(method)
    made = [initial]
    if method.traits.fit is not None:
        method.fit_on([net], len(images))
        loss = method.train().fit_loss(images, labels, indices, SEED)
        gradients = torch.autograd.grad(loss, [p for p in method.parameters() if p.requires_grad])
        made += [flat(loss), torch.stack([gradient.norm() for gradient in gradients])]
    frozen(method)
    purified = method.purify(images, SEED, indices)
    network = method.equipped(net)
    if network is not net:
        made.append(network(purified).flatten())
    return torch.cat([purified.flatten(), *made])


def classifier_output(name: str, parameters: dict[str, Any]) -> Tensor:
    torch.manual_seed(SEED)
    classifier = construct("classifier", name, parameters, (1, 16, 16), CLASSES)
    initial = spreads(classifier)
    frozen(classifier).double()
    fill(classifier)
    return torch.cat([classifier(numbers(2, 1, 16, 16)).flatten(), initial.double()])


def training_output(name: str, parameters: dict[str, Any]) -> Tensor:
    net, images, labels, indices = problem(6, SIDES.get(f"training.{name}", 5))
    net.train().requires_grad_(True)
    training = construct("training", name, parameters)
    loss = training.loss(net, images, (labels + 1) % CLASSES, indices, SEED)
    loss.backward()
    gradients = [p.grad.norm() for p in net.parameters() if p.grad is not None]
    return torch.stack([loss.double(), *gradients, *net.norm.running_mean, *net.norm.running_var])


def dataset_output(name: str, parameters: dict[str, Any]) -> Tensor:
    """Means of the first images, their labels, and a sum that weighs every pixel differently.

    Raises:
        UserError: it needs files.
    """
    rows = []
    for split in ("train", "test"):
        images, labels = construct("dataset", name, parameters).load(split, Path("no such folder"))
        weights = numbers(images.size).numpy()
        rows += [len(images), float(weights @ images.reshape(-1)) / len(images), *labels[:20]]
        rows += list(images[:20].mean(axis=(1, 2, 3)))
    return torch.tensor(rows, dtype=torch.float64)


def spreads(module: nn.Module) -> Tensor:
    """Mean size of each tensor of a seeded initialisation."""
    values = [v.detach().abs().mean() for v in module.state_dict().values() if v.numel() > 1]
    return torch.stack(values) if values else torch.empty(0)


def flat(value: Tensor) -> Tensor:
    return value.detach().reshape(-1)


def output(kind: str, name: str, parameters: dict[str, Any]) -> list[float]:
    """The numbers of one component in all its modes, with six significant digits."""
    made = []
    for mode in ({}, *MODES.get(f"{kind}.{name}", ())):
        with torch.random.fork_rng(devices=[]):
            values = globals()[f"{kind}_output"](name, parameters | mode)
        made.append(flat(values).double())
    return [float(f"{value:.6g}") for value in torch.cat(made).tolist()]


def has_no_output(kind: str, name: str) -> bool:
    """Whether nothing of a component can be held here: it reads files, or it trains nothing."""
    traits = registry.describe(kind, name).traits
    if kind == "classifier" and traits.pretrained is True:
        return True
    if kind == "attack" and traits.images_of:
        return True
    if kind == "training":
        return traits.keeps_weights
    if kind != "dataset":
        return bool(traits.files)
    module = importlib.import_module(f"purifiers.datasets.{name}")
    return name == "image_folder" or any(hasattr(module, n) for n in ("REMOTES", "ARCHIVE"))


def subjects() -> list[tuple[str, str]]:
    """Kind and name of every component that a golden output is held of."""
    return [
        (kind, name)
        for kind in registry.KINDS
        for name in registry.names(kind)
        if not has_no_output(kind, name)
    ]


def moved(expected: list[float], found: list[float], key: str = "") -> bool:
    """Whether two outputs of the component ``key`` differ by more than the processor explains."""
    allowed = AMPLIFIED.get(key, ABSOLUTE)
    return len(expected) != len(found) or not np.allclose(
        found, expected, rtol=RELATIVE, atol=allowed
    )


def complaint(kind: str, name: str, held: dict[str, Any]) -> str | None:
    """What is wrong between a component and what ``golden.json`` holds of it, in one line."""
    described = registry.describe(kind, name)
    file = described.path.relative_to(ROOT)
    entry = held.get(f"{kind}.{name}")
    if entry is None:
        return f"{file} has no golden output yet: run {COMMAND}"
    if entry["version"] != described.version:
        return (
            f"{file} has traits.version {described.version}, golden.json holds {entry['version']}: "
            f"run {COMMAND} and say in CHANGELOG.md what moved"
        )
    if moved(entry["output"], output(kind, name, entry["parameters"]), f"{kind}.{name}"):
        return (
            f"{file}: the output moved, but traits.version is still {described.version}: "
            f"raise version in {file} and run {COMMAND}, or undo the change"
        )
    return None


def stale(held: dict[str, Any]) -> list[str]:
    """Entries of components that are no more."""
    return sorted(set(held) - {f"{kind}.{name}" for kind, name in subjects()})


def renewed(held: dict[str, Any]) -> dict[str, Any]:
    """What ``golden.json`` should hold now.

    Raises:
        UserError: an output has moved while its version has not.
    """
    fresh, refused = {}, []
    for kind, name in subjects():
        key, version = f"{kind}.{name}", registry.describe(kind, name).version
        entry = held.get(key)
        if entry and entry["version"] == version:
            if complaint(kind, name, held):
                refused.append(str(complaint(kind, name, held)))
            fresh[key] = entry  # not rewritten for the sake of a last digit
        else:
            small = small_parameters(kind, name)
            made = output(kind, name, small)
            fresh[key] = {"version": version, "parameters": small, "output": made}
    if refused:
        raise UserError("\n".join(refused))
    return fresh


def write(held: dict[str, Any]) -> None:
    """One component per line, so that a change is easy to see."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(held[key])}" for key in sorted(held))
    GOLDEN.write_text(f"{{\n{lines}\n}}\n")


def read() -> dict[str, Any]:
    """What is held."""
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def main() -> int:
    """Write ``golden.json``; 1 if that would hide a change."""
    try:
        write(renewed(read()))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
