"""The catalogue of metrics against what there is: registries of ours, and expositions of whoever it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from metrics_catalog import Metric, Plane, catalog

#: What an open label stands at in a made exposition, where a query expects more than any text.
_EXAMPLES = {"application": "model-some"}
#: Labels that are not the metric's own: prometheus_client gives a histogram's buckets theirs.
_OF_SAMPLES = {"le"}


def differences(plane: str, families: Iterable[Family], is_whole: bool = True) -> list[str]:
    """One sentence for each way in which these families are not what the catalogue says of a plane; none when all agree.

    Names, types, labels and the values that a label can have are compared. With `is_whole` every metric of the catalogue must
    be there (one without samples still has its name and type), and no other.
    """
    known = {_family(it): it for it in catalog().plane(plane).metrics}
    there = {it.name: it for it in families}
    missing = [f"{known[name].name} is not exported" for name in known.keys() - there.keys() if is_whole]
    unknown = [f"{name} is not in the catalogue" for name in there.keys() - known.keys() if is_whole]
    wrong = [said for name in known.keys() & there.keys() for said in _wrong(known[name], there[name])]
    return sorted(missing + unknown + wrong)


def differences_of_text(plane: str, text: str, is_whole: bool = True) -> list[str]:
    """The same of what an endpoint answers, in Prometheus' text format."""
    return differences(plane, text_string_to_metric_families(text), is_whole)


def exposition(plane: Plane, times: int) -> str:
    """A text with every metric of a plane, each with every value its labels can have (`some-LABEL` where those are open).

    Counters and histograms stand at `times` times what they grow by: 1 for the first of a label's values, 2 for the second and
    so on; every observation is 0.3. Gauges are 1 for the first, 2 for the second.
    """
    return "".join(line for metric in plane.metrics for line in _lines(metric, times))


def _wrong(metric: Metric, family: Family) -> Iterator[str]:
    if family.type != metric.type:
        yield f"{metric.name} is a {family.type}, not a {metric.type}"
    for sample in family.samples:
        if sample.name.endswith("_created"):
            continue
        labels = {name: value for name, value in sample.labels.items() if name not in _OF_SAMPLES}
        if labels.keys() != metric.labels.keys():
            yield f"{metric.name} has the labels {sorted(labels)}, not {sorted(metric.labels)}"
            return
        for name, value in labels.items():
            values = metric.labels[name]
            if values and value not in values:
                yield f"{metric.name} has {name}={value!r}, which is not one of {', '.join(values)}"


def _family(metric: Metric) -> str:
    """The name that prometheus_client and its parser give a family: a counter's without `_total`."""
    return metric.name.removesuffix("_total") if metric.type == "counter" else metric.name


def _lines(metric: Metric, times: int) -> Iterator[str]:
    yield f"# TYPE {metric.name} {metric.type}\n"
    for number, labels in enumerate(_combinations(metric), 1):
        text = ",".join(f'{name}="{value}"' for name, value in labels.items())
        if metric.type == "histogram":
            comma = f"{text}," if text else ""
            for bound, count in (("0.2", 0), ("0.4", number * times), ("+Inf", number * times)):
                yield f'{metric.name}_bucket{{{comma}le="{bound}"}} {count}\n'
            yield f"{metric.name}_sum{{{text}}} {0.3 * number * times}\n"
            yield f"{metric.name}_count{{{text}}} {number * times}\n"
        else:
            value = number * times if metric.type == "counter" else number
            yield f"{metric.name}{{{text}}} {value}\n"


def _combinations(metric: Metric) -> Iterator[dict[str, str]]:
    """One series for each value of the label that has several; no metric has two such."""
    open_ones = {name: _EXAMPLES.get(name, f"some-{name}") for name, values in metric.labels.items() if not values}
    closed = [(name, values) for name, values in metric.labels.items() if values]
    assert len(closed) <= 1, metric.name
    for name, values in closed:
        for value in values:
            yield {**open_ones, name: value}
    if not closed:
        yield open_ones
