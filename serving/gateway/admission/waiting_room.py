"""Waiting room: calls of a model without a ready replica, first come first served, as many as the settings allow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext

from serving.errors import GatewayFull, ModelNotFound, NoReplicaReady
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet


class WaitingRoom:
    """Holds calls and wakes them when the fleet's answers bring a replica. The calls it holds are demand."""

    def __init__(self, fleet: Fleet, demands: Demands, waiting_requests_max: int, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._demands = demands
        self._waiting_requests_max = waiting_requests_max
        self._clock = clock
        self._waiting: dict[asyncio.Future[None], str] = {}
        fleet.observe(self._wake)

    async def until_ready(self, model: str, deadline: float, prompt_tokens: int = 0) -> None:
        """Return when a replica of `model` is ready, first come first woken.

        Raises NoReplicaReady at the deadline, GatewayFull when too many wait for this model already, and ModelNotFound when the
        model is withdrawn meanwhile.
        """
        base = self._fleet.base_of(model)
        if self._demands.held_requests(base) >= self._waiting_requests_max:
            raise GatewayFull("Too many requests wait for a model to start; please try again.", retry_after_s=5)
        while not self._fleet.is_ready(model):
            # Where its base is ready and does not offer an adapter, more engines would not either.
            held = nullcontext() if self._fleet.is_ready(base) else self._demands.held(base, prompt_tokens)
            with held:
                await self._wait(model, deadline)
            if not self._fleet.may_know(model):
                raise ModelNotFound(model)

    async def _wait(self, model: str, deadline: float) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = model
        try:
            async with asyncio.timeout(deadline - self._clock()):
                await waiter
        except TimeoutError:
            raise NoReplicaReady(f"The model '{model}' is not ready; try again soon.", retry_after_s=5) from None
        finally:
            del self._waiting[waiter]

    def _wake(self) -> None:
        """Wake the calls whose model is ready now or withdrawn, in the order they came."""
        for waiter, model in list(self._waiting.items()):
            if not waiter.done() and (self._fleet.is_ready(model) or not self._fleet.may_know(model)):
                waiter.set_result(None)
