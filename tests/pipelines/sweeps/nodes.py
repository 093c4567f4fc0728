"""`python nodes.py CPUS...`: a Ray cluster of nodes with so many CPUs each, in a process of its own.

It answers in lines of JSON. First it says {"address", "head", "others"}, then it obeys its input: `trials` is answered
by the processes that run trials or ran some, [{"node", "pid", "alive"}]; `kill NODE PID` by null, when that node and
the process on it are no more; `cut NODE` by null, when the node says no more, though what it ran goes on (`end NODE`
ends it). All nodes but the first have the resource `hall`. It ends with its input.
"""

import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from typing import Any

from ray._private import ray_constants
from ray.cluster_utils import Cluster

STORE = 80 * 2**20  # bytes
SOON = {  # a node that does not answer is given up after seconds, not after half a minute
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 3,
}


def trials(cluster: Cluster) -> list[dict[str, Any]]:
    actors = cluster.global_state.actor_table(None).values()
    return [
        {"node": one["Address"]["NodeID"], "pid": one["Pid"], "alive": one["State"] == "ALIVE"}
        for one in actors
        if one["ActorClassName"].endswith("ImplicitFunc") and one["Pid"]
    ]


def kill(cluster: Cluster, name: str, pid: int) -> None:
    """Not by Cluster.remove_node, which gives up, and the cluster with it, where a killed process lingers."""
    node = named(cluster, name)
    node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    cluster.worker_nodes.remove(node)
    with suppress(ProcessLookupError):  # its node may have taken it along
        os.kill(pid, signal.SIGKILL)


def silence(cluster: Cluster, name: str, how: signal.Signals) -> None:
    (raylet,) = named(cluster, name).all_processes[ray_constants.PROCESS_TYPE_RAYLET]
    os.kill(raylet.process.pid, how)


def named(cluster: Cluster, name: str) -> Any:
    (node,) = (one for one in cluster.worker_nodes if one.node_id == name)
    return node


def obey(cluster: Cluster, what: str, *words: str) -> Any:
    if what == "trials":
        return trials(cluster)
    if what == "kill":
        return kill(cluster, words[0], int(words[1]))
    return silence(cluster, words[0], {"cut": signal.SIGSTOP, "end": signal.SIGKILL}[what])


def say(found: Any) -> None:
    print(json.dumps(found), flush=True)  # noqa: T201


def main(first: int, *more: int) -> None:
    head = {"num_cpus": first, "object_store_memory": STORE, "include_dashboard": False, "_system_config": SOON}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for cpus in more:
        cluster.add_node(num_cpus=cpus, object_store_memory=STORE, resources={"hall": 1})
    others = [one.node_id for one in cluster.worker_nodes]
    say({"address": cluster.address, "head": cluster.head_node.node_id, "others": others})
    for line in sys.stdin:
        say(obey(cluster, *line.split()))
    cluster.shutdown()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ev", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder  # short, since sockets lie in it
        main(*map(int, sys.argv[1:]))
