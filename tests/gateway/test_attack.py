"""Attack: two thousand wrong requests from one seed; none of them is answered wrongly."""

from __future__ import annotations

from tests.gateway.attack import Attacker, attack, fault
from tests.gateway.world import World


async def test_no_wrong_request_is_answered_wrongly(world: World) -> None:
    """No 5xx, and every error in its API's shape; each kind of answer was among them, and then the gateway serves on."""
    seen, faults = await attack(world, 2000, seed=1)
    assert faults == []
    assert {"200", "400", "401", "404", "405"} <= seen.keys()
    assert (await world.chat()).status == 200


def test_a_seed_repeats_itself() -> None:
    """A finding can be repeated by its seed."""
    calls = [[Attacker(seed).call() for _ in range(1)] for seed in (5, 5, 6)]
    assert calls[0] == calls[1] != calls[2]


def test_a_wrong_answer_is_seen() -> None:
    """A 5xx, no error, another shape, another API's."""
    good = b'{"error":{"message":"no","type":"t","param":null,"code":null}}'
    anthropic = b'{"type":"error","error":{"message":"no","type":"t"}}'
    assert fault("/v1/models", 400, good) is None and fault("/v1/messages", 400, anthropic) is None
    wrong = [("/x", 500, good), ("/x", 400, b"no"), ("/x", 400, b'{"error":"no"}'), ("/v1/messages", 400, good)]
    assert all(fault(*answer) for answer in [*wrong, ("/x", 404, b"[]"), ("/x", 404, b'{"error":{"message":1}}')])
