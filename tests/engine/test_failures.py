"""An engine that fails is replaced at once; one that keeps failing, slowly; a device on which many fail is named."""

from serving.engine.failures import EngineFailure, FailureHistory


def failed(at: float, model: str = "m", devices: tuple[str, ...] = ()) -> EngineFailure:
    return EngineFailure(model, "node-a", devices, at)


def test_the_first_failure_is_replaced_at_once() -> None:
    """One death says nothing about the next engine."""
    failures = FailureHistory()
    failures.record(failed(0))
    assert failures.wait_s("m", 1) == 0


def test_a_crash_loop_slows_down_and_forgives() -> None:
    """Each failure doubles the wait up to five minutes; a quarter of an hour without one forgets."""
    failures, waits = FailureHistory(), []
    for at in range(10):
        failures.record(failed(at))
        waits.append(failures.wait_s("m", at))
    assert waits == [0, 5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert failures.wait_s("m", 9 + 100) == 200 and failures.wait_s("m", 9 + 900) == 0


def test_models_do_not_slow_each_other_down() -> None:
    """A broken fine-tune leaves its neighbours' starts alone."""
    failures = FailureHistory()
    for at in range(5):
        failures.record(failed(at))
    assert failures.wait_s("other", 5) == 0


def test_a_device_on_which_engines_keep_failing_is_named() -> None:
    """Three failures on one GPU, of whatever models, are the GPU's; failures spread over GPUs are not."""
    failures = FailureHistory()
    for at, device in enumerate(("0", "1", "3", "3")):
        failures.record(failed(at, f"model-{at}", (device,)))
    assert failures.suspects(4) == []
    failures.record(failed(4, "another", ("3",)))
    (sentence,) = failures.suspects(5)
    assert "GPU 3 of node node-a" in sentence
    assert failures.suspects(5 + 24 * 3600) == []
