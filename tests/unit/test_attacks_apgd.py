"""APGD against the paper's formulas, a plain rewriting of its algorithm, and AutoAttack's own."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor
from torch.nn import functional as F

from purifiers.attacks.apgd import Apgd, checkpoints, cw, dlr, dlr_targeted, random_start
from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.core.formula import evaluate

EPS = 0.1
TARGETS = {"ce": 1, "cw": 1, "dlr": 1, "dlr_targeted": 2}


@pytest.fixture(scope="session")
def exact(victim):
    """The victim in double precision, so that no sign hangs on a last bit."""
    double = copy.deepcopy(victim.model).double()
    return lambda images: double(images.double()).float()


def noting(model, seen):
    """The model, which puts the images of every query into ``seen``."""

    def query(images):
        seen.append(images.detach().clone())
        return model(images)

    return query


@pytest.mark.parametrize("steps", [100, 1000])
def test_checkpoints_are_the_papers(steps):
    """w_j = ceil(p_j N) with p_0 = 0, p_1 = .22, p_j+1 = p_j + max(p_j - p_j-1 - .03, .06)."""
    p = [0.0, 0.22]
    while p[-1] < 1.0:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    expected = {math.ceil(round(share * steps, 6)) for share in p if share <= 1.0}
    assert checkpoints(steps) == tuple(sorted(expected))


def test_checkpoints_of_few_steps_are_the_packages():
    assert checkpoints(20) == (0, 4, 7, 9, *range(10, 21))
    assert checkpoints(1) == (0, 1)


def test_checkpoints_of_100_steps():
    assert checkpoints(100) == (0, 22, 41, 57, 70, 80, 87, 93, 99)


def plain_apgd(
    model, image: Tensor, label: Tensor, start: Tensor, steps: int, rho: float, every_other: bool
):
    """Algorithm 1 for one image, written as it stands in the paper.

    Returns:
        the points x(k) before a return to x_max, and for each checkpoint whether it halved.
    """

    def value_and_slope(x: Tensor) -> tuple[float, Tensor]:
        x = x.clone().requires_grad_(True)
        loss = F.cross_entropy(model(x), label)
        return loss.item(), torch.autograd.grad(loss, x)[0]

    def projected(x: Tensor) -> Tensor:
        return x.clamp(image - EPS, image + EPS).clamp(0, 1)

    f, slope = value_and_slope(start)
    x, values, visited = [start], [f], [start]
    best, best_f, best_slope = start, f, slope
    size, checked, halved, history = 2 * EPS, f, False, []
    marks = checkpoints(steps)
    for k in range(1, steps + 1):
        z = projected(x[-1] + size * slope.sign())
        if k > 1:
            z = projected(x[-1] + 0.75 * (z - x[-1]) + 0.25 * (x[-1] - x[-2]))
        f, slope = value_and_slope(z)
        x.append(z)
        values.append(f)
        visited.append(z)
        if f > best_f:
            best, best_f, best_slope = z, f, slope
        if k in marks:
            last = max(mark for mark in marks if mark < k)
            rises = sum(values[i + 1] > values[i] for i in range(last, k))
            few = rises < rho * (k - last)
            halved = few or (not halved and (best_f == checked or every_other))
            checked = best_f
            history.append(halved)
            if halved:
                size, slope, values[-1], x[-1] = size / 2, best_slope, best_f, best
    return visited, history


@pytest.mark.parametrize(("rho", "every_other"), [(0.75, False), (0.3, False), (0.3, True)])
def test_every_iterate_is_the_papers(exact, victim, rho, every_other):
    steps, decisions = 60, []
    for row in range(4):
        image, label = victim.images[row : row + 1], victim.labels[row : row + 1]
        start = random_start(image, EPS, 3, torch.tensor([row]), run=0)
        expected, history = plain_apgd(exact, image, label, start, steps, rho, every_other)
        seen: list[Tensor] = []
        attack = Apgd(eps=EPS, steps=steps, rho=rho, every_other=every_other)
        attack(noting(exact, seen), image, label, 3, [row])
        # the first query is about the image itself
        torch.testing.assert_close(torch.cat(seen[1:]), torch.cat(expected), atol=1e-6, rtol=0)
        decisions += history
    assert 0 < sum(decisions) < len(decisions)


def test_losses_are_the_papers():
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0, -1.0], [5.0, 1.0, 3.0, 2.0, -1.0]])
    labels, rivals = torch.tensor([0, 3]), torch.tensor([3, 0])
    expected = torch.tensor([-(5 - 3) / (5 - 2), -(2 - 5) / (5 - 2)])
    torch.testing.assert_close(dlr(logits, labels, rivals), expected)
    expected = torch.tensor([-(5 - 2) / (5 - 1.5), -(2 - 5) / (5 - 1.5)])
    torch.testing.assert_close(dlr_targeted(logits, labels, rivals), expected)
    torch.testing.assert_close(cw(logits, labels, rivals), torch.tensor([3.0 - 5.0, 5.0 - 2.0]))


def test_random_start_touches_the_ball_and_belongs_to_the_image():
    images = torch.full((6, 1, 8, 8), 0.5)
    start = random_start(images, EPS, 1, torch.arange(6), run=0)
    widths = (start - images).abs().amax(dim=(1, 2, 3))
    torch.testing.assert_close(widths, torch.full((6,), EPS), atol=1e-6, rtol=0)
    assert torch.equal(start[3:4], random_start(images[:1], EPS, 1, torch.tensor([3]), run=0))
    for other in (
        random_start(images, EPS, 2, torch.arange(6), run=0),
        random_start(images, EPS, 1, torch.arange(6), run=1),
    ):
        assert (other != start).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("stop", ["never", "success"])
def test_linear_optimum(stop):
    """The corner of the ball; an image that cannot be broken gets there under either rule."""
    noise = torch.Generator().manual_seed(1)
    weights = torch.randn(1, 2, 3, 3, generator=noise)
    images = torch.rand(6, 2, 3, 3, generator=noise)

    def model(x):
        score = (x * weights).sum(dim=(1, 2, 3))
        return torch.stack([score + 9, -score], dim=1)

    labels = torch.zeros(6, dtype=torch.int64)
    adversarial = Apgd(eps=EPS, steps=10, stop=stop)(model, images, labels)
    optimum = (images - EPS * weights.sign()).clamp(0, 1)
    torch.testing.assert_close(adversarial, optimum, atol=1e-6, rtol=0)


def of_autoattack(loss: str, model, images: Tensor, labels: Tensor, seed: int, same_start: bool):
    """Adversarial images of the package's APGD, if wanted from the starts of ours."""
    settings = {"n_iter": 100, "eps": EPS, "seed": seed}
    if loss == "dlr_targeted":
        attack = APGDAttack_targeted(model, n_target_classes=TARGETS[loss], **settings)
    else:
        attack = APGDAttack(model, loss=loss, **settings)
    if same_start:
        run, runs = attack.attack_single_run, iter(range(100))

        def from_our_start(x, y):
            flat = images.flatten(1)
            rows = torch.cdist(x.flatten(1), flat).argmin(dim=1)
            return run(x, y, x_init=random_start(x, EPS, seed, rows, next(runs)))

        attack.attack_single_run = from_our_start
    with torch.random.fork_rng(devices=[]):
        return attack.perturb(images, labels)


@pytest.mark.parametrize(
    ("loss", "same_start"),
    [("ce", True), ("dlr", True), ("dlr_targeted", True), ("ce", False), ("dlr", False)],
)
def test_breaks_what_autoattacks_apgd_breaks(victim, loss, same_start):
    images, labels = victim.images, victim.labels
    attack = Apgd(eps=EPS, loss=loss, targets=TARGETS[loss], stop="success")
    ours = victim.correct(attack(victim.model, images, labels, seed=4))
    theirs = of_autoattack(loss, victim.model, images, labels, 4, same_start)
    assert 0.2 < ours.float().mean() < 0.8
    assert (ours != victim.correct(theirs)).sum() <= 1


@pytest.mark.parametrize("loss", TARGETS)
def test_stop_at_success_breaks_the_same_images(exact, victim, loss):
    images, labels = victim.images, victim.labels
    made, queries = {}, {}
    for stop in ("never", "success"):
        seen: list[Tensor] = []
        attack = Apgd(eps=EPS, steps=20, loss=loss, targets=TARGETS[loss], stop=stop)
        made[stop] = attack(noting(exact, seen), images, labels)
        queries[stop] = sum(map(len, seen))
    survivors = victim.correct(made["never"])
    assert 0 < survivors.sum() < len(survivors)
    assert torch.equal(survivors, victim.correct(made["success"]))
    assert torch.equal(made["never"][survivors], made["success"][survivors])
    assert queries["success"] < 0.9 * queries["never"]
    if loss == "ce":
        never, success = (
            F.cross_entropy(exact(made[stop]), labels, reduction="none") for stop in made
        )
        assert (never >= success).all()
        assert never[~survivors].mean() > 1.1 * success[~survivors].mean()


def test_a_misclassified_point_goes_before_a_higher_loss():
    """Four queries: the image, the start, a misclassified point, one of a higher loss."""
    script = [[1.0, 0.0, 0.0, 0.0], [1.0, 0.5, 0.5, 0.5], [1.0, 1.1, -9, -9], [1.0, 0.9, 0.9, 0.9]]
    losses = F.cross_entropy(
        torch.tensor(script), torch.zeros(4, dtype=torch.int64), reduction="none"
    )
    assert losses[0] < losses[1] < losses[3] > losses[2]
    seen: list[Tensor] = []

    def model(x):
        seen.append(x.detach().clone())
        return torch.tensor([script[len(seen) - 1]]) + 1e-4 * x.mean() * torch.arange(4)

    image = torch.full((1, 1, 2, 2), 0.5)
    adversarial = Apgd(eps=EPS, steps=2)(model, image, torch.tensor([0]))
    assert torch.equal(adversarial, seen[2])
    assert not torch.equal(adversarial, seen[3])


def test_what_is_misclassified_stays_broken(victim):
    wrong = (victim.labels + 1) % 10
    already = victim.model(victim.images).argmax(dim=1) != wrong
    assert already.sum() > 50
    adversarial = Apgd(eps=EPS, steps=3, stop="success")(victim.model, victim.images, wrong)
    assert torch.equal(adversarial[already], victim.images[already])
    adversarial = Apgd(eps=EPS, steps=3)(victim.model, victim.images, wrong)
    assert (victim.model(adversarial).argmax(dim=1) != wrong)[already].all()
    assert not torch.equal(adversarial[already], victim.images[already])


@pytest.mark.parametrize(
    "more", [{"restarts": 2}, {"loss": "dlr_targeted", "targets": 2}], ids=["restart", "target"]
)
def test_further_runs_are_for_what_is_not_broken(victim, more):
    images, labels = victim.images, victim.labels
    once = {**more, "restarts": 1, "targets": 1}
    first = Apgd(eps=EPS, steps=2, **once)(victim.model, images, labels)
    seen: list[Tensor] = []
    both = Apgd(eps=EPS, steps=2, **more)(noting(victim.model, seen), images, labels)
    kept = victim.correct(first)
    assert [len(batch) for batch in seen] == [64] * 4 + [int(kept.sum())] * 3
    assert torch.equal(both[~kept], first[~kept])
    assert victim.correct(both).sum() <= kept.sum()
    assert not torch.equal(both[kept], first[kept])
    assert not torch.equal(seen[1][kept], seen[4])


def test_targets_are_cut_to_the_classes(victim):
    def five(x):
        return victim.model(x)[:, :5]

    chosen = victim.labels < 5
    images, labels = victim.images[chosen][:8], victim.labels[chosen][:8]
    seen: list[Tensor] = []
    attack = Apgd(eps=1e-4, steps=2, loss="dlr_targeted", targets=9)
    attack(noting(five, seen), images, labels)
    assert len(seen) == 1 + 4 * 3


@pytest.mark.parametrize("loss", TARGETS)
def test_draws_and_chunks_keep_images_and_aims_together(exact, victim, loss):
    """A deterministic model's mean over draws, in parts of the batch, is the model's."""

    def defence(images):
        return exact(images)

    images, labels = victim.images[:20], victim.labels[:20]
    attack = Apgd(eps=EPS, steps=5, loss=loss, targets=TARGETS[loss])
    plain = attack(exact, images, labels)
    defence.eot_samples, defence.chunk = 2, 7
    torch.testing.assert_close(attack(defence, images, labels), plain, atol=1e-6, rtol=0)


def test_successes_of_low_precision_are_confirmed(victim):
    """Where the quick model claims too much, an image climbs on."""

    def quick(images):
        return victim.model(images).roll(1, dims=1)

    images, labels = victim.images[:20], victim.labels[:20]
    keep = victim.correct(victim.images)[:20]
    images, labels = images[keep], labels[keep]
    attack = Apgd(eps=0.01, steps=3, stop="success")
    assert torch.equal(attack(quick, images, labels), images)
    quick.exact = victim.model
    assert not (attack(quick, images, labels) == images).flatten(1).all(dim=1).any()


def test_batches_and_batch_mates_do_not_matter(exact, victim):
    attack = Apgd(eps=EPS, steps=30, restarts=2, stop="success")
    images, labels, indices = victim.images, victim.labels, torch.arange(64) + 500
    whole = attack(exact, images, labels, 2, indices)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    parts = [attack(exact, images[r], labels[r], 2, indices[r]) for r in order.split(19)]
    torch.testing.assert_close(torch.cat(parts)[order.argsort()], whole, atol=1e-6, rtol=0)


def test_price_is_not_exceeded(victim):
    for settings in ({"restarts": 2}, {"loss": "dlr_targeted", "targets": 3}):
        seen: list[Tensor] = []
        attack = Apgd(eps=0.01, steps=4, **settings)
        attack(noting(victim.model, seen), victim.images, victim.labels)
        price = evaluate(registry.describe("attack", "apgd").traits.passes, vars(attack))
        backwards = sum(map(len, seen[1:]))
        assert 0.9 < (sum(map(len, seen)) + 2 * backwards) / 64 / price <= 1


def test_wrong_parameters_are_refused(victim):
    with pytest.raises(UserError, match=r"loss is 'dlr_target'.*did you mean 'dlr_targeted'"):
        Apgd(loss="dlr_target")
    with pytest.raises(UserError, match="only loss 'dlr_targeted' has targets"):
        Apgd(targets=9)
    with pytest.raises(UserError, match="restarts is 0"):
        Apgd(restarts=0)
    with pytest.raises(UserError, match="3 classes, but loss 'dlr_targeted' needs 4"):
        Apgd(loss="dlr_targeted")(
            lambda x: victim.model(x)[:, :3], victim.images[:2], torch.tensor([0, 1])
        )
