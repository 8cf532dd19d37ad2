"""Command line of PurifyBench: ``python -m purifiers <command>``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from purifiers.core.allocation import in_slurm_job
from purifiers.core.artifacts import RunFolder, read_json, write_json
from purifiers.core.errors import UserError
from purifiers.core.gpu_slot import claim_gpu
from purifiers.core.parameters import argument


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a :class:`UserError` prints one line on stderr and returns status 2."""
    parser = argparse.ArgumentParser(prog="python -m purifiers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="execute the runs of one job")
    run.add_argument("spec", type=Path)
    run.add_argument("manifest", type=Path)
    run.add_argument("--threads", type=argument("Count"), default=1)
    run.set_defaults(function=_run)

    plan = commands.add_parser("plan", help="show the runs to execute and their cost")
    plan.add_argument("--scale", default="smoke")
    plan.add_argument("documents", nargs="*", help="such as aid/table_3 or aid; all by default")
    plan.add_argument("--card", default="", help="device kind of the prices, such as h200 or cpu")
    plan.add_argument(
        "--rate", type=argument("NonNegative"), help="price of a device-hour, to show money"
    )
    plan.set_defaults(function=_plan)

    data = commands.add_parser("data", help="fetch and check the data sets of a scale")
    data.add_argument("--scale", default="smoke")
    data.set_defaults(function=_data)

    report = commands.add_parser("report", help="write the tables of the finished runs")
    report.add_argument("--scale", default="smoke")
    report.add_argument("documents", nargs="*", help="such as aid/table_3 or aid")
    report.set_defaults(function=_report)

    status = commands.add_parser("status", help="renew the generated parts of two pages")
    status.add_argument(
        "--check", action="store_true", help="only check whether they are up to date"
    )
    status.set_defaults(function=_status)

    site = commands.add_parser("site", help="write a static site of the committed tables")
    site.add_argument("--out", type=Path, help="folder of the site (default results/site)")
    site.set_defaults(function=_site)

    measure = commands.add_parser("measure", help="measure the planned networks for the prices")
    measure.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    measure.add_argument(
        "--precision", action="append", help="float32 (the default), tf32 or bfloat16; repeatable"
    )
    measure.add_argument(
        "--from",
        dest="selfcheck",
        type=Path,
        metavar="FILE",
        help="measure nothing; take the device's throughput from a selfcheck.json",
    )
    measure.add_argument("documents", nargs="*", help="such as aid/table_3; all by default")
    measure.set_defaults(function=_measure)

    timing = commands.add_parser(
        "timing", help="write the table of attacks compared with other libraries"
    )
    timing.add_argument(
        "table", type=Path, nargs="?", help="the CSV to write; the chart goes to the same folder"
    )
    timing.add_argument(
        "measurements", type=Path, nargs="*", help="JSON files of benchmarks/timing"
    )
    timing.add_argument(
        "--selfcheck",
        type=Path,
        help="without a table: write attacks_<device> and purification_<device> in "
        "results/tables/timing from this file (default selfcheck.json)",
    )
    timing.set_defaults(function=_timing)

    speed = commands.add_parser(
        "speed", help="write the table of methods compared with plain loops"
    )
    speed.add_argument(
        "table", type=Path, help="the CSV to write; Markdown goes to the same folder"
    )
    speed.add_argument("measurements", type=Path, nargs="+", help="JSON files of benchmarks/timing")
    speed.set_defaults(function=_speed)

    export = commands.add_parser("export", help="write a finished adversarial set to one file")
    export.add_argument("run", help="id or folder of a run of stage attack or purify")
    export.add_argument("file", type=Path, help="the .npz or .parquet to write")
    export.set_defaults(function=_export)

    audit = commands.add_parser(
        "audit", help="attack your own network and purifiers", add_help=False
    )
    audit.set_defaults(function=_audit)

    selfcheck = commands.add_parser(
        "selfcheck", help="check the suite on a device in minutes", add_help=False
    )
    selfcheck.set_defaults(function=_selfcheck)

    options, rest = parser.parse_known_args(arguments)
    if rest and options.function not in (_audit, _selfcheck):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    try:
        return options.function(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        if "failed to map segment" not in str(error):  # of a library that does not fit into memory
            raise
        print(f"error: too little memory to load a library ({error}): give more", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _repository() -> Path:
    """The current folder, if it is a checkout of the suite."""
    here = Path.cwd()
    for folder in ("workflow/scales", "benchmarks"):
        if not (here / folder).is_dir():
            raise UserError(f"{here}: has no {folder}/; start the command in the repository")
    return here


def _run(arguments: argparse.Namespace) -> int:
    folder = arguments.spec.resolve().parent
    if folder.parent.name != "batches":
        raise UserError(
            f"{arguments.spec}: not in a folder <runs>/batches/<stage>; pass a spec of the plan"
        )
    runs_root = folder.parents[1]
    batch = read_json(arguments.spec)
    folders = [RunFolder(runs_root, batch["stage"], run["id"]) for run in batch["runs"]]
    unfinished = [folder for folder in folders if not folder.complete()]
    if not unfinished:
        names = [run["id"] for run in batch["runs"]]
        write_json(arguments.manifest, {"batch": batch["batch"], "runs": names})
        return 0
    if in_slurm_job():  # before seconds of imports, while others wait for the allocation
        for folder in unfinished:
            with folder.lock(wait=False):
                pass
    # before torch, which reads the visible devices when it initialises CUDA
    lock = claim_gpu(runs_root / "gpus") if batch["device"] != "cpu" else None
    from purifiers.stages.job import run_batch

    try:
        return 1 if run_batch(batch, arguments.manifest, runs_root, arguments.threads) else 0
    finally:
        if lock is not None:
            lock.close()


def _plan(arguments: argparse.Namespace) -> int:
    from purifiers.plan.plan import make_plan
    from purifiers.plan.price import describe_price

    plan = make_plan(_repository(), arguments.scale, arguments.documents)
    print(describe_price(plan, arguments.card, arguments.rate))
    return 0


def _data(arguments: argparse.Namespace) -> int:
    from purifiers.stages._fetch import fetch_data

    return 1 if fetch_data(_repository(), arguments.scale) else 0


def _report(arguments: argparse.Namespace) -> int:
    from purifiers.report.reports import write_reports

    write_reports(_repository(), arguments.scale, arguments.documents)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from purifiers.report.reports import write_status

    return write_status(_repository(), check=arguments.check)


def _site(arguments: argparse.Namespace) -> int:
    from purifiers.site.build import PLACE, write_site

    root = _repository()
    out = arguments.out or root / PLACE
    n_pages, size = write_site(root, out)
    print(f"{out / 'index.html'}: {n_pages} pages, {size / 1e6:.1f} MB")
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    from purifiers.plan.plan import make_plan
    from purifiers.plan.scale import scale_names
    from purifiers.stages.throughput import measure_networks
    from purifiers.stages.throughput_merge import merge_selfcheck

    root = _repository()
    if arguments.selfcheck is not None:
        if arguments.documents or arguments.precision:
            raise UserError("measure: --from takes all of the file; drop documents and --precision")
        for line in merge_selfcheck(arguments.selfcheck, root / "workflow" / "throughput.yaml"):
            print(line)
        return 0
    plans = [make_plan(root, name, arguments.documents) for name in scale_names(root)]
    networks = {network for plan in plans for run in plan.runs.values() for network in run.cost}
    path = root / "workflow" / "throughput.yaml"
    measure_networks(networks, path, arguments.device, arguments.precision or ["float32"])
    return 0


def _timing(arguments: argparse.Namespace) -> int:
    from purifiers.report.attack_timing import write_timing
    from purifiers.report.selfcheck_timing import write_selfcheck

    if arguments.table is None:
        path = arguments.selfcheck or Path("selfcheck.json")
        for written in write_selfcheck(path, _repository() / "results" / "tables" / "timing"):
            print(written)
        return 0
    if arguments.selfcheck:
        raise UserError("timing: --selfcheck writes tables of its own; remove the other arguments")
    write_timing(arguments.measurements, arguments.table)
    return 0


def _speed(arguments: argparse.Namespace) -> int:
    from purifiers.report.purification_timing import write_speed

    write_speed(arguments.measurements, arguments.table)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from purifiers.stages._finished import export_images

    count = export_images(arguments.run, arguments.file)
    print(f"{arguments.file}: {count} images")
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    from purifiers.auditing.command import main as audit  # imports torch

    return audit(arguments.rest)


def _selfcheck(arguments: argparse.Namespace) -> int:
    from purifiers.selfcheck.command import main as selfcheck  # imports torch

    return selfcheck(arguments.rest)


if __name__ == "__main__":
    sys.exit(main())
