"""Memory: what all open requests hold together, and the bound on it, so that a gateway is never killed for its memory (GW-24)."""

from __future__ import annotations

from typing import Self

from serving.errors import GatewayFull

#: Bytes counted for the answer of an open request, from its start on: what a client that does not read leaves in the engine's
#: reader, in one piece on its way and in the writer (`loadtest.memory_bench` has what it is).
ANSWER_BYTES = 224 * 1024


class Memory:
    """A gateway's bytes of bodies and answers."""

    def __init__(self, held_bytes_max: int) -> None:
        self._held_bytes_max = held_bytes_max
        self.held_bytes = 0

    def share(self) -> Share:
        """One request's part, given back at the end of its `with`."""
        return Share(self)

    def take(self, count: int) -> None:
        """Raises GatewayFull, and takes nothing then, when so many bytes are too many."""
        if self.held_bytes + count > self._held_bytes_max:
            raise GatewayFull("Too much is being sent at once; please try again.", retry_after_s=1)
        self.held_bytes += count


class Share:
    """What one open request holds, inside `with`; raises GatewayFull when there is not even room for its answer."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.held_bytes = 0

    def __enter__(self) -> Self:
        self.take(ANSWER_BYTES)
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.held_bytes -= self.held_bytes
        self.held_bytes = 0

    def take(self, count: int) -> None:
        """So many bytes more; raises GatewayFull when all together would be too many."""
        self._memory.take(count)
        self.held_bytes += count
