"""A Ray head and two nodes on this machine, with a CPU each: prints the address; at each line it reads, kills the first node that is found
working on a unit, and says so; ends with its input.

A process of its own, because Ray reads how it authenticates when it is imported.
"""

import os
import signal
import sys
import time
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.e2e.pipelines import stop_amid_a_unit


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    try:
        for _ in sys.stdin:
            print("killed" if kill_a_node_at_work(cluster, nodes) else "all idle", flush=True)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def kill_a_node_at_work(cluster: Cluster, nodes: list[Any]) -> bool:
    """Kill the first node that is found working, and take it out of `nodes`; False where all are idle for half a minute."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        for node in nodes:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            worker = stop_amid_a_unit(child.pid for child in raylet.children())
            if worker is not None:
                nodes.remove(node)
                cluster.remove_node(node, allow_graceful=False)
                os.kill(worker, signal.SIGKILL)  # one that is stopped does not see that its node has gone
                return True
        time.sleep(0.005)
    return False


if __name__ == "__main__":
    main()
