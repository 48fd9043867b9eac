"""Kernels compared: what `loadtest.h100_kernels` measured on a card, and what the planner's formula takes for the same work.

    python -m loadtest.kernels_compared kernels.json

The formula was fitted to whole engines of vLLM (SCL-7), so it is not fed with these figures; where the two disagree, this says in
which of its parts. The launches that it counts for every layer are in no row: a CUDA graph of one kernel has none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadtest.h100_kernels import Row, Table
from serving import catalog
from serving.budget.memory import architecture_of
from serving.budget.speed import MEASURED, engine_speed
from serving.catalog import GPUS, Model
from serving.errors import Refusal

#: GPUs of the catalogue by the name that the driver gives the card.
CARDS = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}


def read(file: Path) -> Table:
    """A table that was measured; raises Refusal for anything else."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Table)
    except OSError as error:
        raise Refusal(f"The table {file} cannot be read: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refusal(f"{file} is no table of kernels: `python -m loadtest.h100_kernels --out` writes one.") from None
    if found.card not in CARDS:
        raise Refusal(f"{file} was made on '{found.card}'; the planner knows {', '.join(CARDS)}.")
    return found


def planned_s(model: Model, gpu: str, row: Row) -> float:
    """Seconds that the formula takes for a row's work, in one layer of one rank."""
    architecture, bandwidth = architecture_of(model), GPUS[gpu].bandwidth_tb_per_s * 1e12
    attention, experts = architecture.attention, architecture.experts
    if row.part == "copies" or attention is None or experts is None:
        return row.moved_bytes / bandwidth
    engine, shape = engine_speed(model, model.profile(gpu=gpu).override(tensor=1)), row.shape
    layers = attention.full_layers + attention.sliding_layers
    if row.part == "attention":
        return shape["requests"] * (
            shape["context"] * engine.full_kv_s / attention.full_layers + engine.request_s / layers
        )
    batch = shape["batch"]
    if row.part == "products":
        parameters = shape["inputs"] * shape["outputs"]
        return 2 * parameters / bandwidth + batch * _arithmetic_s(parameters)
    passed = experts.active * 3 * architecture.hidden * experts.intermediate
    read_s = (engine.tokens_s(batch) - batch * engine.token_s) / layers
    return read_s + batch * _arithmetic_s(passed)


def _arithmetic_s(parameters: float) -> float:
    """Of one token that passes so many parameters."""
    return MEASURED.token_us * 1e-15 * parameters


def page(table: Table) -> str:
    """The card with its versions, and a line for each row."""
    model = catalog.find(table.model)
    lines = [
        f"{table.model} on {table.card}: driver {table.driver}, power limit {table.power_limit}, PyTorch {table.torch}, Triton"
        f" {table.triton}; medians of {table.rounds} rounds",
        f"beside the formula, {MEASURED.source} (vLLM {MEASURED.vllm_version}, {MEASURED.kernel}):",
        f"{'':58}{'measured us':>12}{'formula us':>12}{'formula/measured':>18}",
    ]
    for row in table.rows:
        seconds = planned_s(model, CARDS[table.card], row)
        shape = " ".join(f"{name}={value}" for name, value in row.shape.items())
        lines.append(
            f"{row.name:8}{shape:50}{row.median_s * 1e6:12.1f}{seconds * 1e6:12.1f}{seconds / row.median_s:18.2f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print; 0, or one sentence on standard error and 1."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.kernels_compared",
        description="Measured kernels beside the planner.",
        allow_abbrev=False,
    )
    parser.add_argument("table", type=Path, help="what `python -m loadtest.h100_kernels --out` wrote")
    try:
        print(page(read(parser.parse_args(arguments).table)))
    except Refusal as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
