# Planning. Only the main process plans; a job reads the spec file of its batch.
import functools
import json
import shlex

from purifiers.core.errors import UserError
from purifiers.core.stale_lock import remove_stale_lock
from purifiers.plan.plan import make_plan, requested_documents

SCALE = config.get("scale", "smoke")
ROOT = Path(workflow.basedir)
BATCHES = "results/runs/batches"
if Path.cwd().resolve() != ROOT.resolve():  # paths are relative to the repository
    sys.exit(
        f"error: {Path.cwd()}: is not the repository: start Snakemake in {ROOT}, or with "
        f"--directory {ROOT}"
    )
remove_stale_lock(Path.cwd())
PROGRAMS = shlex.quote(str(Path(sys.executable).parent))  # this environment's python first
shell.prefix(f"export PATH={PROGRAMS}:$PATH; ")
REPORT_VERSION = 4  # raise it when tables must be rewritten from unchanged runs


def requested_targets():
    """Documents by scale, from the targets on the command line."""
    return requested_documents(sys.argv[1:], SCALE, config.get("tables", ""))


@functools.cache
def plan(scale):
    try:
        result = make_plan(ROOT, scale, requested_targets().get(scale, ()))
        result.write_specs()
    except UserError as error:
        sys.exit(f"error: {error}")  # Snakemake would add a traceback
    return result


def batch_spec(path):
    return json.loads(Path(str(path)).read_text())


def upstream(wildcards):
    stage = wildcards.batch.partition("-")[0]
    spec = batch_spec(f"{BATCHES}/{stage}/{wildcards.batch}.spec.json")
    return [f"{BATCHES}/{name}" for name in spec["upstream"]]


requested = {}  # scale to the documents or papers to report


def document_inputs(scale, name):
    requested.setdefault(scale, []).append(name)
    return [plan(scale).report_spec(name), *plan(scale).manifests(name)]


def all_documents(wildcards):
    current = plan(SCALE)
    if config.get("tables"):
        return [f"results/tables/{SCALE}/{name}.csv" for name in current.documents]
    return [f"results/tables/{SCALE}/{paper}/claims.csv" for paper in current.working_papers()]
