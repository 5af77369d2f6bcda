"""``speedclaim tune``: search hyper-parameters on a validation split, and print a recipe."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import DeviceOption, Json, OutOption, _print_json, app
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.measure.training.tune import Goal, Search, Space, Tuned

SHOWN_K = (1, 3, 10, 30)
#: What the numbers of a search are.
MEANING: Mapping[str, str] = {
    "target": "share of the budget; above 1: the target is missed",
    "final": "the last value, or 1 minus it where larger is better",
}


@app.command()
def tune(
    context: typer.Context,
    workload: Annotated[str, typer.Argument(help="Workload.")],
    methods: Annotated[list[str], typer.Argument(help="Methods, e.g. adamw; several get equally many trials.")],
    trials: Annotated[int, typer.Option("--trials", help="Trials of each method, earlier ones counted.")] = 30,
    budget_s: Annotated[float | None, typer.Option("--budget-s", help="Seconds to spend.")] = None,
    space: Annotated[Path | None, typer.Option("--space", help="TOML table of ranges.")] = None,
    hyper: Annotated[list[str] | None, typer.Option("--hyper", help="name=value that stays fixed (repeat).")] = None,
    goal: Annotated[
        str, typer.Option("--goal", help="What is minimised: target (samples to it) or final (the last value).")
    ] = "target",
    side_by_side: Annotated[int, typer.Option("--side-by-side", help="Trials at once, spread over the GPUs.")] = 1,
    device: DeviceOption = None,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Generated data: a dry run.")] = False,
    out: OutOption = Path("results"),
    as_json: Json = False,
) -> None:
    """Search hyper-parameters on a validation split (never the test set); resumable, every trial written down."""
    from harness.measure.training.ahead import Crew

    crew = context.with_resource(Crew())
    if side_by_side == 1:  # before anything else is imported; several are started once counted
        crew.start("train")
    from harness.catalogue import registry
    from harness.measure.training import executor, listener, probe
    from harness.measure.training import space as spaces
    from harness.measure.training.plan import TrainRequest, build
    from harness.measure.training.tune import GOALS
    from harness.measure.training.tune import tune as search
    from harness.record import folders

    if trials < 1:
        raise UserError(f"--trials {trials}: expected at least 1.")
    chosen = next((name for name in GOALS if name == goal), None)
    if chosen is None:
        raise UserError(f"--goal {goal}: expected one of {', '.join(GOALS)}.")
    request = TrainRequest(
        workloads=(workload,),
        methods=tuple(methods),
        seeds=1,
        hyper=tuple(hyper or ()),
        device=device,
        full=True,
        synthetic=synthetic,
        validation=True,
        budget_s=budget_s,
        checkpoint_s=math.inf,
        side_by_side=side_by_side,
    )
    folders.check(out, "the record")
    plan = build(request)
    plan.phase = "tune"
    executor.hire(plan, crew, trials * plan.runs())
    ranges = {}
    for arm in plan.parts[0].arms:
        if arm.hyper is None:
            raise UserError(f"{arm.name} cannot be tuned here: {arm.why}")
        ranges[arm.name] = spaces.space(registry.method(arm.method), arm.hyper, space)
        for name, entry in () if as_json else ranges[arm.name].items():
            print(f"{arm.name}: {name}: {json.dumps(entry)}")
    probe.check(spaces.with_unlisted(plan, ranges), crew)
    with listener.for_terminal(quiet=as_json) as shown:
        made = search(plan, ranges, trials, out, "speedclaim " + " ".join(sys.argv[1:]), shown, chosen, crew)
    if as_json:
        _print_json({"file": str(made.result.path.resolve()), "methods": {
            name: _told(found, ranges[name]) for name, found in made.found.items()}})  # fmt: skip
    else:
        _show(made, ranges, workload, chosen)
    if any(found.trials for found in made.found.values()) and all(found.best is None for found in made.found.values()):
        print(f"speedclaim: {_all_failed(made.result.path)}", file=sys.stderr)
        raise typer.Exit(1)


def _show(made: Search, ranges: Mapping[str, Space], workload: str, chosen: Goal) -> None:
    from harness.measure.training import space as spaces

    for name, found in made.found.items():
        for k, value in best_of(found.objectives).items() if found.best is not None else ():
            print(f"{name}: best of {k} trials: {value:.3g} expected ({MEANING[chosen]})")
        for option, side in spaces.edges(ranges[name], found.best or {}).items():
            print(f"{name}: the best {option} is at the {side} edge of what was tried: --space may be too narrow")
        print(recipe_block(name, workload, found, chosen))
    print(f"{made.result.runs} runs in {made.result.elapsed_s:.0f} s: {made.result.path}")
    print(f"logs: {next(iter(made.found.values())).log.parent}")


def _all_failed(path: Path) -> str:
    """That no trial gave a value, why the first did not, and where the rows are."""
    from harness.record import store

    frame = store.read_runs(path)
    reasons = frame[frame["phase"] == "training"]["reason"].dropna()
    first = f"; the first says: {reasons.iloc[0]}" if len(reasons) else ""
    return f"no trial gave a value{first}. The rows are in {path}."


def _told(found: Tuned, space: Space) -> dict[str, Any]:
    from harness.measure.training.space import edges

    curve = best_of(found.objectives) if found.best is not None else {}
    return {
        "log": str(found.log.resolve()),
        "best": found.best,
        "objective": found.objective,
        "trials": found.trials,
        "space": space,
        "at_edge": edges(space, found.best or {}),
        "best_of": {str(k): v for k, v in curve.items()},
    }


def best_of(objectives: Sequence[float]) -> dict[int, float]:
    """Expected smallest objective of k trials drawn without replacement, for k up to the number of trials."""
    from harness.judge.training_summary import best_of_k

    if not objectives:
        return {}
    curve = best_of_k(list(objectives), larger_is_better=False)
    return {k: curve[k - 1] for k in SHOWN_K if k <= len(curve)}


def recipe_block(method: str, workload: str, found: Tuned, goal: Goal = "target") -> str:
    """The best values as a table of the workload's recipe file."""
    if found.best is None or found.objective is None:
        return "no trial gave a value"
    lines = [f'["{method}"]', *(f"{name} = {_toml(value)}" for name, value in found.best.items())]
    reached = f"{100 * found.objective:.0f} % of the budget to the target" if found.objective <= 1 else "target missed"
    command = f"speedclaim tune {workload} {method}"
    if goal == "final":
        reached, command = f"{MEANING[goal]}: {found.objective:.4g}", f"{command} --goal final"
    lines.append(f'evidence = "{command}: best of {found.trials} trials, {reached}"')
    lines.append(f"trials = {found.trials}")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value)
