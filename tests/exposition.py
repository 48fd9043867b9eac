"""What a page of metrics says, as Prometheus reads it."""

from prometheus_client.parser import text_string_to_metric_families


def value(text: bytes, name: str, /, **labels: str) -> float:
    """The sum of a name's samples with these labels; 0 where there is none."""
    families = text_string_to_metric_families(text.decode())
    return sum(
        it.value
        for family in families
        for it in family.samples
        if it.name == name and labels.items() <= it.labels.items()
    )
