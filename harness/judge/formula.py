"""Arithmetic over ``table.row.column``: parsed, never evaluated as Python."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

_BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_CALLS: Mapping[str, Callable[..., float]] = {"min": min, "max": max, "abs": abs}


class FormulaError(ValueError):
    """A formula that cannot be read, or that names something unknown."""


class Formula:
    """One formula.

    Raises:
        FormulaError: it is not arithmetic.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._tree = ast.parse(text, mode="eval").body
        except SyntaxError as error:
            raise FormulaError(f"formula {text!r} is not arithmetic") from error

    def __call__(self, names: Mapping[str, Any]) -> float:
        """Its value.

        Raises:
            FormulaError: an unknown name, or a division by 0.
        """
        try:
            return self._value(self._tree, names)
        except ZeroDivisionError as error:
            raise FormulaError(f"formula {self.text!r} divides by 0") from error

    def _value(self, node: ast.expr, names: Mapping[str, Any]) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return float(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return _BINARY[type(node.op)](self._value(node.left, names), self._value(node.right, names))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self._value(node.operand, names)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
            return _CALLS[node.func.id](*(self._value(one, names) for one in node.args))
        if isinstance(node, ast.Attribute | ast.Name):
            found = self.look_up(ast.unparse(node), names)
            if isinstance(found, int | float):
                return float(found)
            raise FormulaError(f"formula {self.text!r}: {ast.unparse(node)} is no number")
        raise FormulaError(f"formula {self.text!r}: {ast.unparse(node)} is not arithmetic")

    @staticmethod
    def look_up(path: str, names: Mapping[str, Any]) -> Any:
        """``table.row.column``, ``table.row`` or ``row.column``.

        Raises:
            FormulaError: something unknown, with what is known there.
        """
        found: Any = names
        for part in path.split("."):
            if not isinstance(found, Mapping) or part not in found:
                known = ", ".join(sorted(map(str, found))) if isinstance(found, Mapping) else "nothing"
                raise FormulaError(f"{path}: {part!r} is unknown; known: {known}")
            found = found[part]
        return found
