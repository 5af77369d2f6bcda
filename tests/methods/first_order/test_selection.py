import pytest
import torch
from torch import nn

from harness.errors import Unsupported, UserError
from methods.first_order import muon
from methods.first_order.selection import split


def names(model, parameters):
    found = {parameter: name for name, parameter in model.named_parameters()}
    return [found[parameter] for parameter in parameters]


def test_hidden_matrices_are_chosen_by_module_type(net):
    model = net()
    hidden, others = split(model)
    assert names(model, hidden) == ["conv.weight", "up.weight", "down.weight", "up2.weight", "thin.weight"]
    assert len(hidden) + len(others) == len(list(model.parameters()))


def test_patterns_exclude_and_a_useless_one_is_told(net):
    model = net()
    hidden, _ = split(model, ["up*", "conv.weight"])
    assert names(model, hidden) == ["down.weight", "thin.weight"]
    with pytest.raises(UserError, match="matches no trainable"):
        split(model, ["nothing.*"])


def test_a_tied_head_a_token_a_transposed_convolution_and_an_empty_weight_are_left_to_the_fallback():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.token = nn.Parameter(torch.zeros(1, 1, 4))
            self.one = nn.Conv1d(2, 3, 5)
            self.back = nn.ConvTranspose2d(2, 3, 2)
            self.empty = nn.Parameter(torch.zeros(0, 4))
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight

    model = Odd()
    hidden, _ = split(model)
    assert names(model, hidden) == ["one.weight"]


def test_a_transformer_that_multiplies_by_its_embedding_has_no_other_head():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.blocks = nn.ModuleList([Block(), Block()])
            self.norm = nn.LayerNorm(4)

    class Untied(Tied):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 5)

    for model in (Tied(), Untied()):
        wanted = [f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("up", "down")]
        assert names(model, split(model)[0]) == wanted


def test_the_coverage_sums_to_all_trainable_parameters(net):
    model = net()
    model.up.requires_grad_(False)
    optimizer = muon.make(model)
    assert set(optimizer.coverage) == {"muon", "adamw"}
    assert optimizer.coverage["muon"] == 5 * 27 + 11 * 6 * 2 + 6
    assert sum(optimizer.coverage.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_model_without_hidden_matrices_is_refused():
    with pytest.raises(Unsupported, match="no hidden matrix"):
        muon.make(nn.Linear(3, 3))
