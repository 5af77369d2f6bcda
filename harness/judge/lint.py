"""Claims lint: every published number recomputed from its own source's tables, before anything is run.

A source is a TOML file ``sources/*.toml`` of a package in ``speedclaim.claims``: its tables as data, its sentences as
checkable statements, and for rows of the ledger the formula that gives their ratio. Formulas are arithmetic over
``table.row.column`` (``row.column`` inside a table's own columns), with ``min``, ``max`` and ``abs``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.catalogue import registry
from harness.errors import UserError
from harness.judge.claim import Claim
from harness.judge.formula import Formula, FormulaError

#: What a check found. ``last digit``: off by one in the last printed digit; ``not alike``: the two sides of a
#: comparison differ in what should be equal; ``absent``: nothing in the source says it.
Found = Literal["consistent", "contradiction", "last digit", "not alike", "absent"]
FLAGGED: tuple[Found, ...] = ("contradiction", "not alike", "absent", "last digit")
_FROZEN = ConfigDict(frozen=True, extra="forbid")
#: Slack of comparisons of decimal numbers, in units of the last printed digit.
_SLACK = 1e-6


class Printed(BaseModel):
    """A column that the source derives from others: recomputed in every row that has it."""

    model_config = _FROZEN

    column: str
    compute: str
    decimals: int = Field(default=2, ge=0)
    group: str = ""


class Table(BaseModel):
    """One table; rows are free columns beside ``key``."""

    model_config = _FROZEN

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str
    place: str
    rows: tuple[dict[str, float | str], ...]
    printed: tuple[Printed, ...] = ()
    #: Column with the time of a row, its unit in seconds, and the row that others are compared with, for costs.
    time: str | None = None
    unit_s: float = 1.0
    baseline: str | None = None
    #: Training samples of an epoch: with ``epochs`` and ``batch`` of a row they give seconds a step.
    samples: int | None = None

    @model_validator(mode="after")
    def _keyed(self) -> Table:
        keys = [row.get("key") for row in self.rows]
        if None in keys or len(set(keys)) < len(keys):
            raise ValueError("every row needs a key of its own")
        return self

    def row(self, key: str) -> Mapping[str, float | str] | None:
        """The row of that key."""
        return next((row for row in self.rows if row["key"] == key), None)


class Alike(BaseModel):
    """Two rows that are compared, and the columns that a fair comparison has equal."""

    model_config = _FROZEN

    rows: tuple[str, str]
    columns: tuple[str, ...]


class Statement(BaseModel):
    """A sentence of the source with a number.

    Attributes:
        id: stable name.
        group: statements of one disagreement share it.
        place: where it stands.
        says: the sentence in our words.
        value: the printed number, with ``compute``.
        range: the printed range, with every one of ``compute`` inside.
        at_least: a lower bound that the words mean, with ``compute``.
        decimals: digits that are printed.
        compute: formulas.
        alike: a comparison whose sides must agree.
        absent: the source has no such number at all.
        note: what a reader should know.
    """

    model_config = _FROZEN

    id: str
    group: str
    place: str
    says: str
    value: float | None = None
    range: tuple[float, float] | None = None
    at_least: float | None = None
    decimals: int = Field(default=2, ge=0)
    compute: tuple[str, ...] = ()
    alike: tuple[Alike, ...] = ()
    absent: bool = False
    note: str = ""

    @model_validator(mode="after")
    def _one_kind(self) -> Statement:
        numbers = [self.value is not None, self.range is not None, self.at_least is not None]
        if sum(numbers) + bool(self.alike) + self.absent != 1:
            raise ValueError("a statement has exactly one of value, range, at_least, alike and absent")
        if any(numbers) != bool(self.compute):
            raise ValueError("compute goes with value, range or at_least")
        return self


class Recomputed(BaseModel):
    """The formula behind a row of the ledger."""

    model_config = _FROZEN

    claim: str
    compute: str
    decimals: int = Field(default=2, ge=0)


class Source(BaseModel):
    """One published source."""

    model_config = _FROZEN

    id: str
    title: str
    citation: str
    note: str = ""
    table: tuple[Table, ...] = ()
    statement: tuple[Statement, ...] = ()
    ledger: tuple[Recomputed, ...] = ()
    file: str = ""


class Check(BaseModel):
    """One recomputed number."""

    model_config = _FROZEN

    source: str
    id: str
    group: str
    place: str
    says: str
    printed: str
    recomputed: str
    found: Found
    note: str = ""

    @property
    def flagged(self) -> bool:
        """Whether it disagrees."""
        return self.found != "consistent"


def load_sources(paths: Iterable[str | Path] | None = None) -> list[Source]:
    """Every source of the given files or folders; without paths, of all packages in ``speedclaim.claims``.

    Raises:
        UserError: a missing or malformed file.
    """
    found = []
    for label, text in _texts(paths):
        try:
            content = tomllib.loads(text)
            found.append(Source.model_validate({**content.pop("source", {}), **content, "file": label}))
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{label} is not valid TOML: {error}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the source"
            raise UserError(f"{label}, {where}: {first['msg'].removeprefix('Value error, ')}.") from error
    return found


def _texts(paths: Iterable[str | Path] | None) -> Iterator[tuple[str, str]]:
    if paths is None:
        for entry in registry.entries("claims").values():
            folder = resources.files(entry.load()).joinpath("sources")
            if folder.is_dir():
                for file in sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name):
                    yield f"{entry.target.replace('.', '/')}/sources/{file.name}", file.read_text(encoding="utf-8")
        return
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"no source at {path}; expected a TOML file or a folder of them.")
        files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"no source in the folder {path}; expected TOML files.")
        for file in files:
            try:
                yield str(file), file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def lint(source: Source, claims: Sequence[Claim] = ()) -> list[Check]:
    """Every check of a source: its tables' derived columns, its statements, the ledger's rows.

    Raises:
        UserError: a formula that names something unknown, or a ledger row that does not exist.
    """
    tables = {table.id: {str(row["key"]): row for row in table.rows} for table in source.table}
    try:
        return [
            *(check for table in source.table for check in _columns(source, table, tables)),
            *(_statement(source, one, tables) for one in source.statement),
            *(_ledger(source, one, tables, claims) for one in source.ledger),
        ]
    except FormulaError as error:
        raise UserError(f"{source.file}: {error}.") from error


def _columns(source: Source, table: Table, tables: Mapping[str, Any]) -> Iterator[Check]:
    for column in table.printed:
        formula = Formula(column.compute)
        for row in table.rows:
            if column.column not in row:
                continue
            printed, value = float(row[column.column]), formula({**tables[table.id], **tables, "row": row})
            name = f"{table.id}.{row['key']}.{column.column}"
            yield Check(
                source=source.id, id=name, group=column.group or f"{table.id}.{column.column}", place=table.place,
                says=f"{table.title}: {column.column} of {row['key']}", printed=_text(printed, column.decimals),
                recomputed=f"{value:.{column.decimals + 2}f} = {column.compute}",
                found=_compare(printed, value, column.decimals),
            )  # fmt: skip


def _statement(source: Source, one: Statement, tables: Mapping[str, Any]) -> Check:
    shared = {"source": source.id, "id": one.id, "group": one.group, "place": one.place, "says": one.says}
    if one.absent:
        return Check(**shared, printed="", recomputed="no such number", found="absent", note=one.note)
    if one.alike:
        unlike = [text for pair in one.alike if (text := _unlike(pair, tables))]
        found: Found = "not alike" if unlike else "consistent"
        return Check(**shared, printed="", recomputed="; ".join(unlike) or "alike", found=found, note=one.note)
    values = [Formula(text)(tables) for text in one.compute]
    shown = ", ".join(f"{value:.{one.decimals + 1}f} = {text}" for value, text in zip(values, one.compute, strict=True))
    unit = 10.0**-one.decimals
    if one.value is not None:
        words = [_compare(one.value, value, one.decimals) for value in values]
        printed = _text(one.value, one.decimals)
    elif one.range is not None:
        low, high = one.range
        inside = [low - unit / 2 - _SLACK * unit <= value <= high + unit / 2 + _SLACK * unit for value in values]
        words = ["consistent" if ok else "contradiction" for ok in inside]
        printed = f"{_text(low, one.decimals)} to {_text(high, one.decimals)}"
    else:
        assert one.at_least is not None
        words = ["consistent" if value >= one.at_least else "contradiction" for value in values]
        printed = f"at least {_text(one.at_least, one.decimals)}"
    worst: Found = next((word for word in FLAGGED if word in words), "consistent")
    return Check(**shared, printed=printed, recomputed=shown, found=worst, note=one.note)


def _ledger(source: Source, one: Recomputed, tables: Mapping[str, Any], claims: Sequence[Claim]) -> Check:
    claim = next((claim for claim in claims if claim.id == one.claim), None)
    if claim is None or claim.ratio is None:
        raise UserError(f"{source.file}: the ledger has no row {one.claim!r} with a ratio; correct the id.")
    value = Formula(one.compute)(tables)
    return Check(
        source=source.id, id=one.claim, group="ledger", place=claim.file, says=f"ledger row: {claim.title}",
        printed=_text(claim.ratio, one.decimals), recomputed=f"{value:.{one.decimals + 2}f} = {one.compute}",
        found=_compare(claim.ratio, value, one.decimals),
    )  # fmt: skip


def _unlike(pair: Alike, tables: Mapping[str, Any]) -> str:
    sides = [Formula.look_up(name, tables) for name in pair.rows]
    told = [
        f"{c} {_shown(sides[0].get(c))} against {_shown(sides[1].get(c))}"
        for c in pair.columns
        if sides[0].get(c) != sides[1].get(c)
    ]
    return f"{pair.rows[0]} and {pair.rows[1]}: {', '.join(told)}" if told else ""


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _compare(printed: float, value: float, decimals: int) -> Found:
    unit = 10.0**-decimals
    apart = abs(printed - value) / unit
    if apart <= 0.5 + _SLACK:
        return "consistent"
    return "last digit" if apart <= 1.5 + _SLACK else "contradiction"


def _text(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}"


def costs(source: Source) -> list[dict[str, Any]]:
    """Per row of the tables with a time: device-hours, ratios to the table's baseline, seconds a step, scaling.

    Money is device-hours times a price per GPU-hour; the source prints none.
    """
    rows = []
    for table in source.table:
        if table.time is None or table.baseline is None:
            continue
        base = table.row(table.baseline)
        if base is None:
            raise UserError(f"{source.file}: table {table.id} has no row {table.baseline!r}.")
        for row in table.rows:
            if table.time not in row:
                continue
            seconds, gpus = float(row[table.time]) * table.unit_s, float(row.get("gpus", 1))
            first, of_base = float(base[table.time]) * table.unit_s, float(base.get("gpus", 1))
            rows.append(
                {
                    "source": source.id,
                    "table": table.id,
                    "title": table.title,
                    "place": table.place,
                    "row": row["key"],
                    "columns": {k: v for k, v in row.items() if k != "key"},
                    "baseline": table.baseline,
                    "gpus": gpus,
                    "hours": seconds / 3600,
                    "gpu_hours": seconds * gpus / 3600,
                    "speedup": first / seconds,
                    "cost_ratio": seconds * gpus / (first * of_base),
                    "step_s": _step(table, row, seconds),
                    "efficiency": _efficiency(table, row),
                }
            )
    return rows


def _step(table: Table, row: Mapping[str, float | str], seconds: float) -> float | None:
    """Seconds of one update."""
    if table.samples is None or "epochs" not in row or "batch" not in row:
        return None
    return seconds / (float(row["epochs"]) * table.samples / float(row["batch"]))


def _efficiency(table: Table, row: Mapping[str, float | str]) -> float | None:
    """Epochs per GPU-minute against the same method on the fewest GPUs; None without another count of GPUs."""
    own = [one for one in table.rows if one.get("method") == row.get("method") and "epochs" in one and "gpus" in one]
    if table.time is None or row not in own or len({one["gpus"] for one in own}) < 2:
        return None
    least = min(own, key=lambda one: float(one["gpus"]))

    def rate(one: Mapping[str, float | str]) -> float:
        return float(one["epochs"]) / (float(one[str(table.time)]) * float(one["gpus"]))

    return rate(row) / rate(least)
