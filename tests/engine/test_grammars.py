"""A grammar goes on where another engine left it: xgrammar's own, under vLLM's own manager."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from serving.engine import grammars
from serving.engine.grammars import SENT_TOKENS, behind_what_was_sent, take, write_plugin

SCHEMA = json.dumps({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})

#: What comes next, and what does not.
OTHER = {'ris"}': '{"city"', '{"city": "Paris"}': 'ris"}'}


class Letters:
    """Tokens are letters, numbered as in ASCII; the last one ends an answer."""

    words: ClassVar = [chr(at) for at in range(128)]
    end = 127

    def grammar(self) -> Any:
        import xgrammar
        from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

        info = xgrammar.TokenizerInfo(self.words, stop_token_ids=[self.end])
        compiled = xgrammar.GrammarCompiler(info).compile_json_schema(SCHEMA, any_whitespace=False)
        return XgrammarGrammar(matcher=xgrammar.GrammarMatcher(compiled), vocab_size=128, ctx=compiled)


class Reasoner:
    """Reasoning is over behind a `#`."""

    def is_reasoning_end(self, ids: list[int]) -> bool:
        return ord("#") in ids

    def is_reasoning_end_streaming(self, ids: list[int], delta: list[int]) -> bool:
        return self.is_reasoning_end(ids)


def manager(reasoner: Reasoner | None) -> Any:
    """As much of vLLM's manager as decides where a grammar begins, the deciding itself being vLLM's."""
    from vllm.v1.structured_output import StructuredOutputManager

    made = object.__new__(StructuredOutputManager)
    made.enable_in_reasoning = False
    made._get_reasoner = lambda request: reasoner
    return made


def request(prompt: str, sent: str, reasoning_ended: bool | None = None) -> Any:
    tokens = [ord(letter) for letter in prompt + sent]
    return SimpleNamespace(
        request_id="r",
        prompt_token_ids=tokens,
        all_token_ids=list(tokens),
        structured_output_request=SimpleNamespace(reasoning_ended=reasoning_ended),
        sampling_params=SimpleNamespace(extra_args={SENT_TOKENS: len(sent)} if sent else None),
    )


def is_next(grammar: Any, letters: str) -> bool:
    return len(grammar.validate_tokens([ord(letter) for letter in letters])) == len(letters)


@pytest.mark.parametrize(
    ("sent", "reasoner", "ended", "rest"),
    [
        ('{"city": "Pa', None, None, 'ris"}'),
        ('Hm#{"city": "Pa', Reasoner(), None, 'ris"}'),
        ('Hm#{"city": "Pa', Reasoner(), False, 'ris"}'),
        ('{"city": "Pa', Reasoner(), True, 'ris"}'),
        ("Hm#", Reasoner(), False, '{"city": "Paris"}'),
        ("Hm", Reasoner(), False, '{"city": "Paris"}'),
    ],
)
def test_it_stands_behind_what_was_sent(sent: str, reasoner: Reasoner | None, ended: bool | None, rest: str) -> None:
    """And behind the reasoning in it, to which it does not apply; where reasoning goes on it has not begun."""
    one, grammar = request("{prompt", sent, ended), Letters().grammar()
    made = behind_what_was_sent(lambda *_: grammar)(manager(reasoner), one)
    assert made is grammar and is_next(grammar, rest) and not is_next(grammar, OTHER[rest])
    assert one.structured_output_request.reasoning_ended == (reasoner is None or ended is True or "#" in sent)


def test_a_call_that_begins_here_is_not_touched() -> None:
    """Its grammar is vLLM's."""
    one, grammar = request("{prompt", ""), Letters().grammar()
    assert behind_what_was_sent(lambda *_: grammar)(None, one) is grammar and is_next(grammar, '{"city"')


def test_what_a_grammar_does_not_take_is_a_failure() -> None:
    """Another engine cannot have made it: the request fails, and its client is told."""
    with pytest.raises(ValueError, match="does not take"):
        take(manager(None), request("", "no JSON"), Letters().grammar(), 7)


def test_vllm_finds_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its group of entry points, in a folder on the path; and the methods are as assumed."""
    from vllm.plugins import DEFAULT_PLUGINS_GROUP
    from vllm.v1.structured_output import StructuredOutputManager

    write_plugin(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (found,) = importlib.metadata.entry_points(group=DEFAULT_PLUGINS_GROUP, name="serving_grammars")
    assert found.load() is grammars.install
    assert list(inspect.signature(StructuredOutputManager._create_grammar).parameters) == ["self", "request"]
    bounds = inspect.signature(StructuredOutputManager._get_constraint_bounds).parameters
    assert list(bounds) == ["self", "request", "spec_tokens", "spec_tokens_committed"]
