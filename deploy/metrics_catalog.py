"""Metrics catalogue: every metric there is, from metrics.yaml, and metrics.md, the page that people read of it.

    python deploy/metrics_catalog.py            # write deploy/metrics.md
    python deploy/metrics_catalog.py --check    # exit 1 when it is out of step

Tests hold the data against what is exported, and every query of boards and alerts against the data.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

HERE = Path(__file__).resolve().parent
DATA = HERE / "metrics.yaml"
PAGE = HERE / "metrics.md"
HEAD = """\
# Metrics

Written by `python deploy/metrics_catalog.py` from metrics.yaml; tests hold it against what is exported. Scraping adds
`namespace`, `pod`, `instance` and `job`, of gateways `service` too. No label holds a key, a request's id or a prompt.
Boards and alerts are in [README.md](README.md), "Watching" and "Alerts".
"""
#: Samples of one metric in Prometheus' text, by the metric's type.
SUFFIXES: dict[str, tuple[str, ...]] = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One metric. `labels` maps each label to the values it can have, None where they are many or not ours."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: dict[str, tuple[str, ...] | None]
    meaning: str
    look: str

    @property
    def samples(self) -> tuple[str, ...]:
        """Names of its samples, as queries use them."""
        return tuple(self.name + suffix for suffix in SUFFIXES[self.type])


class Plane(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Metrics that are scraped at one place."""

    name: str
    title: str
    where: str
    metrics: tuple[Metric, ...]


class Catalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of them, and what their labels mean."""

    labels: dict[str, str]
    planes: tuple[Plane, ...]

    @property
    def metrics(self) -> Iterator[Metric]:
        for plane in self.planes:
            yield from plane.metrics

    def plane(self, name: str) -> Plane:
        """One plane: gateway, directory, vllm, ray or dcgm. Raises KeyError for another."""
        return {it.name: it for it in self.planes}[name]

    def by_sample(self) -> dict[str, Metric]:
        """Name of a sample → its metric."""
        return {sample: it for it in self.metrics for sample in it.samples}


def catalog() -> Catalog:
    """What metrics.yaml says. Raises msgspec.ValidationError where a field is missing or unknown."""
    return msgspec.yaml.decode(DATA.read_bytes(), type=Catalog)


def page(content: Catalog) -> str:
    """The page, as Markdown."""
    parts = [HEAD, "## Labels", _table(("label", "means"), [(f"`{name}`", it) for name, it in content.labels.items()])]
    for plane in content.planes:
        parts += [f"## {plane.title}", plane.where, _table(COLUMNS, [_row(it) for it in plane.metrics])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


COLUMNS = ("name", "type", "unit", "labels", "means", "look at when it moves")


def _row(metric: Metric) -> tuple[str, ...]:
    labels = ", ".join(_label(name, values) for name, values in metric.labels.items())
    return f"`{metric.name}`", metric.type, metric.unit, labels, metric.meaning, metric.look


def _label(name: str, values: tuple[str, ...] | None) -> str:
    return f"{name} ({', '.join(values)})" if values else name


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write the page, or say that it is out of step."""
    wanted = page(catalog())
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(wanted)
    elif not PAGE.exists() or PAGE.read_text() != wanted:
        sys.exit("deploy/metrics.md is out of step: run `python deploy/metrics_catalog.py`.")


if __name__ == "__main__":
    main()
