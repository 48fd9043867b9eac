"""Text: budgets for a person's eyes, and the table of gpt-oss profiles in deploy/README.md."""

from __future__ import annotations

import msgspec

from serving.budget.knee import estimate
from serving.budget.memory import Budget, architecture_of, budget
from serving.budget.speed import fitted_for
from serving.catalog import GPUS, Model, Profile

#: Between these lines deploy/README.md holds the table.
BEGIN, END = "<!-- profiles -->\n", "<!-- end of profiles -->"


def page(model: Model, profile: Profile) -> str:
    """What `serving models budget` prints."""
    memory, knee = budget(model, profile), estimate(model, profile)
    fitted = fitted_for(architecture_of(model))
    lines = [
        f"{model.name}, {profile.name} on {profile.gpus_per_engine} × {GPUS[profile.gpu].title}: {profile.reason}",
        f"  why        {profile.source}",
        f"  pods       {profile.nodes} × {profile.pod_gpus} GPUs; a fleet grows by {profile.scaling_step_gpus} GPUs",
        f"  failure    {profile.blast_radius}",
        "Each GPU, in GiB (computed for vLLM 0.32, workspace estimated):",
        f"  usable     {memory.usable_gib:8.2f}",
        f"  experts    {memory.expert_weights_gib:8.2f}",
        f"  rest       {memory.other_weights_gib:8.2f}",
        f"  adapters   {memory.adapters_gib:8.2f}",
        f"  workspace  {memory.workspace_gib:8.2f}",
        f"  KV         {memory.kv_gib:8.2f}",
        "The engine:",
        f"  KV         {memory.kv_tokens:,} tokens in requests of {memory.context_tokens:,}; a token takes"
        f" {memory.kv_bytes_per_token / 1024:.1f} KiB of each GPU",
        *_host(memory),
        f"  sliding    {memory.sliding_kv_bytes / 2**20:.0f} MiB of each GPU for one such request",
        f"  requests   {memory.requests_8k} of 8k tokens, or {memory.requests_128k} of 128k; {memory.batch_limit}"
        " run at once at most",
        f"Its knee (computed; kernel {fitted.kernel}, vLLM {fitted.vllm_version}, {fitted.source}; a measured one belongs in the settings):",
        f"  requests   {knee.running_requests} running",
        f"  prefill    {knee.prefill_tokens_per_s:,.0f} tokens/s",
        f"  decode     {knee.decode_tokens_per_s:,.0f} tokens/s at that many requests",
        f"  start-up   {knee.startup_s:.0f} s",
        *_network(profile),
    ]
    return "\n".join(lines)


def _host(memory: Budget) -> list[str]:
    """What the hosts keep, where they keep any."""
    if not memory.host_kv_gib:
        return []
    return [
        f"  host       {memory.host_kv_gib:.0f} GiB of /dev/shm for about {memory.host_kv_tokens:,} tokens more of prefixes"
    ]


def _network(profile: Profile) -> list[str]:
    """What the knee leaves out of an engine that spans nodes."""
    return [f"  network    between its {profile.nodes} nodes: not in these figures"] if profile.nodes > 1 else []


def as_json(model: Model, profile: Profile) -> str:
    """The same as one JSON object: the profile with what follows from it, the budget, and the estimated knee."""
    derived = ("gpus_per_engine", "pod_gpus", "nodes", "scaling_step_gpus", "blast_radius")
    knobs = profile.model_dump() | {name: getattr(profile, name) for name in derived}
    fitted = fitted_for(architecture_of(model))
    measured = {"kernel": fitted.kernel, "vllm_version": fitted.vllm_version, "source": f"computed: {fitted.source}"}
    knee = estimate(model, profile).model_dump() | measured
    answer = {"profile": knobs, "budget": budget(model, profile), "knee": knee}
    return msgspec.json.format(msgspec.json.encode(answer)).decode()


def table(*models: Model) -> str:
    """A markdown table of every profile of `models`, and below it why each is there."""
    profiles = [(model, profile) for model in models for profile in model.profiles]
    head = [
        "| model | profile | GPUs | pods | weights | adapters | workspace | KV | KV tokens | 8k requests | 128k requests | at once |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = [_row(profile, budget(model, profile)) for model, profile in profiles]
    reasons = [
        f"* **{model.name} {profile.name}, {profile.gpu}**: {profile.reason} {profile.blast_radius} Source: {profile.source}."
        for model, profile in profiles
    ]
    return "\n".join([*head, *rows, "", *reasons])


def with_table(document: str, *models: Model) -> str:
    """`document` with the table of today between its markers."""
    before, after = document.split(BEGIN, 1)
    return f"{before}{BEGIN}{table(*models)}\n{END}{after.split(END, 1)[1]}"


def _row(profile: Profile, memory: Budget) -> str:
    cells = [
        memory.model,
        memory.profile,
        f"{memory.gpus} × {memory.gpu}",
        f"{profile.nodes} × {profile.pod_gpus}",
        *(f"{gib:.1f}" for gib in (memory.weights_gib, memory.adapters_gib, memory.workspace_gib, memory.kv_gib)),
        f"{memory.kv_tokens:,}",
        str(memory.requests_8k),
        str(memory.requests_128k),
        str(memory.batch_limit),
    ]
    return f"| {' | '.join(cells)} |"
