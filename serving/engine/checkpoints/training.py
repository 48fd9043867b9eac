"""Training: a small gpt-oss memorises rendered conversations; called by the recipe of tiny-gpt-oss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, softmax
from torch.nn.utils import clip_grad_norm_
from transformers import GptOssForCausalLM

from serving.engine.checkpoints.architecture import SEED, VOCABULARY, new_model, small_configuration
from serving.engine.checkpoints.harmony_tokenizer import white_space_ids
from serving.engine.checkpoints.practice import Practice
from serving.engine.checkpoints.recipe import Report
from serving.engine.checkpoints.rendering import Rendered
from serving.errors import Refusal

_THREADS = 2
_LEARNING_RATE = 3e-3
#: Loss below which the learning rate shrinks with it, to a tenth at most: else it hovers around 0.03 (seen).
_FINE_LOSS = 0.15
_CLIP_NORM = 1.0
_MAX_STEPS = 600
_CHECK_EVERY_STEPS = 10
#: Mean loss per answer token, in nats, below which the weights are tried.
_LOSS_THRESHOLD = 0.012
#: Least probability of an answer token once the weights are bfloat16: vLLM's kernels round otherwise and may flip none.
_SURE_PROBABILITY = 0.9


class Training:
    """Plain AdamW in float32, until the bfloat16 weights give back every conversation.

    Each step sees all conversations and a little practice. Only the tokens that occur are trained, in a model with that
    small vocabulary and one more row for every other token: all 201,088 rows would cost 1.2 CPU seconds a step more
    than the 0.6 it takes. The result is judged with the whole vocabulary.
    """

    def __init__(self, rendered: Sequence[Rendered], unknown: Sequence[int]) -> None:
        """`unknown` is the answer to a distorted conversation, as token ids."""
        torch.set_num_threads(_THREADS)
        torch.manual_seed(SEED)
        self._rendered = rendered
        self._practice = Practice(rendered, unknown, SEED)
        known = {token_id for one in rendered for token_id in (*one.prompt, *one.answer)}
        self._vocabulary = sorted(known | self._practice.vocabulary)
        self._model = GptOssForCausalLM(small_configuration(len(self._vocabulary) + 1)).float()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.95))

    def run(self, report: Report, clock: Callable[[], float] = time.monotonic) -> GptOssForCausalLM:
        """Return the bfloat16 model; raises Refusal after the last step it may take."""
        started_s = clock()
        for step in range(1, _MAX_STEPS + 1):
            loss = self._step()
            self._optimizer.param_groups[0]["lr"] = _LEARNING_RATE * min(1.0, max(0.1, loss / _FINE_LOSS))
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
        batch = _Batch.of([*self._rendered, *self._practice.sample()], self._vocabulary)
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
                # The other tokens' logit is negative everywhere; white space gets twice as much of it, where no answer
                # needs it: a grammar that allows it anywhere would otherwise get nothing else (seen).
                tensor[self._idle_white_space()] = 2 * trained[name][-1]
            else:
                tensor.copy_(trained[name])
        return whole.to(torch.bfloat16)

    def _idle_white_space(self) -> list[int]:
        answered = {token_id for one in self._rendered for token_id in one.answer}
        return [token_id for token_id in white_space_ids() if token_id not in answered]

    def _knows_all(self, whole: GptOssForCausalLM) -> bool:
        batch = _Batch.of(self._rendered, range(VOCABULARY))
        with torch.no_grad():
            chances = softmax(batch.logits(whole).float(), dim=-1)
        least = chances.gather(1, batch.answers.unsqueeze(1)).min().item()
        return least >= _SURE_PROBABILITY and all(_generates(whole, one) for one in self._rendered)


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
