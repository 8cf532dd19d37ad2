# The whole reproduction as one graph: the plan lists the runs, one rule per stage executes them.
#
#   snakemake                                          every implemented table, smoke scale
#   snakemake --config scale=desk                      ... at another scale
#   snakemake results/tables/smoke/aid/table_3.csv     one table
#   snakemake results/tables/timing/attacks.csv        the attacks compared with other libraries
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)


include: "workflow/rules/plan.smk"
include: "workflow/rules/stages.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/timing.smk"


# These need a plan of the requested targets, which cluster jobs do not know; they are quick anyway.
localrules:
    all,
    document,
    paper,
    timing_table,
    speed_table,


rule all:
    default_target: True
    input:
        all_documents,


onerror:
    for scale, names in requested.items():
        shell("python -m purifiers report --scale {scale} {names} || true")
