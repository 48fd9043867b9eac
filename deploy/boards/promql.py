"""PromQL that several boards write alike: rates, quantiles and shares of what the reader chose.

Gauges that all gateways report alike (replicas) are taken once, by max; those of each gateway are added up.
"""

from __future__ import annotations

from boards.grafana import Variable

HERE = 'namespace="$namespace"'
MODEL = HERE + ',model=~"$model"'
CELL = MODEL + ',cell=~"$cell"'

NAMESPACE = Variable("namespace", "serving_gateway_open_requests", "namespace", is_single=True)
MODELS = Variable("model", f"serving_gateway_requests_total{{{HERE}}}", "model")
CELLS = Variable("cell", f"serving_directory_gateways{{{HERE}}}", "cell")
TENANTS = Variable("tenant", f"serving_gateway_tenant_requests_total{{{HERE}}}", "tenant")


def rate(metric: str, by: str = "", where: str = MODEL) -> str:
    """A counter's growth a second."""
    return f"{_sum(by)} (rate({metric}{{{where}}}[$__rate_interval]))"


def grown(metric: str, by: str = "", where: str = MODEL) -> str:
    """A counter's growth over the time that is shown."""
    return f"{_sum(by)} (increase({metric}{{{where}}}[$__range]))"


def quantile(share: float, metric: str, by: str = "", where: str = MODEL) -> str:
    """The value that this share of a histogram's observations stays below."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels, where)})"


def total(metric: str, by: str = "", where: str = MODEL) -> str:
    """A gauge of which each process has a part."""
    return f"{_sum(by)} ({metric}{{{where}}})"


def once(metric: str, by: str, where: str = MODEL) -> str:
    """A gauge that several processes report alike."""
    return f"max by ({by}) ({metric}{{{where}}})"


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


def share(part: str, whole: str) -> str:
    """A part of a whole: 0 where there is none of it, absent where there is no whole."""
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


def mean(metric: str, by: str, where: str = MODEL) -> str:
    """The mean of a histogram's observations over the time that is shown."""
    return f"{grown(f'{metric}_sum', by, where)} / ({grown(f'{metric}_count', by, where)} > 0)"


def spread(metric: str, by: str = "", where: str = MODEL) -> dict[str, str]:
    """Half, 95 and 99 of a hundred: legend → expression."""
    prefix = f"{{{{{by}}}}} " if by else ""
    words = {0.5: "half", 0.95: "95 of 100", 0.99: "99 of 100"}
    return {prefix + word: quantile(part, metric, by, where) for part, word in words.items()}


def gpus(metric: str) -> str:
    """Of the GPUs that NVIDIA's exporter maps to this namespace's pods, whichever label it names the namespace by."""
    here = f'{metric}{{exported_namespace="$namespace"}} or {metric}{{namespace="$namespace"}}'
    return f"max by (Hostname, gpu) ({here})"
