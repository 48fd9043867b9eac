"""Placement: on which nodes may a replica of this engine run? Decided once per deployment; Ray does the rest.

one node   one bundle with all of the engine's GPUs, STRICT_PACK: it waits rather than spread over two nodes
more       gang scheduling: one replica per node, each with its node's share, all of them or none
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypedDict

from ray.serve.config import GangPlacementStrategy, GangRuntimeFailurePolicy, GangSchedulingConfig

from serving.engine.command import EngineSpec

#: The label that KubeRay and `ray start --labels` give GPU nodes (Ray's own name for it).
GPU_TYPE_LABEL = "ray.io/accelerator-type"
#: CPU cores reserved for each GPU: vLLM's worker busy-polls on one of its own.
CPUS_PER_GPU = 1
#: Serve gives up on a deployment after a few failed starts of a replica. Here a replica that cannot start backs off and
#: retries for as long as it is wanted: repairing a node or volume must be enough.
RETRIES_WITHOUT_END = 1_000_000


#: Every node is eligible.
NO_LABELS: Mapping[str, str] = MappingProxyType({})


class Options(TypedDict, total=False):
    """Keyword arguments of `serve.deployment` that decide placement."""

    ray_actor_options: dict[str, int | dict[str, str]]
    placement_group_bundles: list[dict[str, float]]
    placement_group_strategy: str
    placement_group_bundle_label_selector: list[dict[str, str]]
    gang_scheduling_config: GangSchedulingConfig
    max_constructor_retry_count: int


def options(spec: EngineSpec, labels: Mapping[str, str] = NO_LABELS) -> Options:
    """Where replicas of `spec` may run: on nodes with these Ray labels, as many on each as it has GPUs for.

    The actor itself holds the GPUs: with `num_gpus` unset Ray hides no device from it, bundle or not (observed with
    2.60). A node without GPUs, such as a head, never fits. CPU engines are kept off it by the labels alone.
    """
    gpus = spec.gpus_per_node
    if gpus == 0:
        where: dict[str, int | dict[str, str]] = {"num_cpus": 0, "label_selector": dict(labels)}
        return Options(ray_actor_options=where, max_constructor_retry_count=RETRIES_WITHOUT_END)
    result = Options(
        ray_actor_options={"num_cpus": gpus * CPUS_PER_GPU, "num_gpus": gpus},
        placement_group_bundles=[{"CPU": gpus * CPUS_PER_GPU, "GPU": gpus}],
        max_constructor_retry_count=RETRIES_WITHOUT_END,
    )
    wanted = dict(labels) | ({GPU_TYPE_LABEL: spec.gpu_type} if spec.gpu_type else {})
    if wanted:
        result["placement_group_bundle_label_selector"] = [wanted]
    if spec.nodes == 1:
        result["placement_group_strategy"] = "STRICT_PACK"
    else:
        result["gang_scheduling_config"] = GangSchedulingConfig(
            gang_size=spec.nodes,
            gang_placement_strategy=GangPlacementStrategy.PACK,
            runtime_failure_policy=GangRuntimeFailurePolicy.RESTART_GANG,
        )
    return result


def serve_replicas(spec: EngineSpec, engines: int) -> int:
    """The number of Serve replicas for a number of engines: Serve counts gang members."""
    return engines * spec.nodes
