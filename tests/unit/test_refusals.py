"""One line with the fix, where a caller's model, images, labels or method cannot be used."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import purifiers
from purifiers.attacks.pgd import Pgd
from purifiers.core import registry
from purifiers.core.component import Method, frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.evaluation import predicted
from purifiers.core.prepare import Prepared
from purifiers.core.target import Target
from purifiers.methods.identity import Identity
from purifiers.methods.magnet import Magnet
from purifiers.methods.soap import Soap

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
BINDING = [n for n in registry.names("method") if registry.load("method", n).needs_binding]
TOYS = {
    "number": 0,
    "images": torch.rand(2, 1, 8, 8),
    "labels": LABELS[:2],
    "indices": torch.arange(2),
    "seed": 0,
}


def refusal(act: Callable[[], Any]) -> str:
    """The one line of the error."""
    with pytest.raises(UserError) as raised:
        act()
    message = str(raised.value)
    assert "\n" not in message
    return message


def network(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes)
    )


def call(function: Callable[..., Any]) -> Any:
    """Call a method's function with toy values of the parameters that it requires."""
    parameters = inspect.signature(function).parameters.items()
    return function(**{name: TOYS[name] for name, p in parameters if p.default is p.empty})


# unbound methods


def test_which_methods_need_binding():
    assert {"aid", "nrp", "soap", "magnet", "hgd"} <= set(BINDING)
    assert not {"identity", "random_sign"} & set(BINDING)


@pytest.mark.parametrize("name", BINDING)
def test_unbound_methods_refuse_all_that_bind_builds(name, images):
    method = purifiers.method(name)
    defined = [
        part
        for part in ("purify", "fit_loss", "own_pass", "detector_logit", "detected", "example")
        if getattr(type(method), part) is not getattr(Method, part)
    ]
    for part in (*defined, "step", "unrolled"):
        message = refusal(functools.partial(call, getattr(method, part)))
        assert message.startswith(f"{name}: not bound; call .bind(classifier, shape)")
        assert ("fit it or load" in message) is (method.traits.fit is not None)
    assert "not bound" in refusal(lambda: purifiers.defend(network().eval(), [method])(images))


def test_a_bound_method_purifies(images):
    method = Soap(steps=1)
    method.bind(network().eval(), (1, 8, 8))
    assert method.is_bound and copy.deepcopy(method).is_bound
    assert method.purify(images).shape == images.shape
    assert refusal(lambda: Soap().bind(None, (1, 8, 8))) and not Soap().is_bound


# images


@pytest.mark.parametrize(
    ("images", "messages"),
    [
        (np.zeros((2, 1, 8, 8), np.float32), ["is a NumPy array; use torch.from_numpy(images)"]),
        (
            np.zeros((2, 8, 8, 3), np.uint8),
            ["use torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255"],
        ),
        ([[0.5]], ["images is a list", "float32 tensor (n, C, H, W)"]),
        (torch.zeros(2, 1, 8, 8).byte(), ["got uint8 (2, 1, 8, 8)", "images.float() / 255"]),
        (torch.zeros(2, 1, 8, 8).double(), ["got float64 (2, 1, 8, 8); use images.float()"]),
        (torch.zeros(2, 8, 8, 3), ["looks like NHWC; use images.permute(0, 3, 1, 2)"]),
        (torch.zeros(1, 8, 8), ["got float32 (1, 8, 8); use images[None]"]),
        (torch.zeros(9, 8, 8), ["use images[:, None]"]),
        (torch.zeros(8, 8, 3), ["use images[None].permute(0, 3, 1, 2)"]),
        (torch.zeros(8), ["use 4 dimensions (n, C, H, W)"]),
        (torch.full((2, 1, 8, 8), 255.0), ["must lie in [0, 1], got [255, 255]; divide by 255"]),
        (torch.full((2, 1, 8, 8), -1.0), ["move the normalisation into the model"]),
        (torch.full((2, 1, 8, 8), 1.01), ["use images.clamp(0, 1)"]),
        (torch.full((2, 1, 8, 8), torch.nan), ["use finite values"]),
    ],
)
def test_images_of_another_kind(images, messages):
    message = refusal(lambda: Pgd()(network().eval(), images, LABELS[:2]))
    assert message.startswith("Pgd: images ") and all(part in message for part in messages)


def test_the_fixes_work(images):
    """Evaluated as they are printed, until the attack accepts the images."""
    namespace = {"torch": torch, "images": (images.numpy() * 255).astype(np.uint8)}
    namespace["images"] = namespace["images"].transpose(0, 2, 3, 1).repeat(3, axis=3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)).eval()
    message = refusal(lambda: Pgd()(model, namespace["images"], LABELS))
    namespace["images"] = eval(message.rpartition("; use ")[2], namespace)
    assert Pgd(steps=1)(model, namespace["images"], LABELS).shape == (6, 3, 8, 8)


def test_thin_images_and_deep_features_are_no_mistake():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3)).eval()
    for shape in ((2, 8, 1, 1), (2, 3, 8, 3), (2, 12, 8, 8)):
        model[1] = nn.Linear(int(np.prod(shape[1:])), 3)
        assert Pgd(steps=1)(model, torch.rand(shape), LABELS[:2]).shape == shape


def test_arrays_before_purifiers_and_defences(images):
    array = images.numpy()
    for act in (
        lambda: purifiers.method("random_sign").purify(array),
        lambda: purifiers.method("identity").purify(images=array),
        lambda: Defence(network().eval(), [])(array),
    ):
        assert "is a NumPy array; use torch.from_numpy(images)" in refusal(act)


# labels


@pytest.mark.parametrize(
    ("labels", "messages"),
    [
        (LABELS.numpy(), ["labels is a NumPy array; use torch.from_numpy(labels)"]),
        (LABELS.tolist(), ["labels is a list; use torch.tensor(labels)"]),
        (LABELS.float(), ["must be int64, got float32; use labels.long()"]),
        (LABELS.int(), ["must be int64, got int32; use labels.long()"]),
        (LABELS * 0 - 100, ["at least 0, got -100"]),
        (LABELS * 0 + 10, ["labels reach 10, but the attacked model has 3 classes"]),
        (nn.functional.one_hot(LABELS), ["use labels.argmax(dim=1)"]),
        (LABELS[:, None], ["use labels.squeeze(1)"]),
        (LABELS[:4], ["6 images but labels of shape (4,); give one label per image"]),
        (LABELS - 1, ["at least 0, got -1"]),
        (LABELS.to("meta"), ["labels are on meta and images on cpu; use labels.to(images.device)"]),
        (LABELS + 1, ["labels reach 3, but the attacked model has 3 classes"]),
    ],
)
def test_labels_of_another_kind(labels, messages, images):
    message = refusal(lambda: Pgd()(network().eval(), images, labels))
    assert all(part in message for part in messages)


@pytest.mark.parametrize("attack", ["pgd", "cw_l2", "deepfool_linf", "square", "spsa", "fgsm"])
@pytest.mark.parametrize("defended", [False, True])
def test_labels_beyond_the_logits(attack, defended, images):
    model = network().eval()
    model = Defence(model, [Identity()], gradient="bpda") if defended else model
    message = refusal(lambda: purifiers.attack(attack)(model, images, LABELS + 1))
    assert "labels reach 3, but the attacked model has 3 classes" in message


def test_logits_of_another_shape(images):
    message = refusal(lambda: Pgd()(lambda images: images.mean(dim=(1, 2, 3)), images, LABELS))
    assert "shape (6,)" in message and "logits (n, classes)" in message


@pytest.mark.parametrize("attack", ["pgd", "cw_l2", "deepfool_linf", "square", "fgsm"])
def test_one_logit_per_image(attack, images):
    """Its labels are all 0, and no attack would have changed the prediction."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval()
    message = refusal(lambda: purifiers.attack(attack)(model, images, LABELS * 0))
    assert "one logit per image" in message and "torch.cat([-logit, logit], dim=1)" in message


GRADIENT_ATTACKS = ("pgd", "cw_l2", "deepfool_linf", "stadv", "autoattack", "apgd", "fast_lpa")


def gives_no_gradient(form: str) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(classes=10)

        def forward(self, images: Tensor) -> Tensor:
            if form == "no_grad":
                with torch.no_grad():
                    return self.network(images)
            if form == "detach":
                return self.network(images.detach())
            return torch.from_numpy(self.network(images).detach().numpy())

    return frozen(Model())


@pytest.mark.parametrize("form", ["no_grad", "detach", "numpy"])
def test_a_model_that_gives_no_gradient(form, images):
    message = refusal(lambda: Pgd()(gives_no_gradient(form), images, LABELS))
    assert "none leads from the attacked model's logits to its images" in message
    assert "torch.no_grad, detach or numpy" in message and "square" in message


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_every_gradient_attack_refuses_it(name, images):
    model = gives_no_gradient("detach")
    attack = purifiers.attack(name, **({"taps": ["network.0"]} if name == "fast_lpa" else {}))
    labels = predicted(model, images)  # AutoAttack skips misclassified images
    message = refusal(lambda: attack(model, images, labels))
    assert "none leads from" in message


def test_attacks_on_scores_need_no_gradient(images):
    model = gives_no_gradient("numpy")
    for attack in ("square", "spsa"):
        purifiers.attack(attack)(model, images, LABELS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_type(dtype, images):
    model = frozen(network()).to(dtype)
    message = refusal(lambda: Pgd()(model, images, LABELS))
    cast = f"lambda images: model(images.to({dtype}))"
    assert message.startswith("Pgd: images are float32, but Sequential has ") and cast in message
    assert refusal(lambda: predicted(model, images)).startswith("scoring: images are float32")
    defence = purifiers.defend(model, [])
    assert refusal(lambda: defence(images)).startswith("Defence: images are float32")
    assert "images are float32" in refusal(lambda: purifiers.audit(defence, images, LABELS))
    Pgd()(lambda images: model(images.to(dtype)), images, LABELS)


def test_another_error_of_such_a_network_stays(images):
    model = frozen(nn.Sequential(nn.Flatten(), nn.Linear(63, 3))).double()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Pgd()(lambda images: model(images.double()), images, LABELS)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Pgd()(frozen(nn.Sequential(nn.Flatten(), nn.Linear(63, 3))), images, LABELS)


@pytest.mark.parametrize("model", [None, "resnet18", {"weight": 1}])
def test_a_model_that_cannot_be_called(model, images):
    for act in (lambda: Pgd()(model, images, LABELS), lambda: purifiers.defend(model, [])):
        assert f"the classifier is a {type(model).__name__}, but must be" in refusal(act)


@pytest.mark.parametrize("seed", [1.5, 3.0, None, np.float32(3)])
def test_a_seed_that_is_no_whole_number(seed, images):
    message = refusal(lambda: Pgd()(frozen(network()), images, LABELS, seed=seed))
    assert message == f"seed is {seed!r}, but takes a whole number"


UNFIT = {
    "uint8": lambda images: (images * 255).byte(),
    "numpy": lambda images: images.numpy(),
    "single": lambda images: images[0],
    "list": lambda images: [images],
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_method_refuses_what_is_no_batch_of_images(kind, images):
    method = purifiers.method("jpeg")
    for act in (method, method.purify, method.step, method.unrolled):
        assert refusal(lambda act=act: act(UNFIT[kind](images))).startswith("jpeg: images ")


@pytest.mark.parametrize("change", [lambda x: x * 255, lambda x: x * torch.nan, Tensor.double])
def test_a_called_method_and_a_defence_refuse_other_values(change, images):
    for act in (purifiers.method("jpeg"), purifiers.defend(frozen(network()), [])):
        assert "images must " in refusal(lambda act=act: act(change(images)))


# what a purifier returns

OUTPUTS = {
    "NoneType ()": lambda images: None,
    "list ()": lambda images: [images],
    "float32 (6, 8, 8)": lambda images: images[:, 0],
    "float32 (5, 1, 8, 8)": lambda images: images[1:],
    "uint8 (6, 1, 8, 8)": lambda images: (images * 255).byte(),
    "float32 (6, 8, 8, 1)": lambda images: images.permute(0, 2, 3, 1).numpy(),
}


@pytest.mark.parametrize("told", OUTPUTS)
def test_an_own_purifier_that_returns_no_images(told, images):
    defence = purifiers.defend(frozen(network()), [OUTPUTS[told]])
    message = refusal(lambda: defence(images))
    assert message == (
        f"<lambda> returned {told}: return images as it gets them, float32 (6, 1, 8, 8)"
    )


def test_an_own_purifier_that_works_in_place(images):
    given = images.clone()
    defence = purifiers.defend(frozen(network()), [lambda images: images.mul_(0.5)])
    assert torch.equal(defence(images), defence.classifier(0.5 * given))
    leaf = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(defence(leaf).sum(), leaf)
    assert gradient.any()
    assert torch.equal(images, given)


class InPlace(nn.Module):
    """A network that clips its images in place, or, to compare, a copy of them."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.network, self.in_place = network(), in_place

    def forward(self, images: Tensor) -> Tensor:
        images = images.clamp_(0.2, 0.8) if self.in_place else images.clamp(0.2, 0.8)
        return self.network(images)


@pytest.mark.parametrize("methods", [(), ("identity",)])
@pytest.mark.parametrize("attack", ["pgd", "square", "deepfool_linf"])
def test_a_defended_network_that_works_in_place(attack, methods, images):
    given = images.clone()
    found = []
    for in_place in (True, False):
        made = [purifiers.method(name) for name in methods]
        defence = purifiers.defend(frozen(InPlace(in_place)), made, gradient="bpda")
        found += [defence(images), purifiers.attack(attack)(defence, images, LABELS, seed=1)]
        assert torch.equal(images, given)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])


@pytest.mark.parametrize("name", ["soap", "magnet", "feature_squeezing_detector"])
def test_a_bound_network_that_works_in_place(name, images):
    parameters = {"soap": {"steps": 1}, "magnet": {"temperatures": [1.0]}}.get(name, {})
    given, found = images.clone(), []
    for in_place in (True, False):
        torch.manual_seed(0)
        method = purifiers.method(name, **parameters)
        method.bind(frozen(InPlace(in_place)), (1, 8, 8))
        act = method.purify if name == "soap" else method.detector_logit
        found.append(act(images))
        assert torch.equal(images, given)
    assert torch.equal(*found)


def test_an_own_purifier_in_half_precision(images):
    defence = purifiers.defend(frozen(network()), [lambda images: images.half()])
    assert torch.equal(defence(images), defence.classifier(images.half().float()))


# what a model returns


class Wrapped(nn.Module):
    """A network whose output is passed on in another form."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.form = network(), form

    def forward(self, images: Tensor) -> Any:
        return self.form(self.network(images))


def hugging_face() -> Wrapped:
    return Wrapped(lambda logits: SimpleNamespace(loss=None, logits=logits)).eval()


def test_objects_with_logits_are_logits(images):
    model = hugging_face()
    bare = model.network
    assert torch.equal(Target(model).draw(images, LABELS), bare(images))
    assert torch.equal(Target(model).classify(images), bare(images))
    for gradient in ("exact", "bpda"):
        defence = Defence(model, [Identity()], gradient=gradient)
        assert torch.equal(defence(images), bare(images))
        assert torch.equal(defence.classify(images), bare(images))
    torch.testing.assert_close(Prepared(model)(images), bare(images))
    attack = Pgd(eps=0.1, steps=3)
    expected = attack(bare, images, LABELS)
    assert torch.equal(attack(model, images, LABELS), expected)
    assert torch.equal(attack(Defence(model, []), images, LABELS), expected)


def test_methods_read_logits_of_objects(images):
    model = hugging_face()
    soaps, magnets = [], []
    for classifier in (model, model.network):
        soap = Soap(steps=1)
        soap.bind(classifier, (1, 8, 8))
        soaps.append(soap.purify(images))
        torch.manual_seed(0)
        magnet = Magnet(temperatures=[1.0])
        magnet.bind(classifier, (1, 8, 8))
        magnets.append(frozen(magnet).marks(images))
    assert torch.equal(*soaps) and torch.equal(*magnets)


@pytest.mark.parametrize(
    ("form", "messages"),
    [
        (lambda logits: (logits, None), ["returned a tuple", "model(images)[0]"]),
        (lambda logits: {"logits": logits}, ["returned a dict", "model(images)['logits']"]),
        (lambda logits: None, ["returned a NoneType"]),
    ],
)
def test_other_outputs_are_refused(form, messages, images):
    model = Wrapped(form).eval()
    for act in (
        lambda: Pgd()(model, images, LABELS),
        lambda: Defence(model, [])(images),
        lambda: Prepared(model)(images),
    ):
        message = refusal(act)
        assert message.startswith("Wrapped ") and all(part in message for part in messages)
    function = lambda images: model(images)  # noqa: E731
    assert messages[0] in refusal(lambda: Pgd()(function, images, LABELS))


# networks in training mode


def test_networks_in_training_mode_are_left_untouched(images):
    """An attack refuses them; with a function around them it does what its caller asked for."""
    model = network().train()
    kept = copy.deepcopy(model.state_dict())
    untrained = purifiers.method("identity")
    defences = (model, Defence(model, [untrained]), Target(model), nn.Sequential(model))
    for attacked in defences:
        message = refusal(lambda attacked=attacked: Pgd()(attacked, images, LABELS))
        assert "in training mode and its BatchNorm2d" in message and "call .eval()" in message
    assert model.training
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    Pgd(steps=1)(lambda images: model(images), images, LABELS)
    assert not torch.equal(model[1].running_mean, kept["1.running_mean"])


def test_networks_in_evaluation_mode_are_left_untouched(images):
    model = network().eval()
    kept = copy.deepcopy(model.state_dict())
    for attacked in (model, Defence(model, [Identity()]).eval(), Defence(model, [])):
        Pgd(steps=2)(attacked, images, LABELS)
    assert not any(part.training for part in model.modules())
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_dropout_counts_and_layers_without_effect_do_not(images):
    model = nn.Sequential(nn.Dropout(0.5), *network().eval())
    assert "its Dropout '0'" in refusal(lambda: Pgd()(model, images, LABELS))
    assert "LoneDropout" in refusal(lambda: Pgd()(LoneDropout(), images, LABELS))
    model[0] = nn.Dropout(0.0)
    model[2] = nn.BatchNorm2d(4, track_running_stats=False)
    assert model.training and Pgd(steps=1)(model, images, LABELS).shape == images.shape


class LoneDropout(nn.Dropout):
    """A layer that is the whole model."""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: (x * 255).to(torch.uint8), r"use images\.float\(\) / 255"),
        (lambda x: x * 255, "divide by 255"),
        (lambda x: x * torch.nan, "finite"),
        (lambda x: x[0], "float32 NCHW"),
    ],
)
def test_a_defence_refuses_what_is_no_image(victim, wrong, message):
    defence = purifiers.defend(victim.model, [])
    with pytest.raises(UserError, match=message):
        defence(wrong(victim.images))


def test_methods_are_a_list(victim):
    with pytest.raises(UserError, match=r"give a list, \[purifier\]"):
        purifiers.defend(victim.model, purifiers.method("identity"))
