"""What the gateway says of a schema or pattern is what xgrammar says of it: the compiler itself is asked.

Over schemas and patterns put together from every keyword and construct, right and wrong: what the gateway accepts
compiles, and what it calls impossible does not.
"""

import random
from typing import Any

import msgspec
import pytest
import xgrammar

from serving.gateway.dialects import patterns, schemas

#: Refused although it compiles: nothing could fit the schema, or it cannot be meant.
NOT_ABOUT_COMPILING = ("nothing fits", "is negative", "excludes everything")

LITERALS = ["a", "b", "Z", "5", "_", "-", " ", ".", "é", '"', "}", "]", "\n", "^", "$"]
ESCAPES = [r"\d", r"\w", r"\s", r"\S", r"\D", r"\.", r"\\", r"\n", r"\/", r"\-", r"\"", r"\x41", r"\u0041", r"\u{41}"]
ESCAPES += [r"\cA", r"\0", r"\b", r"\1", r"\k<n>", r"\p{L}", r"\q"]
CLASSES = ["[a-z]", "[^a]", r"[\w.-]", r"[\w-.]", r"[\d-z]", r"[a\]b]", "[]a]", "[^]", "[z-a]", "[a-", "[ -~]", "[é]"]
CLASSES += ['["]', r"[\\]", r"[\n]", "[\n]"]
GROUPS = ["(?=a)", "(?!b)", "(?<=a)", "(?<n>a)", "(?P<n>a)", "(?<n1>a)", "(?i)", "(?i:a)", "(?#c)", "()", "(?:)"]
TIMES = ["*", "+", "?", "*?", "+?", "??", "{2}", "{2,}", "{2,3}", "{0,5}", "{3,2}", "{}", "{,2}", "{ 2}", "{2, 3}"]
TIMES += ["{129}", "{0,200}", "{5", "**", "{2}{3}", "*+"] + [""] * 8


def pattern(choose: random.Random, depth: int) -> str:
    written = ""
    for _ in range(choose.randint(0 if depth < 2 else 1, 4)):
        kind = choose.random()
        if depth and kind > 0.9:
            part = f"{pattern(choose, depth - 1)}|{pattern(choose, depth - 1)}"
        elif depth and kind > 0.6:
            part = choose.choice(["(", "(?:", "(?=", "(?!", "(?<n>"]) + pattern(choose, depth - 1) + ")"
        else:
            part = choose.choice(LITERALS + choose.choice([LITERALS, ESCAPES, CLASSES, GROUPS]))
        written += part + choose.choice(TIMES)
    return written


KEYWORDS = {
    "string": ["minLength", "maxLength", "pattern", "format"],
    "integer": ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"],
    "number": ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"],
    "array": ["items", "prefixItems", "minItems", "maxItems", "contains", "minContains", "maxContains", "uniqueItems"],
    "object": ["properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties"],
}
KEYWORDS["array"] += ["unevaluatedItems", "additionalItems"]
KEYWORDS["object"] += ["maxProperties", "unevaluatedProperties", "dependentRequired"]
BESIDE = ["anyOf", "oneOf", "allOf", "enum", "const", "$ref", "not", "if", "description"]
WRONG_NUMBERS = [5, -1, 1.5, 2.0, "a", None, True, 10**30, 2**31, 2**63, -(2**63)]
VALUES: dict[str, list[Any]] = {
    "pattern": ["^a$", "a{129}", "(", "[a-z]+", r"\b", "(?=a)", 5, "a"],
    "format": ["date", "email", "bogus", 5, "uuid", ["date"], {}],
    "required": [[], ["a"], ["a", "b"], ["z"], ["a", "a"], "a", [1]],
    "enum": [[], [1], ["a"], [1, "a"], 5, [None], [{}]],
    "const": [1, "a", None, {}, [], True, 1.5],
    "$ref": ["#", "#/$defs/x", "#/$defs/y", 5, "#foo", "#/properties/a"],
    "uniqueItems": [True, False],
    "dependentRequired": [{"a": ["b"]}],
    "description": ["x", 1, True],
}
TYPES: list[Any] = ["bogus", 5, None, [], ["string", "null"], ["bogus", "string"], ["array", "null"], {}, [["string"]]]


def value(choose: random.Random, keyword: str, depth: int) -> Any:
    if keyword in VALUES:
        return choose.choice(VALUES[keyword])
    below = [schema(choose, depth - 1) for _ in range(3)]
    if keyword in ("properties", "patternProperties"):
        return choose.choice([{}, 5, {"a": below[0]}, {"a": below[0], "b": below[1]}, {"a": True}, {"a": False}])
    if keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        return choose.choice([[], 5, {}, below[:1], below[:1], below[:2], below[:2], [True], [False]])
    if keyword.startswith(("min", "max", "exclusive", "multiple")):
        return choose.choice([0, 1, 2, 3] * 12 + WRONG_NUMBERS)
    return choose.choice([True, False, 5, [], *below])


def schema(choose: random.Random, depth: int) -> Any:
    if depth <= 0:
        return choose.choice([{"type": "string"}, {"type": "integer"}, {}, {"type": "boolean"}, {"const": 1}])
    kind = choose.choice(list(KEYWORDS))
    written: dict[str, Any] = {"type": kind} if choose.random() < 0.8 else {}
    if not written and choose.random() < 0.3:
        written["type"] = choose.choice(TYPES)
    keywords = choose.sample(KEYWORDS[kind], choose.randint(0, 3))
    for keyword in keywords + ([choose.choice(BESIDE)] if choose.random() < 0.25 else []):
        written[keyword] = value(choose, keyword, depth)
    return written


@pytest.fixture(scope="module")
def compiler() -> xgrammar.GrammarCompiler:
    """As an engine's, but for a vocabulary of single bytes: whether something compiles does not depend on that."""
    words = [bytes([byte]) for byte in range(1, 256)] + [b"</s>"]
    info = xgrammar.TokenizerInfo(words, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[len(words) - 1])
    return xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=True, cache_limit_bytes=2**28)


def error_of(compile_it: Any, specification: str) -> str | None:
    try:
        compile_it(specification)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("seed", range(8))
def test_schemas(compiler: xgrammar.GrammarCompiler, seed: int) -> None:
    """Faults are found where xgrammar finds any, and nowhere else."""
    choose = random.Random(seed)
    for _ in range(250):
        written = schema(choose, depth=3)
        if choose.random() < 0.3:
            written["$defs"] = {"x": schema(choose, depth=1)}
        found = schemas.read(written)
        error = error_of(compiler.compile_json_schema, msgspec.json.encode(written).decode())
        impossible = [fault for fault in found.faults if not any(word in fault.reason for word in NOT_ABOUT_COMPILING)]
        assert found.faults or error is None, (written, error)
        assert error or not impossible, (written, impossible)


@pytest.mark.parametrize("seed", range(8))
def test_patterns(compiler: xgrammar.GrammarCompiler, seed: int) -> None:
    """Alone and as a schema's `pattern`."""
    choose = random.Random(seed)
    for _ in range(200):
        written = pattern(choose, depth=2)[:60]
        found = patterns.read(written)
        in_schema = msgspec.json.encode({"type": "string", "pattern": written}).decode()
        error = error_of(compiler.compile_regex, written)
        assert (found.fault is None) == (error is None), (written, found, error)
        error = error_of(compiler.compile_json_schema, in_schema)
        assert found.schema_fault or error is None, (written, error)
        # Parts that nothing matches are dropped in some places before their counts are looked at.
        assert error or found.schema_fault in (None, "a repetition of more than 128"), (written, found)


@pytest.mark.parametrize(
    "written",
    [
        {"type": "array", "contains": {"type": "string"}, "minContains": 1},
        {"type": "array", "items": {}, "minItems": 3, "maxItems": 1},
        {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,256}$"},
        {"type": "string", "pattern": "^.{1,300}$"},
        {"type": "string", "pattern": "[a-z]{1,128}"},
        {"type": "bogus"},
        {"type": "object", "properties": {"a": {"enum": []}}},
    ],
)
def test_schemas_that_clients_sent(compiler: xgrammar.GrammarCompiler, written: dict[str, Any]) -> None:
    """Each of these came from a client; only the fifth compiles."""
    error = error_of(compiler.compile_json_schema, msgspec.json.encode(written).decode())
    assert bool(schemas.read(written).faults) == bool(error)
    assert (error is None) == (written.get("pattern") == "[a-z]{1,128}")
