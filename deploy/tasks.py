"""The route by which a plant says that another product comes."""

from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .described import PRINTABLE, TASK, json_body


class Switches(Protocol):
    """What the route needs (deploy/desk.py)."""

    async def switch(self, line: str, task: str) -> int: ...


class Product(BaseModel):
    """The body: the name of a task, as the line checks it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    task: str = Field(min_length=1, max_length=64, json_schema_extra=PRINTABLE)


def add(app: FastAPI, lines: Switches) -> None:
    """Adds it to the application."""

    @app.post("/lines/{line}/task", **TASK, openapi_extra=json_body(Product, {"task": "cap"}))
    async def task(request: Request, line: str) -> Any:
        """Switch a line to another product: from the next image on it learns this task."""
        try:
            asked = Product.model_validate_json(await request.body())
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error
        return {"line": line, "task": asked.task, "record": await lines.switch(line, asked.task)}
