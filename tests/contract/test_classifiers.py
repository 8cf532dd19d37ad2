"""What every classifier promises."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from purifiers.core.artifacts import RunFolder
from purifiers.core.component import Classifier, build
from purifiers.core.errors import UserError
from purifiers.core.spec import ClassifierSpec, ComponentSpec
from purifiers.stages._context import WEIGHTS, load_weights, save_weights

SHAPE, CLASSES = (1, 16, 16), 10


def seeded(classifier, seed=0, shape=SHAPE, classes=CLASSES) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return classifier.make(shape, classes)


def taps_of(made: Classifier) -> tuple[str, ...]:
    if not made.TAPS:
        pytest.skip("this classifier names no inner representation")
    return made.TAPS


@pytest.mark.parametrize(("shape", "classes"), [(SHAPE, 10), ((3, 32, 32), 7)])
def test_logits(classifier, shape, classes):
    made = seeded(classifier, shape=shape, classes=classes)
    assert (made.shape, made.classes) == (shape, classes)
    images = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    for mode in (True, False):
        logits = made.train(mode)(images)
        assert logits.shape == (5, classes) and logits.dtype == torch.float32
        assert torch.isfinite(logits).all()
        assert logits.std() > 0


def test_an_image_has_its_logits_in_any_batch(classifier, victim):
    made = seeded(classifier).eval()
    with torch.no_grad():
        whole = made(victim.images[:9])
        parts = torch.cat([made(part) for part in victim.images[:9].split(4)])
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


def test_features(classifier, victim):
    made = seeded(classifier).eval()
    taps = taps_of(made)
    assert len(set(taps)) == len(taps)
    with torch.no_grad():
        every = made.features(victim.images[:3], taps)
        backwards = made.features(victim.images[:3], taps[::-1])
    assert len(every) == len(taps)
    for found, same in zip(every, backwards[::-1], strict=True):
        assert found.dim() == 4 and len(found) == 3 and found.dtype == torch.float32
        assert torch.isfinite(found).all()
        assert torch.equal(found, same)


def test_a_shallow_tap_runs_nothing_deeper(classifier, victim):
    made = seeded(classifier).eval()
    ran: set[nn.Module] = set()
    for module in made.modules():
        module.register_forward_hook(lambda module, *_: ran.add(module))
    sets = []
    for tap in taps_of(made):
        ran.clear()
        made.features(victim.images[:2], (tap,))
        sets.append(set(ran))
    ran.clear()
    made(victim.images[:2])
    sets.append(set(ran))
    assert sets[0]
    for shallow, deep in itertools.pairwise(sets):
        assert shallow < deep


def test_unknown_tap_is_refused_with_a_suggestion(classifier, victim):
    made = seeded(classifier)
    tap = taps_of(made)[0]
    with pytest.raises(UserError, match=re.escape(f"(did you mean {tap!r}?)")):
        made.features(victim.images[:1], (f"{tap}x",))


def test_saved_and_loaded_gives_the_same_logits(classifier, victim, tmp_path):
    first, second = seeded(classifier, 0), seeded(classifier, 1)
    first.train()(victim.images)  # so that running statistics are not the initial ones
    folder = RunFolder(tmp_path, "classifier", "trip")
    save_weights(first, folder)
    recipe = ComponentSpec(component="toy", version=1, parameters={})
    spec = ClassifierSpec(data="toy", train=1, classifier=recipe, training=recipe, seed=0)
    folder.finish(spec, [WEIGHTS], {}, 0.0, {})
    assert not torch.equal(first.eval()(victim.images), second.eval()(victim.images))
    load_weights(second, folder)
    assert torch.equal(first(victim.images), second(victim.images))


def test_learns(classifier, victim):
    made = seeded(classifier).train()
    optimizer = torch.optim.Adam(made.parameters(), lr=0.005)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = functional.cross_entropy(made(victim.images), victim.labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.parameters())
    assert losses[-1] < 0.9 * losses[0]


def test_defaults_make_a_classifier(classifier):
    required = {name: classifier.small[name] for name in classifier.description.required}
    with torch.device("meta"):  # at full size, without its memory
        made = build(classifier.cls, (3, 32, 32), 10, **required)
    assert sum(p.numel() for p in made.parameters()) > 0
