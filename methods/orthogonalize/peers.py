"""Other people's routines, called as installed. What they refuse or get wrong is theirs; inputs stay untouched."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

from harness.errors import Unsupported
from methods.orthogonalize.newton_schulz import as_batch, checked, finished


def torch_muon(G: torch.Tensor) -> torch.Tensor:
    """torch.optim.Muon's own Newton-Schulz with that optimizer's defaults, in a loop over the batch.

    The routine takes one matrix, casts it to bfloat16 whatever it was, and divides in place; a bfloat16 input would be
    overwritten and is therefore cloned (other dtypes are copied by the cast). Norms under 1e-7 are not raised to 1.
    The result is cast back to G's dtype.

    Raises:
        Unsupported: this torch has no such routine, or it has another signature.
    """
    checked(G)
    if G.numel() == 0:
        return G.detach().clone(memory_format=torch.contiguous_format)
    zeropower, options = _torch_muon_routine()
    with torch.no_grad():
        if G.ndim == 2:
            return finished(zeropower(_expendable(G.detach(), torch.bfloat16), **options).to(G.dtype), G)
        result = torch.empty(G.shape, dtype=G.dtype, device=G.device)
        for matrix, place in zip(as_batch(G), as_batch(result), strict=True):
            place.copy_(zeropower(_expendable(matrix, torch.bfloat16), **options))
        return result


@functools.cache
def _torch_muon_routine() -> tuple[Callable[..., torch.Tensor], dict[str, Any]]:
    try:
        module: Any = importlib.import_module("torch.optim._muon")
        routine: Callable[..., torch.Tensor] = module._zeropower_via_newtonschulz
        defaults = inspect.signature(module.Muon.__init__).parameters
        options = {name: defaults[name].default for name in ("ns_coefficients", "ns_steps", "eps")}
    except (ImportError, AttributeError, KeyError) as error:
        raise Unsupported(
            f"torch {torch.__version__} has no Newton-Schulz routine in torch.optim._muon as 2.14 has it: {error}."
        ) from error
    return routine, options


def gns(G: torch.Tensor) -> torch.Tensor:
    """The package gram-newton-schulz with its defaults: Polar Express at 1.05, restart at 2, float16 inside.

    Its CuTe kernels run on the GPU; elsewhere its torch backend. Version 0.1.5 divides a float32 input in place, so a
    float32 input is cloned. Version 0.1.6 compiles itself with CUDA graphs, whose output is overwritten by the next
    call; where no cast copies it (float16), it is cloned. It has torch's recompilation limit.

    Raises:
        Unsupported: the package or its kernels cannot be imported.
    """
    checked(G)
    if G.numel() == 0:
        return G.detach().clone(memory_format=torch.contiguous_format)
    with torch.no_grad():
        batch = _expendable(as_batch(G), torch.float32).contiguous()
        result = _gram_newton_schulz(G.device.type == "cuda")(batch)
        return finished(_expendable(result, torch.float16), G)


@functools.cache
def _gram_newton_schulz(use_kernels: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    try:
        package: Any = importlib.import_module("gram_newton_schulz")
        routine: Callable[[torch.Tensor], torch.Tensor] = package.GramNewtonSchulz(ns_use_kernels=use_kernels)
    except (ImportError, AttributeError, TypeError) as error:
        raise Unsupported(
            f"the package gram-newton-schulz cannot be used ({type(error).__name__}: {error}); "
            f"install it (and quack-kernels for the GPU) with the extra 'peers'."
        ) from error
    return routine


def _expendable(tensor: torch.Tensor, mutated: torch.dtype) -> torch.Tensor:
    """A clone if the peer writes into tensors of this dtype, else the tensor itself."""
    return tensor.clone() if tensor.dtype == mutated else tensor
