"""``speedclaim tune``: search hyper-parameters on a validation split, and print a recipe."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import DeviceOption, Json, OutOption, _print_json, app
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.measure.training.tune import Tuned

SHOWN_K = (1, 3, 10, 30)


@app.command()
def tune(
    workload: Annotated[str, typer.Argument(help="Workload.")],
    method: Annotated[str, typer.Argument(help="Method, e.g. adamw.")],
    trials: Annotated[int, typer.Option("--trials", help="Trials in the study, earlier ones counted.")] = 30,
    budget_s: Annotated[float | None, typer.Option("--budget-s", help="Seconds to spend.")] = None,
    space: Annotated[Path | None, typer.Option("--space", help="TOML table of ranges.")] = None,
    hyper: Annotated[list[str] | None, typer.Option("--hyper", help="name=value that stays fixed (repeat).")] = None,
    device: DeviceOption = None,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Generated data: a dry run.")] = False,
    out: OutOption = Path("results"),
    as_json: Json = False,
) -> None:
    """Search hyper-parameters on a validation split (never the test set); resumable, every trial written down."""
    from harness.measure.training import listener
    from harness.measure.training import space as spaces
    from harness.measure.training.plan import TrainRequest, build
    from harness.measure.training.tune import tune as search

    if trials < 1:
        raise UserError(f"--trials {trials}: expected at least 1.")
    request = TrainRequest(
        workloads=(workload,),
        methods=(method,),
        seeds=1,
        hyper=tuple(hyper or ()),
        device=device,
        full=True,
        synthetic=synthetic,
        validation=True,
        budget_s=budget_s,
        checkpoint_s=math.inf,
    )
    plan = build(request)
    plan.phase = "tune"
    arm = plan.parts[0].arms[0]
    if arm.hyper is None:
        raise UserError(f"{arm.name} cannot be tuned here: {arm.why}")
    from harness.catalogue import registry

    chosen = spaces.space(registry.method(arm.method), arm.hyper, space)
    if not as_json:
        for name, entry in chosen.items():
            print(f"{name}: {json.dumps(entry)}")
    with listener.for_terminal(quiet=as_json) as shown:
        found = search(plan, chosen, trials, out, "speedclaim " + " ".join(sys.argv[1:]), shown)
    curve = best_of(found.objectives)
    if as_json:
        _print_json({"file": str(found.result.path.resolve()), "log": str(found.log.resolve()), "best": found.best,
                     "objective": found.objective, "trials": found.trials, "space": chosen,
                     "best_of": {str(k): v for k, v in curve.items()}})  # fmt: skip
        return
    for k, value in curve.items():
        print(f"best of {k} trials: {value:.3g} of the budget expected (above 1: the target is missed)")
    print(recipe_block(arm.method, workload, found))
    print(f"{found.result.runs} runs in {found.result.elapsed_s:.0f} s: {found.result.path}; log: {found.log}")


def best_of(objectives: Sequence[float]) -> dict[int, float]:
    """Expected smallest objective of k trials drawn without replacement, for k up to the number of trials."""
    from harness.judge.training_summary import best_of_k

    if not objectives:
        return {}
    curve = best_of_k(list(objectives), larger_is_better=False)
    return {k: curve[k - 1] for k in SHOWN_K if k <= len(curve)}


def recipe_block(method: str, workload: str, found: Tuned) -> str:
    """The best values as a table of the workload's recipe file."""
    if found.best is None or found.objective is None:
        return "no trial gave a value"
    lines = [f'["{method}"]', *(f"{name} = {_toml(value)}" for name, value in found.best.items())]
    reached = f"{100 * found.objective:.0f} % of the budget to the target" if found.objective <= 1 else "target missed"
    lines.append(f'evidence = "speedclaim tune {workload} {method}: best of {found.trials} trials, {reached}"')
    lines.append(f"trials = {found.trials}")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value)
