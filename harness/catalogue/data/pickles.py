"""Unpickling of numpy arrays, lists, dicts, numbers and strings, and of nothing else: no code of a file ever runs."""

from __future__ import annotations

import io
import pickle
from typing import Any

from harness.errors import UserError

#: (module, name) of what a pickled numpy array needs; numpy renamed its private modules in version 2.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _Careful(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(f"a data file wants {module}.{name} while it is unpickled; only numpy arrays are allowed.")
        return super().find_class(module.replace("numpy.core", "numpy._core") if _renamed() else module, name)


def _renamed() -> bool:
    import numpy as np

    return int(np.__version__.split(".")[0]) >= 2


def loads(raw: bytes) -> Any:
    """The object in ``raw``; byte strings of Python 2 are read as latin-1, as numpy's own arrays need it."""
    try:
        return _Careful(io.BytesIO(raw), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"a data file is not the pickle that was expected: {error!r}.") from error
