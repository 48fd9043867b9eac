"""Kernels of gpt-oss's layers, measured alone: right shapes, right answers, and a table that the planner's formula stands beside."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import pytest
import torch

from loadtest import environments, h100_kernels, kernels_compared
from loadtest.h100_kernels import FULL, GROUP, PARTS, PEAKS, Attended, Mxfp4, Row, Table
from serving import catalog
from serving.catalog import GPUS
from tests.repository import ROOT

ARCHITECTURE = catalog.MODELS["gpt-oss-120b"].architecture


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A run on the CPU takes one of torch's threads; other tests get theirs back."""
    before = torch.get_num_threads()
    torch.manual_seed(1)
    yield
    torch.set_num_threads(before)


def test_it_needs_only_pytorch_and_triton() -> None:
    """The one file is all that a machine gets which has nothing of this project."""
    tree = ast.parse(Path(h100_kernels.__file__).read_text())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.partition(".")[0] for name in imported}
    assert roots - sys.stdlib_module_names == {"torch", "triton"}


def test_shapes_and_peaks_are_the_catalogues() -> None:
    """It cannot import the catalogue, so it must say the same."""
    assert ARCHITECTURE and ARCHITECTURE.attention and ARCHITECTURE.experts
    attention, experts = ARCHITECTURE.attention, ARCHITECTURE.experts
    assert (FULL.hidden, FULL.vocabulary) == (ARCHITECTURE.hidden, ARCHITECTURE.vocabulary)
    assert (FULL.heads, FULL.kv_heads, FULL.head_dim) == (attention.heads, attention.kv_heads, attention.head_dim)
    assert (FULL.experts, FULL.active, FULL.intermediate) == (experts.count, experts.active, experts.intermediate)
    for card, name in kernels_compared.CARDS.items():
        assert PEAKS[card].tb_per_s == GPUS[name].bandwidth_tb_per_s
    assert set(PEAKS) == set(kernels_compared.CARDS)


def test_mxfp4_is_decoded_as_the_specification_says() -> None:
    """OCP Microscaling 1.0: a sign, two bits of exponent with bias 1, one of mantissa; a scale of 2^(e − 127) for 32."""
    codes = torch.arange(32, dtype=torch.uint8) % 16
    packed = (codes[::2] | codes[1::2] << 4).view(1, 1, 16)
    for scale in (2, 119, 127, 250):
        found = h100_kernels.decoded(Mxfp4(packed, torch.tensor([[[scale]]], dtype=torch.uint8)), 0)
        for place, value in enumerate(found.flatten().tolist()):
            sign, exponent, mantissa = place % 16 >> 3, place >> 1 & 3, place & 1
            size = 2.0 ** (exponent - 1) * (1 + mantissa / 2) if exponent else mantissa / 2
            assert value == (-1) ** sign * size * 2.0 ** (scale - 127)
    assert codes.numel() == GROUP


@pytest.mark.parametrize("rows", [16, 64])
def test_routing_puts_every_pair_into_a_tile_of_its_expert(rows: int) -> None:
    """Each token's experts are its likeliest; each pair is there once."""
    logits = torch.randn(50, 8)
    found = h100_kernels.routed(logits, 3, rows)
    tiles = found.pairs.view(-1, rows)
    assert sorted(it for it in found.pairs.tolist() if it >= 0) == list(range(150))
    for tile, expert in zip(tiles, found.tile_experts.tolist(), strict=True):
        held = tile[tile >= 0].long()
        assert held.numel() and (found.chosen.flatten()[held] == expert).all()
    for token in range(50):
        assert set(found.chosen[token].tolist()) == set(logits[token].argsort(descending=True)[:3].tolist())


def test_the_experts_reference_is_gpt_oss_s_layer() -> None:
    """Token by token and expert by expert, written out."""
    inner, outer = h100_kernels.random_mxfp4(6, 128, 32, "cpu"), h100_kernels.random_mxfp4(6, 32, 64, "cpu")
    tokens = torch.randn(5, 32, dtype=torch.float64)
    routing = h100_kernels.routed(torch.randn(5, 6), 2, 16)
    expected = torch.zeros(5, 32, dtype=torch.float64)
    for token in range(5):
        for place in range(2):
            expert = int(routing.chosen[token, place])
            for_gates = h100_kernels.decoded(inner, expert).double() @ tokens[token]
            gate, value = for_gates[::2].clamp(max=7), for_gates[1::2].clamp(-7, 7)
            between = gate * torch.sigmoid(1.702 * gate) * (value + 1)
            expected[token] += routing.weights[token, place] * (h100_kernels.decoded(outer, expert).double() @ between)
    found = h100_kernels.experts_reference(tokens.float(), inner, outer, routing)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_attention_reference_is_softmax_with_a_sink() -> None:
    """A sink is one more key, of that logit, whose value is nothing."""
    given = Attended(torch.randn(2, 16, 64), torch.randn(2, 9, 8, 64), torch.randn(2, 9, 8, 64), torch.randn(16))
    keys, values = (
        torch.cat((it, torch.zeros(2, 1, 8, 64)), dim=1).repeat_interleave(2, dim=2).transpose(1, 2)
        for it in given[1:3]
    )
    logits = torch.zeros(2, 16, 1, 10)
    logits[..., -1] = given.sinks[None, :, None]
    expected = torch.nn.functional.scaled_dot_product_attention(given.queries[:, :, None], keys, values, logits)
    assert torch.allclose(h100_kernels.attention_reference(given), expected[:, :, 0], atol=1e-5)


def test_without_a_gpu_the_shapes_run_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every part has rows, in a table that says what it is: not a measurement."""
    assert h100_kernels.main(["--device", "cpu", "--rounds", "1", "--out", str(tmp_path / "kernels.json")]) == 0
    said = capsys.readouterr().out
    found = msgspec.json.decode((tmp_path / "kernels.json").read_bytes(), type=Table)
    assert "in small on a CPU: times mean nothing" in said and found.label in said
    assert (found.card, found.schema, found.rounds) == ("CPU", h100_kernels.SCHEMA, 1)
    assert [it for it in PARTS if any(row.part == it for row in found.rows)] == list(PARTS)
    assert all(row.median_s > 0 and row.moved_bytes > 0 and row.share_of_bandwidth is None for row in found.rows)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--device cuda", "finds no GPU"),
        ("--parts copies,floor", "'floor' is none of the parts"),
        ("--rounds 0", "--rounds takes a number above 0"),
        ("--out /nowhere/kernels.json", "/nowhere/kernels.json cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert h100_kernels.main(arguments.split()) == 1
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and not said.out


TABLE = Table(
    1, "measured here", "NVIDIA H100 80GB HBM3", "580.1", "700 W", "2.13", "13.0", "3.7.1", "Triton", "gpt-oss-120b", 7
)


def row(part: str, moved_bytes: int = 0, **shape: int) -> Row:
    return Row(part, part, shape, "Triton", 1e-3, 1e-3, 1e-3, moved_bytes, 0, 0.0, 0.0, None, None, None)


@pytest.mark.parametrize(
    ("measured", "expected_us"),
    [
        (row("copies", moved_bytes=67_000_000), 67e6 / 3.35e6),
        (row("products", tensor=1, batch=16, inputs=2880, outputs=5120), 2880 * 5120 * (2 / 3.35e6 + 16 * 6.95e-9)),
        # 128 experts of 3 × 2880² weights, of 4.25 bits each, at 4.07 TB/s.
        (row("experts", batch=1), 4 * 3 * 2880**2 * (0.53125 / 4.07e6 + 6.95e-9)),
        # Keys and values of 8 heads of 64 in bf16, and 0.323 us a request and layer.
        (row("attention", requests=2, context=1000), 2 * (1000 * 2048 / 3.35e6 + 0.323)),
    ],
)  # fmt: skip
def test_each_kind_of_work_has_its_part_of_the_formula(measured: Row, expected_us: float) -> None:
    """What the planner takes for the same work on one rank."""
    model = catalog.MODELS["gpt-oss-120b"]
    assert kernels_compared.planned_s(model, "h100", measured) * 1e6 == pytest.approx(expected_us, rel=1e-3)


def test_a_table_is_laid_beside_the_formula(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Card and versions first, then measured, computed and their ratio."""
    file = tmp_path / "kernels.json"
    file.write_text(json.dumps(asdict(replace(TABLE, rows=(row("copies", moved_bytes=6_700_000_000, mib=1),)))))
    assert kernels_compared.main([str(file)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "H100 80GB HBM3: driver 580.1" in said[0] and "marlin" in said[1]
    assert said[-1].split() == ["copies", "mib=1", "1000.0", "2000.0", "2.00"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (json.dumps(asdict(replace(TABLE, card="CPU"))), "was made on 'CPU'"),
        ("{}", "is no table of kernels"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_table_of_a_known_card_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, sentence: str
) -> None:
    file = tmp_path / "kernels.json"
    if content is not None:
        file.write_text(content)
    assert kernels_compared.main([str(file)]) == 1
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and not said.out


#: Compiles every kernel that an H100 would run, as far as its machine code; no GPU is needed for that.
COMPILED = """
import h100_kernels as it, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def compiled(kernel, constants, warps, stages, **types):
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    options = {"num_warps": warps, "num_stages": stages}
    print(len(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]))

halves = dict.fromkeys(("inputs", "outputs", "queries", "keys", "values"), "*bf16")
codes = dict.fromkeys(("packed", "scales"), "*u8") | dict.fromkeys(("pairs", "tile_experts"), "*i32")
singles = dict.fromkeys(("parts", "peaks", "sums", "sinks"), "*fp32") | {"factor": "fp32"}
for tile in (it.STREAMING[0], it.FEEDING[-1]):
    for is_inner in (True, False):
        cut = {"rows_tile": tile.rows, "columns_tile": tile.columns, "depth_tile": tile.depth}
        constants = cut | {"is_inner": is_inner, "operand": tl.bfloat16}
        compiled(it._expert_product, constants, tile.warps, tile.stages, **halves, **codes, weights="*fp32")
for tokens in it.ATTENDED:
    constants = {"kv_heads": 8, "group": 8, "rows_tile": 16, "head_dim": 64, "tokens_tile": tokens, "operand": tl.bfloat16}
    compiled(it._attend, constants, 4, 3, **halves, **singles)
compiled(it._merge, {"splits": 64, "head_dim": 64}, 4, 3, **halves, **singles)
"""


@pytest.fixture(scope="module")
def with_triton(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with the Triton of the GPU image, and the script in a folder of its own."""
    folder = tmp_path_factory.mktemp("alone")
    kept: list[str] = []
    for line in (ROOT / "deploy" / "locks" / "gpu.txt").read_text().splitlines():
        if line.startswith("triton==") or (kept and line.startswith("    --hash")):
            kept.append(line)
        elif kept:
            break
    lock = folder / "triton.txt"
    lock.write_text("\n".join(kept).removesuffix("\\") + "\n")
    interpreter = environments.python(ROOT / ".cache", "triton", lock)
    (packages,) = interpreter.parent.parent.glob("lib/*/site-packages")
    shutil.copy(h100_kernels.__file__, folder)
    return os.environ | {"PYTHONPATH": str(packages), "PWD": str(folder)}


@pytest.mark.long
def test_triton_s_kernels_compute_what_the_reference_does(with_triton: dict[str, str]) -> None:
    """Under its interpreter, from the one file: MXFP4 experts and attention with sinks are off by the rounding of bf16."""
    folder = Path(with_triton["PWD"])
    command = (sys.executable, "h100_kernels.py", "--parts", "experts,attention", "--rounds", "1", "--out", "it.json")
    subprocess.run(command, cwd=folder, env=with_triton | {"TRITON_INTERPRET": "1"}, check=True)
    rows = json.loads((folder / "it.json").read_text())["rows"]
    assert len(rows) == 6 and all(0 < it["error"] < 0.01 and it["kernel"].startswith("Triton") for it in rows)


@pytest.mark.long
def test_triton_s_kernels_compile_for_an_h100(with_triton: dict[str, str]) -> None:
    """As far as machine code for compute capability 9.0."""
    command = (sys.executable, "-c", COMPILED)
    done = subprocess.run(command, cwd=with_triton["PWD"], env=with_triton, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) == 7
