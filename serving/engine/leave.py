"""Leave: a pod's last act, before it is stopped: streams end before the processes do that they need.

engine pods            tell Ray that their node goes, so that Serve drains its replicas; wait until no engine runs there
head, directory        wait while any other node goes (`--last`): without them nobody drains, and no gateway hears of it

Run by the pods' preStop hook: `python -m serving.engine.leave --within-s 660`.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
import time
from collections.abc import Callable

import psutil
import ray
from ray._common.network_utils import build_address
from ray._private.state import state  # Serve's and Train's own way to draining nodes; there is no public one (2.60)
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.core.generated import autoscaler_pb2
from ray.exceptions import RayError

from serving.engine import processes

#: Seconds between two looks.
_LOOK_INTERVAL_S = 1.0
#: Seconds in which the other pods of a cluster that is deleted have told Ray that they go: an interpreter's start.
_GATHER_S = 10.0
#: TCP port of Ray's head where the environment names none.
_HEAD_PORT = "6379"
#: Seconds that Ray's head may take to answer.
_RAY_TIMEOUT_S = 10.0


def main() -> None:
    """Exit code 0 when everybody left in order, 1 when time ran out or Ray could not be told."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--within-s", type=float, required=True, help="seconds until the pod is stopped anyway")
    parser.add_argument("--last", action="store_true", help="only wait for other nodes that leave")
    chosen = parser.parse_args()
    deadline = time.monotonic() + chosen.within_s
    try:
        ray.init(address=head_address() or "auto", log_to_driver=False)
        here = ray.get_runtime_context().get_node_id()
        if chosen.last:
            time.sleep(min(_GATHER_S, chosen.within_s))
            is_done = wait_until(lambda: not (state.get_draining_nodes().keys() - {here}), deadline)
        else:
            drain(here, chosen.within_s)
            is_done = wait_until(lambda: not processes.members(), deadline)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        sys.exit(f"Ray could not be told that this node goes ({type(error).__name__}).")
    if not is_done:
        sys.exit(f"Not everybody had left after {chosen.within_s:.0f} s.")


def head_address() -> str | None:
    """Where this node's Ray speaks with its head, by address: None while nobody does.

    Not by name: when a whole cluster goes, the head's Service goes with it, and its name before this process has asked.
    """
    port = int(os.environ.get("RAY_ADDRESS", "").rpartition(":")[2] or _HEAD_PORT)
    connections = psutil.net_connections("tcp")
    if any(it.status == psutil.CONN_LISTEN and it.laddr and it.laddr.port == port for it in connections):
        return None  # this is the head, which Ray finds by itself; what it speaks with on that port may be a Redis
    for it in connections:
        if it.status == psutil.CONN_ESTABLISHED and it.raddr and it.raddr.port == port:
            return f"{build_address(plain(it.raddr.ip), port)}"
    return None


def plain(address: str) -> str:
    """An IPv4 address as such: gRPC's sockets take both families, and the kernel then shows it inside an IPv6 one."""
    ip = ipaddress.ip_address(address)
    return str(getattr(ip, "ipv4_mapped", None) or ip)


def drain(node_id: str, within_s: float) -> None:
    """Tell Ray that a node is gone in `within_s` seconds: Serve starts its replicas elsewhere, and stops them there."""
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION  # the one that Ray may not decline
    deadline_ms = int((time.time() + within_s) * 1000)
    client.drain_node(node_id, reason, "its pod is being stopped", deadline_ms, timeout=_RAY_TIMEOUT_S)


def wait_until(is_true: Callable[[], bool], deadline: float) -> bool:
    """Whether it became true before `deadline` on the monotonic clock."""
    while not is_true():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_INTERVAL_S)
    return True


if __name__ == "__main__":
    main()
