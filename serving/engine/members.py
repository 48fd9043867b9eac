"""Members: which processes an engine has on each node, by the titles that vLLM gives them."""

from __future__ import annotations

from collections import Counter

from serving.engine.command import ONLY_MEMBER, EngineSpec, Member


def expected_members(spec: EngineSpec, member: Member = ONLY_MEMBER) -> Counter[str]:
    """The processes that vLLM starts and names on one member's node if it honours its options (titles of 0.32)."""
    names = [_core_of(spec, name) for name in _ranks(spec, member)]
    if spec.parallel.data == 1 and member.rank:
        names.clear()  # the one core is the first member's
    if spec.parallel.tensor * spec.parallel.pipeline > 1:  # a single rank may run inside its core
        names += [_worker_of(spec, rank) for rank in _ranks(spec, member)]
    if spec.settings.api_servers > 1 and not member.rank:  # a single one is the tree's root and keeps its own title
        names += [f"APIServer_{index}" for index in range(spec.settings.api_servers)]
    if spec.parallel.data > 1 and not member.rank:  # keeps the cores in step, reports their queues to the front end
        names.append("DPCoordinator")
    return Counter(set(names))


def _ranks(spec: EngineSpec, member: Member) -> range:
    """A node's share of an engine's ranks; vLLM numbers them by data, then pipeline, then tensor rank."""
    share = spec.parallel.ranks // spec.nodes
    return range(member.rank * share, (member.rank + 1) * share)


def _core_of(spec: EngineSpec, rank: int) -> str:
    parallel = spec.parallel
    data_rank = rank // (parallel.pipeline * parallel.tensor)
    return f"EngineCore_DP{data_rank}" if parallel.data > 1 else "EngineCore"


def _worker_of(spec: EngineSpec, rank: int) -> str:
    parallel = spec.parallel
    tensor_rank, pipeline_rank = rank % parallel.tensor, rank // parallel.tensor % parallel.pipeline
    data_rank = rank // (parallel.pipeline * parallel.tensor)
    return "".join(
        (
            "Worker",
            f"_DP{data_rank}" if parallel.data > 1 else "",
            f"_PP{pipeline_rank}" if parallel.pipeline > 1 else "",
            f"_TP{tensor_rank}" if parallel.tensor > 1 else "",
            f"_EP{data_rank * parallel.tensor + tensor_rank}" if parallel.expert else "",
        )
    )
