"""Data sets by name: ``load`` (never downloads), ``status``, ``fetch``, ``verify``, ``path``."""

from harness.catalogue.data.arrays import Arrays
from harness.catalogue.data.cache import cache_folder
from harness.catalogue.data.library import fetch, load, names, path, status, verify

__all__ = ["Arrays", "cache_folder", "fetch", "load", "names", "path", "status", "verify"]
