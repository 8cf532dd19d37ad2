# Planning. Only the main process plans; a job reads the spec file of its batch.
import functools
import json
import shlex
import subprocess

from snakemake.logging import logger

from purifiers.core.errors import UserError
from purifiers.core.future_dates import date_back
from purifiers.core.stale_lock import remove_stale_lock
from purifiers.plan import cluster
from purifiers.plan.missing_files import missing_files
from purifiers.plan.plan import make_plan, requested_documents
from purifiers.plan.workload import Workload

SCALE = config.get("scale", "smoke")
ROOT = Path(workflow.basedir)
BATCHES = "results/runs/batches"
if Path.cwd().resolve() != ROOT.resolve():  # paths are relative to the repository
    sys.exit(
        f"error: {Path.cwd()}: is not the repository: start Snakemake in {ROOT}, or with "
        f"--directory {ROOT}"
    )
remove_stale_lock(Path.cwd())
date_back([Path(BATCHES), Path("results/tables"), Path("results/report")])
PREDICTIONS = Path(BATCHES) / "predictions.json"
try:  # profiles/slurm/jobs.yaml, which only the profile for Slurm reads
    CLUSTER = cluster.Cluster.parse(config["cluster"] or {}) if "cluster" in config else None
except UserError as error:
    sys.exit(f"error: {error}")
GIVEN = {argument.partition("=")[0] for argument in sys.argv}
if CLUSTER and "--profile" in GIVEN and "--workflow-profile" not in GIVEN:
    sys.exit(
        "error: --profile also reads profiles/default, made for one machine with one GPU: write "
        "--workflow-profile profiles/slurm"
    )
PROGRAMS = shlex.quote(str(Path(sys.executable).parent))  # this environment's python first
shell.prefix(f"export PATH={PROGRAMS}:$PATH; ")
# The display of `make reproduce` reads the logs itself; else a job's messages also go to the screen.
DISPLAYED = "purifybench" in workflow.output_settings.log_handler_settings
TO_LOG = "2>> {log}" if DISPLAYED else "2> >(tee -a {log} >&2)"
TO_NEW_LOG = "2> {log}" if DISPLAYED else "2> >(tee {log} >&2)"
REPORT_VERSION = 6  # raise it when tables must be rewritten from unchanged runs


def requested_targets():
    """Documents by scale, from the targets on the command line."""
    return requested_documents(sys.argv[1:], SCALE, config.get("tables", ""))


@functools.cache
def plan(scale):
    try:
        result = make_plan(ROOT, scale, requested_targets().get(scale, ()))
        result.write_specs()
        for line in missing_files(result):
            print(f"note: {line}", file=sys.stderr)
        if DISPLAYED:
            logger.info(None, extra={"workload": Workload.of(result)})
        if CLUSTER:
            predict_costs(result)
    except UserError as error:
        sys.exit(f"error: {error}")  # Snakemake would add a traceback
    return result


def predict_costs(result):
    """For the jobs' requests; refuses a Slurm whose finished jobs would never be noticed."""
    try:
        shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True)
    except OSError:
        raise UserError(
            "scontrol: no such program: start Snakemake where Slurm is installed"
        ) from None
    settings = workflow.executor_settings  # a dry run has none
    cluster.check_status_queries(
        shown.stdout, getattr(settings, "init_seconds_before_status_checks", 0)
    )
    predicted = cluster.write_predictions(result, CLUSTER, PREDICTIONS)
    predictions.cache_clear()
    if message := cluster.longer_than_limit(predicted, CLUSTER):
        print(f"note: {message}", file=sys.stderr)


@functools.cache
def predictions():
    return json.loads(PREDICTIONS.read_text())


def request(method):
    """Resource of a cluster's job, by a method of Cluster; it grows with every attempt."""
    return lambda wildcards, attempt: method(predictions()[wildcards.batch], attempt)


# Elsewhere these resources would only be names.
REQUESTED = (
    {"runtime": request(CLUSTER.runtime), "mem_mb": request(CLUSTER.memory)} if CLUSTER else {}
)
# Another job on the node would distort a timing.
ALONE = {"slurm_extra": "--exclusive"} if CLUSTER else {}


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


def first_table(scale):
    """The table that is written before all others; none if it is not requested."""
    first = plan(scale).scale.first
    planned = any(plan(scale).score_runs(first))
    return [f"results/tables/{scale}/{first}.csv"] if planned else []


def paper_inputs(scale, paper):
    """The paper's process writes its first table too, so that it starts after that."""
    tables = [path for path in first_table(scale) if Path(path).parent.name == paper]
    return [*document_inputs(scale, paper), *tables]


def all_documents(wildcards):
    current = plan(SCALE)
    if config.get("tables"):
        return [f"results/tables/{SCALE}/{name}.csv" for name in current.documents]
    papers = current.working_papers()
    claims = [f"results/tables/{SCALE}/{paper}/claims.csv" for paper in papers]
    reports = [f"results/report/{SCALE}/{paper}" for paper in papers]
    return [*first_table(SCALE), *claims, *reports]
