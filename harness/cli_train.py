"""``speedclaim train``, and the training part of ``speedclaim bench``."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import DeviceOption, Json, OutOption, TierOption, _print_json, app
from harness.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from harness.measure.training.ahead import Crew
    from harness.measure.training.plan import TrainPlan, TrainRequest

#: Share of the bench's budget that training gets.
BENCH_SHARE = 0.25
#: Ends of a run in which nothing was learned about its method.
FAILURES = {"error", "timeout", "out_of_memory", "unsupported", "interrupted"}

MethodsArgument = Annotated[list[str] | None, typer.Argument(help="Methods, e.g. adamw; default: the workload's.")]
HyperOption = Annotated[
    list[str] | None, typer.Option("--hyper", help="name=value for every method, method.name=value for one (repeat).")
]


@app.command()
def train(
    context: typer.Context,
    workload: Annotated[str | None, typer.Argument(help="Workload; without one, every workload of --tier.")] = None,
    methods: MethodsArgument = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Seeds; 6 or more for a verdict.")] = None,
    hyper: HyperOption = None,
    seed_start: Annotated[int, typer.Option("--seed-start", help="The first seed.")] = 0,
    batches: Annotated[
        str | None, typer.Option("--batches", help="Batch sizes of the workload's family, e.g. 512,4096, or all.")
    ] = None,
    lr_rule: Annotated[
        str, typer.Option("--lr-rule", help="With --batches: linear (the named workload's rate x batch) or recipe.")
    ] = "linear",
    tier: TierOption = "standard",
    device: DeviceOption = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Length of the schedule, also the budget.")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="ieee, tf32, torch-default, bf16 or fp16.")
    ] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile; default: the workload's, on CUDA.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Train to the end of the schedule, past the target.")] = False,
    until: Annotated[
        float | None, typer.Option("--until", help="End a run at this level of its target, not at the farthest.")
    ] = None,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Generated data: step time and memory only.")] = False,
    budget_s: Annotated[float | None, typer.Option("--budget-s", help="Seconds to spend; seeds are dropped.")] = None,
    nproc: Annotated[int, typer.Option("--nproc", help="Processes that share each batch; on CUDA one a GPU.")] = 1,
    nnodes: Annotated[int, typer.Option("--nnodes", help="Machines; each runs this command.")] = 1,
    node_rank: Annotated[int, typer.Option("--node-rank", help="This machine's number; 0 keeps the record.")] = 0,
    rendezvous: Annotated[
        str | None, typer.Option("--rendezvous", help="HOST:PORT of machine 0, for several machines.")
    ] = None,
    sync_batch_norm: Annotated[
        bool, typer.Option("--sync-batch-norm", help="Batch norm over the global batch, not each process' slice.")
    ] = False,
    side_by_side: Annotated[
        int,
        typer.Option("--side-by-side", help="Runs at once, spread over the GPUs: no time of theirs enters a verdict."),
    ] = 1,
    out: OutOption = Path("results"),
    as_json: Json = False,
) -> None:
    """Train methods to a workload's target: seeds interleaved, clock paused for evaluation, every run written down."""
    from harness.measure.training.ahead import Crew, kind_of

    crew = context.with_resource(Crew())
    if side_by_side == 1 and node_rank == 0:  # before anything else is imported; several are started once counted
        crew.start(kind_of(nproc * nnodes))
    from harness.measure.training.plan import TrainRequest
    from harness.measure.training.world import World

    request = TrainRequest(
        workloads=(workload,) if workload else (),
        methods=tuple(methods or ()),
        tier=tier,
        seeds=seeds,
        seed_start=seed_start,
        part=seed_start > 0,
        hyper=tuple(hyper or ()),
        batches=batches,
        lr_rule=lr_rule,
        device=device,
        epochs=epochs,
        precision=precision,
        compile=compile_,
        full=full,
        until=until,
        synthetic=synthetic,
        budget_s=budget_s,
        world=World(nproc=nproc, nnodes=nnodes, node_rank=node_rank, rendezvous=rendezvous),
        sync_batch_norm=sync_batch_norm,
        side_by_side=side_by_side,
    )
    if request.world.follows:
        follow(request, as_json)
        return
    told = measure(request, out, as_json, as_json, crew)
    if as_json:
        _print_json(told)
    path = Path(told["file"])
    if why := nothing_trained(path):
        print(f"speedclaim: {why} The rows are in {path}.", file=sys.stderr)
        raise typer.Exit(1)


def nothing_trained(path: Path) -> str | None:
    """Why the record of a training has no run that trained; None when one did.

    A run that diverged or missed its target has trained. Rows that a budget left out were never begun and do not count.
    """
    from harness.record import store

    frame = store.read_runs(path)
    last = (
        frame[frame["phase"] == "training"]
        .drop_duplicates("run")
        .drop_duplicates(["arm", "workload", "seed"], keep="last")
    )
    if last.empty or not set(last["status"]) <= FAILURES:
        return None
    kinds = ", ".join(f"{count} {status}" for status, count in last["status"].value_counts().items())
    return f"no run trained ({kinds}); the first says: {last.iloc[0]['reason']}."


def follow(request: TrainRequest, as_json: bool) -> None:
    """Serve machine 0 of several; it keeps the record."""
    from harness.measure.training import executor, listener
    from harness.measure.training.plan import build

    with listener.for_terminal(quiet=as_json) as shown:
        served = executor.follow(build(request), shown)
    if as_json:
        _print_json({"served": served, "rendezvous": request.world.rendezvous})
    else:
        print(f"machine {request.world.node_rank}: done; the record is on machine 0")


def measure(request: TrainRequest, out: Path, as_json: bool, quiet: bool, crew: Crew) -> dict[str, Any]:
    """Plan and train; what was found is printed for people, or returned for the caller to print as JSON.

    ``quiet`` tells no progress on standard error. The ``crew`` may have been told to start a worker already.
    """
    from harness.measure.training import executor, listener, probe
    from harness.measure.training.plan import build
    from harness.record import folders, store

    folders.check(out, "the record")
    plan = build(request)
    executor.hire(plan, crew, plan.runs())
    import pandas  # noqa: F401 (the table needs it at the end; the workers have more to import)

    probe.check(plan, crew)
    if not as_json:
        _announce(plan)
    command = "speedclaim " + " ".join(sys.argv[1:])
    with listener.for_terminal(quiet=quiet) as shown:
        result = executor.execute(plan, out, command, shown, crew)
    rows = summary(store.read_runs(result.path), plan)
    if not as_json:
        table(rows)
        if request.side_by_side > 1:
            print("times are of runs side by side: they enter no verdict; steps, samples and accuracies do")
        print(f"{result.runs} runs in {result.elapsed_s:.0f} s: {result.path}")
    return {"file": str(result.path.resolve()), "resumed": result.resumed, "elapsed_s": round(result.elapsed_s, 1),
            "rows": rows}  # fmt: skip


def _announce(plan: TrainPlan) -> None:
    for name, why in plan.left_out.items():
        print(f"left out: {name}: {why}")
    for part in plan.parts:
        target = part.workload.target
        sign = ">=" if target.larger_is_better else "<="
        arms = ", ".join(arm.name.removeprefix("training.") for arm in part.runnable())
        print(
            f"{part.workload.name} on {plan.device}: {target.metric} {sign} {target.value:g}; {arms}; "
            f"{len(part.seeds)} seed{'s' if len(part.seeds) != 1 else ''}"
        )
        for arm in part.arms:
            if arm.why is not None:
                print(f"left out: {arm.name}: {arm.why}")


def summary(frame: pd.DataFrame, plan: TrainPlan) -> list[dict[str, Any]]:
    """One row per workload and arm: hits, medians over seeds."""
    rows = []
    runs = frame[frame["phase"] == "training"]
    for part in plan.parts:
        for arm in part.arms:
            mine = runs[(runs["workload"] == part.workload.name) & (runs["arm"] == arm.name)]
            rows.append(_row(part.workload.name, part.workload.target.metric, arm.name, mine))
    return rows


def _row(workload: str, metric: str, arm: str, mine: pd.DataFrame) -> dict[str, Any]:
    last = mine.drop_duplicates("run", keep="last").drop_duplicates("seed", keep="last")
    mine = mine[mine["run"].isin(set(last["run"]))]

    def median(name: str) -> float | None:
        values = mine[mine["metric"] == name]["value"]
        return None if values.empty else float(values.median())

    def mean_update(name: str) -> float | None:
        """Median over seeds of the mean over blocks: periodic work is in some blocks alone."""
        samples = mine[mine["metric"] == name]["samples"]
        return None if samples.empty else statistics.median(statistics.fmean(one) for one in samples)

    hits = int((last["status"] == "target_reached").sum())
    statuses = last[last["status"] != "target_reached"]["status"].value_counts().to_dict()
    reasons = last["reason"].dropna()
    return {
        "workload": workload,
        "arm": arm,
        "hits": hits,
        "runs": len(last),
        "other": {str(name): int(count) for name, count in statuses.items()},
        "reason": None if reasons.empty else str(reasons.iloc[0]),
        "metric": metric,
        "time_to_target_s": median("time_to_target_s"),
        "steps_to_target": median("steps_to_target"),
        "final": median(f"final_{metric}"),
        "step_s": mean_update("step_s"),
        "optimizer_step_s": mean_update("optimizer_step_s"),
        "stall": median("stall"),
        "peak_bytes": median("peak_device_bytes") or median("peak_host_bytes"),
        "optimizer_state_bytes": median("optimizer_state_bytes"),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """The summary for people; medians of the seeds that hit are description, not a ranking."""
    from rich.console import Console
    from rich.table import Table

    from harness import units

    def shown(value: float | None, text: Any = None) -> str:
        return "-" if value is None else (text or (lambda x: f"{x:.4g}"))(value)

    console = Console()
    console = console if console.is_terminal else Console(width=200)
    made = Table(box=None, pad_edge=False)
    titles = ("workload", "arm", "hits", "median time", "updates", "final", "a step", "optimizer", "stall", "memory")
    for title in titles:
        made.add_column(title, justify="left" if title in ("workload", "arm") else "right")
    for row in rows:
        others = ", ".join(f"{count} {name}" for name, count in row["other"].items() if name != "budget_exhausted")
        made.add_row(
            row["workload"],
            row["arm"].removeprefix("training."),
            f"{row['hits']}/{row['runs']}" + (f" ({others})" if others else ""),
            shown(row["time_to_target_s"], units.seconds),
            shown(row["steps_to_target"], lambda x: f"{x:.0f}"),
            shown(row["final"]),
            shown(row["step_s"], units.seconds),
            shown(row["optimizer_step_s"], units.seconds),
            shown(row["stall"], lambda x: f"{100 * max(0.0, x):.1f} %"),
            shown(row["peak_bytes"], units.size),
        )
    console.print(made)
    for row in rows:
        if row["runs"] and not row["hits"] and row["reason"]:
            console.print(f"{row['workload']} {row['arm']}: {row['reason']}", style="dim", markup=False)


def bench_budget(budget_s: float, device: str | None) -> tuple[float, float]:
    """The bench's budget split into (suites, training); training gets nothing when no quick workload can run."""
    from harness.measure.training.plan import TrainRequest, build

    try:
        build(TrainRequest(tier="quick", device=device))
    except UserError:
        return budget_s, 0.0
    return budget_s * (1 - BENCH_SHARE), budget_s * BENCH_SHARE


def bench(budget_s: float, quick: bool, device: str | None, out: Path, as_json: bool) -> dict[str, Any] | None:
    """The quick training tier within ``budget_s``; with ``quick`` one seed, a smoke run without a verdict.

    Returns:
        What :func:`measure` does, None when nothing was to be trained.
    """
    from harness.measure.training.ahead import Crew
    from harness.measure.training.plan import TrainRequest

    if budget_s <= 0:
        return None
    request = TrainRequest(tier="quick", device=device, seeds=1 if quick else None, budget_s=budget_s)
    with Crew() as crew:
        return measure(request, out, as_json, quiet=False, crew=crew)
