"""Settings: one typed, frozen schema, read once from one YAML file plus environment overrides.

`SERVING_GATEWAY__PORT=9000` overrides `gateway.port`. Unknown keys are refused, in the file and in the environment.
Under each field stand its unit and its reason.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving import secret
from serving.catalog import Knee, LoraLimits, Model
from serving.errors import Refusal

ENV_PREFIX = "SERVING_"


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Port = Annotated[int, Field(ge=1, le=65535)]


def _in_order(range_: tuple[int, int] | None) -> tuple[int, int] | None:
    if range_ and range_[0] > range_[1]:
        raise ValueError("the first port must not be above the last")
    return range_


class Timeouts(_Group):
    """Client to engine, each longer than the next, so that the outermost waiter gives up last.

    openai-python waits 600 s > request_total > wake_wait > engine_silence > request_body > replica_wait > keep_alive >
    engine_connect.
    """

    request_total_s: Annotated[float, Field(gt=0)] = 590.0
    """Seconds a request may take in all; just under openai-python's default of 600."""
    wake_wait_s: Annotated[float, Field(gt=0)] = 420.0
    """Seconds a request waits for a sleeping model's cold start before 503 with Retry-After; leaves time for the answer."""
    engine_silence_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds an engine may send nothing (a long prefill, or a hung engine) before the gateway gives up on it."""
    request_body_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds a client may take to send its body: 8 MiB at 1 Mbit/s; a slower client would occupy a slot for nothing."""
    replica_wait_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds a request waits for a ready replica before 503 with Retry-After."""
    keep_alive_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds of silence after which a streaming client gets headers, then a comment: proxies cut idle streams at 30 to 60."""
    engine_connect_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds to open a connection to an engine in the same datacenter; an engine that takes longer is gone."""


class Certificate(_Group):
    """A certificate and its key, as PEM files; gateways and engines pick up a renewed pair without a restart."""

    certificate_file: Path
    """The certificate, followed by any intermediates."""
    key_file: Path
    """Its private key."""


class PlaneTls(Certificate):
    """Encryption between the planes: engines and directories show this certificate, gateways check it.

    It must carry the name `engine.gpt-oss-serving` (serving/plane_tls.py says why one name is enough).
    """

    ca_file: Path
    """The CA certificate that signed it."""


class Slo(_Group):
    """Service-level objective of a model; `serving_gateway_slo_requests_total` counts the requests that met it."""

    ttft_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds from a complete request to the first byte of its stream: past this, a reader thinks that the service hangs."""
    time_per_output_token_s: Annotated[float, Field(gt=0)] = 0.1
    """Seconds per token after the first, the mean of one answer: ten tokens a second are more than people read."""


class GatewaySettings(_Group):
    host: str = "127.0.0.1"
    """Address to listen on; the chart sets 0.0.0.0 behind its NetworkPolicy."""
    port: Port = 8080
    """TCP port of the public API."""
    metrics_port: Port | None = None
    """TCP port of `/metrics` alone; unset, it is on the API's port (a laptop), and any client there can read tenants' names and use."""
    tls: Certificate | None = None
    """Serve the API itself over TLS; unset where a proxy in front terminates TLS."""
    directories: tuple[str, ...] = ()
    """Base URLs of the cells' directories to poll."""
    engines: tuple[str, ...] = ()
    """Base URLs of vLLM servers that run without a directory."""
    aliases: dict[str, str] = {}
    """Model names clients may use → the model served, e.g. {"gpt-4o": "gpt-oss-120b"}."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 8 * 1024 * 1024
    """Bytes of one request body; 131,072 tokens of text are well under 1 MiB."""
    max_open_requests: Annotated[int, Field(ge=1)] = 1024
    """Requests held at once, waiting and streaming together: bounds memory (each holds at most its body and one chunk)."""
    max_waiting_requests: Annotated[int, Field(ge=1)] = 256
    """Requests of one model held while no replica of it is ready, first come first served; the next gets 503 with Retry-After."""
    poll_interval_s: Annotated[float, Field(gt=0, le=2)] = 0.5
    """Seconds between two polls of each directory; a directory drops a gateway after ten seconds without one."""
    key_cache_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds an API key stays cached before the store is read again: the longest a revoked key still works."""
    drain_timeout_s: Annotated[float, Field(ge=0)] = 5.0
    """Graceful shutdown: seconds that running answers get after SIGTERM; in a cluster just under the pod's grace period."""
    slo: Slo = Slo()
    """SLO of every model that has none of its own."""
    model_slos: dict[str, Slo] = {}
    """Served model → its own SLO."""
    traces_endpoint: Annotated[str, Field(pattern="^https?://")] | None = None
    """Address of an OpenTelemetry collector that takes spans over OTLP/HTTP (`http://collector:4318/v1/traces`); unset, no spans."""
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of requests that are traced; a request that arrives with a trace context keeps its client's sampling decision."""
    log_prompts: bool = False
    """Write up to 64 KiB of each call's body into its log line, as sent: everyone with access to the log can then read prompts."""
    timeouts: Timeouts = Timeouts()

    def slo_of(self, model: str) -> Slo:
        """The SLO of a served model."""
        return self.model_slos.get(model, self.slo)


class StoreSettings(_Group):
    url_file: Path | None = None
    """File of one line, `postgresql://…`, for gateways that share a store; unset, SQLite in `home`. A file, because of its password."""
    pepper_file: Path | None = None
    """File of exactly 32 random bytes that pepper the keys' digests, the same for every gateway; unset, `pepper` in `home`, made at first use."""
    first_key_file: Path | None = None
    """File with an API key made beforehand, registered by `serving store migrate`; unset, a first start with SQLite writes `admin.key` to `home`."""
    pool_size: Annotated[int, Field(ge=1, le=100)] = 5
    """PostgreSQL connections of one gateway at most: four threads look up keys, one writes the ledger."""


class EngineSettings(_Group):
    host: str | None = "127.0.0.1"
    """Address an engine listens on and is reached at; null means its node's own, as in a cluster."""
    port_range: Annotated[tuple[Port, Port] | None, AfterValidator(_in_order)] = None
    """First and last TCP port for engines' HTTP servers, so that a NetworkPolicy can name them; unset, any free one."""
    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """CPU engines: share of the machine's memory that must be free at start; with less, vLLM refuses to start."""
    kv_cache_gib: Annotated[int, Field(ge=1)] = 1
    """CPU engines: whole GiB of KV cache."""
    api_servers: Annotated[int, Field(ge=1)] = 1
    """HTTP front-end processes of one engine, where its profile does not say how many."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds from an engine's first process to its first token, besides reading its weights: imports, graphs, kernels."""
    load_mib_per_s: Annotated[float, Field(gt=0)] = 100.0
    """Slowest acceptable rate of reading weights, in MiB/s: a checkpoint of 60 GiB adds ten minutes to the start timeout."""
    directory_labels: dict[str, str] = {}
    """Labels of the Ray nodes that may hold the directory; in a cluster, nodes without engines, so that both are not lost at once."""
    gpus_per_node: Annotated[int, Field(ge=1)] = 8
    """GPUs of a node; an engine with more of them spans several."""
    nodes_may_grow: bool = False
    """Whether the cluster adds GPU nodes when an engine waits for one; if not, models share the existing nodes by priority."""
    traces_endpoint: Annotated[str, Field(pattern="^https?://")] | None = None
    """Where engines send the spans of requests that the gateway traces, as `gateway.traces_endpoint`; unset, nowhere."""
    program: tuple[str, ...] = ()
    """A program that replaces vLLM: it takes the same `serve` command line and speaks the same HTTP; empty for vLLM itself."""
    drain_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Graceful shutdown: seconds that running streams get when a replica stops; not below the gateway's request_total_s."""
    heartbeat_s: Annotated[float, Field(gt=0, le=2)] = 0.5
    """Seconds between two reports of a replica to the directory; after 5 s without one its figures are stale, after 10 s it is dropped."""


class AdapterSettings(_Group):
    """One LoRA adapter of a model. These lists are the whole registry: a client cannot have any other adapter loaded."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
    """The model name that clients send; no slashes, because vLLM builds a path from it. Changed weights need a new name."""
    path: Annotated[str, Field(pattern="^/")]
    """Absolute folder in the engine's pod with `adapter_config.json` and `adapter_model.safetensors`, as PEFT writes them."""


class ModelSettings(_Group):
    """One model of a cell: which engine, and how many of it.

    Its bounds, its adapters and its default output tokens change live; the rest restarts its own engines.
    """

    name: str
    """A name of the catalogue (`serving models list`)."""
    profile: str | None = None
    """A named GPU profile of the catalogue; unset, the engine runs on vLLM's CPU build."""
    gpu: str | None = None
    """The GPU type of that profile (`h100`, `h200`); unset, the first type that has it."""
    tensor: Annotated[int, Field(ge=1)] | None = None
    """Ranks that share each layer; unset, the profile's, or 1."""
    pipeline: Annotated[int, Field(ge=1)] | None = None
    """Ranks that each hold some of the layers; unset, the profile's, or 1."""
    data: Annotated[int, Field(ge=1)] | None = None
    """Copies of the attention layers, each with requests of its own; unset, the profile's, or 1."""
    expert: bool | None = None
    """Whether ranks hold whole experts instead of a piece of each; unset, the profile's, or false."""
    min_replicas: Annotated[int, Field(ge=0)] = 1
    """Engines that always run; 0 lets the model scale to zero, and its first request then waits for a cold start."""
    max_replicas: Annotated[int, Field(ge=1)] = 1
    """Engines that may run; equal to `min_replicas` for a fixed fleet."""
    priority: int = 0
    """Which model gets the GPUs when there are too few: after every model's minimum, the higher number goes first."""
    sleep_after_s: Annotated[float, Field(gt=0)] = 900.0
    """Scale to zero: seconds without a request after which the last engine stops, where `min_replicas` is 0; a cold start takes minutes."""
    knee: Knee | None = None
    """The highest load at which one engine keeps its SLO, as you measured it; unset, the catalogue's, or an estimate."""
    lora: LoraLimits | None = None
    """Room for adapters in each engine, taken at its start; unset, the profile's, or none."""
    adapters: tuple[AdapterSettings, ...] = ()
    """Adapters that clients may name as models; each is loaded at its first request."""
    default_output_tokens: Annotated[int, Field(ge=0)] | None = None
    """Output tokens that a call without a limit of its own may take; unset, the catalogue's; 0, all that the context leaves."""

    @property
    def is_scaled(self) -> bool:
        """May the number of its engines change at run time?"""
        return self.min_replicas != self.max_replicas

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas must not be above max_replicas")
        return self


class Settings(_Group):
    home: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("gpt-oss-serving")))
    """Folder of all local state: models, keys, ledger, logs."""
    plane_secret_file: Path | None = None
    """File with the secret that gateways send to engines, one value a line; unset, `plane.secret` in `home`, made when absent."""
    plane_tls: PlaneTls | None = None
    """TLS between gateways, directories and engines; unset, they speak plain HTTP."""
    log_format: Literal["json", "text"] = "json"
    """One JSON object a line for log collectors, or text for people."""
    store: StoreSettings = StoreSettings()
    gateway: GatewaySettings = GatewaySettings()
    engine: EngineSettings = EngineSettings()
    models: tuple[ModelSettings, ...] = (ModelSettings(name="smollm2-135m-instruct"),)
    """What this cell serves."""
    own_models: tuple[Model, ...] = ()
    """Models that the catalogue lacks, described with the same keys: a fine-tune, another open model."""

    @property
    def secret_file(self) -> Path:
        """Where the plane secret is."""
        return self.plane_secret_file or self.home / secret.FILE_NAME

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [model.name for model in self.models]
        names += [adapter.name for model in self.models for adapter in model.adapters]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"models or adapters are named twice: {', '.join(sorted(repeated))}")
        return self


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings: defaults < file < environment.

    Raises Refusal with one sentence that names the key when anything is unknown or out of range.
    """
    return _validated(read_mapping(path, "settings") if path else {}, _from_environment(environ))


def override(settings: Settings, **groups: Mapping[str, Any]) -> Settings:
    """The settings with the command line's values over them (`gateway={"port": 9000}`); None leaves a key alone."""
    return _validated(settings.model_dump(), groups)


def with_models(settings: Settings, names: Sequence[str]) -> Settings:
    """The settings with these models alone; a model that the settings describe keeps its description."""
    described = {model.name: model for model in settings.models}
    chosen = tuple(described.get(name) or ModelSettings(name=name) for name in dict.fromkeys(names))
    return settings.model_copy(update={"models": chosen})


def _validated(*layers: Mapping[str, Any]) -> Settings:
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge(merged, layer)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        what = f"The setting '{key}' is" if key else "The settings are"
        raise Refusal(f"{what} not usable: {first['msg'].removeprefix('Value error, ').lower()}.") from None


def read_mapping(path: Path, kind: str) -> dict[str, Any]:
    """The mapping in a YAML file; raises Refusal when there is none. `kind` names the file in that sentence."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise Refusal(f"The {kind} file {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise Refusal(f"The {kind} file {path} is not valid YAML.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise Refusal(f"The {kind} file {path} must hold a mapping of keys to values.")
    return content


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(ENV_PREFIX):
            continue
        *groups, key = name.removeprefix(ENV_PREFIX).lower().split("__")
        branch = {key: (text or None) if key in {"home", "host"} else _from_text(name, text)}
        for group in reversed(groups):
            branch = {group: branch}
        _merge(layer, branch)
    return layer


def _from_text(name: str, text: str) -> Any:
    """A variable's value; lists and mappings are written as in YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise Refusal(f"The environment variable {name} is not valid YAML.") from None


def _merge(target: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        elif value is not None:
            target[key] = dict(value) if isinstance(value, Mapping) else value
