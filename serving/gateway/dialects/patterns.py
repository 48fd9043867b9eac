"""Patterns: what a regular expression asks of an engine, read before any engine is. Nothing is matched here.

vLLM 0.32 compiles with xgrammar 0.2.8, which has two readers of regular expressions. A bare pattern
(`structured_outputs.regex`) meets the second only. A schema's `pattern` meets the first, and the second where the first
cannot read it. What each can read was found by trying; `tests/engine/test_constraints_compile.py` tries again.
"""

from __future__ import annotations

import re

import msgspec

#: The largest product of counted repetitions inside one another: `(a{1,20}){1,50}` is just allowed.
REPETITION_MAX = 1000
#: The highest count of one repetition that xgrammar's first reader compiles.
SCHEMA_COUNT_MAX = 128
#: Groups inside one another: half of what xgrammar's second reader takes.
NESTED_MAX = 500
#: The highest count that xgrammar holds.
COUNT_MAX = 2**31 - 1

# CPU time to compile one character of a pattern, from measurements with a vocabulary of 201,088 (GW-30).
#: Most characters match: `.`, `[^x]`, `\S`.
_WIDE_MS = 40.0
#: Letters and the space match, so that most tokens begin well.
_SPACED_MS = 12.0
#: Letters match.
_NARROW_MS = 5.0
#: Digits match.
_DIGIT_MS = 0.2
#: One character matches.
_LITERAL_MS = 0.05

_CODED = r"x[0-9A-Fa-f](?:[0-9A-Fa-f]|(?=.))|u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]+\}|U[0-9A-Fa-f]{8}|c[A-Za-z]"
_TOKEN = re.compile(
    rf"""
      (?P<escape>\\(?:{_CODED}|.)?)
    | (?P<class>\[\^?(?:\\.|[^\]\\])*\]?)
    | (?P<open>\((?:\?(?:[:=!]|<[=!]|P?<[^>)]*>?|i\)|[^)]?))?)
    | (?P<close>\))
    | (?P<or>\|)
    | (?P<times>[*+?]|\{{[0-9,\ ]*\}}?)
    | (?P<anchor>[\^$])
    | (?P<letter>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_ITEM = re.compile(rf"\\(?:{_CODED}|.)|[^\\]", re.DOTALL)
_COUNTS = re.compile(r"\{( *)([0-9]+)( *)(?:(,)( *)([0-9]*)( *))?\}")
_PRINTABLE = frozenset(map(chr, range(0x20, 0x7F)))
#: For the first reader these stand for characters that a JSON string cannot hold as they are: nothing matches them.
_UNHELD_ESCAPES = frozenset('"0\\aefnrtv')
#: What the second reader puts into a class for these; a `-` here is a range.
_EXPANDED = {"d": "0-9", "w": "a-zA-Z0-9_", "s": "\f\xa0", "D": "\0-/", "W": "\0-/", "S": "\0-\x08"}
_CONTROLS = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "0": 0, "a": 7, "b": 8, "e": 27}
_RANGE, _MANY = -1, -2


class Pattern(msgspec.Struct, frozen=True):
    """A pattern that was read."""

    #: Why an engine cannot compile it alone, and why not in a schema; None where it can.
    fault: str | None
    schema_fault: str | None
    #: The largest product of counts inside one another; `*`, `+`, `?` and `{0}` count as one.
    repetition: int
    #: CPU time that compiling it takes an engine.
    cost_ms: float


def read(pattern: str) -> Pattern:
    """The pattern's faults, repetition and cost, in one pass."""
    reader = _Reader()
    for token in _TOKEN.finditer(pattern):
        reader.take(str(token.lastgroup), token.group(), token.start())
    return reader.result("\0" in pattern)


class _Group:
    """An open group, or the pattern itself."""

    def __init__(self, is_looked_at: bool) -> None:
        #: Inside a lookahead, which the first reader skips and the second refuses.
        self.is_looked_at = is_looked_at
        self.repetition = 1
        self.cost_ms = 0.0
        #: For the first reader: something matches one of the branches before this one.
        self.is_possible = False
        self.start_branch()

    def start_branch(self) -> None:
        self.is_branch_possible = True  # without the last element
        self.is_atom_possible = True
        self.atom = 1  # repetition inside the last element
        self.atom_cost_ms = 0.0
        self.has_element = False
        self.is_repeated = False
        self.may_be_lazy = False

    def end_branch(self) -> None:
        self.is_possible |= self.is_branch_possible and self.is_atom_possible

    def add(self, repetition: int, cost_ms: float, is_possible: bool = True) -> None:
        self.is_branch_possible &= self.is_atom_possible
        self.is_atom_possible = is_possible
        self.atom, self.atom_cost_ms = repetition, cost_ms
        self.repetition = max(self.repetition, repetition)
        self.cost_ms += cost_ms
        self.has_element, self.is_repeated, self.may_be_lazy = True, False, False

    def repeat(self, count: int) -> None:
        self.atom *= max(count, 1)
        self.repetition = max(self.repetition, self.atom)
        self.cost_ms += self.atom_cost_ms * (max(count, 1) - 1)
        self.atom_cost_ms *= max(count, 1)


class _Reader:
    """Follows what xgrammar's two readers make of a pattern, token by token."""

    def __init__(self) -> None:
        self._groups = [_Group(is_looked_at=False)]
        self._highest_count = 0
        #: The first thing that each reader cannot read.
        self._first: str | None = None
        self._second: str | None = None

    def take(self, kind: str, text: str, start: int) -> None:
        group = self._groups[-1]
        if group.is_looked_at:
            self._look_at(kind, text)
            return
        match kind:
            case "escape":
                self._escape(group, text)
            case "class":
                self._class(group, text)
            case "open":
                self._open(text, start)
            case "close" if len(self._groups) == 1:
                self._neither("an unmatched ')'")
            case "close":
                self._groups.pop()
                group.end_branch()
                self._groups[-1].add(group.repetition, group.cost_ms, group.is_possible)
            case "or":
                group.end_branch()
                group.start_branch()
            case "times":
                self._times(group, text)
            case "anchor":
                group.may_be_lazy = False
            case _:
                if text == "]" or text not in _PRINTABLE:
                    self._first = self._first or f"a character like {text!r}"
                group.add(1, _WIDE_MS if text == "." else _LITERAL_MS, text != '"')

    def result(self, has_nul: bool) -> Pattern:
        if has_nul:
            self._neither("a null character")
        if len(self._groups) > 1:
            self._neither("a parenthesis that is not closed")
        whole = self._groups[0]
        whole.end_branch()
        if not whole.is_possible:
            self._first = self._first or "characters that a JSON string cannot hold"
        schema_fault = self._second if self._first else None
        if not self._first and self._highest_count > SCHEMA_COUNT_MAX:
            schema_fault = f"a repetition of more than {SCHEMA_COUNT_MAX}"
        return Pattern(self._second, schema_fault, whole.repetition, whole.cost_ms)

    def _neither(self, fault: str) -> None:
        self._first = self._first or fault
        self._second = self._second or fault

    def _look_at(self, kind: str, text: str) -> None:
        if kind == "open" and text != "(?i)":
            self._enter(is_looked_at=True)
        elif kind == "close":
            self._groups.pop()
            if not self._groups[-1].is_looked_at:
                self._groups[-1].add(1, 0.0)
        elif (kind == "class" and not text.endswith("]")) or not set(text) <= _PRINTABLE:
            self._neither("a lookahead")

    def _open(self, text: str, start: int) -> None:
        if text in ("(?=", "(?!"):
            self._second = self._second or "a lookahead"
        elif text in ("(?<=", "(?<!"):
            self._neither("a lookbehind")
        elif name := re.fullmatch(r"\(\?(P?)<([^>]*)>", text):
            if not re.fullmatch(r"[A-Za-z0-9_]+", name[2], re.ASCII):
                self._first = self._first or "such a group name"
            if name[1] or not re.fullmatch(r"[A-Za-z]*", name[2], re.ASCII):
                self._second = self._second or "such a group name"
        elif text == "(?i)":
            self._second = self._second or "the flag '(?i)'"
            if start:
                self._first = self._first or "the flag '(?i)' after the start"
            return
        elif text not in ("(", "(?:"):
            self._neither(f"a group that begins with '{text}'")
        self._enter(is_looked_at=text in ("(?=", "(?!"))

    def _enter(self, *, is_looked_at: bool) -> None:
        if len(self._groups) > NESTED_MAX:
            self._neither(f"more than {NESTED_MAX} groups inside one another")
        self._groups.append(_Group(is_looked_at=is_looked_at))

    def _times(self, group: _Group, text: str) -> None:
        if not group.has_element:
            self._neither("a repetition of nothing")
        elif text == "?" and group.may_be_lazy:
            group.may_be_lazy = False
            return
        elif group.is_repeated:
            self._second = self._second or "a repetition of a repetition"
        group.may_be_lazy = group.is_repeated = True
        if text in ("*", "?"):
            group.is_atom_possible = True
        if text[0] != "{":
            return
        counts = _COUNTS.fullmatch(text)
        if counts is None:
            self._neither("a '{' without a count")
            return
        least, most = _count(counts[2]), _count(counts[6] or counts[2])
        if any(counts[space] for space in (1, 3, 5, 7)):
            self._second = self._second or "a count with a space"
        if most > COUNT_MAX or most < least:
            self._neither("a count that is too large" if most > COUNT_MAX else "a repetition with its counts reversed")
        if not least:
            group.is_atom_possible = True
        self._highest_count = max(self._highest_count, least, most)
        group.repeat(max(least, most))

    def _escape(self, group: _Group, text: str) -> None:
        letter = text[1:2]
        is_coded = len(text) > 2
        if letter in ("b", "B"):
            self._neither("a word boundary")
        elif letter == "k" or (letter in "123456789" and letter):
            self._neither("a backreference")
        elif letter in ("p", "P"):
            self._neither("a class of Unicode characters")
        elif not letter or (letter in "xuc" and not is_coded):
            self._neither("an escape that is not finished")
        if not set(text) <= _PRINTABLE or (letter == "x" and len(text) == 3):
            self._first = self._first or f"an escape like {text!r}"
        group.add(1, _escape_cost_ms(text), _is_held(text))

    def _class(self, group: _Group, text: str) -> None:
        if not text.endswith("]") or len(text) == 1:
            self._neither("a class that is not closed")
            return
        items = _ITEM.findall(text.removeprefix("[").removeprefix("^")[:-1])
        is_negated = text.startswith("[^")
        if fault := _first_class_fault(items):
            self._first = self._first or fault
        if fault := _second_class_fault(items, is_negated):
            self._second = self._second or fault
        group.add(1, _WIDE_MS if is_negated else _class_cost_ms(items), is_negated or any(map(_is_held, items)))


def _count(digits: str) -> int:
    """Their number, or one that is too large; Python refuses to read thousands of digits, noughts in front included."""
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= len(str(COUNT_MAX)) else COUNT_MAX + 1


def _is_held(item: str) -> bool:
    """Whether a JSON string can hold what this matches, without an escape of its own."""
    if len(item) > 2:
        code = _code(item)
        return code >= 0x20 and code not in (0x22, 0x5C)
    return item[1:] not in _UNHELD_ESCAPES if item[0] == "\\" else item != '"'


def _first_class_fault(items: list[str]) -> str | None:
    if not items:
        return "an empty class"
    for item in items:
        if not set(item) <= _PRINTABLE:
            return f"a character like {item!r} in a class"
    many = [f"\\{letter}" for letter in _EXPANDED]
    return _reversed_range([_RANGE if item == "-" else _MANY if item in many else _code(item) for item in items])


def _second_class_fault(items: list[str], is_negated: bool) -> str | None:
    if not items and not is_negated:
        return "an empty class"
    codes: list[int] = []
    for item in items:
        if item in ("\n", "\r"):
            return "a line break in a class"
        if item in (r"\c", r"\u", r"\x"):
            return "an escape in a class that is not finished"
        expanded = _EXPANDED.get(item[1:]) if item[0] == "\\" else None
        codes += [_RANGE if letter == "-" else ord(letter) for letter in expanded or ""]
        if expanded is None:
            codes.append(_RANGE if item == "-" else _code(item))
    return _reversed_range(codes)


def _reversed_range(codes: list[int]) -> str | None:
    at = 0
    while at < len(codes):
        if at + 2 < len(codes) and codes[at + 1] == _RANGE and codes[at] != _MANY:
            low, high = (ord("-") if code == _RANGE else code for code in (codes[at], codes[at + 2]))
            if low > high:
                return "a range in a class whose end comes before its start"
            at += 3
        else:
            at += 1
    return None


def _code(item: str) -> int:
    """The code point that a class's item or a coded escape stands for; a class of characters stands for its letter."""
    if item[0] != "\\":
        return ord(item)
    if len(item) == 2:
        return _CONTROLS.get(item[1], ord(item[1]))
    return ord(item[2]) & 31 if item[1] == "c" else int(item[2:].strip("{}"), 16)


def _escape_cost_ms(text: str) -> float:
    if text in (r"\S", r"\D", r"\W"):
        return _WIDE_MS
    return {r"\w": _NARROW_MS, r"\d": _DIGIT_MS}.get(text, _LITERAL_MS)


def _class_cost_ms(items: list[str]) -> float:
    most = max((_item_cost_ms(item) for item in items), default=_WIDE_MS)
    is_spaced = any(item in (" ", r"\s") for item in items)
    return _SPACED_MS if is_spaced and most == _NARROW_MS else most


def _item_cost_ms(item: str) -> float:
    if item[0] == "\\":
        return _escape_cost_ms(item)
    return _DIGIT_MS if item in "0123456789 " else _NARROW_MS
