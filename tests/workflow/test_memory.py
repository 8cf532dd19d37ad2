"""The memory of a stage does not grow with the number of test images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Anonymous memory alone: pages of a mapped file count as resident but can be dropped at any time.
# All sizes in one process, the first as a warm-up: two processes differ by some 25 MB for no reason
# of ours, and the first run imports what the later ones find.
PROGRAM = """
import json, sys, threading, time
from pathlib import Path
import numpy as np, torch
from purifiers.core.artifacts import RunFolder
from purifiers.core.spec import (
    AttackSpec, ClassifierSpec, ComponentSpec, DatasetSpec, ImagesSpec, MethodSpec, PurifySpec,
    ScoreSpec, Subset,
)
from purifiers.stages import attack, purify, score
from purifiers.stages._context import Context, save_weights
from purifiers.stages._opening import new_classifier, open_data

def recipe(name, **parameters):
    return ComponentSpec(component=name, version=1, parameters=parameters)

torch.set_num_threads(1)
peak, done = 0, False

def watch():
    global peak
    while not done:
        for line in open("/proc/self/status"):
            if line.startswith("RssAnon"):
                peak = max(peak, int(line.split()[1]))
        time.sleep(0.02)

def attack_purify_score(root, n):
    context = Context(root, "cpu", 1, 64, 60.0)
    data = RunFolder(root, "dataset", "toy-00000000")
    data.path.mkdir(parents=True)
    for split, count in (("train", 8), ("test", n)):
        images = np.lib.format.open_memmap(
            data.path / f"{split}_images.npy", "w+", np.uint8, (count, 3, 32, 32)
        )
        images[:] = 7
        np.save(data.path / f"{split}_labels.npy", np.zeros(count, np.int64))
    files = [f"{split}_{kind}.npy" for split in ("train", "test") for kind in ("images", "labels")]
    summary = {"shape": [3, 32, 32], "classes": 10, "sizes": {}, "source": "", "note": ""}
    data.finish(DatasetSpec(dataset=recipe("toy")), files, summary, 0.0, {})
    network = recipe("wide_resnet", depth=10, widen_factor=1, first_stride=2)
    trained = ClassifierSpec(
        data=data.id, train=8, classifier=network, training=recipe("natural"), seed=0
    )
    folder = RunFolder(root, "classifier", "toy-11111111")
    folder.path.mkdir(parents=True)
    save_weights(new_classifier(network, open_data(context, data.id)), folder)
    folder.finish(trained, ["weights.safetensors"], {}, 0.0, {})
    subset = Subset(split="test", n=n, seed=0)
    clean = ImagesSpec(data=data.id, subset=subset, run=None)

    def finished(module, name, spec):
        folder = RunFolder(root, spec.stage, name)
        folder.path.mkdir(parents=True)
        outcome = module.run(folder, spec, context)
        folder.finish(spec, outcome.files, outcome.summary, 0.0, {})
        made = ImagesSpec(data=data.id, subset=subset, run=name, stage=spec.stage)
        return made, outcome

    fgsm = recipe("fgsm", eps=0.03)
    attack_spec = AttackSpec(
        images=clean, classifier=folder.id, methods=(), gradient="exact", attack=fgsm, seed=0
    )
    adversarial, _ = finished(attack, "toy-44444444", attack_spec)
    method = MethodSpec(component="identity", version=1, parameters={}, run=None)
    purify_spec = PurifySpec(images=adversarial, classifier=folder.id, method=method, seed=0)
    purified, _ = finished(purify, "toy-22222222", purify_spec)
    score_spec = ScoreSpec(images=purified, classifier=folder.id, attack=fgsm)
    _, outcome = finished(score, "toy-33333333", score_spec)
    return outcome.summary["n"]

thread = threading.Thread(target=watch)
thread.start()
found = []
for n in map(int, sys.argv[2:]):
    peak = 0
    scored = attack_purify_score(Path(sys.argv[1]) / str(n), n)
    found.append({"n": scored, "peak_kib": peak})
done = True
thread.join()
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_attacking_purifying_and_scoring_hold_a_batch_at_a_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "999", "1000", "12000"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    _, few, many = json.loads(done.stdout.splitlines()[-1])
    assert (few["n"], many["n"]) == (1000, 12000)
    as_floats = 4 * 3 * 32 * 32 / 1024  # KiB per image, if all were held
    assert many["peak_kib"] - few["peak_kib"] < 0.25 * (12000 - 1000) * as_floats
