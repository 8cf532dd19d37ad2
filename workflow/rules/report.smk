# Tables, figures and claims, written from the scores.
rule document:
    input:
        lambda wildcards: document_inputs(
            wildcards.scale, f"{wildcards.paper}/{wildcards.document}"
        ),
    output:
        report(
            "results/tables/{scale}/{paper}/{document}.csv",
            category="Single tables",
            subcategory="{paper}",
            labels={"scale": "{scale}", "document": "{document}"},
        ),
    log:
        "results/logs/report/{scale}/{paper}/{document}.log",
    wildcard_constraints:
        document="(?!claims)[a-z][a-z0-9_]*",
    priority: 1
    params:
        version=REPORT_VERSION,
    shell:
        "python -m purifiers report --scale {wildcards.scale}"
        f" {{wildcards.paper}}/{{wildcards.document}} {TO_NEW_LOG}"


# One process writes every document of the paper.
rule paper:
    input:
        lambda wildcards: paper_inputs(wildcards.scale, wildcards.paper),
    output:
        "results/tables/{scale}/{paper}/README.md",
        report(
            "results/tables/{scale}/{paper}/claims.csv",
            category="Claims",
            labels={"scale": "{scale}", "paper": "{paper}"},
        ),
        # copies, as no other output may be inside the folder of an output
        report(
            directory("results/report/{scale}/{paper}"),
            patterns=["{document}.csv", "{document}.png"],
            category="Tables and figures",
            subcategory="{paper}",
            labels={"scale": "{scale}", "document": "{document}"},
        ),
    log:
        "results/logs/report/{scale}/{paper}/claims.log",
    params:
        version=REPORT_VERSION,
    shell:
        f"python -m purifiers report --scale {{wildcards.scale}} {{wildcards.paper}} {TO_NEW_LOG}"
