# `make bench`: speed and strength of the attacks compared with other libraries, and speed of
# purification and training compared with plain loops. No other rule depends on these.
import runpy

TIMING = "results/timing"
TIMING_DEVICES = str(config.get("timing_device", "cpu")).split(",")
# An input, so that results older than the installed libraries are measured again: the committed
# tables of a fresh clone, and measurements made without the libraries.
MEASURED = {"runtime": 240, "mem_mb": CLUSTER.mem_mb, **ALONE} if CLUSTER else {}
PEERS = [path for path in [".peers/.ready"] if Path(path).exists()]


rule timing:
    input:
        PEERS,
    output:
        f"{TIMING}/{{device}}-{{victim}}-{{attack}}.json",
    log:
        "results/logs/timing/{device}-{victim}-{attack}.log",
    wildcard_constraints:
        device="cpu|cuda",
        victim="[a-z0-9]+",
        attack="[a-z0-9_]+",
    threads: 1
    resources:
        **MEASURED,
        gpu=lambda wildcards: int(wildcards.device != "cpu"),
    shell:
        "python -m pytest 'benchmarks/timing/test_attacks.py::test_attack"
        "[{wildcards.victim}-{wildcards.attack}]' --device {wildcards.device}"
        " --benchmark-json {output} > >(tee {log}) 2>&1"


rule timing_table:
    input:
        lambda wildcards: [
            f"{TIMING}/{device}-{victim}-{attack}.json"
            for (device, victim), plan in runpy.run_path(ROOT / "purifiers/timing/settings.py")[
                "PLANS"
            ].items()
            if device in TIMING_DEVICES
            for attack in plan.attacks
        ],
    output:
        **{kind: f"results/tables/timing/attacks.{kind}" for kind in ["csv", "md", "png", "svg"]},
    log:
        "results/logs/timing/attacks.log",
    shell:
        "python -m purifiers timing {output.csv} {input} 2> >(tee {log} >&2)"


rule speed:
    input:
        PEERS,
    output:
        f"{TIMING}/methods-{{device}}.json",
    log:
        "results/logs/timing/methods-{device}.log",
    wildcard_constraints:
        device="cpu|cuda",
    threads: 1
    resources:
        **MEASURED,
        gpu=lambda wildcards: int(wildcards.device != "cpu"),
    shell:
        "python -m pytest benchmarks/timing/test_purification.py"
        " benchmarks/timing/test_transformations.py benchmarks/timing/test_training.py"
        " --device {wildcards.device} --benchmark-json {output} > >(tee {log}) 2>&1"


rule speed_table:
    input:
        expand(f"{TIMING}/methods-{{device}}.json", device=TIMING_DEVICES),
    output:
        **{kind: f"results/tables/timing/purification.{kind}" for kind in ["csv", "md"]},
    log:
        "results/logs/timing/purification.log",
    shell:
        "python -m purifiers speed {output.csv} {input} 2> >(tee {log} >&2)"
