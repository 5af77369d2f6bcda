"""Raw data beside the report: embedded in the page while small, else written as a file next to it."""

from __future__ import annotations

import base64
import gzip
import io
import json
from typing import Any

import pandas as pd

from reports import plain, tables
from reports.cases import Case

Row = dict[str, Any]
#: Bytes of base64 that one download may add to the page.
EMBED_LIMIT = 300_000


def downloads(
    runs: pd.DataFrame, cases: list[Case], ledger: list[Row], headers: list[Row], trained: list[Row]
) -> tuple[list[Row], dict[str, bytes]]:
    """Links for the audit page and the files that they need beside it."""
    flat = pd.DataFrame(tables.flat(cases))
    claims = [{k: v for k, v in row.items() if k not in ("sign", "bar", "anchor")} for row in ledger]
    offers = [
        ("cases.csv", "text/csv", flat.to_csv(index=False).encode(), f"one row per case ({len(flat)} rows)"),
        ("claims.json", "application/json", _json(claims), plain.count(len(claims), "judged claim")),
        ("headers.json", "application/json", _json(headers), "environment, plan and methods of every record file"),
        ("runs.csv.gz", "application/gzip", _runs(runs), f"every run and metric with raw samples ({len(runs)} rows)"),
    ]
    if trained:
        table = pd.DataFrame(trained).to_csv(index=False).encode()
        offers.insert(1, ("training.csv", "text/csv", table, f"one row per method and workload ({len(trained)} rows)"))
    links, files = [], {}
    for name, kind, content, what in offers:
        if len(content) * 4 // 3 <= EMBED_LIMIT:
            href = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        else:
            files[name] = content
            href, what = name, f"{what}, the file beside this page"
        links.append({"name": name, "href": href, "what": what})
    return links, files


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, default=str).encode()


def _runs(runs: pd.DataFrame) -> bytes:
    text = runs.assign(samples=_nested(runs, "samples"), detail=_nested(runs, "detail")).to_csv(index=False)
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=3) as stream:
        stream.write(text.encode())
    return buffer.getvalue()


def _nested(runs: pd.DataFrame, column: str) -> list[str]:
    """JSON text of a nested column; equal objects of neighbouring rows are written once."""
    seen: dict[int, str] = {}
    values = runs[column].to_list()
    for value in values:
        if id(value) not in seen:
            seen[id(value)] = json.dumps(value, default=str) if isinstance(value, list | dict) and value else ""
    return [seen[id(value)] for value in values]
