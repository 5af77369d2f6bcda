"""What the report stands on, as plain rows: files, environments, protocols, what was left out or discarded, methods."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import pandas as pd

from reports import plain
from reports.cases import Case, prepare

Row = dict[str, Any]


def files(headers: list[dict[str, Any]], cases: list[Case]) -> list[Row]:
    """One row per record file: what it is, whether it is whole, how quiet its machine was."""
    rows = []
    for header in headers:
        own = [case for case in cases if case.file == header["file"]]
        floors = {(case.task, case.problem): case.noise for case in own if case.noise is not None}
        environment, project = header.get("environment", {}), header.get("project", {})
        noisy = list(floors.values())
        spread = f"{plain.percent(median(noisy))} (worst {plain.percent(max(noisy))})" if noisy else plain.DASH
        rows.append(
            {
                "anchor": plain.anchor("file", plain.base(header["file"])),
                "file": plain.base(header["file"]),
                "utc": str(header.get("utc", "")),
                "device": environment.get("device_name") or plain.DASH,
                "command": str(header.get("command", "")),
                "complete": bool(header.get("complete", True)),
                "dirty": bool(project.get("diff")),
                "commit": str(project.get("commit") or "")[:12] or plain.DASH,
                "warnings": [str(w) for w in environment.get("warnings") or []],
                "noise_text": spread,
                "noise": max(noisy, default=None),
                "speaks_for": len(own),
                "hash": str(header.get("plan", {}).get("hash", ""))[:12],
            }
        )
    return rows


def environment(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The hardware and software of one file as label and text."""
    env = header.get("environment", {})
    gpu = env.get("gpu") or {}
    rows = [
        ("device", env.get("device_name")),
        ("kind", env.get("device")),
        ("CPU", env.get("cpu")),
        ("SIMD", ", ".join(env.get("simd") or [])),
        ("cores", _cores(env)),
        ("threads used", env.get("threads")),
        ("load average at start", env.get("load1")),
        ("memory", plain.size(plain.number(env.get("memory_bytes")))),
        ("GPU", gpu.get("name")),
        ("GPU driver", gpu.get("driver")),
        ("GPU memory", plain.size(plain.number(gpu.get("memory_bytes"))) if gpu else None),
        ("multiprocessors", gpu.get("sm_count")),
        ("compute capability", ".".join(map(str, gpu.get("capability") or []))),
        ("top SM clock", f"{gpu['max_sm_mhz']} MHz" if gpu.get("max_sm_mhz") else None),
        *((name, env.get(name)) for name in ("python", "torch", "triton", "numpy", "os", "host")),
    ]
    return [(label, str(value)) for label, value in rows if value not in (None, "", [])]


def _cores(env: Mapping[str, Any]) -> str:
    physical, logical = env.get("cores_physical"), env.get("cores_logical")
    return f"{physical} physical, {logical} logical" if physical else ""


def protocol(header: Mapping[str, Any]) -> list[Row]:
    """Each suite and each training workload of a file with the protocol it ran under."""
    plan = header.get("plan", {})
    rows = [_trained_under(plan, workload) for workload in plan.get("workloads") or []]
    for suite in plan.get("suites", []):
        described = {
            "tier": plan.get("tier"),
            "blocks": plan.get("blocks"),
            "budget": plain.seconds(plain.number(plan.get("budget_s"))) if plan.get("budget_s") else "none",
            "estimate": plain.seconds(plain.number(plan.get("estimate_s"))),
            "baseline": suite.get("baseline"),
            "base seeds": ", ".join(sorted({str(p.get("seed", 0)) for p in suite.get("problems", [])})),
        }
        rules = {plain.spoken(k): v for k, v in (suite.get("protocol") or {}).items() if k != "blocks"}
        fields = {**described, **rules}
        rows.append({"suite": suite["name"], "fields": [(k, str(v)) for k, v in fields.items() if v is not None]})
    return rows


def _trained_under(plan: Mapping[str, Any], workload: Mapping[str, Any]) -> Row:
    target = workload.get("target") or {}
    version = plan.get("training_protocol")
    fields = {
        "tier": plan.get("tier"),
        "protocol": version.get("version") if isinstance(version, Mapping) else version,
        "seeds": plan.get("blocks"),
        "target": f"{plain.spoken(str(target.get('metric', '')))} {target.get('value', '')}".strip() or None,
        **{name: workload.get(name) for name in ("batch", "epochs", "precision", "compile")},
    }
    return {"suite": str(workload.get("name")), "fields": [(k, str(v)) for k, v in fields.items() if v is not None]}


def left_out(headers: list[dict[str, Any]]) -> list[Row]:
    """Cells that a plan dropped, with its reason."""
    return [
        {"file": plain.base(header["file"]), "case": str(cell.get("case", "")), "reason": str(cell.get("reason", ""))}
        for header in headers
        for cell in header.get("plan", {}).get("left_out") or []
    ]


def by_reason(rows: list[Row]) -> list[Row]:
    """Rows with a ``reason`` counted per reason, the most frequent first, with the files they come from."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["reason"], []).append(row)
    found = [
        {
            "reason": reason,
            "count": len(own),
            "methods": len({row["case"].split("/")[0] for row in own if "case" in row}),
            "problems": len({row["case"].split("/")[-1] if "case" in row else row["problem"] for row in own}),
            "files": list(dict.fromkeys(row["file"] for row in own)),
        }
        for reason, own in groups.items()
    ]
    return sorted(found, key=lambda row: -row["count"])


def discarded(runs: pd.DataFrame, headers: list[dict[str, Any]]) -> list[Row]:
    """Blocks that do not count, one row per file, problem and block, with the number of arms lost."""
    if runs.empty or not runs["discarded"].notna().any():
        return []
    frame = prepare(runs, headers)
    frame = frame[frame["discarded"].notna() & (frame["phase"] == "block")]
    lost: dict[tuple[str, str, str, int], tuple[set[str], dict[str, None]]] = {}
    columns = ("file", "device", "problem", "block", "arm", "discarded")
    for file, device, problem, block, arm, reason in zip(*(frame[name] for name in columns), strict=True):
        arms, reasons = lost.setdefault((file, device, problem, int(block)), (set(), {}))
        arms.add(arm)
        reasons[str(reason)] = None
    return [
        {
            "file": plain.base(file),
            "device": device,
            "problem": problem,
            "block": block,
            "arms": len(arms),
            "reason": "; ".join(reasons),
        }
        for (file, device, problem, block), (arms, reasons) in lost.items()
    ]


def method_cards(
    headers: list[dict[str, Any]], cases: list[Case], trained: Mapping[str, list[Row]] | None = None
) -> list[Row]:
    """One card per method known to any header or run, with what happened to it on each device.

    ``trained`` holds, by method, the device and the text about its training runs.
    """
    described: dict[str, Row] = {}
    for header in headers:
        for method in header.get("methods") or []:
            described[method["name"]] = method
    for case in cases:
        described.setdefault(case.method, {"name": case.method, "task": case.task})
    done = trained or {}
    for name in done:
        described.setdefault(name, {"name": name, "task": name.split(".")[0]})
    return [
        _card(method, [case for case in cases if case.method == method["name"]], done.get(method["name"], []))
        for method in described.values()
    ]


def _card(method: Mapping[str, Any], cases: list[Case], trained: list[Row]) -> Row:
    where: list[Row] = []
    for device in dict.fromkeys(case.device for case in cases):
        own = [case for case in cases if case.device == device]
        timed = sum(case.time_s is not None for case in own)
        why = next((case.reason for case in own if case.time_s is None and case.reason), "")
        told = f"timed on {timed} of {len(own)} problems"
        where.append({"device": device, "text": told, "why": why if timed < len(own) else ""})
    where += trained
    text = {name: str(method.get(name) or "") for name in ("name", "task", "impl", "summary", "source", "formula")}
    return {
        **text,
        "anchor": plain.anchor("method", text["name"]),
        "origin": str(method.get("origin") or "unknown"),
        "needs": [str(need) for need in method.get("needs") or []],
        "reference": str(method.get("reference") or ""),
        "hyper": ", ".join(f"{k} = {v}" for k, v in (method.get("hyper") or {}).items()),
        "dtypes": ", ".join(method.get("dtypes") or []),
        "devices": ", ".join(method.get("devices") or []),
        "tags": ", ".join(method.get("tags") or []),
        "where": where,
    }
