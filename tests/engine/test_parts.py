"""Which process may end without its stack."""

import pytest

from serving.engine.parts import HEAL_S, Part, Parts, part_of

RAYLET = Part("Ray's raylet")
PROXY = Part("Serve's proxy", is_restarted=True)


def test_a_part_that_no_one_starts_again_is_lost_at_once() -> None:
    """As soon as it is gone, and also when another process has taken its role; never before it was there."""
    parts = Parts()
    assert parts.loss({}, 0.0) is None
    assert parts.loss({RAYLET: {1}}, 1.0) is None
    assert parts.loss({RAYLET: {2}}, 2.0) == RAYLET


def test_a_part_that_ray_starts_again_gets_its_time() -> None:
    """Back within the time it is no loss, as often as it happens; later it is."""
    parts = Parts()
    for start, ids in ((0.0, {1}), (100.0, {2})):
        assert parts.loss({PROXY: ids}, start) is None
        assert parts.loss({}, start + 1) is None and parts.missing == {PROXY}
        assert parts.loss({}, start + 1 + HEAL_S) is None
    assert parts.loss({}, 101.1 + HEAL_S) == PROXY


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("/v/ray/core/src/ray/gcs/gcs_server --log_dir=/t/r/session", "Ray's GCS"),
        ("/v/ray/core/src/ray/raylet/raylet --raylet_socket_name=/t --x=/v/ray/dashboard/agent.py", "Ray's raylet"),
        ("/v/bin/python /v/ray/dashboard/dashboard.py --host=127.0.0.1", "Ray's dashboard"),
        ("ray::DashboardAgent", "Ray's dashboard agent"),
        ("ray::ServeController.listen_for_change", "Serve's controller"),
        ("ray::ServeReplica:directory:Directory", "the directory"),
        ("ray::ServeReplica:model-smollm2-135m-instruct:Replica", None),
        ("ray::IDLE", None),
        ("/v/bin/python -m serving.engine.supervisor --log /h/raylet/raylet.log", None),
        ("/v/bin/python -m vllm.entrypoints.cli.main serve /models/dashboard/dashboard.py", None),
    ],
)
def test_a_part_is_known_by_its_command_line(line: str, name: str | None) -> None:
    """By its program or title; what comes after those may be a path with any words in it."""
    found = part_of(line.split())
    assert (found.name if found else None) == name


def test_what_serve_ends_on_purpose_is_no_loss() -> None:
    """Its own parts are not missed any more, however long engines still need; Ray's are."""
    directory = Part("the directory", is_restarted=True)
    parts = Parts()
    parts.loss({RAYLET: {1}, directory: {2}}, 0.0)
    parts.end_serve()
    assert parts.loss({RAYLET: {1}}, 0.0) is None
    assert parts.loss({RAYLET: {1}}, 2 * HEAL_S) is None and parts.missing == set()
    assert parts.loss({}, 2 * HEAL_S) == RAYLET
