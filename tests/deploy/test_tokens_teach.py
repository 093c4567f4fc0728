"""Where a server has tokens, nobody without one teaches a line: the whole application, line and log."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from everline.deploy.guard import Rules
from everline.deploy.tokens import Tokens, make_token
from fastapi import FastAPI
from fastapi.testclient import TestClient

INSPECT = "/lines/mono/inspect"


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, dict[str, str]]:
    """Headers of whoever has a token, by the right that it gives; and of those who have none."""
    made = {right: make_token(tmp_path / "t", right, (right,)) for right in ("read", "inspect", "change")}
    headers = {right: {"Authorization": f"Bearer {token}"} for right, token in made.items()}
    return {**headers, "nobody": {}, "wrong": {"Authorization": "Bearer guessed"}}


def standing(http: TestClient) -> dict[str, Any]:
    """What decides about the next image."""
    status = http.get("/lines/mono").json()
    return {name: status[name] for name in ("images_learned", "threshold", "version", "drift", "false_rejects")}


def test_without_a_token_that_may_inspect_an_image_is_judged_and_teaches_nothing(
    whole: Callable[..., FastAPI], tokens: dict[str, dict[str, str]], tmp_path: Path, more_parts: list[bytes]
) -> None:
    with TestClient(whole(Rules(Tokens(tmp_path / "t"))), "http://localhost") as http:
        before = standing(http)
        for n, data in enumerate(more_parts[:20]):
            for who in ("nobody", "wrong", "read", "change"):
                headers = {**tokens[who], "X-Image-Id": f"part-{n}-{who}"}
                answer = http.post(INSPECT, content=data, headers=headers).json()
                assert (answer["admitted"], answer["id"]) == (False, f"unknown:part-{n}-{who}")
                assert answer["verdict"] in ("pass", "reject") and answer["version"] is not None
        form = [("images", (f"{n}.png", data)) for n, data in enumerate(more_parts[:3])]
        answers = http.post(f"{INSPECT}/batch", files=form).json()["answers"]
        assert [one["admitted"] for one in answers] == [False] * 3
        assert standing(http) == before
        id = answer["id"]
        assert http.get("/lines/mono/image", params={"id": id}).content == more_parts[19], "a person can look at it"

        passed = 0
        for n, data in enumerate(more_parts[:20]):
            headers = {**tokens["inspect"], "X-Image-Id": f"part-{n}-nobody"}
            answer = http.post(INSPECT, content=data, headers=headers).json()
            assert answer["admitted"] == (answer["verdict"] == "pass") and not answer["duplicate"]
            passed += answer["admitted"]
        assert passed > 0 and standing(http)["images_learned"] == before["images_learned"] + passed


def test_without_tokens_whoever_reaches_the_server_teaches(
    whole: Callable[..., FastAPI], more_parts: list[bytes]
) -> None:
    with TestClient(whole(), "http://localhost") as http:
        answers = [
            http.post(INSPECT, content=data, headers={"X-Image-Id": f"{n}"}) for n, data in enumerate(more_parts[:9])
        ]
        assert any(answer.json()["admitted"] for answer in answers)
        assert [answer.json()["id"] for answer in answers] == [str(n) for n in range(9)]
