"""What every purifier promises."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch

import purifiers
from purifiers.core import registry
from purifiers.core.artifacts import RunFolder
from purifiers.core.component import frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.formula import evaluate
from purifiers.core.numbers import fraction
from purifiers.core.parameters import choices
from purifiers.core.spec import ComponentSpec, PurifierSpec
from purifiers.stages._context import WEIGHTS, load_weights, save_weights

CHANCE = 0.1
ALTERNATIVES = {
    "comdefend": (("soap_resnet", {"width": 4}, {}, {"test_sigma": 1}),),
    "soap": (
        ("soap_cae", {"width": 4, "units": 8}, {"task": "reconstruction"}, {}),
        ("soap_resnet", {"width": 4}, {"task": "rotation"}, {}),
    ),
}
"""For a method whose ``random`` is a condition: classifiers, their sizes, the parameters that both
share, and the method's own."""
COUPLED = {"atop": {"mask_share": 0.5}}
"""Parameters with which one of the second training's may be doubled: two masks of a half each."""


def test_images_are_images(method, ready, victim):
    given = victim.images.clone()
    purified = ready(method).purify(victim.images, 1, victim.indices)
    assert purified.shape == victim.images.shape
    assert purified.dtype == torch.float32
    assert purified.min() >= 0 and purified.max() <= 1
    assert torch.equal(victim.images, given), "purify wrote into the images it was given"


def test_no_images_are_no_images(method, ready, victim):
    none = victim.images[:0]
    made = ready(method)
    for purified in (made.purify(none, 1, victim.indices[:0]), made.unrolled(none), made(none)):
        assert purified.shape == none.shape and purified.dtype == torch.float32
    assert Defence(victim.classifier, [made])(none).shape == (0, 10)


def test_same_seed_same_images(method, ready, victim):
    """Whatever the global generator holds, which stays untouched."""
    first = ready(method).purify(victim.images, 1, victim.indices)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        before = torch.random.get_rng_state()
        again = ready(method).purify(victim.images, 1, victim.indices)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again)


def variants(method, ready, victim):
    """The method itself; and, where a condition decides on ``random``, one for each alternative,
    bound to an untrained classifier that has what it needs."""
    made = [ready(method)]
    shape = victim.classifier.shape
    for classifier, sizes, parameters, own in ALTERNATIVES.get(method.name, ()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = registry.load("classifier", classifier)(shape, 10, **sizes, **parameters)
            other = method.make(**parameters, **own)
        other.bind(frozen(network), shape)
        made.append(frozen(other))
    condition = method.cls.traits.random
    if not isinstance(condition, bool):
        assert {m.random for m in made} == {True, False}, "ALTERNATIVES lacks a side"
    return made


def test_random_exactly_where_two_seeds_give_two_outputs(method, ready, victim):
    for made in variants(method, ready, victim):
        one, two = (made.purify(victim.images, seed, victim.indices) for seed in (1, 2))
        assert made.random is not torch.equal(one, two)
        assert made.random is method.description.traits.is_random(vars(made))


def test_differentiable_exactly_where_purify_has_a_gradient(method, ready, victim):
    for made in variants(method, ready, victim):
        leaf = victim.images.clone().requires_grad_(True)
        gradient = None
        try:
            purified = made.purify(leaf, 1, victim.indices)
        except (UserError, RuntimeError):  # it refuses a gradient
            assert not made.traits.differentiable
            continue
        if purified.requires_grad:
            weights = torch.linspace(-1, 1, purified.numel()).view_as(purified)
            (gradient,) = torch.autograd.grad((weights * purified).sum(), leaf, allow_unused=True)
        assert gradient is None or torch.isfinite(gradient).all()
        assert made.traits.differentiable is (gradient is not None and bool(gradient.any()))


def test_states_has_the_declared_number_of_images_and_ends_with_the_purified(method, ready, victim):
    made = ready(method)
    states = made.states(victim.images, 1, victim.indices)
    parameters = method.description.parameters | method.small
    assert len(states) == method.description.traits.states_under(parameters)
    assert torch.equal(states[-1], made.purify(victim.images, 1, victim.indices))


def test_batches_and_batch_mates_do_not_matter(method, ready, victim):
    whole = ready(method).purify(victim.images, 1, victim.indices)
    backwards = torch.arange(23, -1, -1)
    parts = [
        ready(method).purify(victim.images[rows], 1, victim.indices[rows])
        for rows in backwards.split(10)
    ]
    # a sign decided by the last bit may flip
    assert ((torch.cat(parts).flip(0) - whole).abs() > 1e-4).float().mean() < 0.002


def test_clean_accuracy_stays_above_chance(method, ready, victim):
    purified = ready(method).purify(victim.images, 1, victim.indices)
    assert victim.accuracy(purified) > 3 * CHANCE
    logits = ready(method).equipped(victim.classifier)(purified)
    assert (logits.argmax(1) == victim.labels).float().mean() > 3 * CHANCE


def test_restores_exactly_where_it_changes_the_classifier(method, ready, victim):
    made = ready(method)
    restores = method.description.traits.is_restoring(vars(made))
    assert restores is (made.equipped(victim.classifier) is not victim.classifier)


def test_works_where_gradients_are_switched_off(method, ready, victim):
    with torch.no_grad():
        quiet = ready(method).purify(victim.images, 1, victim.indices)
        assert not torch.is_grad_enabled()
    assert not quiet.requires_grad
    assert torch.equal(quiet, ready(method).purify(victim.images, 1, victim.indices))


def test_can_be_attacked(method, ready, victim):
    """BPDA passes a gradient whatever the purifier does; its forward is the purified image's.

    A network that adapts to its batches is never attacked.
    """
    defence = Defence(victim.classifier, [ready(method)], gradient="bpda", seed=1)
    if method.description.traits.batch_dependent:
        for attack in (purifiers.attack("fgsm"), purifiers.attack("square", queries=1)):
            with pytest.raises(UserError, match=r"adapts its classifier to each batch"):
                attack(defence, victim.images, victim.labels)
        return
    leaf = victim.images.clone().requires_grad_(True)
    logits = defence(leaf, victim.indices)
    (gradient,) = torch.autograd.grad(logits.square().sum(), leaf)
    assert torch.isfinite(gradient).all() and gradient.flatten(1).norm(dim=1).min() > 0
    purified = ready(method).purify(victim.images, 1, victim.indices)
    assert torch.equal(logits, ready(method).equipped(victim.classifier)(purified))


def test_saved_and_loaded_purifies_the_same(method, ready, victim, tmp_path):
    folder = RunFolder(tmp_path, "purifier", "trip")
    save_weights(ready(method), folder)
    recipe = ComponentSpec(component="toy", version=1, parameters={})
    spec = PurifierSpec(data="toy", train=1, classifier=None, method=recipe, seed=0)
    folder.finish(spec, [WEIGHTS], {}, 0.0, {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        other = method.make()
        other.bind(victim.classifier, victim.classifier.shape)
    load_weights(other, folder)
    frozen(other)
    assert torch.equal(
        other.purify(victim.images, 1, victim.indices),
        ready(method).purify(victim.images, 1, victim.indices),
    )


def test_weights_are_the_purifiers_alone(method, ready, victim):
    theirs = {value.data_ptr() for value in victim.classifier.state_dict().values()}
    ours = {value.data_ptr() for value in ready(method).state_dict().values() if value.numel()}
    assert not theirs & ours
    assert bool(ours) or method.cls.traits.fit is None


def test_the_classifier_stays_as_it_was(method, victim, fit_briefly):
    """Also while the purifier is fitted."""
    before = {name: value.clone() for name, value in victim.classifier.state_dict().items()}
    made = method.make()
    made.bind(victim.classifier, victim.classifier.shape)
    if made.traits.fit is not None:
        made.fit_on([victim.classifier], len(victim.images))
        made.train()
        loss = made.fit_loss(victim.images, victim.labels, victim.indices, 0)
        assert loss.dim() == 0 and torch.isfinite(loss)
        loss.backward()
        trained = [p for p in made.parameters() if p.requires_grad]  # others: in a second phase
        assert trained and all(p.grad is not None for p in trained)
    frozen(made).purify(victim.images, 1, victim.indices)
    assert not victim.classifier.training
    assert all(p.grad is None and not p.requires_grad for p in victim.classifier.parameters())
    after = victim.classifier.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def another(types, value):
    """Another value that a parameter takes."""
    for name in types:
        if name.startswith("Literal["):
            return next(other for other in choices(name) if other != value)
    return 2 * value if isinstance(value, int) else 0.5 * fraction(value)


def first_weights(method, victim, fit_briefly, parameters):
    """All weights after a few steps of the first training, from the same start."""
    made = method.make(**parameters)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        made.bind(victim.classifier, victim.classifier.shape)
    made.fit_on([victim.classifier], len(victim.images))
    few = replace(made.recipe, steps=min(made.recipe.steps, 24))
    fit_briefly(made, made.fit_loss, few, victim)
    return made.state_dict()


def test_inference_only_parameters_do_not_matter_to_the_fit(method, victim, fit_briefly):
    declared = method.description.traits.fit
    if declared is None or not declared.inference_only:
        return
    full = method.description.parameters | method.small
    types = method.description.types
    other = {name: another(types[name], full[name]) for name in declared.inference_only}
    weights, changed = (
        first_weights(method, victim, fit_briefly, parameters) for parameters in ({}, other)
    )
    assert weights.keys() == changed.keys()
    assert all(torch.equal(value, changed[name]) for name, value in weights.items())


def test_what_only_the_second_training_reads_does_not_matter_to_the_first(
    method, victim, fit_briefly
):
    declared = method.description.traits.fit
    if declared is None or declared.second is None:
        return
    second = declared.second
    coupled = COUPLED.get(method.name, {})
    types, full = method.description.types, method.description.parameters | method.small
    given = [name for name in second.only if "str" not in types[name]]  # a choice of its own
    other = {name: another(types[name], full[name]) for name in given}
    alone, followed = (
        first_weights(method, victim, fit_briefly, coupled | parameters)
        for parameters in ({second.when: False}, {second.when: True, **other})
    )
    assert alone.keys() <= followed.keys()
    assert all(torch.equal(value, followed[name]) for name, value in alone.items())


def test_its_own_network_has_a_price(method, ready, victim):
    """What it counts passes of can be run, and needs no classifier."""
    if method.description.traits.network is None:
        with pytest.raises(TypeError, match="brings no network"):
            ready(method).own_pass(victim.images)
        return
    made = method.make()
    made.bind(None, victim.classifier.shape)
    assert len(frozen(made).own_pass(victim.images)) == len(victim.images)


def test_defaults_make_a_purifier(method):
    described = method.description
    assert not described.required
    made = method.cls()
    fit = described.traits.fit
    assert hasattr(made, "recipe") is (fit is not None)
    if fit is not None:
        own = described.traits.network.fit_passes if described.traits.network else "0"
        sizes = {**described.parameters, "images": 1}
        assert evaluate(fit.passes, sizes) + evaluate(own, sizes) > 0, "a fit without a cost"
    assert {"images", "seed", "indices"} <= set(inspect.signature(made.purify).parameters)


def test_images_that_it_excludes_are_refused_when_bound(method, victim):
    """Binding reads the parameters that its trait ``images`` names."""
    purifier = method.cls()
    refuse = purifier.traits.images.replace(channels=(7,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(purifier), "traits", purifier.traits.replace(images=refuse))
        with pytest.raises(UserError, match="takes images of 7 channels; these have 1"):
            purifier.bind(victim.classifier, victim.classifier.shape)


def test_unknown_parameter_is_refused(method):
    with pytest.raises(UserError, match="has no parameter 'no_such'"):
        if method.name == "_template":
            method.description.check_parameters({"no_such": 1}, "method")
        else:
            purifiers.method(method.name, no_such=1)


def test_identity_changes_no_bit(victim):
    identity = purifiers.method("identity")
    assert torch.equal(identity.purify(victim.images), victim.images)
    defended = purifiers.defend(victim.classifier, [identity])
    assert torch.equal(defended(victim.images), victim.classifier(victim.images))
