"""Fixtures: a toy plug-in package on the path, found through real entry-point metadata."""

import shutil
import sys
from pathlib import Path

import pytest

from harness.catalogue import registry
from harness.measure import isolate

HERE = Path(__file__).parent


def install(folder, name, groups):
    """A minimal installed distribution: ``.dist-info`` with entry points, as pip would write it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    text = ""
    for group, points in groups.items():
        text += f"[speedclaim.{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items()) + "\n"
    (info / "entry_points.txt").write_text(text)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Returns ``activate(groups)``: installs a distribution called toy-plugin with these entry points."""
    folder = tmp_path / "site"

    def activate(methods, suites=None, name="toy-plugin", **groups):
        folder.mkdir(exist_ok=True)
        for source in (HERE / "toy").glob("*.py"):
            shutil.copy(source, folder)
        points = {"methods": methods, **groups}
        if suites:
            points["suites"] = suites
        install(folder, name, points)
        registry.forget()
        return folder

    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    registry.forget()
    yield activate
    registry.forget()
    for module in ("toy_task", "toy_methods"):
        sys.modules.pop(module, None)


@pytest.fixture
def warm_workers(warm, monkeypatch):
    """Workers of this process start warm; without it ``harness.measure.isolate`` starts them as a user's are."""
    monkeypatch.setattr(isolate, "subprocess", warm)


@pytest.fixture
def toy(plugin):
    """Returns ``use(*names)``: the toy suite with its baseline and the named methods."""

    def use(*names):
        methods = {f"toy.{name}": f"toy_methods:{name.upper()}" for name in ("plain", *names)}
        return plugin(methods, suites={"toy": "toy_task:SUITE"})

    return use
