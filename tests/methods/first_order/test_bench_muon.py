import math

import torch

from methods.first_order import _bench_muon as bench


def test_shapes():
    assert sum(math.prod(shape) for shape in bench.gpt2_blocks()) == 12 * 12 * 768**2
    assert sum(math.prod(shape) for shape in bench.vgg16_bn()) == 14_710_464 + 512**2
    assert len(bench.resnet18()) == 20
    assert sum(math.prod(shape) for shape in bench.resnet18()) == 11_159_232


def test_the_check_tells_right_from_wrong(monkeypatch, capsys):
    monkeypatch.setattr(bench, "DEVICE", "cpu")
    shapes = [(24, 16), (24, 16), (8, 4, 3, 3)]
    for dtype in (torch.float32, torch.bfloat16):
        assert max(bench.check(shapes, dtype).values()) < bench.LIMIT
    honest = bench.ours
    monkeypatch.setattr(bench, "ours", lambda weights, name, lr: honest(weights, name, 0.5 * lr))
    assert bench.check(shapes, torch.float32)["ours against torch.optim.Muon"] > 2 * bench.LIMIT
