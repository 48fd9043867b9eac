"""What decisions on limits cost is printed for every place where they are made, beside the same with more callers."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.counters_bench import main
from tests.gateway import postgres, valkey


def test_it_measures_memory_redis_and_postgresql(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for few callers and one for many, each with CPU time, median and tail, and ratios of rounds that took turns."""
    with valkey.running() as redis, postgres.running() as server:
        server.execute("create database bench")
        (tmp_path / "url").write_text(server.url("bench"))
        small = ["--rounds", "2", "--decisions", "10", "--tenants", "5", "--keys-each", "2"]
        main(["--redis", str(redis.url_file()), "--postgresql", str(tmp_path / "url"), *small])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["memory", "memory", "redis", "redis", "postgresql", "postgresql"]
    assert all("us CPU" in line and "ms p50" in line and "ms p99" in line and "1.00x" in line for line in lines[::2])
    assert "5 tenants, 10 keys" in lines[1]
