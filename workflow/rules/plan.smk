# What there is to do. Only the main process plans; a job reads its batch's spec file.
import functools
import json

from purifiers.core.errors import UserError
from purifiers.plan.plan import make_plan, requested_documents

SCALE = config.get("scale", "smoke")
ROOT = Path(workflow.basedir)
BATCHES = "results/runs/batches"
shell.prefix(f"export PATH='{Path(sys.executable).parent}':$PATH; ")  # this environment's python
REPORT_VERSION = 3  # raised when tables must be written anew from the same runs


def from_command_line():
    """Scale and documents that the targets on the command line ask for."""
    return requested_documents(sys.argv[1:], SCALE, config.get("tables", ""))


@functools.cache
def plan(scale):
    try:
        made = make_plan(ROOT, scale, from_command_line().get(scale, ()))
        made.write_specs()
    except UserError as error:
        sys.exit(f"error: {error}")  # one line, where Snakemake would add a traceback
    return made


def batch_spec(path):
    return json.loads(Path(str(path)).read_text())


def upstream(wildcards):
    stage = wildcards.batch.partition("-")[0]
    spec = batch_spec(f"{BATCHES}/{stage}/{wildcards.batch}.spec.json")
    return [f"{BATCHES}/{name}" for name in spec["upstream"]]


asked = {}  # scale: documents or papers that are to be reported


def made_from(scale, name):
    asked.setdefault(scale, []).append(name)
    return [plan(scale).report_spec(name), *plan(scale).manifests(name)]


def everything(wildcards):
    made = plan(SCALE)
    if config.get("tables"):
        return [f"results/tables/{SCALE}/{name}.csv" for name in made.documents]
    return [f"results/tables/{SCALE}/{paper}/claims.csv" for paper in made.working_papers()]
