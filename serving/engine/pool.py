"""Pool: how many engines may each model have, when models share GPUs? Decided before Serve gets a number.

Pure, and from an empty pool each time: minimums in order of priority, then the rest in the same order, each engine on
the nodes that it fills best. A model that gets fewer gets a reason. Ray decides where engines really run: a granted
engine that finds no room among the running ones waits, and `waiting_reason` says for what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

#: Models that one sentence names at most.
_NAMED_MAX = 3


class Node(msgspec.Struct, frozen=True):
    """A machine with GPUs of one type."""

    name: str
    gpus_total: int
    gpu_type: str


class Wish(msgspec.Struct, frozen=True):
    """What one model wants from the pool."""

    model: str
    #: The higher number goes first.
    priority: int
    #: Engines that come before all models' further wishes.
    min_replicas: int
    #: Engines in all, the minimum included.
    wanted: int
    #: GPUs of one engine on each of its nodes; 0 on the CPU, which the pool does not limit.
    gpus_per_node: int
    #: Nodes of one engine.
    nodes: int = 1
    #: The only type it may run on; None for any.
    gpu_type: str | None = None

    @property
    def engines(self) -> int:
        """Engines asked for."""
        return max(self.min_replicas, self.wanted)


class Grant(msgspec.Struct, frozen=True):
    """Engines that a model may have, and one sentence when they are fewer than it wants."""

    replicas: int
    reason: str | None = None


def granted(nodes: Sequence[Node], wishes: Iterable[Wish]) -> dict[str, Grant]:
    """How many engines each model may have. A model that does not fit leaves its room to the next, smaller one."""
    order = sorted(wishes, key=lambda wish: (-wish.priority, -wish.gpus_per_node * wish.nodes, wish.model))
    pool = _Pool(nodes)
    least = {wish.model: pool.place(wish, wish.min_replicas) for wish in order}
    result = {}
    for wish in order:
        # A model whose minimum did not fit gets no more: the pool has only become fuller.
        more = pool.place(wish, wish.engines - wish.min_replicas) if least[wish.model] == wish.min_replicas else 0
        count = least[wish.model] + more
        result[wish.model] = Grant(count, None if count == wish.engines else _sentence(pool, wish, count, order))
    return result


def waiting_reason(nodes_free: Mapping[str, int], wish: Wish) -> str:
    """Why a granted engine is not placed yet; `nodes_free` is the free GPUs of each node of its type."""
    free = sorted(nodes_free.values(), reverse=True)
    sought = f"waits for {_places(wish)} with {_gpus(wish, wish.gpus_per_node, 'free ')}"
    if len(free) < wish.nodes:
        return f"{sought}; there {'is' if len(free) == 1 else 'are'} {len(free) or 'none'}"
    if _fitting(free, wish) >= wish.nodes:
        return "waits for its turn: there is room for it"
    if sum(free) < wish.gpus_per_node * wish.nodes:
        return f"{sought}; the freest has {free[0]}, all together {sum(free)}: other engines must stop first"
    return f"{sought}; the freest has {free[0]}: move or stop smaller engines there"


class _Pool:
    """The free GPUs while they are handed out."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._free = {node: node.gpus_total for node in nodes}
        self._holders: dict[Node, set[str]] = {node: set() for node in nodes}

    def place(self, wish: Wish, engines: int) -> int:
        """Place as many as fit, at most `engines`; returns how many. Engines on the CPU always do."""
        if wish.gpus_per_node == 0:
            return max(0, engines)
        placed = 0
        while placed < engines and (chosen := self._best(wish)):
            for node in chosen:
                self._free[node] -= wish.gpus_per_node
                self._holders[node].add(wish.model)
            placed += 1
        return placed

    def _best(self, wish: Wish) -> list[Node]:
        """The nodes that one engine would leave fullest; empty where it does not fit."""
        fitting = [node for node in self.of_type(wish) if self._free[node] >= wish.gpus_per_node]
        if len(fitting) < wish.nodes:
            return []
        return sorted(fitting, key=lambda node: (self._free[node], node.name))[: wish.nodes]

    def of_type(self, wish: Wish) -> list[Node]:
        return [node for node in self._free if wish.gpu_type in (None, node.gpu_type)]

    def free(self, wish: Wish) -> list[int]:
        """Free GPUs of each node it may run on, the freest first."""
        return sorted((self._free[node] for node in self.of_type(wish)), reverse=True)

    def holders(self, wish: Wish) -> set[str]:
        """The other models on those nodes."""
        return {model for node in self.of_type(wish) for model in self._holders[node]} - {wish.model}


def _sentence(pool: _Pool, wish: Wish, count: int, wishes: Sequence[Wish]) -> str:
    return (
        f"{count} of {wish.engines} engine{'' if wish.engines == 1 else 's'} granted: {_shortage(pool, wish, wishes)}"
    )


def _shortage(pool: _Pool, wish: Wish, wishes: Sequence[Wish]) -> str:
    totals = sorted((node.gpus_total for node in pool.of_type(wish)), reverse=True)
    if not totals:
        return f"no node has GPUs{_typed(wish)}"
    if _fitting(totals, wish) < wish.nodes:
        return _too_few(totals, wish, "", "largest")
    short = _too_few(pool.free(wish), wish, "free ", "freest")
    holders = [other for other in wishes if other.model in pool.holders(wish)]
    higher = [other.model for other in holders if other.priority > wish.priority]
    if higher:
        return f"{short}; models of higher priority hold them: {_named(higher)}"
    return f"{short}; other models hold them: {_named([it.model for it in holders])}" if holders else short


def _too_few(gpus: Sequence[int], wish: Wish, kind: str, best: str) -> str:
    needed = f"{wish.gpus_per_node} {kind}GPU{'' if wish.gpus_per_node == 1 else 's'}{_typed(wish)}"
    if wish.nodes == 1:
        return f"no node has {needed} (the {best} has {gpus[0]})"
    return f"an engine takes {wish.nodes} nodes with {needed} each, and there are {_fitting(gpus, wish)} (the {best} has {gpus[0]})"


def _fitting(gpus: Sequence[int], wish: Wish) -> int:
    return sum(count >= wish.gpus_per_node for count in gpus)


def _typed(wish: Wish) -> str:
    return f" of type {wish.gpu_type}" if wish.gpu_type else ""


def _places(wish: Wish) -> str:
    return "a node" if wish.nodes == 1 else f"{wish.nodes} nodes"


def _gpus(wish: Wish, count: int, kind: str) -> str:
    return f"{count} {kind}{wish.gpu_type or 'GPU'}{'' if count == 1 else 's'}"


def _named(models: Sequence[str]) -> str:
    more = len(models) - _NAMED_MAX
    return ", ".join(models[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
