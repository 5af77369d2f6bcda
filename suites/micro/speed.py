"""One asv benchmark per suite, ``speed.track_<suite>``, with the registry's case ids as its parameter."""

from harness.adapters import asv

globals().update(asv.stubs())
