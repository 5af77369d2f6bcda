"""How a script of this folder ends: like the command line, in one clear line and never in a traceback for a mistake."""

from __future__ import annotations

import sys
from collections.abc import Callable

from harness.errors import SpeedclaimError


def ended(main: Callable[[], object]) -> int:
    """Run and give the exit code: 0 done, 2 a user's mistake or a file that cannot be written, 130 interrupted."""
    try:
        main()
    except SpeedclaimError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or 'a file'}: {error.strerror or error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
