# The whole reproduction as one graph. The plan says what there is to do; a rule per stage does it.
#
#   snakemake                                          every implemented table, smoke scale
#   snakemake --config scale=desk                      ... at another scale
#   snakemake results/tables/smoke/aid/table_3.csv     one table
#   snakemake results/tables/timing/attacks.csv        the attacks beside other libraries
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)


include: "workflow/rules/plan.smk"
include: "workflow/rules/stages.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/timing.smk"


# A job on a cluster does not see the targets that the plan is made for; these are quick anyway.
localrules:
    all,
    document,
    paper,


rule all:
    default_target: True
    input:
        everything,


onerror:
    for scale, names in asked.items():
        shell("python -m purifiers report --scale {scale} {names} || true")
