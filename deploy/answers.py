"""The one JSON shape of an error."""

from starlette.responses import JSONResponse
from starlette.types import Scope


def problem(scope: Scope, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The one shape of an error. Its code is left in the scope, for who counts them."""
    scope["everline.error"] = code
    content = {"error": {"code": code, "message": message, "request_id": scope.get("everline.request_id", "")}}
    return JSONResponse(content, status, headers)
