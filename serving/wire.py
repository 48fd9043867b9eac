"""Shapes that cross a process boundary: what replicas report to the directory, what the directory answers gateways.

Plain msgspec structs, JSON on the wire; unknown fields are ignored, so that planes of different versions work together.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

#: Routes that a gateway may call on an engine; the engine's boundary refuses every other route, with or without the
#: secret.
ENGINE_ROUTES: frozenset[tuple[str, str]] = frozenset(
    {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/responses/input_tokens"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/tokenize"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/load"),
    }
)
#: The one route that needs no plane secret: a kubelet's liveness probe has none to send.
LIVENESS_ROUTE: tuple[str, str] = ("GET", "/health")

#: Stop strings of one request: what gateways let through and engines are told to take. Anthropic has no bound; four, as at
#: OpenAI, stops clients that send more.
STOP_STRINGS_MAX = 64

#: Headers by which a gateway asks an engine to note each stream's tokens, so that another can go on with it: a seed for what
#: the answer draws at random, and how many bytes before the body are tokens that the client has.
SEED_HEADER, SENT_HEADER = b"x-serving-seed", b"x-serving-sent-bytes"
#: How a note begins: an SSE comment before an event, with the portions of tokens behind it.
NOTE = b": tokens "

#: Where a cell's directory answers gateways, under its base URL.
DIRECTORY_ROUTE = "/directory"
#: Under that: how many engines each model should have, read by Serve's autoscaling hook.
WANTED_ROUTE = "/wanted"
#: Under that: the directory's metrics, for Prometheus.
METRICS_ROUTE = "/metrics"


def plain_name(cell: str) -> str:
    """A cell's name in the values; its full name in a cluster (`a/serving-a-x7k2p`) adds the Ray cluster behind it."""
    return cell.partition("/")[0]


class ReplicaState(StrEnum):
    """A replica's life cycle. Only READY takes requests; READY means that the engine makes sense of known texts."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


#: In place of a state: the model is scaled to zero, and its first call starts an engine.
ASLEEP = "asleep"


class Task(StrEnum):
    """What a model is for."""

    GENERATE = "generate"
    EMBED = "embed"


class PromptFormat(StrEnum):
    """How a model's conversations become prompts, where that decides what a request may ask."""

    #: gpt-oss's; vLLM renders it by code of its own and not by a template.
    HARMONY = "harmony"


class EngineLoad(msgspec.Struct, frozen=True):
    """One engine's own figures, read from its `/metrics`."""

    running_requests: int = 0
    waiting_requests: int = 0
    #: Share of KV-cache blocks in use, 0 to 1.
    kv_cache_used_ratio: float = 0.0
    #: Prompt tokens that wait to be computed: requests waiting times the mean prompt.
    queued_prefill_tokens: int = 0
    #: Tokens that its KV cache has room for; 0 where it is not known.
    kv_cache_tokens: int = 0
    #: Prompt tokens looked up in its prefix cache since it started, and found there; None where it does not say.
    prefix_queried_tokens: int | None = None
    prefix_hit_tokens: int = 0
    #: Tokens of its replica's own questions, such as the first token and known texts: they are among vLLM's counters and in no ledger.
    own_prompt_tokens: int = 0
    own_generation_tokens: int = 0
    #: Those without an answer: what they have cost is not known.
    own_unanswered: int = 0


#: Why a replica may end its engine: it no longer works, or it talks nonsense.
WEDGED, SENSELESS = EJECTIONS = ("wedged", "senseless")


class ReplicaReport(msgspec.Struct, frozen=True):
    """A replica's heartbeat, every `engine.heartbeat_s` (0.5 s by default); every 2 s while it says the same."""

    replica_id: str
    model: str
    #: Base URL of the engine's HTTP server, without a trailing slash.
    url: str
    state: ReplicaState
    task: Task = Task.GENERATE
    #: Longest prompt plus output, in tokens.
    context_tokens: int = 0
    load: EngineLoad = EngineLoad()
    #: One sentence without internal details: why it is FAILED, or what its start waits for.
    reason: str | None = None
    #: Share of the weights loaded so far (`45%`) while it is LOADING.
    progress: str | None = None
    #: Ray's node and the indices of its GPUs there.
    node: str = ""
    devices: tuple[str, ...] = ()
    #: This node's rank in an engine that spans several nodes; only rank 0 takes requests.
    rank: int = 0
    #: Adapters that clients may name as models here, now or once it is READY.
    adapters: tuple[str, ...] = ()
    #: Why its replica ended a FAILED engine that had not ended by itself: one of `EJECTIONS`.
    ejected: str | None = None


class LastPortion(msgspec.Struct, frozen=True):
    """The last tokens of an answer, and why the engine stopped behind them."""

    tokens: list[int]
    finish_reason: str
    stop_reason: int | str | None = None


#: Tokens that an engine made at one go.
Portion = list[int] | LastPortion


class Listed(msgspec.Struct, frozen=True):
    """A report as the directory passes it on to gateways."""

    report: ReplicaReport
    heard_ago_s: float


class Traffic(msgspec.Struct, frozen=True):
    """What one gateway sees of one model."""

    #: Calls in its waiting room because no replica can take them, how long the oldest has waited, and their prompt
    #: tokens.
    waiting_requests: int = 0
    oldest_wait_s: float = 0.0
    waiting_prompt_tokens: int = 0
    #: Prompt tokens of all calls since its last report, waiting or not, estimated from their bytes.
    arrived_prompt_tokens: float = 0.0
    #: Those calls times the mean output that it has learned.
    expected_output_tokens: float = 0.0
    #: Lines of batches at its engines. They use what other calls leave, and are in none of the above but while they wait for a model
    #: without a ready replica.
    line_requests: int = 0


class GatewayReport(msgspec.Struct, frozen=True):
    """What a gateway sends with each poll of a directory; every gateway gets the same answer."""

    gateway_id: str
    #: Seconds that its arrivals cover: the time since the directory's last answer.
    covers_s: float = 0.0
    #: Model → what this gateway sees of it.
    traffic: dict[str, Traffic] = {}
    #: The last answer's `news`, from a gateway without calls: the answer may wait for other news. Empty: it may not.
    known: str = ""


class ListedModel(msgspec.Struct, frozen=True):
    """A model of a cell, whether a replica of it runs or not."""

    name: str
    #: Longest prompt plus output, in tokens.
    context_tokens: int = 0
    #: Output tokens of a call that sets no limit itself; 0: no cap but the context.
    default_output_tokens: int = 0
    #: None where no rule goes by it. A string, so that gateways take formats that they do not know.
    prompt_format: str | None = None
    #: Engines that should run now; None while a directory that just started does not know.
    wanted: int | None = None
    #: Adapters of it that clients may name as models.
    adapters: tuple[str, ...] = ()
    #: It may scale to zero: the first call then waits for a cold start.
    may_sleep: bool = False
    #: The limit that decided the number.
    reason: str | None = None
    #: Why fewer engines run than are needed, in one sentence: other models have priority, or no node has room.
    shortage: str | None = None


class DirectoryAnswer(msgspec.Struct, frozen=True):
    """What a gateway gets from one cell's directory.

    A gateway drops a missing replica only when `is_complete`: a directory that has just started does not have every
    replica's report yet, so a replica that it does not list may well be running.
    """

    cell: str
    #: Changes at every start of the directory.
    incarnation: str
    is_complete: bool
    replicas: tuple[Listed, ...]
    #: Sentences for the operator, such as on a device where engines keep failing.
    warnings: tuple[str, ...] = ()
    models: tuple[ListedModel, ...] = ()
    #: Names all that this answer says but loads. Empty from a directory that makes no poll wait.
    news: str = ""
    #: Gateways that ask for it, the one that gets it among them; 0 from a directory that does not count them.
    gateways: int = 0
