"""A Ray head and two nodes on this machine, with a CPU each: prints the address; at each line it reads, kills the first node that is found
working on a unit, and says so; ends with its input.

A process of its own, because Ray reads how it authenticates when it is imported.
"""

import sys
import time

import psutil
from ray.cluster_utils import Cluster


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    try:
        for _ in sys.stdin:
            until = time.monotonic() + 30
            while not (working := [node for node in nodes if _works(node)]) and time.monotonic() < until:
                time.sleep(0.005)
            if working:
                nodes.remove(working[0])
                cluster.remove_node(working[0], allow_graceful=False)
            print("killed" if working else "all idle", flush=True)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def _works(node: object) -> bool:
    """Whether a worker of the node runs a unit: Ray names its processes by their task."""
    raylet = node.all_processes["raylet"][0].process.pid  # type: ignore[attr-defined]  # ray._private.node.Node
    return any(child.name().startswith("ray::_run_unit") for child in psutil.Process(raylet).children())


if __name__ == "__main__":
    main()
