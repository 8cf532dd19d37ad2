"""Each sign of a weak attack, on both sides of its threshold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

import numpy as np
import pandas as pd
import pytest

from purifiers.core.spec import AttackSpec, ComponentSpec, Eot, ImagesSpec, MethodSpec, Subset
from purifiers.report.signs import (
    NOT_PROBED,
    Attacked,
    AttackedRun,
    Scored,
    paired_gap,
    signs,
)

N = 512
EPS = 8 / 255
PGD = {"eps": EPS, "step_size": EPS / 4, "steps": 20, "random_start": True, "stop": "never"}
METHOD = MethodSpec(component="noise", version=1, parameters={}, run=None)
SUBSET = Subset(split="test", n=N, seed=0)
IMAGES = ImagesSpec(data="mnist-1", subset=SUBSET, run=None)
HONEST = {
    **{"images": 64, "zero_gradient": 0, "nonfinite_gradient": 0},
    **{"loss_clean": 0.4, "loss_adversarial": 3.1, "loss_rose": 63},
}


def first_correct(n: int, of: int = N) -> np.ndarray:
    return np.arange(of) < n


def scored_model(name: str) -> Scored:
    return Scored(name, (METHOD,), IMAGES.data, SUBSET)


def found_in(cell: Attacked, document: Sequence[Attacked]) -> list[str]:
    """The signs, and after them ``NOT_PROBED`` where that holds."""
    found = signs(cell, document)
    return [*found.texts, *([] if found.probed else [NOT_PROBED])]


def attacked(
    name: str,
    correct: Mapping[int, np.ndarray] | np.ndarray | int,
    *,
    probe: Mapping[str, Any] | None = HONEST,
    threat_model: str = "white_box",
    component: str = "pgd",
    one_step: bool = False,
    stochastic: bool = False,
    methods: Sequence[MethodSpec] = (METHOD,),
    gradient: str = "exact",
    eot: int | None = None,
    model: str = "defended",
    labels: Sequence[int] | None = None,
    record: bool = True,
    **changes: Any,
) -> Attacked:
    """A cell of one attack; ``correct`` per seed, for one seed, or the first so many images."""
    if isinstance(correct, int):
        correct = first_correct(correct)
    by_seed = {0: correct} if isinstance(correct, np.ndarray) else correct
    recipe = ComponentSpec(component=component, version=1, parameters={**PGD, **changes})
    seeds = {}
    for seed, right in by_seed.items():
        spec = AttackSpec(
            images=IMAGES,
            classifier=f"cnn-{seed}",
            methods=tuple(methods),
            gradient=gradient,
            attack=recipe,
            seed=seed,
            eot=None if eot is None else Eot(samples=eot, combine="mean"),
        )
        truth = np.arange(len(right)) % 10 if labels is None else np.asarray(labels)
        frame = pd.DataFrame({"label": truth, "correct": right})
        direct = threat_model == "white_box"
        scored = scored_model(f"{model}-{seed}")
        seeds[seed] = AttackedRun(scored, spec if record else None, direct, probe, frame)
    return Attacked(name, threat_model, recipe, one_step, stochastic, seeds)


def probed(**changes: Any) -> list[str]:
    return found_in(attacked("a", 200, probe={**HONEST, **changes}), [])


def test_an_honest_attack_has_none() -> None:
    cell = attacked("PGD on the defence", 180, stochastic=True, eot=20)
    document = [
        cell,
        attacked("oblivious", 320, threat_model="oblivious", methods=()),
        attacked("transfer", 350, threat_model="transfer", methods=()),
        attacked("Square", 260, threat_model="black_box", component="square", gradient="none"),
        attacked("FGSM", 240, component="fgsm", one_step=True),
        attacked("BPDA", 184, gradient="bpda", eot=20),
        attacked("4/255", 250, eps=4 / 255, step_size=1 / 255, eot=20),
        attacked("single draws", 230),
    ]
    for part in document:
        assert found_in(part, document) == []
    last = attacked("0.5", 10, eps=0.5, stochastic=True, eot=20)
    assert found_in(last, [*document, last]) == []


def test_masked_gradients_show_every_sign() -> None:
    probe = {
        **{"images": 64, "probabilities": 60, "zero_gradient": 64, "nonfinite_gradient": 2},
        **{"loss_clean": 0.4, "loss_adversarial": 0.4, "loss_rose": 0},
    }
    masked = {"probe": probe, "stochastic": True}
    cell = attacked("PGD at 0.5", 470, eps=0.5, **masked)
    document = [
        cell,
        attacked("PGD", 440, **masked),
        attacked("Square", 150, threat_model="black_box", component="square", gradient="none"),
    ]
    assert found_in(cell, document) == [
        "probabilities in place of logits at 60 of 64 probed images",
        "zero gradient at 64 of 64 probed images",
        "NaN gradient at 2 of 64 probed images",
        "loss does not rise: 0.4 on clean and 0.4 on adversarial images, higher on 0 of 64",
        "beaten by 'Square' (black_box): 62.5 points lower accuracy",
        "accuracy rises with eps: 5.9 points above 'PGD'",
        "accuracy 91.8 % at eps 0.5, where every image can become the same grey image and at "
        "most 10.2 % can be correct",
        "random defence attacked without EOT",
    ]


@pytest.mark.parametrize(("zero", "sign"), [(6, False), (7, True)])
def test_more_than_a_tenth_of_the_gradients_is_zero(zero: int, sign: bool) -> None:
    expected = [f"zero gradient at {zero} of 64 probed images"] if sign else []
    assert probed(zero_gradient=zero) == expected


@pytest.mark.parametrize(("count", "sign"), [(0, False), (1, True)])
def test_a_single_nan_gradient_is_a_sign(count: int, sign: bool) -> None:
    expected = [f"NaN gradient at {count} of 64 probed images"] if sign else []
    assert probed(nonfinite_gradient=count) == expected


@pytest.mark.parametrize(
    ("changes", "sign"),
    [
        ({"loss_adversarial": 0.401}, False),
        ({"loss_adversarial": 0.4}, True),
        ({"loss_adversarial": float("nan")}, True),
        ({"loss_rose": 32}, False),
        ({"loss_rose": 31}, True),
        ({"loss_rose": 31, "correct": 62}, False),
        ({"loss_rose": 31, "correct": 63}, True),
        ({"loss_adversarial": 0.4, "loss_rose": 0, "correct": 0}, False),
        ({"loss_rose": 12, "correct": 60, "moved": 24}, False),
        ({"loss_rose": 12, "correct": 60, "moved": 25}, True),
        ({"loss_rose": 0, "correct": 60, "moved": 0}, True),
    ],
)
def test_the_loss_has_to_rise_for_half_of_what_was_right_and_changed(
    changes: dict[str, Any], sign: bool
) -> None:
    found = probed(**changes)
    assert len(found) == sign
    assert all(text.startswith("loss does not rise: 0.4 on clean and ") for text in found)


def test_attacks_without_gradients_are_not_judged_by_them() -> None:
    flat = {"zero_gradient": None, "nonfinite_gradient": None, "loss_rose": 0}
    assert probed(**flat, loss_adversarial=0.0) == []


def test_the_weakest_seeds_are_told() -> None:
    good = attacked("a", {0: first_correct(9), 1: first_correct(9), 2: first_correct(9)})
    runs = dict(good.seeds)
    for seed, zero in ((1, 40), (2, 10)):
        probe = {**HONEST, "zero_gradient": zero}
        runs[seed] = AttackedRun(
            scored_model("m"), runs[seed].attack, True, probe, runs[seed].scores
        )
    cell = Attacked("a", "white_box", good.recipe, False, False, runs)
    assert found_in(cell, []) == ["zero gradient at 50 of 128 probed images"]
    runs[0] = dataclasses.replace(runs[0], probe=None)
    assert found_in(cell, []) == ["zero gradient at 50 of 128 probed images", NOT_PROBED]


def test_not_probed() -> None:
    assert found_in(attacked("a", 100, probe=None), []) == [NOT_PROBED]
    assert found_in(attacked("a", 100, probe=None, record=False), []) == [NOT_PROBED]
    unbounded = found_in(attacked("a", 100, probe=None, eps=0.5), [])
    assert len(unbounded) == 2 and unbounded[-1] == NOT_PROBED


@pytest.mark.parametrize(("fewer", "sign"), [(0, False), (1, False), (5, False), (6, True)])
def test_six_images_of_one_side_are_no_noise(fewer: int, sign: bool) -> None:
    """2^-5 = 0.031 and 2^-6 = 0.016 around 0.025."""
    cell = attacked("a", 200)
    rival = attacked("b", 200 - fewer, threat_model="oblivious", methods=())
    points = f"{100 * fewer / N:.1f}"
    told = [f"beaten by 'b' (oblivious): {points} points lower accuracy"]
    assert found_in(cell, [cell, rival]) == (told if sign else [])


@pytest.mark.parametrize(("fewer", "sign"), [(6, False), (7, True)])
def test_two_rivals_need_more(fewer: int, sign: bool) -> None:
    """2^-6 = 0.0156 and 2^-7 = 0.0078 around 0.0125; the stronger rival is named."""
    cell = attacked("a", 200)
    rivals = [
        attacked(name, 200 - count, threat_model="transfer", methods=())
        for name, count in (("b", fewer - 1), ("c", fewer))
    ]
    found = found_in(cell, [cell, *rivals])
    assert len(found) == sign
    assert all(text.startswith("beaten by 'c' (transfer)") for text in found)


def test_discordant_images_that_balance_are_noise() -> None:
    """The sides differ on 60 images; 36 to 24 is p = 0.077, 39 to 21 is 0.014."""
    cell = attacked("a", first_correct(200))
    for gained, sign in ((36, False), (39, True)):
        right = first_correct(200 - gained)
        right[300 : 300 + 60 - gained] = True
        rival = attacked("b", right, threat_model="oblivious", methods=())
        gap = paired_gap(cell, rival)
        assert gap is not None
        points, p = gap
        assert points == pytest.approx(100 * (2 * gained - 60) / N)
        assert p == pytest.approx(sum(comb(60, k) for k in range(gained, 61)) / 2**60)
        assert bool(found_in(cell, [cell, rival])) == sign


@pytest.mark.parametrize(
    ("rival", "sign"),
    [
        ({"threat_model": "oblivious", "methods": ()}, True),
        ({"threat_model": "oblivious", "methods": (), "eps": EPS / 2}, True),
        ({"threat_model": "oblivious", "methods": (), "eps": EPS * 2}, False),
        ({"threat_model": "oblivious", "methods": (), "eps": None}, False),
        ({"threat_model": "oblivious", "methods": (), "model": "other"}, False),
        ({"threat_model": "black_box", "component": "square", "gradient": "none"}, True),
        ({"component": "fgsm", "one_step": True}, True),
        ({"component": "mim"}, False),
        ({"steps": 200}, False),
        ({"gradient": "bpda"}, True),
        ({"gradient": "bpda", "steps": 200}, False),
        ({"gradient": "bpda", "eot": 20}, False),
        ({"eot": 20}, False),
    ],
)
def test_who_should_not_be_stronger(rival: dict[str, Any], sign: bool) -> None:
    """More steps, another attack or more EOT samples may be; less knowledge may not."""
    cell = attacked("a", 300)
    assert bool(found_in(cell, [cell, attacked("b", 100, **rival)])) == sign


def test_only_attacks_on_the_model_itself_are_judged_by_others() -> None:
    oblivious = attacked("a", 300, threat_model="oblivious", methods=())
    transfer = attacked("b", 100, threat_model="transfer", methods=())
    assert found_in(oblivious, [oblivious, transfer]) == []
    single = attacked("c", 300, component="fgsm", one_step=True)
    assert found_in(single, [single, attacked("d", 200, one_step=True, component="fgm")]) == []


def test_the_better_gradient_is_named() -> None:
    exact, bpda = attacked("exact", 300), attacked("bpda", 200, gradient="bpda")
    told = ["beaten by 'bpda' (bpda gradient): 19.5 points lower accuracy"]
    assert found_in(exact, [exact, bpda]) == told
    assert found_in(bpda, [exact, bpda]) == []
    fgsm = attacked("FGSM", 200, component="fgsm", one_step=True)
    (sign,) = found_in(exact, [exact, fgsm])
    assert sign.startswith("beaten by 'FGSM' (exact gradient, one step)")


def test_seeds_of_an_image_count_once() -> None:
    """Five images, lost under three seeds each, are five images."""

    def seeds(n: int) -> dict[int, np.ndarray]:
        return {seed: first_correct(n) for seed in range(3)}

    for fewer, p in ((5, 2**-5), (6, 2**-6)):
        cell = attacked("a", seeds(200))
        rival = attacked("b", seeds(200 - fewer), threat_model="oblivious", methods=())
        assert paired_gap(cell, rival) == (pytest.approx(100 * fewer / N), pytest.approx(p))
    only = attacked("c", {1: first_correct(100), 7: first_correct(0)})
    assert paired_gap(cell, only) == (pytest.approx(100 * 100 / N), pytest.approx(2.0**-100))
    assert paired_gap(cell, attacked("d", {7: first_correct(0)})) is None


def test_only_common_images_are_compared() -> None:
    cell, rival = attacked("a", 400), attacked("b", 400)
    run = rival.seeds[0]
    run.scores.index = pd.Index(range(256, 256 + N))
    assert paired_gap(cell, rival) == (pytest.approx(100 * (144 - 256) / 256), 1.0)
    run.scores.index = pd.Index(range(N, 2 * N))
    assert paired_gap(cell, rival) is None


@pytest.mark.parametrize(("rise", "sign"), [(-40, False), (0, False), (5, False), (6, True)])
def test_accuracy_must_not_rise_with_eps(rise: int, sign: bool) -> None:
    small = attacked("8/255", 200)
    large = attacked("16/255", 200 + rise, eps=2 * EPS, step_size=EPS / 2)
    told = [f"accuracy rises with eps: {100 * rise / N:.1f} points above '8/255'"]
    assert found_in(large, [small, large]) == (told if sign else [])
    assert found_in(small, [small, large]) == []


@pytest.mark.parametrize(
    "other", [{"steps": 40}, {"eot": 20}, {"gradient": "bpda"}, {"component": "mim"}]
)
def test_only_eps_and_step_size_may_differ(other: dict[str, Any]) -> None:
    small = attacked("8/255", 200, **other)
    large = attacked("16/255", 300, eps=2 * EPS)
    assert not [text for text in found_in(large, [small, large]) if "rises" in text]


@pytest.mark.parametrize(
    ("correct", "eps", "sign"),
    [(512, 0.49, False), (52, 0.5, False), (65, 0.5, False), (66, 0.5, True), (66, 1.0, True)],
)
def test_an_unbounded_attack_leaves_no_more_than_chance(
    correct: int, eps: float, sign: bool
) -> None:
    """52 of 512 images have the first label, 10.16 %; Wilson's interval begins at 10.09 % for 65
    correct ones and at 10.26 % for 66."""
    found = found_in(attacked("a", correct, eps=eps), [])
    assert len(found) == sign
    assert all(text.startswith(f"accuracy 12.9 % at eps {eps:g}, ") for text in found)


def test_chance_is_the_share_of_the_most_frequent_label() -> None:
    labels = [0] * 256 + [1] * 256
    assert found_in(attacked("a", 270, eps=0.5, labels=labels), []) == []
    assert len(found_in(attacked("a", 290, eps=0.5, labels=labels), [])) == 1


def test_more_seeds_do_not_narrow_the_unbounded_interval() -> None:
    seeds = {seed: first_correct(65) for seed in range(20)}
    assert found_in(attacked("a", seeds, eps=0.5), []) == []


@pytest.mark.parametrize(
    ("changes", "sign"),
    [
        ({"stochastic": True}, True),
        ({"stochastic": True, "eot": 1}, True),
        ({"stochastic": True, "eot": 2}, False),
        ({"stochastic": False}, False),
        ({"stochastic": True, "methods": (), "threat_model": "oblivious"}, False),
        ({"stochastic": True, "threat_model": "black_box", "gradient": "none"}, True),
    ],
)
def test_random_defences_want_eot(changes: dict[str, Any], sign: bool) -> None:
    expected = ["random defence attacked without EOT"] if sign else []
    assert found_in(attacked("a", 200, **changes), []) == expected
