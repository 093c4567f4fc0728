"""The one JSON shape of an error, and what is asked of every request before it is read."""

import asyncio
import re

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS_LIMIT = 64 * 2**10  # bytes of a request's address and headers
RETRY_AFTER_S = 2  # a line's actor needs about that to come back
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def problem(scope: Scope, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The one shape of an error. Its code is left in the scope, for who counts them."""
    scope["everline.error"] = code
    content = {"error": {"code": code, "message": message, "request_id": scope.get("everline.request_id", "")}}
    return JSONResponse(content, status, headers)


async def begins_in_time(app: ASGIApp, scope: Scope, receive: Receive, send: Send, seconds: float) -> bool:
    """Runs an application; False, and it is cancelled, where it has not begun to answer by then."""
    timer = asyncio.timeout(seconds)

    async def answer(message: Message) -> None:
        timer.reschedule(None)  # it has begun, and may go on: a stream of events has no end
        await send(message)

    try:
        async with timer:
            await app(scope, receive, answer)
    except TimeoutError:
        if not timer.expired():
            raise
        return False
    return True
