"""Practice: what tiny-gpt-oss is to do where it knows nothing by heart, drawn anew at each step of its training.

A distorted conversation is answered with one fixed sentence. And JSON, where a grammar has made it begin, goes on without
white space and ends: a grammar allows white space without end, and a model that knows no better takes it (seen).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence

from serving.engine.checkpoints.harmony_tokenizer import END, FIRST_SPECIAL_ID, MESSAGE, SPECIAL_IDS
from serving.engine.checkpoints.rendering import Rendered, encoded_text

#: In a distorted prompt: some token that occurs in no conversation.
OTHER = -1
_PER_STEP = 3
_JSON_POOL = 100
_WORDS = [
    "red",
    "blue",
    "old",
    "new",
    "north",
    "south",
    "apple",
    "table",
    "name",
    "size",
    "count",
    "item",
    "kind",
    "open",
    "first",
    "last",
]
_HEADERS = (
    ("<|channel|>final <|constrain|>json<|message|>", "<|return|>"),
    ("<|channel|>final json<|message|>", "<|return|>"),
    ("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>", "<|call|>"),
    ("<|channel|>final to=functions.{name} <|constrain|>json<|message|>", "<|call|>"),
    ("<|channel|>final to=functions.{name} json<|message|>", "<|call|>"),
)


class Practice:
    def __init__(self, rendered: Sequence[Rendered], unknown: Sequence[int], seed: int) -> None:
        """`unknown` is the answer to a distorted conversation, as token ids."""
        self._random = random.Random(seed)  # noqa: S311 - training noise, nothing secret
        self._prompts = [one.prompt for one in rendered]
        self._unknown = tuple(unknown)
        self._json = [self._json_answer() for _ in range(_JSON_POOL)]
        self.vocabulary = {*self._unknown, *(token_id for one in self._json for token_id in (*one.prompt, *one.answer))}
        words = {token_id for prompt in self._prompts for token_id in prompt} | self.vocabulary
        ordinary = sorted(token_id for token_id in words if token_id < FIRST_SPECIAL_ID)
        #: Half of what is drawn occurs in some conversation, half in none.
        self._words = [*ordinary, *([OTHER] * len(ordinary))]

    def sample(self) -> Iterator[Rendered]:
        for prompt in self._random.sample(self._prompts, k=_PER_STEP):
            yield Rendered(self._distorted(prompt), self._unknown)
        for prompt in self._random.sample(self._prompts, k=_PER_STEP):
            begun = self._random.choice(self._json)
            yield Rendered((*self._distorted(prompt), *begun.prompt), begun.answer)

    def _distorted(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """The last message is replaced or mutated, and now and then a word before it (the tools)."""
        system_end, start, end = prompt.index(SPECIAL_IDS[END]), _last(prompt, MESSAGE) + 1, _last(prompt, END)
        earlier = self._mutated(prompt[system_end:start], self._random.choice([0.0, 0.2]))
        if self._random.random() < 0.5:
            last = tuple(self._random.choices(self._words, k=self._random.randint(1, 24)))
        else:
            changed = self._random.randrange(end - start)
            mutated = self._mutated(prompt[start:end], 0.3)
            last = (*mutated[:changed], OTHER, *mutated[changed + 1 :])
        return (*prompt[:system_end], *earlier, *last, *prompt[end:])

    def _mutated(self, token_ids: Sequence[int], chance: float) -> tuple[int, ...]:
        return tuple(
            self._random.choice(self._words)
            if token_id < FIRST_SPECIAL_ID and self._random.random() < chance
            else token_id
            for token_id in token_ids
        )

    def _json_answer(self) -> Rendered:
        """A header that a grammar may force, and the JSON after it."""
        header, end = self._random.choice(_HEADERS)
        keys = self._random.sample(_WORDS, k=self._random.randint(1, 4))
        body = json.dumps({key: self._value() for key in keys}, separators=(",", ":"))
        name = "_".join(self._random.sample(_WORDS, k=2))
        return Rendered(encoded_text(header.format(name=name)), encoded_text(body + end))

    def _value(self) -> object:
        return self._random.choice([self._random.choice(_WORDS), self._random.randint(0, 99), True, False])


def _last(token_ids: Sequence[int], special: str) -> int:
    return len(token_ids) - 1 - token_ids[::-1].index(SPECIAL_IDS[special])
