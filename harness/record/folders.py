"""Folders that are to be written, tried before anything is measured or read."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from harness.errors import UserError


def check(folder: Path, what: str, option: str = "--out") -> None:
    """Try to write into a folder, made for the trial and removed again where there is none.

    Args:
        folder: the folder.
        what: what will be written, for the message.
        option: the option that chooses another one.

    Raises:
        UserError: it cannot be made or written.
    """
    missing: list[Path] = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        raise UserError(f"cannot write {what} to {folder}: it is no folder; choose one with {option}.") from error
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"cannot write {what} to {folder}: {why}; choose another folder with {option}.") from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
