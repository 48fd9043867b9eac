"""A rank with damaged weights: a vLLM plugin for tests, which adds noise to one tensor-parallel rank's share of a model.

vLLM loads it in each of its processes (entry point group `vllm.general_plugins`) where `known_to_vllm` is in their
environment. Everything else is vLLM's own.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NAME = "noisy-rank"
_ROOT = Path(__file__).parents[2]
#: The rank whose share is damaged, and the noise's standard deviation as a multiple of each matrix' own. As much as the weights
#: themselves leaves what tiny-gpt-oss knows by heart nearly as it was (measured: −0.019 a token).
_RANK = 1
_NOISE = 4.0
_SEED = 0


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
    from vllm.model_executor.models.gpt_oss import GptOssForCausalLM

    GptOssForCausalLM.load_weights = _then_damaged(GptOssForCausalLM.load_weights)


def _then_damaged(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def wrapped(self: Any, *arguments: Any, **others: Any) -> Any:
        import torch
        from vllm.distributed import get_tensor_model_parallel_rank

        loaded = load(self, *arguments, **others)
        if get_tensor_model_parallel_rank() == _RANK:
            source = torch.Generator().manual_seed(_SEED)
            for name, weight in self.named_parameters():
                if ".layers." in name and weight.dim() > 1:
                    noise = torch.randn(weight.shape, generator=source) * weight.float().std() * _NOISE
                    weight.data += noise.to(weight.dtype)
        return loaded

    return wrapped
