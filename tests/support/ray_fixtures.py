"""A Ray cluster of several nodes on this machine."""

import contextlib
import os
from collections.abc import Iterator

import pytest

_STORE_BYTES = 80 << 20  # of each node; results are small
_STARTS = 3
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported: nothing is reported to anyone


@contextlib.contextmanager
def started_cluster(*cpus: int) -> Iterator["object"]:
    """A cluster whose head has no processors, and a node with each number of processors; connected to this process."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    for left in reversed(range(_STARTS)):
        try:
            cluster = Cluster(initialize_head=True, head_node_args=head)
            break
        except Exception:  # Ray waits for 30 s, which a machine busy with other tests may exceed
            if not left:
                raise
    try:
        for count in cpus:
            add_node(cluster, count)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster, cpus):
    """Adds a node."""
    return cluster.add_node(num_cpus=cpus, num_gpus=0, object_store_memory=_STORE_BYTES)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two nodes of one processor, which tests leave as it is. It takes about 1 GB of memory."""
    with started_cluster(1, 1) as cluster:
        yield cluster
