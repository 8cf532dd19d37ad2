"""The audit of a defence: the attacks that it chooses, what it counts and what it refuses."""

from __future__ import annotations

import copy
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import purifiers
from purifiers.auditing.protocol import BUDGETS, choose_attacks, gradients
from purifiers.auditing.report import Rows
from purifiers.core.component import Method
from purifiers.core.errors import UserError
from purifiers.core.foreign import Foreign, measure_traits
from purifiers.core.noise import derive_seed
from purifiers.core.traits import MethodTraits
from purifiers.methods.identity import Identity
from purifiers.methods.random_sign import RandomSign

EPS = 0.1


class Blur(nn.Module):
    """A purifier from outside: differentiable, not random."""

    def forward(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, 3, stride=1, padding=1)


class Noise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images + 0.3 * torch.randn_like(images)).clamp(0, 1)


class Rounding(Method):
    """Hides its gradient."""

    traits = MethodTraits(version=1, differentiable=False)

    def purify(self, images, seed=0, indices=None):
        return (images * 4).round() / 4


def audit(victim, methods, **settings):
    defence = purifiers.defend(victim.model, methods)
    given = {"eps": EPS, "progress": False, **settings}
    return purifiers.audit(defence, victim.images, victim.labels, **given)


def test_a_bare_classifier_needs_no_audit_of_a_purifier(victim):
    report = purifiers.audit(victim.model, victim.images, victim.labels, eps=EPS, progress=False)
    assert [r.threat_model for r in report.results] == [
        "clean",
        "white_box",
        "white_box",
        "black_box",
    ]
    assert report.clean.n_correct == int(victim.correct(victim.images).sum())


def test_counts_of_a_deterministic_defence(victim):
    report = audit(victim, [Blur()])
    assert not report.random
    frame = report.to_frame().set_index("attack")
    assert (frame["draws"] == 1).all() and (frame["n"] == len(victim.images)).all()
    worst = frame["n_correct"]["worst case per image"]
    attacks = [result.n_correct for result in report.attacks]
    assert worst <= min(attacks) < report.clean.n_correct
    together = np.logical_and.reduce([r.rows.correct[0] for r in (report.clean, *report.attacks)])
    assert worst == together.sum()
    assert frame["mean_linf"].max() <= EPS + 1e-6
    own = purifiers.attack("pgd", eps=EPS, step_size=2.5 * EPS / 20, steps=20)
    again = audit(victim, [Blur()], attacks=[own]).to_frame()
    kept = ["threat_model", "gradient", "n_correct"]
    pgd = frame[frame.index.str.startswith("pgd")].reset_index()[kept]
    assert pgd.equals(again[again["attack"].str.startswith("pgd")].reset_index()[kept])


def test_a_foreign_purifier_is_measured(victim):
    for module, random, differentiable in (
        (Blur(), False, True),
        (Noise(), True, True),
        (lambda images: images.round(), False, False),
        (lambda images: images.detach(), False, False),
    ):
        method = Foreign(module)
        measure_traits(method, victim.images)
        assert (method.random, method.traits.differentiable) == (random, differentiable)
    noise = Foreign(Noise())
    state = torch.get_rng_state()
    first = noise.purify(victim.images, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, noise.purify(victim.images, 3))
    assert not torch.equal(first, noise.purify(victim.images, 4))


def test_the_gradients_follow_the_traits():
    class Descent(Identity):
        def unrolled(self, images, seed=0, indices=None):
            return images

        def step(self, images, seed=0, indices=None):
            return images

    assert gradients([]) == ["exact"]
    assert gradients([Identity()]) == ["bpda", "exact"]
    assert gradients([Identity(), Rounding()]) == ["bpda"]
    assert gradients([Descent()]) == ["bpda", "exact", "second_order"]
    assert gradients([Descent()], every=True) == ["bpda", "exact", "second_order", "one_step"]


def test_the_attacks_follow_budget_and_randomness():
    def names(methods, budget, norm="linf"):
        planned = choose_attacks(methods, 0.1, norm, BUDGETS[budget], 10)
        return {(plan.name, plan.eot_samples) for plan in planned}

    assert ("autoattack", 1) in names([], "standard")
    assert ("autoattack", 1) not in names([], "quick")
    assert names([RandomSign()], "standard") == {
        *(("pgd", 1), ("pgd", 10), ("apgd", 10), ("square", 10))
    }
    assert names([], "standard", "l2") == {("pgd_l2", 1), ("autoattack_l2", 1)}
    with_detector = purifiers.method("aid")
    assert ("auxiliary_aware", 1) in names([with_detector], "strong")


def test_draws_of_a_random_defence(victim):
    report = audit(victim, [RandomSign(eps=0.3)])
    assert report.random
    rows = report.clean.rows
    assert rows.correct.shape == (BUDGETS["quick"].draws, len(victim.images))
    assert not np.array_equal(rows.correct[0], rows.correct[1])
    frame = report.to_frame().set_index("attack")
    clean = frame.loc["clean"]
    assert clean["every_draw"] < clean["mean_draw"] < clean["majority"]
    assert all("without EOT" not in text for text in frame["warnings"])
    table = str(report)
    assert "majority of 5" in table and "all 5 draws" in table
    again = audit(victim, [RandomSign(eps=0.3)])
    assert (
        again.to_frame().drop(columns="seconds").equals(report.to_frame().drop(columns="seconds"))
    )


def test_scoring_draws_are_apart_from_the_attacks(victim):
    """With the attacker's own draws the accuracy would be that of a lucky attack."""

    class Recorder(RandomSign):
        calls: ClassVar[list[tuple[bool, int]]] = []

        def purify(self, images, seed=0, indices=None):
            self.calls.append((torch.is_grad_enabled(), seed))
            return super().purify(images, seed, indices)

    pgd = purifiers.attack("pgd", eps=EPS, steps=2, step_size=EPS)
    audit(victim, [Recorder(eps=0.3)], attacks=[pgd])
    attacking = {seed for gradient, seed in Recorder.calls if gradient}
    scoring = {seed for gradient, seed in Recorder.calls if not gradient}
    assert len(attacking) == 1 and attacking < scoring  # BPDA purifies without gradients
    defender = {derive_seed(0, "defender")} | {
        derive_seed(0, "defender", draw) for draw in range(1, 5)
    }
    assert defender < scoring and not defender & attacking


def test_majority_and_every_draw():
    rows = Rows(
        labels=np.array([1, 1, 1]),
        predictions=np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1]]),
        linf=np.zeros(3),
        l2=np.zeros(3),
    )
    assert rows.majority.tolist() == [True, True, False]
    assert rows.every.tolist() == [True, False, False]


def test_a_hidden_gradient_shows_signs(victim):
    class Dishonest(Rounding):
        traits = MethodTraits(version=1, differentiable=True)

    report = audit(victim, [Dishonest()])
    frame = report.to_frame().set_index("attack")
    assert "zero gradient" in frame["warnings"]["pgd, exact gradient"]
    assert "beaten by" in frame["warnings"]["pgd, exact gradient"]
    assert frame["warnings"]["pgd, BPDA"] == ""
    assert "pgd, exact gradient !" in str(report)


def test_an_unprepared_network_is_named(victim):
    model = nn.Sequential(victim.model)
    model.register_forward_pre_hook(lambda module, inputs: (1 - inputs[0],))
    report = purifiers.audit(model, victim.images, victim.labels, eps=EPS, progress=False)
    assert "attacked the original network" in report.to_frame()["warnings"].iloc[1]


def test_the_picture_has_a_bar_per_row(victim):
    report = audit(victim, [Blur()])
    (axes,) = report.plot().axes
    assert len(axes.patches) == len(report.to_frame())


def test_l2(victim):
    report = audit(victim, [Blur()], eps=0.5, norm="l2")
    assert {plan.name for r in report.attacks if (plan := r.plan)} == {"pgd_l2"}
    assert report.to_frame()["mean_l2"].max() <= 0.5 + 1e-5


def test_price_and_progress_are_printed(victim, capsys):
    audit(victim, [Blur()], progress=True)
    assert "audit: 6 attacks on 64 images, roughly 0:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": "quik"}, "quick"),
        ({"norm": "l3"}, "norm"),
        ({"eps": 8}, "8/255"),
        ({"attacks": [Blur()]}, "purifiers.attack"),
    ],
)
def test_wrong_settings_are_refused(victim, change, message):
    with pytest.raises(UserError, match=message) as caught:
        audit(victim, [Identity()], **change)
    assert "\n" not in str(caught.value)


def test_a_random_classifier_is_refused(victim):
    model = nn.Sequential(Noise(), victim.model)
    with pytest.raises(UserError, match="random part into a purifier"):
        purifiers.audit(model, victim.images, victim.labels, progress=False)


def test_a_lucky_attack_is_refused_on_a_random_defence(victim):
    with pytest.raises(UserError, match="lucky draw"):
        audit(victim, [RandomSign()], attacks=[purifiers.attack("autoattack")])
    lucky = purifiers.attack(
        "autoattack", lucky_draws=True, apgd_steps=1, fab_steps=1, targets=1, square_queries=1
    )
    table = audit(victim, [RandomSign()], attacks=[lucky])
    assert table.results


def test_what_is_no_purifier_is_refused(victim):
    for wrong in (RandomSign, 3):
        with pytest.raises(UserError, match="methods holds"):
            purifiers.defend(victim.model, [wrong])


def test_images_and_labels_that_do_not_fit_are_refused(victim):
    with pytest.raises(UserError, match="one label per image"):
        purifiers.audit(victim.model, victim.images, victim.labels[:3])
    with pytest.raises(UserError, match="no images"):
        purifiers.audit(victim.model, victim.images[:0], victim.labels[:0])


def test_the_model_is_left_as_it_was(victim):
    model = copy.deepcopy(victim.model).requires_grad_(True)
    with pytest.raises(UserError, match="training mode"):
        purifiers.audit(model.train(), victim.images, victim.labels, progress=False)
    model.eval()
    before = copy.deepcopy(model.state_dict())
    purifiers.audit(model, victim.images, victim.labels, eps=EPS, progress=False)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_hugging_faces_outputs_are_taken(victim):
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Model(nn.Module):
        def forward(self, images):
            return Output(victim.model(images))

    frame, same = (
        purifiers.audit(m, victim.images, victim.labels, eps=EPS, progress=False).to_frame()
        for m in (Model(), victim.model)
    )
    assert frame["n_correct"].tolist() == same["n_correct"].tolist()


def test_a_stored_set_is_no_gradient_attack(victim, tmp_path):
    """It costs no passes, and must not count as an attack of one step that beats PGD."""
    pgd = purifiers.attack("pgd", eps=EPS, steps=10, step_size=EPS / 4)
    path = tmp_path / "set.npz"
    purifiers.save_images(path, pgd(victim.model, victim.images, victim.labels), victim.labels)
    weak = purifiers.attack("pgd", eps=EPS, steps=2, step_size=0.001, random_start=False)
    attacks = [weak, purifiers.attack("stored", path=str(path), eps=EPS)]
    report = purifiers.audit(
        victim.model, victim.images, victim.labels, attacks=attacks, progress=False
    )
    by_attack = report.to_frame().set_index("attack")
    assert by_attack["n_correct"].iloc[2] < by_attack["n_correct"].iloc[1]
    assert "one step" not in by_attack["warnings"].iloc[1]
