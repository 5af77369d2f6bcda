"""The noun *Claim*: a published number with its conditions, read from ``[[claim]]`` tables of TOML files."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.catalogue import registry
from harness.errors import UserError

Kind = Literal[
    "speedup-about",
    "speedup-up-to",
    "on-par",
    "metric-better",
    "at-most",
    "growth",
    "only-reaches",
    "often",
    "exists",
]
KINDS: tuple[str, ...] = get_args(Kind)
Setting = float | str | bool
Author = Literal["library", "published code", "re-implementation of the published design", "own design", "third party"]

#: Seeds of a printed training command: the default number of blocks of a verdict.
TRAIN_SEEDS = 10
#: Joules of a call by a counter of the device.
ENERGY = "call_energy_j"

_Model = TypeVar("_Model", bound=BaseModel)

_NEEDS_RATIO = {"speedup-about", "speedup-up-to", "at-most", "growth"}
_NEEDS_BASELINE = {"speedup-about", "speedup-up-to", "on-par", "metric-better"}
_MICRO_NAME = re.compile(r"^[a-z0-9_]+\.[a-z0-9][a-z0-9_.+-]*$")


class Anchor(BaseModel):
    """Time of the published code itself on one device: it decides "like for like" or "own implementation"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field(min_length=1)
    problem: str
    method: str
    value_s: float = Field(gt=0)
    metric: str = "op_s"
    source: str = Field(min_length=1)


class Evidence(BaseModel):
    """One dated observation for a claim that something exists."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: date
    found: bool
    what: str = Field(min_length=1)
    source: str = Field(min_length=1)


class Guard(BaseModel):
    """A final metric that stands beside a number of training, so that a worse result is not called a gain.

    Attributes:
        metric: as recorded, e.g. ``final_test_accuracy``.
        margin: loss (in units of the metric) that still counts as none.
        larger_is_better: direction of the metric.
        equal: a gain over the margin confounds the comparison as a loss does.
        reaches: level that the mean of both arms must reach: for targets at the end of a fixed schedule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(min_length=1)
    margin: float = Field(gt=0)
    larger_is_better: bool = True
    equal: bool = False
    reaches: float | None = None


class Search(BaseModel):
    """What must have been searched before a claim without a published recipe is "not reproduced".

    Attributes:
        workload: where the trials were made; None: the claim's own workload.
        over: hyper-parameters whose trials must span ``decades`` each.
        decades: width of that span, log10 of largest ÷ smallest.
        readings: hyper-parameter -> every value that must have been tried.
        trials: least number of trials.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: str | None = None
    over: tuple[str, ...] = ("lr", "damping")
    decades: float = Field(default=3.0, gt=0)
    readings: dict[str, tuple[Setting, ...]] = Field(default_factory=dict)
    trials: int = Field(default=30, ge=1)


class Claim(BaseModel):
    """A published number with its conditions.

    Attributes:
        id: stable name of the row.
        group: rows with one group belong to one published claim.
        title: a few words for a table.
        kind: how it is judged.
        words: the claim in brief, in our words.
        source: citation.
        counter: whether the row tests an objection to the published claim.
        metric: metric name as recorded, or ``"a - b"`` of two recorded metrics.
        clock: clock that the source used (``op``, ``op-hot``, ``graph``, ``host``, ``step``, ``train``…); None = any.
        task: task of the methods.
        suite: suite that measures it; None = named as the task.
        tier: tier that contains its problems.
        candidate: method that the claim praises.
        baseline: method it is compared with; None = ``ratio`` is absolute.
        problems: problem ids or shell patterns.
        baseline_problem: the baseline's problem, where a claim compares a metric that is no time on two of them.
        workload: training workload, instead of problems.
        workloads: several, for ``often``: each judged by itself, then counted; the metric ``final`` is the final value
            of each workload's own target metric.
        ratio: claimed ratio, larger is better (baseline ÷ candidate); for ``at-most`` the largest candidate ÷
            baseline; for ``growth`` the exponent; None for a mere direction.
        larger_is_better: whether a larger metric is a better one.
        tolerance: τ in T = ratio^(1 - τ); for ``growth`` the slack of the exponent.
        margin: equivalence margin of ``on-par``.
        one_sided: ``on-par`` in the sense of "no loss": being better is allowed.
        axis: index of the dimension that ``growth`` reads as the size.
        events: statuses that ``often`` counts.
        error_metric: accuracy error that guards a timing; more than 1.10 times the baseline's caps the verdict.
        guard: final metric beside a claim about training.
        hyper: hyper-parameters (and ``precision``) that the candidate's runs must have; None of them: the newest.
        baseline_hyper: the same for the baseline, e.g. the same method in another precision.
        search: what must have been searched before "not reproduced"; without it the verdict is "inconclusive (recipe
            unpublished)".
        hardware: device that the source measured on ("A or B" for several); None = not stated.
        threads: that the source's runs used; None = not stated. A number without a baseline speaks only from runs with
            as many; a ratio is read from them first, and its verdict says when it comes from others.
        hardware_free: judged strictly on any device (errors, iterations, flops).
        needs: what a machine must have, e.g. ``cuda``.
        candidate_author: who wrote what runs as the candidate.
        baseline_author: who wrote what runs as the baseline.
        anchors: published-code times.
        command: command that reproduces the row; None = built from suite, tier and methods.
        since: runs before it do not speak: a method was another then; the note says what changed. None = all do.
        note: what the reader should know, e.g. an arithmetic bound.
        evidence: dated observations for ``exists``.
        file: where the claim was read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    group: str = Field(min_length=1)
    title: str = Field(min_length=1)
    kind: Kind
    words: str = Field(min_length=1)
    source: str = Field(min_length=1)
    counter: bool = False
    metric: str = "op_s"
    clock: str | None = None
    task: str
    suite: str | None = None
    tier: str = "standard"
    candidate: str
    baseline: str | None = None
    problems: tuple[str, ...] = ()
    baseline_problem: str | None = None
    workload: str | None = None
    workloads: tuple[str, ...] = ()
    ratio: float | None = Field(default=None, gt=0)
    larger_is_better: bool = False
    tolerance: float = Field(default=0.2, ge=0, lt=1)
    margin: float = Field(default=1.05, gt=1)
    one_sided: bool = False
    axis: int = -1
    events: tuple[str, ...] = ("target_reached",)
    error_metric: str | None = None
    guard: Guard | None = None
    hyper: dict[str, Setting] = Field(default_factory=dict)
    baseline_hyper: dict[str, Setting] = Field(default_factory=dict)
    search: Search | None = None
    hardware: str | None = None
    threads: int | None = Field(default=None, ge=1)
    hardware_free: bool = False
    needs: tuple[str, ...] = ()
    candidate_author: Author = "third party"
    baseline_author: Author = "third party"
    anchors: tuple[Anchor, ...] = ()
    command: str | None = None
    since: AwareDatetime | None = None
    note: str = ""
    evidence: tuple[Evidence, ...] = ()
    file: str = ""

    @model_validator(mode="after")
    def _complete(self) -> Claim:
        for name in filter(None, (self.candidate, self.baseline)):
            if not _MICRO_NAME.match(name):
                raise ValueError(f"a method is 'task.method', got {name!r}")
        if self.kind in _NEEDS_RATIO and self.ratio is None:
            raise ValueError(f"kind {self.kind!r} needs a ratio")
        if self.kind.startswith("speedup") and self.ratio is not None and self.ratio <= 1:
            raise ValueError(f"a claimed speed-up is over 1, got ratio {self.ratio}")
        if self.kind in _NEEDS_BASELINE and self.baseline is None:
            raise ValueError(f"kind {self.kind!r} needs a baseline")
        if self.since is not None and not self.note:
            raise ValueError("since needs a note that says what changed then")
        if self.kind == "exists" and not self.evidence:
            raise ValueError("kind 'exists' needs dated evidence")
        if self.kind == "only-reaches" and self.workload is None:
            raise ValueError("kind 'only-reaches' needs a workload")
        if self.kind != "exists" and not self.problems and not self.on_training:
            raise ValueError("a claim needs problems or a workload")
        if self.workloads and (self.kind != "often" or self.baseline is None or self.workload or self.problems):
            raise ValueError("workloads belong to kind 'often' with a baseline, without workload or problems")
        if self.baseline_problem is not None and (
            self.scatters or len(self.problems) != 1 or self.baseline is None or self.kind == "growth"
        ):
            raise ValueError(
                "baseline_problem needs a baseline, one problem and a metric that is neither time nor joules"
            )
        if self.kind == "growth" and self.workload is not None:
            raise ValueError("kind 'growth' compares problems of several sizes, not a workload")
        if self.on_training and self.threads is not None:
            raise ValueError("threads belong to claims about one operation")
        if not self.on_training and (self.guard or self.hyper or self.baseline_hyper or self.search):
            raise ValueError("guard, search, hyper and baseline_hyper belong to claims about a training workload")
        if self.kind == "at-most" and self.baseline is None and self.baseline_hyper:
            raise ValueError("baseline_hyper needs a baseline")
        if self.across and self.timed:
            raise ValueError("arms with settings of their own come from several invocations, which share no time ratio")
        if self.metric == "elapsed_s" and (self.guard is None or self.guard.reaches is None):
            raise ValueError("elapsed_s is the time of a fixed schedule: a guard must say what it reaches")
        if self.guarded and self.error_metric is None:
            raise ValueError(f"a claim on {self.metric!r} needs an error_metric, so that a faster wrong answer shows")
        return self

    @property
    def on_training(self) -> bool:
        """Whether the claim is about training workloads."""
        return self.workload is not None or bool(self.workloads)

    @property
    def timed(self) -> bool:
        """Whether the metric is a time."""
        return self.metric.endswith("_s") or self.metric == "device_s_to_target"

    @property
    def scatters(self) -> bool:
        """Whether the metric differs from block to block by what else the machine does: a time, or joules."""
        return self.timed or self.metric == ENERGY

    @property
    def across(self) -> bool:
        """Whether the two arms may come from different invocations, because their settings differ."""
        return bool(self.hyper or self.baseline_hyper)

    @property
    def gain(self) -> str:
        """What a ratio over 1 means: only a time gets faster; an error or a size gets better."""
        return "faster" if self.timed else "better"

    @property
    def guarded(self) -> bool:
        """Whether an error margin must stand beside the ratio: a timing of one problem against a baseline."""
        return self.scatters and not self.on_training and self.baseline is not None and self.kind != "exists"

    @property
    def claimed(self) -> float | None:
        """The published number as it is reported: 1 for parity, None for a mere direction or event."""
        return 1.0 if self.kind == "on-par" else self.ratio

    def covers(self, problem: str) -> bool:
        """Whether ``problem`` is one of the claim's."""
        return any(fnmatch.fnmatchcase(problem, pattern) for pattern in self.problems)

    def concerns(self, problem: str) -> bool:
        """Whether a run on ``problem`` may enter the verdict: as a problem of the claim or the baseline's own."""
        return self.covers(problem) or problem == self.baseline_problem

    def same_hardware(self, device: str) -> bool:
        """Whether ``device`` is the hardware that the source measured on."""
        names = re.split(r"\s+or\s+|\s*,\s*", self.hardware) if self.hardware else []
        return any(name.lower() in device.lower() for name in names if name)

    def strict(self, device: str) -> bool:
        """Whether a bare "not reproduced" is fair on ``device``."""
        return self.hardware_free or self.same_hardware(device)

    def reproduce(self, program: str = "speedclaim") -> str:
        """The command that measures this row again."""
        if self.command is not None:
            return re.sub(r"^speedclaim\b", lambda _: program, self.command)
        methods = dict.fromkeys([self.candidate] + ([self.baseline] if self.baseline else []))
        if self.on_training:
            names = [self.workload] if self.workload is not None else self.workloads
            return " && ".join(command for name in names for command in self._train(program, name))
        chosen = " ".join(f"--method {name}" for name in methods)
        energy = " --energy" if self.metric == ENERGY else ""
        threads = f"OMP_NUM_THREADS={self.threads} " if self.threads is not None else ""
        return f"{threads}{program} run --suite {self.suite or self.task} --tier {self.tier} {chosen}{energy}"

    def _train(self, program: str, workload: str) -> list[str]:
        """One command, or one for each arm's settings; ten seeds, so that a verdict is possible."""
        full = " --full" if self.metric.startswith(("final", "best_")) else ""
        if not self.across:
            names = " ".join(name for name in (self.candidate, self.baseline) if name)
            return [f"{program} train {workload} {names} --seeds {TRAIN_SEEDS}{full}"]
        commands = []
        for name, hyper in ((self.candidate, self.hyper), (self.baseline, self.baseline_hyper)):
            if name is None:
                continue
            given = "".join(f" --hyper {key}={value}" for key, value in hyper.items())
            commands.append(f"{program} train {workload} {name} --seeds {TRAIN_SEEDS}{full}{given}")
        return commands


def load_claims(paths: Iterable[str | Path] | None = None) -> list[Claim]:
    """Every claim of the given TOML files or folders; without paths, of all packages in ``speedclaim.claims``.

    Raises:
        UserError: a file is missing or malformed, or two claims share an id.
    """
    found: dict[str, Claim] = {}
    for label, text in _sources(paths):
        for claim in parse_claims(text, label):
            other = found.get(claim.id)
            if other is not None:
                raise UserError(f"claim id {claim.id!r} stands in {other.file} and in {label}; rename one of them.")
            found[claim.id] = claim
    return list(found.values())


def parse_claims(text: str, label: str) -> list[Claim]:
    """The claims of one TOML text; its ``[[anchor]]`` tables go to every claim that runs their method."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{label} is not valid TOML: {error}.") from error
    unknown = sorted(set(content) - {"claim", "anchor"})
    if unknown:
        raise UserError(f"{label} has the unknown table {unknown[0]!r}; expected [[claim]] and [[anchor]] tables.")
    anchors = [
        _read(Anchor, fields, f"{label}, anchor {i + 1}") for i, fields in enumerate(_tables(content, "anchor", label))
    ]
    claims = []
    for i, fields in enumerate(_tables(content, "claim", label)):
        name = fields.get("id", f"number {i + 1}")
        own = fields.get("anchors", [])
        own = own if isinstance(own, list) else [own]
        methods = {fields.get("candidate"), fields.get("baseline")}
        shared = [anchor for anchor in anchors if anchor.method in methods]
        claims.append(_read(Claim, {**fields, "anchors": [*own, *shared], "file": label}, f"{label}, claim {name!r}"))
    return claims


def _tables(content: dict[str, Any], key: str, label: str) -> Sequence[dict[str, Any]]:
    tables = content.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{label}: {key!r} must be written as [[{key}]] tables.")
    return tables


def _read(model: type[_Model], fields: dict[str, Any], place: str) -> _Model:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the claim as a whole"
        came = "" if first["type"] in ("missing", "value_error") else f"; got {first['input']!r}"
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{place}, field {where}: {message}{came}.") from error


def _sources(paths: Iterable[str | Path] | None) -> Iterator[tuple[str, str]]:
    """Label and text of every TOML file."""
    if paths is None:
        for entry in registry.entries("claims").values():
            package = entry.load()
            files = (f for f in resources.files(package).iterdir() if f.name.endswith(".toml"))
            for file in sorted(files, key=lambda f: f.name):
                yield f"{entry.target.replace('.', '/')}/{file.name}", file.read_text(encoding="utf-8")
        return
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"no claims at {path}; expected a TOML file or a folder of them.")
        for file in sorted(path.glob("*.toml")) if path.is_dir() else [path]:
            yield str(file), file.read_text(encoding="utf-8")
