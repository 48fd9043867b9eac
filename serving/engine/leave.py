"""Leave: graceful shutdown of a pod: running streams end before the processes that they need.

engine pods            have Ray drain their node, so that Serve drains its replicas; wait until no engine runs there
head, directory        wait while any other node drains (`--last`): without them no replica drains and no gateway learns of it

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

#: Seconds between two polls.
_POLL_INTERVAL_S = 1.0
#: Seconds within which the other pods of a deleted cluster have started to drain: the start of an interpreter.
_GATHER_S = 10.0
#: TCP port of Ray's head where the environment names none.
_HEAD_PORT = "6379"
#: Seconds that Ray's head may take to answer.
_RAY_TIMEOUT_S = 10.0


def main() -> None:
    """Exit code 0 after an orderly drain, 1 when time ran out or Ray did not take the request."""
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
        sys.exit(f"Ray did not take the request to drain this node ({type(error).__name__}).")
    if not is_done:
        sys.exit(f"The drain had not finished after {chosen.within_s:.0f} s.")


def head_address() -> str | None:
    """The address of Ray's head, from this node's connections to it; None where there are none.

    Not by name: when a whole cluster is deleted, the head's Service is deleted with it, before this process could
    resolve it.
    """
    port = int(os.environ.get("RAY_ADDRESS", "").rpartition(":")[2] or _HEAD_PORT)
    connections = psutil.net_connections("tcp")
    if any(it.status == psutil.CONN_LISTEN and it.laddr and it.laddr.port == port for it in connections):
        return None  # this is the head, which Ray finds by itself; its own connections to that port may be a Redis
    for it in connections:
        if it.status == psutil.CONN_ESTABLISHED and it.raddr and it.raddr.port == port:
            return f"{build_address(plain(it.raddr.ip), port)}"
    return None


def plain(address: str) -> str:
    """The IPv4 address inside an IPv6-mapped one: gRPC's sockets are dual-stack, and the kernel shows them so."""
    ip = ipaddress.ip_address(address)
    return str(getattr(ip, "ipv4_mapped", None) or ip)


def drain(node_id: str, within_s: float) -> None:
    """Have Ray drain a node within `within_s` seconds: Serve starts its replicas elsewhere, then stops them there."""
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION  # the one that Ray may not decline
    deadline_ms = int((time.time() + within_s) * 1000)
    client.drain_node(node_id, reason, "its pod is being stopped", deadline_ms, timeout=_RAY_TIMEOUT_S)


def wait_until(is_true: Callable[[], bool], deadline: float) -> bool:
    """Whether it became true before `deadline` on the monotonic clock."""
    while not is_true():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_INTERVAL_S)
    return True


if __name__ == "__main__":
    main()
