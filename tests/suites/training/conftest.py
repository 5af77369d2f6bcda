import numpy as np
import pytest

from harness.catalogue.data import Arrays


@pytest.fixture
def pictures():
    """60 training and 20 test images of 8 x 8 x 3 with three classes."""
    draws = np.random.default_rng(3)
    train = draws.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3
    test = draws.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), np.arange(20) % 3
    return train, test


@pytest.fixture
def cards(monkeypatch):
    """Serve given arrays instead of data cards."""

    def serve(kind, meta=None, **arrays):
        monkeypatch.setattr(
            "harness.catalogue.data.load", lambda name: Arrays(name=name, kind=kind, arrays=arrays, meta=meta or {})
        )

    return serve
