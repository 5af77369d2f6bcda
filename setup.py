"""The C++ kernels at install: built where a C++ compiler is, left out in one line where not. All else: pyproject.toml.

Without them they are built at first use, or torch's ``embedding_bag`` runs in their place; a record says which.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PLACE = "methods/approximate_matmul/native"
#: Set to 0 to install without compiling, as one does for a wheel of Python files alone.
VARIABLE = "SPEEDCLAIM_BUILD_KERNELS"


class BuildKernels(build_py):
    """Copies the Python files, then compiles the kernels beside them; in place for an editable install."""

    def run(self) -> None:
        """As the parent; a failure to compile is told in one line and breaks nothing."""
        super().run()
        place = ROOT / PLACE if self.editable_mode else Path(self.build_lib) / PLACE
        self.kernels = self._compiled(place)

    def _compiled(self, place: Path) -> list[str]:
        if os.environ.get(VARIABLE) == "0":
            print(f"speedclaim: native kernels left out, as ${VARIABLE} = 0 asks; they are built at first use")
            return []
        sys.path.insert(0, str(ROOT))
        try:
            from methods.approximate_matmul.native import build

            library = build.install(place)
        except Exception as error:  # whatever goes wrong here, the Python files are a whole product
            why = " ".join(str(error).split())[:300]
            print(f"speedclaim: native kernels not built ({why}); they are tried again at first use, else torch runs")
            return []
        finally:
            sys.path.remove(str(ROOT))
        print(f"speedclaim: native kernels built: {library}")
        return [str(library), str(library.with_suffix(".json"))]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """The parent's files and the library."""
        return [*super().get_outputs(include_bytecode), *getattr(self, "kernels", [])]


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 of one platform when it holds the library, for any platform when not."""

    def get_tag(self) -> tuple[str, str, str]:
        """``py3-none-<platform>`` or ``py3-none-any``."""
        if not getattr(self.get_finalized_command("build_py"), "kernels", []):
            return super().get_tag()
        return "py3", "none", sysconfig.get_platform().replace("-", "_").replace(".", "_")


setup(cmdclass={"build_py": BuildKernels, "bdist_wheel": PlatformWheel})
