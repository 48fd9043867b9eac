"""A real Prometheus for a test: it scrapes what it is told, and answers any PromQL.

with running(tmp_path, as_the_chart(gateways={"g-0": "127.0.0.1:9090"}), rules=groups) as prometheus:
    prometheus.wait_for_scrapes(3)
    assert prometheus.value('sum(serving_gateway_requests_total{outcome="ok"})') == 42
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.unpacked import from_debian
from tests.waiting import until

Json = dict[str, Any]

#: The release that tests render the chart as, and that rules are therefore for.
NAMESPACE = "serving"
FULLNAME = "test-gpt-oss-serving"

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
#: Attempts at a free port: another process may take it before Prometheus does.
_PORTS_TRIED = 5


class Refused(Exception):
    """Prometheus does not take an expression; the text is its own."""


class Sample(NamedTuple):
    """One value of an instant vector; a scalar has no labels."""

    labels: dict[str, str]
    value: float


class Prometheus:
    """One running server."""

    def __init__(self, url: str, scraped: int) -> None:
        self.url = url
        self._targets = scraped
        self._frozen_s: float | None = None

    def query(self, expression: str, at_s: float | None = None) -> list[Sample]:
        """What an expression gives at a Unix time: now, or as of the moment it was frozen. Raises Refused when it is none."""
        at_s = self._frozen_s if at_s is None else at_s
        asked = {"query": expression} | ({} if at_s is None else {"time": str(at_s)})
        result = self._get("query", asked)
        if result["resultType"] == "scalar":
            return [Sample({}, float(result["result"][1]))]
        return [Sample(it["metric"], float(it["value"][1])) for it in result["result"]]

    def value(self, expression: str, at_s: float | None = None) -> float:
        """The one value that an expression gives; fails when there is none or are several."""
        samples = self.query(expression, at_s)
        assert len(samples) == 1, f"{expression} gives {samples}"
        return samples[0].value

    def values(self, expression: str, label: str, at_s: float | None = None) -> dict[str, float]:
        """Values by one label, "" where a series lacks it; fails when two series share it."""
        samples = self.query(expression, at_s)
        found = {it.labels.get(label, ""): it.value for it in samples}
        assert len(found) == len(samples), f"{expression} gives several of one {label}: {samples}"
        return found

    def rules(self) -> list[Json]:
        """Every rule with its health, and the alerts of those that alert."""
        return [rule for group in self._get("rules", {})["groups"] for rule in group["rules"]]

    def wait_for_scrapes(self, count: int, timeout_s: float = 120) -> None:
        """Until each target was scraped so many more times than now, with success."""
        before = self._scrapes()
        until(lambda: self._have_grown(before, count), timeout_s, 0.1)

    def freeze_when_steady(self, window_s: float = 3, timeout_s: float = 120) -> None:
        """Answer as of one moment from now on: the first before which no scrape has failed, and every rule ran, for so long.

        On a busy machine a scrape may take longer than it may; its series are then gone until the next.
        """
        since = time.time()
        steady = f"count(min_over_time(up[{round(window_s)}s]) == 1)"

        def moment() -> float | None:
            now = time.time()
            is_steady = now > since + window_s and [it.value for it in self.query(steady, now)] == [self._targets]
            return now if is_steady else None

        self._frozen_s = until(moment, timeout_s, 0.1)

    def wait_for_rules(self, timeout_s: float = 120) -> None:
        """Until every rule was evaluated after now; fails when one could not be."""
        now = time.time()
        until(lambda: all(_moment(it["lastEvaluation"]) > now for it in self.rules()), timeout_s, 0.1)
        broken = [it for it in self.rules() if it["health"] != "ok"]
        assert not broken, broken

    def _scrapes(self) -> dict[str, float]:
        return {f"{it.labels['job']} {it.labels['instance']}": it.value for it in self.query("sum_over_time(up[1d])")}

    def _have_grown(self, before: Mapping[str, float], count: int) -> bool:
        now = self._scrapes()
        return len(now) == self._targets and all(value >= before.get(it, 0) + count for it, value in now.items())

    def _get(self, what: str, asked: Mapping[str, str]) -> Json:
        try:
            with urlopen(f"{self.url}/api/v1/{what}?{urlencode(asked)}", timeout=30) as answer:
                return json.load(answer)["data"]  # type: ignore[no-any-return]
        except HTTPError as error:
            raise Refused(f"{json.load(error)['error']}: {asked.get('query', what)}") from None


@contextmanager
def running(
    folder: Path, scrapes: Sequence[Json], rules: Sequence[Json] = (), interval_s: float = 1
) -> Iterator[Prometheus]:
    """A server with these `scrape_configs` (static targets) and groups of rules, in a folder of its own, until the end."""
    files = []
    if rules:
        (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": list(rules)}))
        files = ["rules.yaml"]
    every = f"{round(interval_s * 1000)}ms"
    configuration = {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": files,
        "scrape_configs": list(scrapes),
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    process, url = _started(folder)
    try:
        yield Prometheus(url, sum(len(group["targets"]) for it in scrapes for group in it["static_configs"]))
    finally:
        process.terminate()
        process.wait(30)


def as_the_chart(
    gateways: Mapping[str, str] | None = None,
    directories: Mapping[str, str] | None = None,
    engines: Mapping[str, str] | None = None,
    secret: str = "",
) -> list[Json]:
    """Scrape configurations of pod → host:port, with the labels that the chart's monitors put on."""
    authorization = {"authorization": {"credentials": secret}} if secret else {}
    jobs: tuple[tuple[str, Mapping[str, str] | None, str, Json], ...] = (
        ("gateway", gateways, "/metrics", {"service": f"{FULLNAME}-metrics"}),
        ("directory", directories, "/directory/metrics", {}),
        ("engine", engines, "/metrics", {}),
    )
    found = []
    for name, addresses, path, labels in jobs:
        job = f"{FULLNAME}-metrics" if labels else f"{NAMESPACE}/{FULLNAME}-{name}"
        targets = [
            {"targets": [address], "labels": {"namespace": NAMESPACE, "pod": pod, **labels}}
            for pod, address in (addresses or {}).items()
        ]
        if targets:
            found.append(
                {"job_name": job, "metrics_path": path, "static_configs": targets} | ({} if labels else authorization)
            )
    return found


def promtool(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """One run of promtool."""
    command = [from_debian("prometheus", "promtool"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _started(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    for _ in range(_PORTS_TRIED):
        address = f"127.0.0.1:{_free_port()}"
        process = _spawn(folder, address)
        if until(lambda process=process, address=address: _answer(process, address), 120) == "ready":  # type: ignore[misc]
            return process, f"http://{address}"
    raise AssertionError((folder / "log").read_text())


def _spawn(folder: Path, address: str) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [
                from_debian("prometheus", "prometheus"),
                *("--config.file=prometheus.yaml", "--storage.tsdb.path=data", "--log.level=warn"),
                f"--web.listen-address={address}",
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # One core is plenty, and tests beside this one need theirs.
            env=os.environ | {"GOMAXPROCS": "1"},
            # A Ctrl-C in the terminal is pytest's alone; and whatever ends pytest ends this.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )


def _answer(process: subprocess.Popen[bytes], address: str) -> str:
    if process.poll() is not None:
        return "ended"
    try:
        with urlopen(f"http://{address}/-/ready", timeout=5):
            return "ready"
    except (URLError, ConnectionError):
        return ""


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]  # type: ignore[no-any-return]


def _moment(text: str) -> float:
    """Unix seconds of Go's RFC 3339; a rule that never ran says the year 1."""
    return datetime.fromisoformat(text[:19] + "+00:00").timestamp() if not text.startswith("0001") else 0.0
