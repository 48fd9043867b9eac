"""The small gpt-oss models are served with the date they were trained on."""

from serving.catalog import TRAINED_DATE
from serving.engine.checkpoints.conversations import SYSTEM_START_DATE, SYSTEM_START_DATE_VARIABLE


def test_the_served_date_is_the_trained_one() -> None:
    """Harmony writes the date into every prompt: with another one the model would know nothing by heart."""
    assert TRAINED_DATE == {SYSTEM_START_DATE_VARIABLE: SYSTEM_START_DATE}
