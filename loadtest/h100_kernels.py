"""Kernels: what one GPU makes of gpt-oss-120b's layers, each kind of work alone; what `serving.budget.speed` adds up.

    python -m loadtest.h100_kernels --out kernels.json
    python h100_kernels.py --out kernels.json

The second is for a machine that has PyTorch and Triton and nothing else: this file brings along only itself. An H100 takes
minutes, most of them for Triton's compiler. Each figure is the median of rounds, replayed from a CUDA graph as vLLM
does, over as many weights as the GPU's cache cannot keep; whatever Triton computes is checked against plain PyTorch.
Products in bf16 are PyTorch's own; experts and attention are the kernels below, which are not vLLM's: they show what
the card can do, and `loadtest.kernels_compared` lays them beside the planner's formula (SCL-15).

Without a GPU the shapes run in small, and their times mean nothing: the kernels themselves under Triton's interpreter
(`TRITON_INTERPRET=1`), else PyTorch's reference in their place.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

jit: Callable[[Callable[..., None]], Any] = triton.jit if triton else lambda kernel: kernel

SCHEMA = 1
#: OCP Microscaling Formats 1.0: the values of E2M1 by code, and the elements that share a scale, a power of two (E8M0).
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
GROUP = 32
#: gpt-oss's activation: a gate that is cut at 7, and sigmoid(1.702 x).
LIMIT, ALPHA = 7.0, 1.702
#: Scales of random weights, so that activations keep their size: 2^-8 to 2^-5.
SCALES = (119, 123)
#: Copies of something small that take turns at most.
TURNS_MOST = 512
#: KV of one measurement at most.
KV_BYTES_MOST = 8 * 2**30
#: Seconds of one round at least: below, the clock would be what is measured.
ROUND_S = 0.01
#: Norm of the difference over the norm of the reference that rounding to bf16 explains; more is a wrong kernel.
ERROR_MOST = 0.02


class Peak(NamedTuple):
    """NVIDIA's data sheet: 10^12 bytes a second of memory, 10^12 FLOP a second in bf16 without sparsity."""

    tb_per_s: float
    tflop_per_s: float


#: By the name that the driver gives the card; the shares of others are left out.
PEAKS = {"NVIDIA H100 80GB HBM3": Peak(3.35, 989.4), "NVIDIA H200": Peak(4.8, 989.4)}


@dataclass(frozen=True)
class Sizes:
    """The shapes of a model, and how much of each kind of work is measured."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    experts: int
    active: int
    intermediate: int
    copied_mib: tuple[int, ...]
    tensors: tuple[int, ...]
    batches: tuple[int, ...]
    #: Logits are computed of running requests only, never of whole prompts.
    logit_batches: tuple[int, ...]
    expert_batches: tuple[int, ...]
    contexts: tuple[int, ...]
    requests: tuple[int, ...]
    #: Bytes of weights or KV that take turns, so that none is in the GPU's cache when its turn comes again.
    turns_bytes: int


#: gpt-oss-120b, as `serving.catalog` has it.
FULL = Sizes(
    hidden=2880,
    heads=64,
    kv_heads=8,
    head_dim=64,
    vocabulary=201_088,
    experts=128,
    active=4,
    intermediate=2880,
    copied_mib=(256, 1024, 4096),
    tensors=(1, 2, 4, 8),
    batches=(1, 16, 64, 256, 1024, 8192),
    logit_batches=(1, 16, 64, 256),
    expert_batches=(1, 4, 16, 64, 256, 1024, 4096, 8192),
    contexts=(1024, 4096, 16_384, 65_536, 131_072),
    requests=(1, 8, 64),
    turns_bytes=256 * 2**20,  # Five times an H100's cache.
)
SMALL = Sizes(
    hidden=96,
    heads=16,
    kv_heads=8,
    head_dim=64,
    vocabulary=512,
    experts=16,
    active=4,
    intermediate=160,
    copied_mib=(1,),
    tensors=(1, 2, 4, 8),
    batches=(1, 16),
    logit_batches=(1,),
    expert_batches=(1, 20),
    contexts=(100, 256),
    requests=(1, 2),
    turns_bytes=1,
)


class Tile(NamedTuple):
    """How a kernel cuts its work: one of those tried, of which the fastest counts."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


#: Few rows an expert: the weights are streamed. Many: tensor cores are fed.
STREAMING = (Tile(16, 32, 128, 4, 4), Tile(16, 64, 128, 4, 4), Tile(16, 128, 64, 4, 4))
FEEDING = (Tile(64, 128, 64, 4, 3), Tile(128, 128, 64, 8, 3), Tile(128, 256, 64, 8, 3))
#: Rows of an expert from which the second are tried too.
ROWS_FED = 16
#: Tokens of the context that one step of attention takes.
ATTENDED = (64, 128)
#: tl.dot takes no fewer rows.
ROWS_LEAST = 16
#: Programs of attention at least, where the context is long enough: four on each of an H100's 132 processors.
PROGRAMS = 528


class Work(NamedTuple):
    """One piece of work, in one way to do it: calls that take turns on different weights, and what each of them moves and computes."""

    part: str
    name: str
    shape: dict[str, int]
    moved_bytes: int
    flop: int
    calls: Sequence[Callable[[], torch.Tensor]]
    kernel: str
    #: What the first call should give; None where PyTorch's own runs.
    reference: Callable[[], torch.Tensor] | None = None


@dataclass(frozen=True)
class Row:
    """One figure: the median of rounds, its extremes, and what that is of the card's peak."""

    part: str
    name: str
    shape: dict[str, int]
    kernel: str
    median_s: float
    least_s: float
    most_s: float
    moved_bytes: int
    flop: int
    gb_per_s: float
    tflop_per_s: float
    share_of_bandwidth: float | None
    share_of_arithmetic: float | None
    #: Norm of the difference from the reference over its norm; None where PyTorch's own kernel ran.
    error: float | None


@dataclass(frozen=True)
class Table:
    """What was measured, where, and with which versions."""

    schema: int
    label: str
    card: str
    driver: str
    power_limit: str
    torch: str
    cuda: str | None
    triton: str | None
    #: Whether Triton's kernels ran, or PyTorch's reference in their place.
    kernels: str
    model: str
    rounds: int
    rows: tuple[Row, ...] = ()


class Refused(Exception):
    """What cannot be measured, in one sentence."""


# --- Experts ------------------------------------------------------------------------------------------------------------


class Mxfp4(NamedTuple):
    """Weights of all experts, experts × outputs × inputs: two codes a byte, the first in its low half, and a scale a group."""

    packed: torch.Tensor
    scales: torch.Tensor

    @property
    def expert_bytes(self) -> int:
        return int(self.packed[0].numel() + self.scales[0].numel())


class Routing(NamedTuple):
    """Which experts the tokens of one batch take: pairs of token and place, sorted by expert, in tiles of one expert each."""

    #: tokens × active
    chosen: torch.Tensor
    weights: torch.Tensor
    #: Numbers of pairs; -1 fills a tile up.
    pairs: torch.Tensor
    tile_experts: torch.Tensor
    touched: int


def decoded(weights: Mxfp4, expert: int) -> torch.Tensor:
    """One expert's weights in float32, by the specification's table."""
    packed, scales = weights.packed[expert], weights.scales[expert]
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).long()
    values = torch.tensor(E2M1, device=packed.device)[codes]
    return values * torch.exp2(scales.float() - 127).repeat_interleave(GROUP, dim=-1)


def random_mxfp4(experts: int, outputs: int, inputs: int, device: str) -> Mxfp4:
    packed = torch.randint(0, 256, (experts, outputs, inputs // 2), dtype=torch.uint8, device=device)
    return Mxfp4(packed, torch.randint(*SCALES, (experts, outputs, inputs // GROUP), dtype=torch.uint8, device=device))


def routed(logits: torch.Tensor, active: int, rows: int) -> Routing:
    """The `active` likeliest experts of each token, in tiles of so many rows."""
    tokens, experts = logits.shape
    found = logits.topk(active)
    flat = found.indices.flatten()
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=experts)
    tiles = (counts + rows - 1) // rows
    begins = (tiles.cumsum(0) - tiles) * rows
    places = torch.arange(tokens * active, device=logits.device) - (counts.cumsum(0) - counts)[flat[order]]
    pairs = torch.full((int(tiles.sum()) * rows,), -1, dtype=torch.int32, device=logits.device)
    pairs[begins[flat[order]] + places] = order.int()
    tile_experts = torch.arange(experts, dtype=torch.int32, device=logits.device).repeat_interleave(tiles)
    return Routing(found.indices, found.values.softmax(-1), pairs, tile_experts, int((counts > 0).sum()))


def activated(pairs: torch.Tensor) -> torch.Tensor:
    """gpt-oss's activation of gates and values that alternate."""
    gate, value = pairs[..., ::2].clamp(max=LIMIT), pairs[..., 1::2].clamp(-LIMIT, LIMIT)
    return gate * torch.sigmoid(ALPHA * gate) * (value + 1)


def experts_reference(tokens: torch.Tensor, inner: Mxfp4, outer: Mxfp4, routing: Routing) -> torch.Tensor:
    """One expert after the other, in float32."""
    summed = torch.zeros(tokens.shape, device=tokens.device)
    for expert in routing.chosen.unique().tolist():
        rows, places = torch.nonzero(routing.chosen == expert, as_tuple=True)
        between = activated(tokens[rows].float() @ decoded(inner, expert).T).to(tokens.dtype).float()
        summed.index_add_(0, rows, (between @ decoded(outer, expert).T) * routing.weights[rows, places, None])
    return summed.to(tokens.dtype)


@jit
def _expert_product(
    inputs: tl.tensor,
    packed: tl.tensor,
    scales: tl.tensor,
    outputs: tl.tensor,
    pairs: tl.tensor,
    tile_experts: tl.tensor,
    weights: tl.tensor,
    columns: tl.tensor,
    depth: tl.tensor,
    sharing: tl.tensor,
    is_inner: tl.constexpr,
    rows_tile: tl.constexpr,
    columns_tile: tl.constexpr,
    depth_tile: tl.constexpr,
    operand: tl.constexpr,
) -> None:
    """Rows of one expert by a tile of its weights; `sharing` pairs have one input row. Inner products end in the activation.

    A bf16 is put together from a code's bits and its scale: exact while the product is neither 0 nor subnormal in bf16.
    """
    expert = tl.load(tile_experts + tl.program_id(1)).to(tl.int64)
    pair = tl.load(pairs + tl.program_id(1) * rows_tile + tl.arange(0, rows_tile))
    column = tl.program_id(0) * columns_tile + tl.arange(0, columns_tile)
    row = tl.where(pair < 0, 0, pair // sharing).to(tl.int64)
    line = expert * columns + column[:, None]
    total = tl.zeros((rows_tile, columns_tile), dtype=tl.float32)
    for start in range(0, depth, depth_tile):
        place = start + tl.arange(0, depth_tile)
        is_input = (pair >= 0)[:, None] & (place < depth)[None, :]
        entering = tl.load(inputs + row[:, None] * depth + place[None, :], mask=is_input, other=0.0)
        byte = start // 2 + tl.arange(0, depth_tile // 2)
        is_byte = (column < columns)[:, None] & (byte < depth // 2)[None, :]
        both = tl.load(packed + line * (depth // 2) + byte[None, :], mask=is_byte, other=0)
        group = start // 32 + tl.arange(0, depth_tile // 32)
        is_group = (column < columns)[:, None] & (group < depth // 32)[None, :]
        scale = tl.load(scales + line * (depth // 32) + group[None, :], mask=is_group, other=127).to(tl.int16) - 127
        code = tl.reshape(tl.join(both & 15, both >> 4), (columns_tile, depth_tile // 32, 32)).to(tl.int16)
        size = code & 7
        bits = (size << 6) + 16128 + (scale << 7)[:, :, None] - tl.where(size == 1, 64, 0).to(tl.int16)
        bits = tl.where(size == 0, 0, bits) | ((code & 8) << 12)
        weight = tl.reshape(bits.to(tl.int16), (columns_tile, depth_tile)).to(tl.bfloat16, bitcast=True)
        total += tl.dot(entering.to(operand), tl.trans(weight.to(operand)))
    if is_inner:
        gate, value = tl.split(tl.reshape(total, (rows_tile, columns_tile // 2, 2)))
        gate = tl.minimum(gate, 7.0)
        value = tl.minimum(tl.maximum(value, -7.0), 7.0)
        result = gate / (1 + tl.exp(-1.702 * gate)) * (value + 1)
        width = columns // 2
        column = tl.program_id(0) * (columns_tile // 2) + tl.arange(0, columns_tile // 2)
    else:
        result = total * tl.load(weights + pair, mask=pair >= 0, other=0.0)[:, None]
        width = columns
    target = outputs + tl.where(pair < 0, 0, pair).to(tl.int64)[:, None] * width + column[None, :]
    tl.store(target, result.to(tl.bfloat16), mask=(pair >= 0)[:, None] & (column < width)[None, :])


def experts_by_triton(
    tokens: torch.Tensor, inner: Mxfp4, outer: Mxfp4, routing: Routing, tile: Tile
) -> Callable[[], torch.Tensor]:
    """Both products of a batch's experts, over buffers of their own."""
    count, active = routing.chosen.shape
    hidden, width = tokens.shape[1], inner.packed.shape[1]
    between = torch.empty(count * active, width // 2, dtype=tokens.dtype, device=tokens.device)
    parts = torch.empty(count * active, hidden, dtype=tokens.dtype, device=tokens.device)
    weights = routing.weights.flatten().contiguous()

    def product(given: torch.Tensor, by: Mxfp4, to: torch.Tensor, sharing: int, is_inner: bool) -> None:
        _, columns, half = by.packed.shape
        grid = (math.ceil(columns / tile.columns), len(routing.tile_experts))
        _expert_product[grid](
            given, *by, to, routing.pairs, routing.tile_experts, weights, columns, 2 * half, sharing, is_inner,
            tile.rows, tile.columns, tile.depth, _operand(), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    def call() -> torch.Tensor:
        product(tokens, inner, between, active, True)
        product(between, outer, parts, 1, False)
        return parts.view(count, active, hidden).sum(1)

    return call


def _operand() -> Any:
    """The interpreter multiplies bf16 as the integers it keeps them in."""
    return tl.float32 if is_interpreted() else tl.bfloat16


# --- Attention ----------------------------------------------------------------------------------------------------------


class Attended(NamedTuple):
    """One new token of each request over its context."""

    #: requests × heads × head_dim
    queries: torch.Tensor
    #: requests × context × KV heads × head_dim
    keys: torch.Tensor
    values: torch.Tensor
    #: A logit of each head that takes its share of attention and has no value.
    sinks: torch.Tensor


def attention_reference(given: Attended) -> torch.Tensor:
    """One request after the other, in float32."""
    requests, heads, head_dim = given.queries.shape
    kv_heads = given.keys.shape[2]
    found = []
    for number in range(requests):
        query = given.queries[number].float().view(kv_heads, heads // kv_heads, head_dim)
        logits = torch.einsum("kgd,nkd->kgn", query, given.keys[number].float()) / math.sqrt(head_dim)
        sinks = given.sinks.view(kv_heads, heads // kv_heads, 1)
        shares = torch.cat((logits, sinks), dim=-1).softmax(-1)[..., :-1]
        found.append(torch.einsum("kgn,nkd->kgd", shares, given.values[number].float()).reshape(heads, head_dim))
    return torch.stack(found).to(given.queries.dtype)


@jit
def _attend(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    parts: tl.tensor,
    peaks: tl.tensor,
    sums: tl.tensor,
    context: tl.tensor,
    each: tl.tensor,
    factor: tl.tensor,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    rows_tile: tl.constexpr,
    head_dim: tl.constexpr,
    tokens_tile: tl.constexpr,
    operand: tl.constexpr,
) -> None:
    """The query heads of one KV head over `each` tokens of the context: a part of the answer, its peak and its sum."""
    split, kv_head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    splits = tl.num_programs(0)
    member, element = tl.arange(0, rows_tile), tl.arange(0, head_dim)
    head = request * kv_heads * group + kv_head * group + member
    is_head = member < group
    query = tl.load(queries + head[:, None] * head_dim + element[None, :], mask=is_head[:, None], other=0.0)
    peak = tl.full((rows_tile,), -1e30, dtype=tl.float32)
    total = tl.zeros((rows_tile,), dtype=tl.float32)
    part = tl.zeros((rows_tile, head_dim), dtype=tl.float32)
    end = tl.minimum(context, (split + 1) * each)
    for start in range(split * each, end, tokens_tile):
        token = start + tl.arange(0, tokens_tile)
        place = ((request * context + token) * kv_heads + kv_head)[:, None] * head_dim + element[None, :]
        key = tl.load(keys + place, mask=(token < end)[:, None], other=0.0)
        logits = tl.dot(query.to(operand), tl.trans(key.to(operand))) * factor
        logits = tl.where((token < end)[None, :], logits, -1e30)
        higher = tl.maximum(peak, tl.max(logits, axis=1))
        shares = tl.where((token < end)[None, :], tl.exp2(logits - higher[:, None]), 0.0)
        kept = tl.exp2(peak - higher)
        value = tl.load(values + place, mask=(token < end)[:, None], other=0.0)
        part = part * kept[:, None] + tl.dot(shares.to(operand), value.to(operand))
        total = total * kept + tl.sum(shares, axis=1)
        peak = higher
    tl.store(parts + (head * splits + split)[:, None] * head_dim + element[None, :], part, mask=is_head[:, None])
    tl.store(peaks + head * splits + split, peak, mask=is_head)
    tl.store(sums + head * splits + split, total, mask=is_head)


@jit
def _merge(
    parts: tl.tensor,
    peaks: tl.tensor,
    sums: tl.tensor,
    sinks: tl.tensor,
    outputs: tl.tensor,
    heads: tl.tensor,
    splits: tl.constexpr,
    head_dim: tl.constexpr,
) -> None:
    """The parts of one head, and its sink, made one."""
    head = tl.program_id(0)
    split, element = tl.arange(0, splits), tl.arange(0, head_dim)
    peak = tl.load(peaks + head * splits + split)
    sink = tl.load(sinks + head % heads) * 1.4426950408889634
    highest = tl.maximum(tl.max(peak, axis=0), sink)
    kept = tl.exp2(peak - highest)
    total = tl.sum(tl.load(sums + head * splits + split) * kept, axis=0) + tl.exp2(sink - highest)
    part = tl.load(parts + (head * splits + split)[:, None] * head_dim + element[None, :])
    merged = tl.sum(part * kept[:, None], axis=0) / total
    tl.store(outputs + head * head_dim + element, merged.to(tl.bfloat16))


def attention_by_triton(given: Attended, tokens_tile: int) -> Callable[[], torch.Tensor]:
    """Attention in parts of the context, over buffers of its own."""
    requests, heads, head_dim = given.queries.shape
    _, context, kv_heads, _ = given.keys.shape
    splits = _power_of_two(min(PROGRAMS / (requests * kv_heads), context / tokens_tile))
    each = math.ceil(math.ceil(context / splits) / tokens_tile) * tokens_tile
    device, group = given.queries.device, heads // kv_heads
    parts = torch.empty(requests * heads * splits, head_dim, device=device)
    peaks, sums = (torch.empty(requests * heads * splits, device=device) for _ in range(2))
    factor = math.log2(math.e) / math.sqrt(head_dim)

    def call() -> torch.Tensor:
        outputs = torch.empty_like(given.queries)
        _attend[(splits, kv_heads, requests)](
            *given[:3], parts, peaks, sums, context, each, factor, kv_heads, group, max(ROWS_LEAST, group), head_dim,
            tokens_tile, _operand(), num_warps=4, num_stages=3,
        )  # fmt: skip
        _merge[(requests * heads,)](parts, peaks, sums, given.sinks, outputs, heads, splits, head_dim)
        return outputs

    return call


def _power_of_two(number: float) -> int:
    """The largest that is no more; at least 1."""
    return 1 << max(0, int(math.log2(max(1.0, number))))


# --- The parts: all ways to do each piece of work ----------------------------------------------------------------------


def copies(sizes: Sizes, device: str) -> Iterator[list[Work]]:
    """From memory to memory: what reads and writes together reach."""
    for mib in sizes.copied_mib:
        source = torch.ones(mib * 2**20, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        call = _bound(target.copy_, source)
        yield [Work("copies", "copy", {"mib": mib}, 2 * source.numel(), 0, [call], "PyTorch")]


def products(sizes: Sizes, device: str) -> Iterator[list[Work]]:
    """The dense products of a layer, and the logits, in bf16; on each rank of so many. The router is whole on every rank."""
    attended = sizes.heads * sizes.head_dim
    for tensor in sizes.tensors:
        kinds = (
            ("qkv", sizes.hidden, (attended + 2 * sizes.kv_heads * sizes.head_dim) // tensor, sizes.batches),
            ("o", attended // tensor, sizes.hidden, sizes.batches),
            ("router", sizes.hidden, sizes.experts, sizes.batches if tensor == 1 else ()),
            ("lm_head", sizes.hidden, sizes.vocabulary // tensor, sizes.logit_batches),
        )
        for name, inputs, outputs, batches in kinds:
            weights = [_normal((outputs, inputs), device) for _ in range(_turns(sizes, 2 * outputs * inputs))]
            for batch in batches:
                tokens = _normal((batch, inputs), device)
                shape = {"tensor": tensor, "batch": batch, "inputs": inputs, "outputs": outputs}
                moved = 2 * (batch * inputs + inputs * outputs + batch * outputs)
                calls = [_bound(torch.nn.functional.linear, tokens, it) for it in weights]
                yield [Work("products", name, shape, moved, 2 * batch * inputs * outputs, calls, "PyTorch")]


def experts(sizes: Sizes, device: str) -> Iterator[list[Work]]:
    """The MXFP4 experts of one layer on one rank: both products and the activation between them; routing is done before."""
    inner = random_mxfp4(sizes.experts, 2 * sizes.intermediate, sizes.hidden, device)
    outer = random_mxfp4(sizes.experts, sizes.hidden, sizes.intermediate, device)
    for batch in sizes.expert_batches:
        tokens = _normal((batch, sizes.hidden), device)
        touched_bytes = batch * sizes.active * (inner.expert_bytes + outer.expert_bytes)
        logits = [torch.randn(batch, sizes.experts, device=device) for _ in range(min(8, _turns(sizes, touched_bytes)))]
        is_fed = batch * sizes.active / sizes.experts >= ROWS_FED
        ways = []
        for tile in (*STREAMING, *FEEDING) if is_fed else STREAMING:
            routings = [routed(it, sizes.active, tile.rows) for it in logits]
            ways.append(_expert_work(tokens, inner, outer, routings, tile))
        yield ways if has_kernels(device) else ways[:1]


def _expert_work(tokens: torch.Tensor, inner: Mxfp4, outer: Mxfp4, routings: Sequence[Routing], tile: Tile) -> Work:
    (batch, hidden), active = tokens.shape, routings[0].chosen.shape[1]
    intermediate, device = outer.packed.shape[2] * 2, tokens.device.type
    touched = round(statistics.fmean(it.touched for it in routings))
    read = touched * (inner.expert_bytes + outer.expert_bytes)
    passed = 2 * batch * active * (hidden + 2 * intermediate + hidden) + 2 * batch * hidden
    shape = {"tensor": 1, "batch": batch, "active": active, "touched": touched}
    if has_kernels(device):
        calls = [experts_by_triton(tokens, inner, outer, it, tile) for it in routings]
    else:
        calls = [_bound(experts_reference, tokens, inner, outer, it) for it in routings]
    check = _bound(experts_reference, tokens, inner, outer, routings[0]) if has_kernels(device) else None
    kernel = _kernel(f"{tile.rows}x{tile.columns}x{tile.depth}, {tile.warps} warps, {tile.stages} stages", device)
    return Work(
        "experts", "mxfp4", shape, read + passed, 6 * batch * active * hidden * intermediate, calls, kernel, check
    )


def attention(sizes: Sizes, device: str) -> Iterator[list[Work]]:
    """One new token of each request over its whole context, with sinks."""
    for context, requests in itertools.product(sizes.contexts, sizes.requests):
        read = 4 * requests * context * sizes.kv_heads * sizes.head_dim
        if read > KV_BYTES_MOST:
            continue
        cached = (requests, context, sizes.kv_heads, sizes.head_dim)
        given = [
            Attended(
                _normal((requests, sizes.heads, sizes.head_dim), device),
                _normal(cached, device),
                _normal(cached, device),
                torch.randn(sizes.heads, device=device),
            )
            for _ in range(_turns(sizes, read))
        ]
        shape = {"requests": requests, "context": context, "heads": sizes.heads, "kv_heads": sizes.kv_heads}
        passed = 4 * requests * sizes.heads * sizes.head_dim
        flop = 4 * requests * context * sizes.heads * sizes.head_dim
        check = _bound(attention_reference, given[0]) if has_kernels(device) else None
        ways = []
        for tokens in ATTENDED:
            if has_kernels(device):
                calls = [attention_by_triton(it, tokens) for it in given]
            else:
                calls = [_bound(attention_reference, it) for it in given]
            kernel = _kernel(f"{tokens} tokens", device)
            ways.append(Work("attention", "decode", shape, read + passed, flop, calls, kernel, check))
        yield ways if has_kernels(device) else ways[:1]


PARTS: dict[str, Callable[[Sizes, str], Iterator[list[Work]]]] = {
    "copies": copies,
    "products": products,
    "experts": experts,
    "attention": attention,
}


def is_interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, line by line."""
    return triton is not None and not isinstance(_expert_product, triton.JITFunction)


def has_kernels(device: str) -> bool:
    """Whether Triton's kernels can run on this device."""
    return triton is not None and (device == "cuda" or is_interpreted())


def _kernel(tile: str, device: str) -> str:
    return f"Triton, {tile}" if has_kernels(device) else "PyTorch's reference"


def _normal(shape: Sequence[int], device: str) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16, device=device)


def _turns(sizes: Sizes, each_bytes: int) -> int:
    """Copies of something of this size that take turns."""
    return min(TURNS_MOST, math.ceil(sizes.turns_bytes / each_bytes))


def _bound(function: Callable[..., torch.Tensor], *given: object) -> Callable[[], torch.Tensor]:
    return lambda: function(*given)


# --- Measuring ----------------------------------------------------------------------------------------------------------


def seconds_of(calls: Sequence[Callable[[], torch.Tensor]], rounds: int, device: str) -> list[float]:
    """Seconds of one call, in each round."""
    return _on_gpu(calls, rounds) if device == "cuda" else [_on_cpu(calls) for _ in range(rounds)]


def _on_cpu(calls: Sequence[Callable[[], torch.Tensor]]) -> float:
    began = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - began) / len(calls)


def _on_gpu(calls: Sequence[Callable[[], torch.Tensor]], rounds: int) -> list[float]:
    """All calls in one CUDA graph, so that no launch from Python is measured, replayed for long enough to be timed."""
    for call in calls:  # Compiles what is not yet compiled: a graph cannot be captured with that in it.
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = math.ceil(ROUND_S / max(1e-7, _replayed(graph, 2) / 2))
    return [_replayed(graph, times) / times / len(calls) for _ in range(rounds)]


def _replayed(graph: Any, times: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def row(ways: Sequence[Work], rounds: int, device: str, peak: Peak | None) -> Row:
    """The fastest of the ways, measured. Raises Refused where a kernel does not compute what it should."""
    error = _error(ways)
    work = min(ways, key=lambda it: min(seconds_of(it.calls, 1, device))) if len(ways) > 1 else ways[0]
    found = seconds_of(work.calls, rounds, device)
    median_s = statistics.median(found)
    tb_per_s, tflop_per_s = work.moved_bytes / median_s / 1e12, work.flop / median_s / 1e12
    return Row(
        work.part,
        work.name,
        work.shape,
        work.kernel,
        median_s,
        min(found),
        max(found),
        work.moved_bytes,
        work.flop,
        tb_per_s * 1e3,
        tflop_per_s,
        tb_per_s / peak.tb_per_s if peak else None,
        tflop_per_s / peak.tflop_per_s if peak else None,
        error,
    )


def _error(ways: Sequence[Work]) -> float | None:
    """How far the worst of them is off the reference."""
    if ways[0].reference is None:
        return None
    expected = ways[0].reference().float()
    errors = [float((way.calls[0]().float() - expected).norm() / expected.norm()) for way in ways]
    for way, error in zip(ways, errors, strict=True):
        if not error <= ERROR_MOST:  # Also where it is no number.
            raise Refused(f"{way.part} {_said(way.shape)} ({way.kernel}) is {error:.1%} off PyTorch's reference.")
    return max(errors)


def table(device: str, rounds: int) -> Table:
    """Where and with what; no row yet."""
    on_gpu = device == "cuda"
    driver, power_limit = _driver() if on_gpu else ("none", "none")
    kernels = "Triton" if on_gpu else "Triton's interpreter" if has_kernels(device) else "PyTorch's reference"
    return Table(
        schema=SCHEMA,
        label="measured here" if on_gpu else "in small on a CPU: times mean nothing",
        card=torch.cuda.get_device_name() if on_gpu else "CPU",
        driver=driver,
        power_limit=power_limit,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        triton=triton.__version__ if triton else None,
        kernels=kernels,
        model="gpt-oss-120b" if on_gpu else "gpt-oss-120b in small",
        rounds=rounds,
    )


def _driver() -> tuple[str, str]:
    """The driver's version and the card's power limit, which its clocks follow."""
    command = ("nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader", "--id=0")
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown", "unknown"
    driver, _, limit = said.strip().partition(", ")
    return driver, limit


# --- The command --------------------------------------------------------------------------------------------------------


def line(it: Row) -> str:
    """A row for a person."""
    shares = [
        f" ({share:.0%})" if share is not None else "" for share in (it.share_of_bandwidth, it.share_of_arithmetic)
    ]
    error = "" if it.error is None else f", {it.error:.2%} off the reference"
    return (
        f"{it.part:10}{it.name:8}{_said(it.shape):52}{it.median_s * 1e6:12.1f} us {it.gb_per_s:9.1f} GB/s{shares[0]}"
        f" {it.tflop_per_s:8.2f} TFLOP/s{shares[1]}; {it.kernel}{error}"
    )


def _said(shape: dict[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in shape.items())


def parser() -> argparse.ArgumentParser:
    it = argparse.ArgumentParser(
        prog="python -m loadtest.h100_kernels",
        description="What one GPU makes of gpt-oss-120b's layers.",
        allow_abbrev=False,
    )
    it.add_argument("--device", choices=("cuda", "cpu"), help="default: the GPU, if there is one")
    it.add_argument("--parts", default=",".join(PARTS), help=f"default: {','.join(PARTS)}")
    it.add_argument("--rounds", type=int, default=7, help="of which the median counts; default: 7")
    it.add_argument("--out", type=Path, help="a file for the same as JSON, written after each part")
    return it


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0, or one sentence on standard error and 1."""
    asked = parser().parse_args(arguments)
    device = asked.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        _refuse(device, asked.parts.split(","), asked.rounds)
        _measure(device, asked.parts.split(","), asked.rounds, asked.out)
    except Refused as error:
        print(error, file=sys.stderr)
        return 1
    except torch.cuda.OutOfMemoryError:
        print("The GPU's memory does not suffice: 24 GiB must be free.", file=sys.stderr)
        return 1
    return 0


def _refuse(device: str, parts: Sequence[str], rounds: int) -> None:
    """Raises Refused for what cannot be measured here."""
    if unknown := [it for it in parts if it not in PARTS]:
        raise Refused(f"'{unknown[0]}' is none of the parts {', '.join(PARTS)}.")
    if rounds < 1:
        raise Refused("--rounds takes a number above 0.")
    if device == "cuda" and not torch.cuda.is_available():
        raise Refused(f"PyTorch {torch.__version__} finds no GPU: without --device the shapes run in small on the CPU.")
    if device == "cuda" and triton is None:
        raise Refused("Triton is not installed; PyTorch's builds for GPUs bring it along.")
    if device == "cuda" and is_interpreted():
        raise Refused("TRITON_INTERPRET=1 has kernels interpreted: unset it to measure a GPU.")


def _measure(device: str, parts: Sequence[str], rounds: int, out: Path | None) -> None:
    made, sizes = table(device, rounds), FULL if device == "cuda" else SMALL
    _save(made, out)  # What cannot be written is refused before minutes of measuring.
    print(
        f"{made.card}, driver {made.driver}, power limit {made.power_limit}; PyTorch {made.torch}, CUDA {made.cuda}, Triton"
        f" {made.triton}; {made.model}, kernels: {made.kernels}; {made.label}, medians of {rounds} rounds."
    )
    torch.manual_seed(0)
    if device == "cpu":
        torch.set_num_threads(1)  # Shapes this small gain nothing from more, which wait for one another.
    for name in parts:
        for ways in PARTS[name](sizes, device):
            found = row(ways, rounds, device, PEAKS.get(made.card))
            print(line(found), flush=True)
            made = replace(made, rows=(*made.rows, found))
        _save(made, out)


def _save(made: Table, out: Path | None) -> None:
    if out is None:
        return
    try:
        out.write_text(json.dumps(asdict(made), indent=1) + "\n")
    except OSError as error:
        raise Refused(f"{out} cannot be written: {os.strerror(error.errno or 0)}.") from None


if __name__ == "__main__":
    sys.exit(main())
