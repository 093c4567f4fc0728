"""Plain JSON read with care: objects whose values are asked for by name and type."""

import math
from collections.abc import Sequence
from typing import Any

from ...methods.errors import DataError


class Row:
    """A JSON object whose values are asked for by name and type."""

    def __init__(self, plain: Any, who: str) -> None:
        if not isinstance(plain, dict):
            raise DataError(f"{who}: expected an object, got {type(plain).__name__}.")
        self.plain, self.who = plain, who

    def get(self, name: str, kind: Any) -> Any:
        if name not in self.plain:
            raise DataError(f"{self.who}: {name!r} is missing; this is no result record of everline.")
        value = self.plain[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DataError(f"{self.who}: {name!r} has the wrong type, {type(value).__name__}.")
        return value

    def figures(self, name: str, wanted: Sequence[str]) -> dict[str, float]:
        """An object of numbers, null being NaN; `wanted` must be there."""
        row = Row(self.get(name, dict), f"{self.who}: {name}")
        return {key: row.figure(key) for key in wanted}

    def some_figures(self, name: str, wanted: Sequence[str]) -> dict[str, float] | None:
        """Figures that need not be there."""
        return self.figures(name, wanted) if name in self.plain else None

    def rows(self, name: str) -> "list[Row]":
        """Objects of a list that need not be there."""
        listed = self.get(name, list) if name in self.plain else []
        return [Row(one, f"{self.who}: {name}[{n}]") for n, one in enumerate(listed)]

    def whole_numbers(self, name: str) -> list[int]:
        """A list of whole numbers that need not be there."""
        listed = self.get(name, list) if name in self.plain else []
        return [Row({name: one}, self.who).get(name, int) for one in listed]

    def words(self, name: str) -> list[str]:
        """A list of texts."""
        return [Row({name: one}, self.who).get(name, str) for one in self.get(name, list)]

    def flag(self, name: str) -> bool:
        """true or false."""
        value = self.plain.get(name)
        if not isinstance(value, bool):
            raise DataError(f"{self.who}: {name!r} must be true or false, got {value!r}.")
        return value

    def numbers(self, name: str) -> list[float]:
        """A list of numbers, null being NaN."""
        return [Row({name: one}, self.who).figure(name) for one in self.get(name, list)]

    def matrix(self, name: str, rows: int, columns: int) -> list[list[float]]:
        """A list of `rows` lists of `columns` numbers each, null being NaN."""
        found = [Row({name: one}, self.who).numbers(name) for one in self.get(name, list)]
        if len(found) != rows or any(len(row) != columns for row in found):
            raise DataError(f"{self.who}: {name!r} must be {rows} rows of {columns} numbers.")
        return found

    def figure(self, name: str) -> float:
        value = self.get(name, (int, float, type(None)))
        return math.nan if value is None else value
