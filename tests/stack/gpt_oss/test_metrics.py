"""A gpt-oss engine has the metrics that we read of any."""

from tests.stack.running import Stack
from tests.stack.test_engine_metrics import require_metrics


def test_a_gpt_oss_engine_has_each(tiny: Stack) -> None:
    """Sliding windows and experts make no other metrics of them."""
    require_metrics(tiny)
