"""Workspace: GiB of a GPU that are neither weights nor KV. Estimated; checked against two cited starts of gpt-oss-120b.

vLLM measures it at every start: CUDA's and NCCL's own memory, the peak of one full step, and its CUDA graphs.
"""

from __future__ import annotations

from serving.budget.weights import GIB, padded_widths
from serving.catalog import Architecture, Profile

#: GiB outside PyTorch on one H100, and on each of two (NCCL): 1.79 and 3.58 in vLLM's log, vllm PR 10511.
_ALONE_GIB = 1.79
_CONNECTED_GIB = 3.58
#: Estimated; gpt-oss captures 83 graphs (vLLM 0.32, models/config.py), and since 0.21 they come out of the share.
CUDA_GRAPHS_GIB = 1.0
#: Bytes per logit while sampling: bf16 2, float32 copy 4, sorted values and their int64 places 12, probabilities 4, mask 1,
#: scattered result 4, noise 4 (v1/sample, PyTorch path). 0.32's Triton path needs less.
_BYTES_PER_LOGIT = 31
#: Estimated: bf16 copies of the residual stream alive at the peak of a layer.
_HIDDEN_COPIES = 8
_BF16 = 2


def sampler_gib(architecture: Architecture, profile: Profile) -> float:
    """GiB while `max_num_seqs` sequences are sampled, which vLLM tries at start; guessed tokens are checked in the same step."""
    rows = 1 + (profile.speculation.tokens if profile.speculation else 0)
    return profile.max_num_seqs * rows * architecture.vocabulary * _BYTES_PER_LOGIT / GIB


def activations_gib(architecture: Architecture, profile: Profile) -> float:
    """GiB of one full step; experts see the tokens of every data rank."""
    tokens = profile.max_num_batched_tokens
    step = tokens * architecture.hidden * _HIDDEN_COPIES * _BF16
    experts = architecture.experts
    if experts is not None:
        hidden, intermediate = padded_widths(architecture, experts, profile)
        # MarlinExperts.workspace_shapes (vLLM 0.32).
        width = max(intermediate, hidden) + max(2 * intermediate, hidden)
        step += tokens * profile.data * experts.active * width * _BF16
    return step / GIB


def workspace_gib(architecture: Architecture, profile: Profile) -> float:
    """GiB in all, on one GPU. Sampling comes after the step, so the larger of the two counts."""
    outside = _ALONE_GIB if profile.gpus_per_engine == 1 else _CONNECTED_GIB
    peak = max(sampler_gib(architecture, profile), activations_gib(architecture, profile))
    return outside + peak + CUDA_GRAPHS_GIB
