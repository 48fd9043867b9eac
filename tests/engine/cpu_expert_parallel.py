"""Expert and data ranks on the CPU: a vLLM plugin for tests, in place of what vLLM 0.32's CPU build leaves out.

vLLM loads it in each of its processes (entry point group `vllm.general_plugins`) where `known_to_vllm` is in their
environment. Missing in 0.32.0 is what follows; flags, process groups, placement of weights, expert maps, schedulers and
the front end are vLLM's own, and on GPUs none of this is needed.

* `CPUUnquantizedExperts.apply` takes `expert_map` and does not use it: a token's global expert ids index the rank's own
  experts, past their end (seen: a segmentation fault at the first request).
* `CpuCommunicator` has no `all_gatherv` and no `reduce_scatterv`, by which data ranks exchange the tokens of a
  mixture-of-experts layer (seen: NotImplementedError at the first request ends both cores).
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NAME = "cpu-expert-parallel"
_ROOT = Path(__file__).parents[2]


def known_to_vllm(folder: Path) -> dict[str, str]:
    """The environment in which vLLM finds this plugin, by a distribution's metadata written to `folder`."""
    metadata = folder / f"{_NAME.replace('-', '_')}-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {_NAME}\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{_NAME} = {__name__}:register\n")
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), str(_ROOT), inherited)))}


def register() -> None:
    """What vLLM calls once in each process, before any model is built."""
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    CPUUnquantizedExperts.apply = _with_local_ids(CPUUnquantizedExperts.apply)
    CpuCommunicator.all_gatherv = _all_gatherv
    CpuCommunicator.reduce_scatterv = _reduce_scatterv


def _with_local_ids(apply: Callable[..., None]) -> Callable[..., None]:
    """`apply` for a rank that holds some of the experts: others count as its first one, with weight zero."""

    @functools.wraps(apply)
    def wrapped(self: Any, *, topk_ids: Any, topk_weights: Any, expert_map: Any, **others: Any) -> None:
        if expert_map is not None:
            local_ids = expert_map[topk_ids.long()]  # -1 where another rank has the expert
            topk_weights = topk_weights.masked_fill(local_ids < 0, 0)
            topk_ids = local_ids.clamp(min=0).to(topk_ids.dtype)
        apply(self, topk_ids=topk_ids, topk_weights=topk_weights, expert_map=None, **others)

    return wrapped


def _all_gatherv(self: Any, input_: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
    """Every rank's rows, one rank after the other; gloo gathers equal sizes only, so each rank tells its own."""
    import torch

    if isinstance(input_, list):
        return [_all_gatherv(self, it, dim, sizes) for it in input_]
    sizes = sizes or [len(input_)] * self.world_size
    parts = [input_.new_empty((size, *input_.shape[1:])) for size in sizes]
    parts[self.rank_in_group] = input_.contiguous()
    for rank, part in zip(self.ranks, parts, strict=True):
        torch.distributed.broadcast(part, src=rank, group=self.device_group)
    return torch.cat(parts)


def _reduce_scatterv(self: Any, input_: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
    """The sum over all ranks of this rank's rows."""
    import torch

    sizes = sizes or [len(input_) // self.world_size] * self.world_size
    total = input_.clone()
    torch.distributed.all_reduce(total, group=self.device_group)
    return total.split(sizes)[self.rank_in_group]
