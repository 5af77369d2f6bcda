"""Imported before every test module.

torch's compiler loads setuptools, which refuses to start once the standard library's distutils was imported by
something else; imported first, it provides distutils for everybody.
"""

import contextlib

with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401
