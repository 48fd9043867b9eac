"""Shapes that cross a process boundary: what replicas tell the directory, what the directory tells gateways.

Plain msgspec structs, JSON on the wire; unknown fields are ignored so that two versions of a plane can talk.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

#: Routes a gateway may reach on an engine; the engine-side boundary closes every other one, secret or not.
ENGINE_ROUTES: frozenset[tuple[str, str]] = frozenset(
    {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/tokenize"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/load"),
    }
)
#: The one route that answers without the plane secret (a kubelet has none to send).
LIVENESS_ROUTE: tuple[str, str] = ("GET", "/health")

#: Where a cell's directory answers gateways, below its base URL.
DIRECTORY_ROUTE = "/directory"
#: Where it tells Serve's autoscaling how many replicas each model should have, below that.
WANTED_ROUTE = "/wanted"
#: Where it shows Prometheus what it knows, below that.
METRICS_ROUTE = "/metrics"


def plain_name(cell: str) -> str:
    """A cell as its owner calls it: in a cluster its full name (`a/serving-a-x7k2p`) says which Ray cluster is it now."""
    return cell.partition("/")[0]


class ReplicaState(StrEnum):
    """The life of a replica. Only READY takes requests; READY means that a token was generated."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


#: In place of a state: no replica of a model runs, and its first call will start one.
ASLEEP = "asleep"


class Task(StrEnum):
    """What a model is for."""

    GENERATE = "generate"
    EMBED = "embed"


class EngineLoad(msgspec.Struct, frozen=True):
    """One engine's own figures, read from its `/metrics`."""

    running_requests: int = 0
    waiting_requests: int = 0
    #: Share of KV-cache blocks in use, 0 to 1.
    kv_cache_used_ratio: float = 0.0
    #: Prompt tokens that wait to be computed: requests waiting times the mean prompt.
    queued_prefill_tokens: int = 0


class ReplicaReport(msgspec.Struct, frozen=True):
    """What a replica says of itself, about once a second."""

    replica_id: str
    model: str
    #: Base URL of the engine's HTTP server, without a trailing slash.
    url: str
    state: ReplicaState
    task: Task = Task.GENERATE
    #: Longest prompt plus output, in tokens.
    context_tokens: int = 0
    #: Output tokens of a call that sets no limit itself; 0: no cap but the context.
    default_output_tokens: int = 0
    load: EngineLoad = EngineLoad()
    #: One scrubbed sentence when the state is FAILED, or on what a start waits for.
    reason: str | None = None
    #: How far it has loaded (`45%`) while it is LOADING.
    progress: str | None = None
    #: Where it is: Ray's node and the indices of its GPUs.
    node: str = ""
    devices: tuple[str, ...] = ()
    #: Which node's share of an engine over several nodes this is; only the first takes requests.
    rank: int = 0
    #: Names of the adapters that it answers to as models, or will once it is READY.
    adapters: tuple[str, ...] = ()


class Listed(msgspec.Struct, frozen=True):
    """A report as the directory hands it on."""

    report: ReplicaReport
    heard_ago_s: float


class Traffic(msgspec.Struct, frozen=True):
    """What one gateway sees of one model."""

    #: Calls it holds because no replica can take them, how long the first has waited, and their prompts.
    waiting_requests: int = 0
    oldest_wait_s: float = 0.0
    waiting_prompt_tokens: int = 0
    #: Of the calls that came in since it was last heard, held or not; prompts estimated from their bytes.
    arrived_prompt_tokens: float = 0.0
    #: The same calls times the mean output it has learned.
    expected_output_tokens: float = 0.0


class GatewayReport(msgspec.Struct, frozen=True):
    """What a gateway sends when it asks a directory; the answer is the same for all of them."""

    gateway_id: str
    #: Seconds that its arrivals cover: since a directory answered it last.
    covers_s: float = 0.0
    #: Model → what this gateway sees of it.
    traffic: dict[str, Traffic] = {}


class ListedModel(msgspec.Struct, frozen=True):
    """A model of a cell, whether a replica of it runs or not."""

    name: str
    #: Longest prompt plus output, in tokens.
    context_tokens: int = 0
    #: Output tokens of a call that sets no limit itself; 0: no cap but the context.
    default_output_tokens: int = 0
    #: Engines that should run now; None while a young directory does not know.
    wanted: int | None = None
    #: Adapters that clients may ask for in its place.
    adapters: tuple[str, ...] = ()
    #: It may have no replica at all: its first call wakes it, and waits for a whole start.
    may_sleep: bool = False
    #: The limit that decided so many.
    reason: str | None = None
    #: Why there are fewer than are needed, in one sentence: others come first, or no node has room.
    shortage: str | None = None


class DirectoryAnswer(msgspec.Struct, frozen=True):
    """What a gateway gets from one cell's directory.

    A gateway drops a replica that is missing only when `is_complete`: a directory that has just started
    has not heard from everyone yet, and its silence removes nobody.
    """

    cell: str
    #: Changes at every start of the directory.
    incarnation: str
    is_complete: bool
    replicas: tuple[Listed, ...]
    #: Sentences for the operator, such as on a device where engines keep failing.
    warnings: tuple[str, ...] = ()
    models: tuple[ListedModel, ...] = ()
