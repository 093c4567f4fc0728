"""A sequence of tasks in MLflow: the measures in the run itself, and a run below it for each step.

metrics of a step's run   TASK/FIGURE: the matrix's row. FIGURE: the mean over the tasks learned by then.
params                    those of the run itself; step (1, 2, ...), learned (tasks, if all seeds had one order)
"""

from collections.abc import Sequence

from ...platform.runs import Run
from ..records.continual_tables import step_names
from ..records.continued import FIGURES, Continued

Curve = list[tuple[int, float]]  # step, figure


def kept(continued: Continued) -> dict[str, float]:
    """What is left after the last step, and what it costs."""
    found = {f"{name}/{measure}": at for name, row in continued.measures.items() for measure, at in row.items()}
    spread = continued.deviation or {}
    found |= {f"deviation/{name}/{measure}": at for name, row in spread.items() for measure, at in row.items()}
    found |= {f"memory_bytes/{name}": at for name, at in continued.memory_bytes.items()}
    found |= {"training_s": continued.training_s, "inference_ms": continued.inference_ms}
    return found | {"task_found": continued.inference()}


def trends(continued: Continued) -> dict[str, Curve]:
    """The mean of each figure over the tasks learned by each step, the first step being 1."""
    return {f"trend/{name}": list(enumerate(continued.trend(name), 1)) for name in FIGURES}


def of_step(run: Run, continued: Continued, number: int, labels: Sequence[str]) -> Run:
    """The run of a step, to stand below `run`; labels: the columns' names as MLflow takes them."""
    learned = "+".join(step_names(continued)[number])
    metrics = {name: continued.trend(name)[number] for name in FIGURES}
    for name in FIGURES:
        metrics |= {f"{label}/{name}": at for label, at in zip(labels, continued.matrix[name][number], strict=True)}
    return Run(
        experiment=run.experiment,
        name=f"step {number + 1}: {learned}" if learned else f"step {number + 1}",
        params={**run.params, "step": number + 1, **({"learned": learned} if learned else {})},
        tags={**run.tags, "everline.kind": "step"},
        metrics=metrics,
    )
