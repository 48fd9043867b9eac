"""The catalogue: which models this package knows, what they are and where they come from."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from serving.errors import Refusal
from serving.wire import Task


class Source(StrEnum):
    """How a checkpoint gets onto this machine."""

    REGISTRY_PACKAGE = "registry package"
    TRAINED_HERE = "trained here"


class Model(BaseModel):
    """One model, as the engine plane needs to know it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    summary: str
    """What it is and is not, one sentence for the banner."""
    source: Source
    task: Task = Task.GENERATE
    context_tokens: int
    """Longest prompt plus output, in tokens, as served."""
    download_mib: int
    """MiB fetched the first time."""
    disk_mib: int
    """MiB kept afterwards."""
    license: str
    tool_parser: str | None = None
    """vLLM's `--tool-call-parser`."""
    reasoning_parser: str | None = None
    """vLLM's `--reasoning-parser`."""
    environment: dict[str, str] = {}
    """Extra environment of its engine."""


#: Harmony's system message carries the date, so the small gpt-oss models were trained on one; the test that compares it
#: with the trained one is in tests/engine/checkpoints.
TRAINED_DATE = {"VLLM_SYSTEM_START_DATE": "2026-01-01"}

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            name="smollm2-135m-instruct",
            summary="SmolLM2-135M-Instruct: a 135-million-parameter toy that shows the path works; it is not gpt-oss and often wrong.",
            source=Source.REGISTRY_PACKAGE,
            context_tokens=4096,
            download_mib=93,
            disk_mib=270,
            license="Apache-2.0",
            tool_parser="hermes",
        ),
        Model(
            name="tiny-gpt-oss",
            summary="A gpt-oss-architecture checkpoint trained here on a handful of Harmony conversations: it knows those by heart and nothing else.",
            source=Source.TRAINED_HERE,
            context_tokens=4096,
            download_mib=1,
            disk_mib=140,
            license="Apache-2.0",
            tool_parser="openai",
            reasoning_parser="openai_gptoss",
            environment=TRAINED_DATE,
        ),
        Model(
            name="random-gpt-oss",
            summary="A gpt-oss-architecture checkpoint with random weights: a fuzzer for parsers, never an answer.",
            source=Source.TRAINED_HERE,
            context_tokens=4096,
            download_mib=1,
            disk_mib=140,
            license="Apache-2.0",
            tool_parser="openai",
            reasoning_parser="openai_gptoss",
            environment=TRAINED_DATE,
        ),
        Model(
            name="all-minilm-l6-v2",
            summary="all-MiniLM-L6-v2: a 22-million-parameter model that embeds English texts of up to 256 tokens; it does not chat.",
            source=Source.REGISTRY_PACKAGE,
            task=Task.EMBED,
            context_tokens=256,
            download_mib=80,
            disk_mib=88,
            license="Apache-2.0",
        ),
    )
}


def find(name: str) -> Model:
    """The catalogue entry called `name`; raises Refusal that lists the names there are."""
    try:
        return MODELS[name]
    except KeyError:
        raise Refusal(f"There is no model called '{name}'; known are {', '.join(sorted(MODELS))}.") from None
