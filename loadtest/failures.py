"""Failures: how a request can fail its user, as one tree. Raised where it is seen, counted by name, never passed over.

    Failed
    ├── Refused       a well-formed refusal: a status other than 2xx and an OpenAI-shaped body
    ├── Broken        an error event inside a stream that began with 200
    ├── Cut           an answer that ended before its end: no [DONE], or the connection closed
    ├── Malformed     bytes that are no answer: another content type, no SSE, no JSON, an error in another shape
    ├── Unreachable   no connection, or one that was closed before the headers
    ├── TimedOut      the server was silent for too long
    └── Unfinished    still under way when the run was over

A text names a status, a code or a state: never what was asked or answered.
"""

from __future__ import annotations


class Failed(Exception):
    """The root: a request whose user did not get what he asked for."""

    @property
    def kind(self) -> str:
        """Its name in reports."""
        return type(self).__name__.lower()


class Refused(Failed):
    pass


class Broken(Failed):
    pass


class Cut(Failed):
    pass


class Malformed(Failed):
    pass


class Unreachable(Failed):
    pass


class TimedOut(Failed):
    pass


class Unfinished(Failed):
    pass


#: Failures that no load excuses: an overloaded stack refuses and is late, it does not answer with rubbish.
NEVER_EXCUSED = frozenset({"broken", "cut", "malformed", "unreachable"})
#: What becomes of sessions whose worker died with them: unknown, so they count as failures.
LOST = "lost"
