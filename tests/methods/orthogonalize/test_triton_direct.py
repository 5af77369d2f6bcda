from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from methods.orthogonalize import _triton_direct as direct


def parameters(x, n, a, FLAG, BM):
    """The parameters of a kernel, in its order."""


class CompiledKernel:
    """Stands in for Triton's class of the same name: records what is launched directly."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def __getitem__(self, grid):
        def run(*args):
            if self.error:
                raise self.error
            self.calls.append((grid, args))

        return run


class Kernel:
    fn = staticmethod(parameters)

    def __init__(self, compiled):
        self.compiled, self.calls = compiled, []

    def __getitem__(self, grid):
        def run(*args, **meta):
            self.calls.append((grid, args, meta))
            return self.compiled

        return run


@pytest.fixture(autouse=True)
def _fresh():
    direct.enable()
    direct.forget()
    yield
    direct.enable()
    direct.forget()


def launch_of(compiled):
    kernel = Kernel(compiled)
    return kernel, direct.Launch(kernel, 6, (5,), {"BM": 16, "num_warps": 4, "FLAG": True})


def test_the_first_launch_is_ordinary_and_the_next_go_to_the_compiled_kernel():
    compiled = CompiledKernel()
    kernel, launch = launch_of(compiled)
    for pointer, value in (("p", 1.0), ("q", 2.0), ("r", 3.0)):
        launch((pointer,), (value,))
    assert kernel.calls == [((6, 1, 1), ("p", 5, 1.0), {"BM": 16, "num_warps": 4, "FLAG": True})]
    assert compiled.calls == [((6, 1, 1), ("q", 5, 2.0, True, 16)), ((6, 1, 1), ("r", 5, 3.0, True, 16))]
    assert direct.state() == {"direct": True, "reason": ""}


def test_an_interpreted_kernel_stays_ordinary_and_disables_nothing():
    kernel, launch = launch_of(None)
    launch(("p",), (1.0,))
    launch(("p",), (1.0,))
    assert len(kernel.calls) == 2
    assert direct.state()["direct"]


def test_an_unknown_kernel_object_is_never_called_and_is_reported():
    kernel, launch = launch_of(object())
    launch(("p",), (1.0,))
    launch(("p",), (1.0,))
    assert len(kernel.calls) == 2
    assert direct.state() == {"direct": False, "reason": "a launch returned object, not a compiled kernel"}


def test_refused_arguments_go_the_ordinary_way_and_are_reported():
    kernel, launch = launch_of(CompiledKernel(TypeError("takes 3 arguments")))
    launch(("p",), (1.0,))
    launch(("q",), (2.0,))
    launch(("r",), (3.0,))
    assert [args[0] for _, args, _ in kernel.calls] == ["p", "q", "r"]
    assert "takes 3 arguments" in direct.state()["reason"]


def test_errors_of_the_device_are_not_hidden():
    _, launch = launch_of(CompiledKernel(RuntimeError("illegal memory access")))
    launch(("p",), (1.0,))
    with pytest.raises(RuntimeError, match="illegal memory"):
        launch(("p",), (1.0,))


def test_pre_run_hooks_keep_launches_ordinary():
    kernel, launch = launch_of(CompiledKernel())
    kernel.pre_run_hooks = [print]
    launch(("p",), (1.0,))
    launch(("p",), (1.0,))
    assert len(kernel.calls) == 2


def test_everything_that_specialises_a_kernel_is_in_the_form():
    x = torch.zeros(64, 64, dtype=torch.float16)
    assert direct.form(x) == direct.form(torch.ones_like(x))
    others = [x[:, :32], x.mT[:, :32].mT, x.float(), x[1:], x.view(4096)[1:4033].view(63, 64), x.bfloat16(), None]
    assert len({direct.form(other) for other in [x, *others]}) == 8


def test_launches_are_kept_by_key_and_bounded(monkeypatch):
    built = []

    def build():
        built.append(1)
        return launch_of(None)[1]

    first = direct.get("a", build)
    assert direct.get("a", build) is first
    monkeypatch.setattr(direct, "CAPACITY", 2)
    direct.get("b", build)
    direct.get("c", build)
    assert direct.get("a", build) is not first
    assert len(built) == 4
