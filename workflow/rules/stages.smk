# One rule per stage. A job executes a batch of runs, listed in a spec file that the plan writes.
STAGES = "dataset classifier purifier substitute attack purify predict score information norm smooth trace".split()

for stage in STAGES:

    rule:
        name:
            stage
        input:
            upstream,
            spec=f"{BATCHES}/{stage}/{{batch}}.spec.json",
        output:
            f"{BATCHES}/{stage}/{{batch}}.done.json",
        log:
            f"results/logs/{stage}/{{batch}}.log",
        wildcard_constraints:
            batch="[a-z]+-[0-9a-f]{8}",
        priority: lambda wildcards, input: int(batch_spec(input.spec).get("first", False))
        threads: lambda wildcards, input: batch_spec(input.spec)["threads"]
        resources:
            **REQUESTED,
            gpu=lambda wildcards, input: int(batch_spec(input.spec)["device"] != "cpu"),
        shell:
            f"python -m purifiers run {{input.spec}} {{output}} --threads {{threads}} {TO_LOG}"


# Reserves all cores, whatever number of threads it uses: other jobs would distort the timing. On a
# cluster it requests a whole node instead.
rule time:
    input:
        upstream,
        spec=f"{BATCHES}/time/{{batch}}.spec.json",
    output:
        f"{BATCHES}/time/{{batch}}.done.json",
    log:
        "results/logs/time/{batch}.log",
    wildcard_constraints:
        batch="[a-z]+-[0-9a-f]{8}",
    threads: lambda wildcards, input: (not CLUSTER and workflow.cores) or batch_spec(input.spec)["threads"]
    resources:
        **REQUESTED,
        **ALONE,
        gpu=lambda wildcards, input: int(batch_spec(input.spec)["device"] != "cpu"),
    params:
        threads=lambda wildcards, input: batch_spec(input.spec)["threads"],
    shell:
        f"python -m purifiers run {{input.spec}} {{output}} --threads {{params.threads}} {TO_LOG}"
