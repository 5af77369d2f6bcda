"""Training runs out of a frame: one object a run, the arm that counts, and times to target with their censoring."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.judge.stats import Hit

if TYPE_CHECKING:
    import pandas as pd

REACHED = "target_reached"
#: Runs that never hit and stay at risk to the budget, although they stopped before it.
BROKEN = frozenset({"diverged", "out_of_memory", "error", "timeout"})
#: Runs that say nothing about the method: never started, or stopped from outside.
SILENT = frozenset({"interrupted", "unsupported"})
#: What a neighbour on the device can do to a run.
DISTURBED = frozenset({"out_of_memory", "timeout"})
#: Numbers that come from seconds or joules, and are not told for runs side by side either.
OF_TIME = frozenset({"optimizer_share", "communication_share", "energy_j"})
#: Seconds of an update, a sample for each block of updates. Of a periodic method their mean counts: a median would
#: leave out the rarer of blocks with and without its work.
OF_STEPS = frozenset({"step_s", "optimizer_step_s"})
#: What a training of any length has alike.
OF_ANY_LENGTH = OF_STEPS | {"optimizer_share", "peak_device_bytes", "peak_host_bytes", "optimizer_state_bytes"}
#: Hyper-parameters that say after how many updates work comes again.
PERIODS = ("update_period", "refresh_period", "brand_period", "correction_period")
#: So many periods are enough for a mean, whole or not: what is too much or missing is at most one of them.
FEW_PERIODS = 20
#: The alias draws its data order and its first weights from the seed plus this.
AA_STREAM = 1_000_003
AA = "#aa"
#: Above this share of loader time the clock measures the loader.
STALL_LIMIT = 0.05
#: Buckets of one update on the train clock; evaluation, checkpoints and compilation stand outside.
STEP_BUCKETS = ("data", "forward", "backward", "optimizer")
OUTSIDE_BUCKETS = ("evaluation", "checkpoint", "compile")

#: What judging reads of every run beside the claim's own metric.
NEEDED = frozenset(
    {"censored_at_s", "elapsed_s", "stall", "steps", "samples", *(f"bucket_{name}_s" for name in STEP_BUCKETS)}
)

#: ``time_to_target_0.915_s``, ``steps_to_target_0.915``: a further level of the workload's target.
_LEVEL = re.compile(r"^(?P<axis>time|steps|samples)_to_target_(?P<level>\d*\.?\d+)(?P<unit>_s)?$")

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One training run: its status, the median of each measurement, its curves, and what the trainer noted.

    :meth:`value` gives the mean where a median would mislead (:data:`OF_STEPS`).
    """

    file: str
    device: str
    workload: str
    method: str
    arm: str
    seed: int
    status: str
    reason: str = ""
    utc: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether the run hit its target."""
        return self.status == REACHED

    @property
    def resumed(self) -> bool:
        """Whether the run was stopped and went on: its times do not count."""
        return bool(self.detail.get("resumed"))

    @property
    def shared(self) -> bool:
        """Whether other runs of its invocation used the device at the same time: its times do not count."""
        return int(self.detail.get("side_by_side") or 1) > 1

    @property
    def alone(self) -> bool:
        """Whether its times may count: in one piece, with nothing beside it."""
        return not (self.resumed or self.shared)

    @property
    def disturbed(self) -> bool:
        """Whether it broke in a way that the runs beside it may have caused: memory, or seconds without an answer."""
        return self.shared and self.status in DISTURBED

    @property
    def braked(self) -> bool:
        """Whether a thermal or power brake was seen: the seed's times do not count in any arm."""
        return bool(self.detail.get("braked"))

    @property
    def stopped_early(self) -> bool:
        """Whether the run ended at its target, before its schedule did: its end is not the schedule's."""
        steps, updates = self.metrics.get("steps"), self.detail.get("updates")
        ended = self.status in (REACHED, "budget_exhausted")
        cut = ended and steps is not None and updates is not None and steps < updates
        return bool(self.detail.get("stopped_early")) or cut

    @property
    def until(self) -> float | None:
        """The level at which the run was ended on request, None when it ran on."""
        level = (self.detail.get("spec") or {}).get("until")
        return float(level) if level is not None and self.detail.get("stopped_early") and not self.reached else None

    def watched(self, metric: str | None) -> bool:
        """Whether it was watched for what ``metric`` asks: one ended on request was not, beyond the level it ended at.

        Without a metric the question is whether it reached its target.
        """
        if self.until is None or metric in OF_ANY_LENGTH:
            return True
        asked = _LEVEL.match(metric or "")
        if asked is None:
            return False
        sign = 1.0 if (self.detail.get("target") or {}).get("larger_is_better", True) else -1.0
        return sign * float(asked["level"]) <= sign * self.until

    @property
    def tuning(self) -> bool:
        """Whether it is a tuning trial, which held validation data out and enters no verdict."""
        return str(self.detail.get("split") or "test").startswith("val")

    @property
    def by_hand(self) -> bool:
        """Whether a hyper-parameter came from the command line, and not from the recipe or the defaults."""
        return "command line" in (self.detail.get("hyper_sources") or {}).values()

    @property
    def shortened(self) -> bool:
        """Whether the length of its schedule came from the command line: another training than the workload's."""
        return (self.detail.get("hyper_sources") or {}).get("epochs") == "command line"

    @property
    def prefix(self) -> bool:
        """Whether its updates are the first ones of a training of any other length: no rate depends on the length."""
        own = self.hyper
        absolute = own.get("schedule") == "constant" or (own.get("schedule") == "steps" and bool(own.get("pieces")))
        return absolute and not own.get("warmup")

    @property
    def synthetic(self) -> bool:
        """Whether the data were made up, to time steps only."""
        return bool(self.detail.get("synthetic"))

    @property
    def hyper(self) -> dict[str, Any]:
        """Hyper-parameters by name, with the precision that the run really had."""
        given: Mapping[str, Any] = self.detail.get("hyper") or {}
        values = given.get("values")
        inner = values if isinstance(values, Mapping) else given
        found = {str(k): v.get("value") if isinstance(v, Mapping) else v for k, v in inner.items()}
        precision = (self.detail.get("spec") or {}).get("precision")
        return {**found, "precision": precision} if precision is not None else found

    def fits(self, wanted: Mapping[str, Any]) -> bool:
        """Whether the run has these hyper-parameters."""
        return all(_same(self.hyper.get(name), value) for name, value in wanted.items())

    def value(self, metric: str) -> float | None:
        """A measurement by name; ``optimizer_share`` is derived from the buckets, ``a - b`` is a difference.

        What stands at the end of training (``final_``, ``best_``, ``elapsed_s``) is None for a run that broke off.
        """
        if self.status in BROKEN and metric.startswith(("final_", "best_", "elapsed_s")):
            return None
        if metric == "optimizer_share":
            return optimizer_share(self.metrics)
        left, minus, right = metric.partition(" - ")
        if minus:
            first, second = self.value(left), self.value(right)
            return None if first is None or second is None else first - second
        if metric in OF_STEPS and self.samples.get(metric) and self.period > 1:
            return math.fsum(self.samples[metric]) / len(self.samples[metric])
        return self.metrics.get(metric)

    @property
    def period(self) -> int:
        """Updates after which the method's rarest periodic work comes again; 1 without any."""
        given = [self.hyper.get(name) for name in PERIODS]
        values = [piece[1] for one in given if isinstance(one, list | tuple) for piece in one]
        values += [one for one in given if isinstance(one, int | float) and not isinstance(one, bool)]
        return max([1, *(int(one) for one in values)])

    @property
    def uneven(self) -> bool:
        """Whether its mean update holds too much or too little of the periodic work: few periods, none whole."""
        steps = int(self.metrics.get("steps") or 0)
        return bool(steps) and steps < FEW_PERIODS * self.period and steps % self.period != 0

    def hit(self, metric: str) -> Hit:
        """Time (steps, samples) to the target; a run that missed is at risk to its budget.

        Raises:
            ValueError: a run that ended with its budget does not say what the budget was.
        """
        if not self.watched(metric):
            raise ValueError(f"{self.arm}, seed {self.seed} was ended at {self.until:g}, as asked (--until)")
        if level := _LEVEL.match(metric):
            return self._crossed(level["axis"], float(level["level"]), level["unit"] or "")
        if self.reached and metric in self.metrics:
            return Hit(value=self.metrics[metric], budget=math.inf)
        budget = (self.detail.get("censored_at") or {}).get(metric)
        if budget is None and metric.endswith("_s"):
            budget = self.metrics.get("censored_at_s")
        if budget is None and self.status not in BROKEN:
            raise ValueError(
                f"{self.arm}, seed {self.seed} missed the target, and its budget for {metric} is not recorded"
            )
        return Hit(value=None, budget=float(budget or 0.0))

    def _crossed(self, axis: str, level: float, unit: str) -> Hit:
        """As :meth:`hit` for a further level of the target; a run that ended before it was watched to its end."""
        for crossing in self.detail.get("crossings") or ():
            if math.isclose(float(crossing["level"]), level, rel_tol=1e-9):
                return Hit(value=float(crossing[axis + unit]), budget=math.inf)
        if not self.reached:
            return self.hit(f"{axis}_to_target{unit}")
        watched = self.metrics.get("elapsed_s" if unit else axis)
        if watched is None:
            raise ValueError(f"{self.arm}, seed {self.seed} ended before {level:g}, and how far is not recorded")
        return Hit(value=None, budget=watched)


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        return math.isclose(found, wanted, rel_tol=1e-9)
    return str(found) == str(wanted)


def optimizer_share(metrics: Mapping[str, float]) -> float | None:
    """Optimizer's part of an update: bucket_optimizer ÷ (data + forward + backward + optimizer)."""
    own = metrics.get("bucket_optimizer_s")
    total = math.fsum(metrics.get(f"bucket_{name}_s", 0.0) for name in STEP_BUCKETS)
    return own / total if own is not None and total > 0 else None


def from_frame(frame: pd.DataFrame) -> list[Trained]:
    """Every training run of a frame as :func:`harness.read_runs` returns it."""
    if frame.empty:
        return []
    frame = frame[(frame["phase"] == "training") & frame["workload"].notna()]
    columns = [name for name in _COLUMNS if name in frame.columns]
    cells = zip(*(frame[name] for name in columns), strict=True)
    return from_rows(dict(zip(columns, values, strict=True)) for values in cells)


_COLUMNS = (
    *("run", "phase", "file", "device", "workload", "method", "arm", "seed", "status", "reason", "utc", "detail"),
    *("metric", "value", "samples"),
)


def from_rows(rows: Iterable[Row]) -> list[Trained]:
    """Runs out of rows, one row per run and metric."""
    gathered: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.get("phase") == "training":
            key = (str(row.get("file")), str(row.get("run")), str(row["arm"]), str(row.get("seed")))
            gathered.setdefault(key, []).append(row)
    return [_run(own) for own in gathered.values()]


def seed_of(row: Row) -> int:
    """The seed of a row's block: an alias stands in its baseline's, whatever stream it draws from."""
    seed = 0 if _none(row.get("seed")) else int(row["seed"])
    return seed - AA_STREAM if str(row["arm"]).endswith(AA) and seed >= AA_STREAM else seed


def _run(rows: Sequence[Row]) -> Trained:
    first = rows[0]
    measured = [row for row in rows if isinstance(row.get("metric"), str)]
    texts = {name: "" if _none(first.get(name)) else str(first[name]) for name in ("file", "device", "reason", "utc")}
    return Trained(
        **texts,
        workload=str(first["workload"]),
        method=str(first["method"]),
        arm=str(first["arm"]),
        seed=seed_of(first),
        status=str(first["status"]),
        metrics={row["metric"]: float(row["value"]) for row in measured},
        samples={row["metric"]: tuple(row["samples"]) for row in measured if row.get("samples") is not None},
        detail=first.get("detail") or {},
    )


def _none(value: Any) -> bool:
    return value is None or value != value


def arms(runs: Iterable[Trained]) -> dict[str, list[Trained]]:
    """Runs by arm, in order of appearance."""
    found: dict[str, list[Trained]] = {}
    for run in runs:
        found.setdefault(run.arm, []).append(run)
    return found


def counting(
    runs: Iterable[Trained], arm: str, wanted: Mapping[str, Any] | None = None, metric: str | None = None
) -> dict[int, Trained]:
    """The runs of one arm by seed: no tuning trial, no made-up data, nothing stopped from outside, one setting only.

    Settings are never mixed: the newest run's hyper-parameters decide, and of one seed the newest run. Where no setting
    is ``wanted`` a run by the recipe comes before one with values from the command line: trying a value changes no
    verdict on the recipe. A run of another length than the workload's counts where the length is wanted, or for a
    ``metric`` that it changes nothing of (:data:`OF_ANY_LENGTH`); without a metric nothing is judged. For a time to
    target a run that was ended on request counts up to the level that it was asked for (:meth:`Trained.watched`), and
    the first part of a training (:attr:`Trained.prefix`) counts where no whole one does and one run of that
    setting got there: the whole training would have got there at the same update.
    """
    lasting = metric is None or "epochs" in (wanted or {}) or metric in OF_ANY_LENGTH
    usable = (run for run in runs if run.arm == arm and not run.tuning and not run.synthetic)
    able = [
        run
        for run in usable
        if run.status not in SILENT and not run.disturbed and run.fits(wanted or {}) and run.watched(metric)
    ]
    own = [run for run in able if lasting or not run.shortened]
    if not own and metric is not None and "_to_target" in metric:
        parts = [run for run in able if run.prefix]
        reached = [run.hyper for run in parts if _got_there(run, metric)]
        own = [run for run in parts if run.hyper in reached]
    if not own:
        return {}
    newest = max(own, key=lambda run: (bool(wanted) or not run.by_hand, _age(run))).hyper
    kept = sorted((run for run in own if run.hyper == newest), key=_age)
    return dict(sorted({run.seed: run for run in kept}.items()))


def _got_there(run: Trained, metric: str) -> bool:
    try:
        return run.hit(metric).value is not None
    except ValueError:
        return False


def _age(run: Trained) -> tuple[str, str]:
    return run.utc, run.file


def stall(runs: Iterable[Trained]) -> float | None:
    """Median stall of some runs, as a fraction of the step; None when none was measured."""
    found = sorted(_stall(run.metrics) for run in runs if "stall" in run.metrics)
    if not found:
        return None
    half = len(found) // 2
    return found[half] if len(found) % 2 else (found[half - 1] + found[half]) / 2


def _stall(metrics: Mapping[str, float]) -> float:
    """The warm-up's stall; at most the share of the data's own span in training, which all waiting for data is in.

    Before 2026-11-23 the warm-up compared whole groups of updates and took a method's periodic work for a stall.
    """
    total = math.fsum(metrics.get(f"bucket_{name}_s", 0.0) for name in STEP_BUCKETS)
    share = metrics.get("bucket_data_s", math.inf) / total if total else math.inf
    return min(metrics["stall"], share)


def untimed(runs: Iterable[Trained]) -> set[tuple[str, int]]:
    """(file, seed) of every block whose times do not count, because the device braked in one of its arms."""
    return {(run.file, run.seed) for run in runs if run.braked}


def pairs(runs: Sequence[Trained]) -> Iterator[tuple[str, str]]:
    """(file, alias) of every A/A arm."""
    yield from dict.fromkeys((run.file, run.arm) for run in runs if run.arm.endswith(AA))
