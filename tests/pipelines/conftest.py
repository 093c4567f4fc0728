"""A sequence of three tasks made by hand: what the tests of its measures, tables, pages and runs share."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from everline.pipelines.records.continued import FIGURES, Continued
from everline.pipelines.records.results import METRICS, Result, TaskResult

MATRIX = [[0.8, 0.2, 0.4], [0.9, 0.6, 0.3], [0.5, 0.4, 0.7]]
Named = Mapping[str, Any]
NOTHING: Named = MappingProxyType({})

Sequence = Callable[..., Continued]


@pytest.fixture(scope="session")
def sequence() -> Sequence:
    """sequence(matrix, names="abc", **changed): every figure has that matrix; figures={...} for those that do not."""

    def made(matrix: Any = MATRIX, names: str = "abc", figures: Named = NOTHING, **changed: Any) -> Continued:
        plain: dict[str, Any] = {
            "scenario": "domain",
            "sequential": True,
            "columns": list(names),
            "steps": [[name] for name in names],
            "first": list(range(len(names))),
            "matrix": dict.fromkeys(FIGURES, matrix) | dict(figures),
            "chance": {name: [0.1, 0.1, 0.2] for name in FIGURES},
            "memory_bytes": {"networks": 2_000_000, "learned": 5_000_000, "replay": 1_000_000},
            "training_s": 12.5,
            "inference_ms": 4.25,
            "seed": 0,
        }
        return Continued(**(plain | changed))

    return made


@pytest.fixture(scope="session")
def record() -> Callable[..., Result]:
    """record(continued, strategy="naive", **changed): a record of that sequence; options and params are added."""

    def made(
        own: Continued,
        strategy: str = "naive",
        options: Named = NOTHING,
        params: Named = NOTHING,
        **changed: Any,
    ) -> Result:
        at_end = [{name: own.matrix[name][-1][n] for name in METRICS} for n in range(len(own.columns))]
        times = {"backbone": 10.0, "score": 6.0, "learn": 4.0}
        tasks = [
            TaskResult(name, 4, 6, row, [], times, 5_000_000) for name, row in zip(own.columns, at_end, strict=True)
        ]
        plain: dict[str, Any] = {"protocol": "continual", "method": "padim", "backbone": "b", "size": 64, "seed": 0}
        plain |= {"options": {"strategy": strategy, "order": "given", "scenario": own.scenario} | dict(options)}
        return Result(
            tasks=tasks, continued=own, params={"size": 64, "sigma": 4.0} | dict(params), **(plain | changed)
        )

    return made
