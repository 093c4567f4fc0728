"""HTTP, gRPC and a handle lead to the same work, and each is timed."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_each_way_leads_to_a_verdict_and_is_timed() -> None:
    words = ["--requests", "2", "--size", "64", "--json", "-"]
    command = [sys.executable, "-m", "everline.pipelines.fleet.transports", *words]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert [row["way"] for row in found["ways"]] == ["HTTP", "gRPC", "handle"]
    assert all(row["p50_ms"] > 0 for row in found["ways"]) and found["ways"][0]["ratio"] == 1
