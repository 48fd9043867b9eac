"""Settings: one typed, frozen schema, read once from one YAML file plus environment overrides.

`SERVING_GATEWAY__PORT=9000` overrides `gateway.port`. Unknown keys are refused, in the file and in the environment.
The docstring under each field has its unit and its reason; serving/SETTINGS.md is generated from them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import platformdirs
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving import secret
from serving.catalog import HostGib, Knee, KvDtype, KvOffloading, LoraLimits, Model, MoeBackend, Speculation, Speed
from serving.errors import Refusal

ENV_PREFIX = "SERVING_"
#: Room for one answer and a small body.
HELD_BYTES_MIN = 512 * 1024


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Port = Annotated[int, Field(ge=1, le=65535)]


def _in_order(range_: tuple[int, int] | None) -> tuple[int, int] | None:
    if range_ and range_[0] > range_[1]:
        raise ValueError("the first port must not be above the last")
    return range_


class Timeouts(_Group):
    """From client to engine, each longer than the next: the outermost party gives up last.

    openai-python waits 600 s > request_total > wake_wait > engine_silence > request_body > replica_wait > keep_alive >
    engine_connect.
    """

    request_total_s: Annotated[float, Field(gt=0)] = 590.0
    """Seconds a request may take in total; just under openai-python's default of 600."""
    wake_wait_s: Annotated[float, Field(gt=0)] = 420.0
    """Seconds a request waits for a model's cold start from zero, before 503 with Retry-After; leaves time for the answer."""
    engine_silence_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds an engine may send no event of a stream (a long prefill, or a wedged engine), or count no token in its metrics while
    a whole answer is waited for, before the call fails."""
    request_body_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds a client may take to send its body: 8 MiB at 1 Mbit/s; a slower client would hold a place without using it."""
    replica_wait_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds a request waits for a ready replica before 503 with Retry-After."""
    keep_alive_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds of silence after which a streaming client gets headers, then an SSE comment: proxies cut idle streams after 30 to 60."""
    engine_connect_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds to open a connection to an engine in the same data centre; longer means that it is gone."""
    key_lookup_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds a request waits for the database's word on its key (0.5 ms when all is well) before that counts as an outage: then
    the keys that were valid within the hour still work, and others get 503. Raise it where the disk or the network stalls."""


class Certificate(_Group):
    """A certificate and its key, as PEM files; gateways and engines pick up a renewed pair without a restart."""

    certificate_file: Path
    """The certificate, followed by the intermediate ones."""
    key_file: Path
    """Its private key."""


class PlaneTls(Certificate):
    """Encryption between the planes: engines and directories show this certificate, gateways check it.

    It must carry the name `engine.gpt-oss-serving` (serving/plane_tls.py says why one name is enough).
    """

    ca_file: Path
    """The CA certificate that signed it."""


class Slo(_Group):
    """What a model's users are promised; `serving_gateway_slo_requests_total` counts how often it was kept. Where it is set, autoscaling's estimated knee keeps it too."""

    ttft_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds from a complete request to the first byte of its stream: a reader takes anything longer for a hang."""
    time_per_output_token_s: Annotated[float, Field(gt=0)] = 0.1
    """Seconds per token after the first, the mean of one answer: ten tokens a second are more than people read."""


class Retries(_Group):
    """How much more a failing fleet, or a key whose calls are refused, may be asked than a healthy one."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Retries of a model's calls at other replicas, as a share of its calls (retry budget): a fleet that fails everywhere gets at most 1.2 times the calls, and ten more. Streams that a lost replica had begun go on besides (RLY-55). 0 turns retries off once those ten are used up."""
    refused_per_key: Annotated[int, Field(ge=1)] = 20
    """Calls of one key that may be refused in a row, with a 502 or 503, before its next ones are refused unread, with Retry-After; one a second more, and one for each call that is admitted. Clients' own routers try five times in half a second."""


class Outliers(_Group):
    """When a replica that fails more than others gets no calls for a while (outlier ejection), and how it comes back."""

    consecutive_failures: Annotated[int, Field(ge=1)] = 5
    """Failed calls in a row after which a replica is ejected."""
    failure_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of failed calls within half a minute from which a replica is ejected; counts from 20 calls on."""
    ejected_share_max: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Most of a model's replicas that may be ejected at a time, rounded down: where all fail, the fault is not theirs. 0 turns ejection off."""
    ejection_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds of the first ejection; each further one takes twice as long."""
    ejection_max_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds of the longest ejection; a replica that has behaved for as long starts again at the first."""
    return_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds in which a replica that comes back gets a growing share of its calls, from a tenth to all: its caches are cold. One failure in that time ejects it again."""


#: Signed with a private key alone: with a shared secret, each service that checks tokens could make them.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
Claim = Annotated[str, Field(min_length=1, max_length=255)]


class Issuer(_Group):
    """A company's single sign-on (OpenID Connect), whose tokens open the API as keys do (README.md shows one).

    A claim's name may be a path with dots where claims are nested: `realm_access.roles`.
    """

    issuer: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$", max_length=255)]
    """The issuer as its tokens spell it in `iss`; `/.well-known/openid-configuration` below it says where its keys are. https, except on this machine: what could change the keys on their way could sign in as anyone."""
    audiences: Annotated[tuple[Claim, ...], Field(min_length=1)]
    """Values of `aud` that mean this service, as the company's sign-on registered it; a token for another service is refused."""
    tenant: str | None = None
    """The tenant of all its tokens; unset, `tenant_claim` says it."""
    tenant_claim: Claim | None = None
    """The claim that says the tenant; a token without it, or with several tenants in it, is refused."""
    tenants: dict[str, str] = {}
    """Value of `tenant_claim` → tenant; empty, the value is the tenant's name."""
    user_claim: Claim = "sub"
    """The claim that says who the end user is, up to 255 characters; a token without it is refused. The same value is the same person, whichever issuer of a tenant says it."""
    role_claim: Claim | None = None
    """The claim whose values `roles` translates; unset, everyone is a member."""
    roles: dict[str, Literal["member", "tenant_admin", "platform_admin"]] = {}
    """Value of `role_claim` → role; of several the one that may do most, and `member` for values that are not here."""
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256")
    """Ways to sign that are taken, whatever the token or the issuer's keys say."""
    clock_skew_s: Annotated[float, Field(ge=0, le=300)] = 30.0
    """Seconds by which the issuer's clock may differ from ours."""
    ca_file: Path | None = None
    """The CA certificate of the issuer's endpoints (PEM), where it is the company's own; unset, the system's."""
    client_id: Claim | None = None
    """The name under which the console is registered at the issuer, with `/console/callback` of its address as redirect URI: people then sign in to it there (authorization code with PKCE). Its ID tokens must carry the claims above. Unset, the issuer's tokens open the API alone."""
    client_secret_file: Path | None = None
    """File of one line, the secret that belongs to `client_id`; unset, the console is a public client, which PKCE protects."""
    scopes: tuple[Annotated[str, Field(pattern=r"^[!#-\[\]-~]+$")], ...] = ("openid",)
    """Scopes that the console asks for; some issuers put a claim into a token only for a scope of its own, such as `profile` or `groups`."""
    refresh_s: Annotated[float, Field(ge=10)] = 300.0
    """Seconds between two looks at the issuer's keys; one that it no longer publishes is refused from then on."""
    lookup_interval_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds between two questions for keys that are not known, after five at once. A key that was just rotated in is asked for when its first token comes; strangers' tokens must not make one question each."""
    outage_grace_s: Annotated[float, Field(gt=0)] = 86_400.0
    """Seconds for which known keys work on while the issuer cannot be asked; then its tokens get 503. A day outlasts an outage, and bounds how long a key that was withdrawn meanwhile is taken."""

    @model_validator(mode="after")
    def _means_one_thing(self) -> Self:
        if self.issuer.startswith("http://") and urlsplit(self.issuer).hostname not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise ValueError("issuer must be https, except on this machine")
        if (self.tenant is None) == (self.tenant_claim is None):
            raise ValueError("either tenant or tenant_claim must be given, and not both")
        if self.tenants and self.tenant_claim is None:
            raise ValueError("tenants needs a tenant_claim")
        if bool(self.roles) != (self.role_claim is not None):
            raise ValueError("role_claim and roles go together")
        if self.outage_grace_s <= self.refresh_s:
            raise ValueError("outage_grace_s must be longer than refresh_s")
        if self.client_secret_file is not None and self.client_id is None:
            raise ValueError("client_secret_file needs a client_id")
        if "openid" not in self.scopes:
            raise ValueError("scopes must have openid")
        return self


class QueueSettings(_Group):
    """How long calls wait for a place when a model's fleet is full, by their priority class."""

    interactive_wait_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds an `interactive` call waits before 503 with Retry-After: people do not wait longer."""
    standard_wait_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds a `standard` call waits before 503 with Retry-After."""
    batch_wait_s: Annotated[float, Field(gt=0)] = 420.0
    """Seconds a `batch` call waits before 503 with Retry-After; leaves time for the answer within `request_total_s`."""
    standard_passed_over_s: Annotated[float, Field(ge=0)] = 10.0
    """Seconds after which `standard` calls get a quarter of what is served, however many `interactive` ones come."""
    batch_passed_over_s: Annotated[float, Field(ge=0)] = 60.0
    """Seconds after which `batch` calls get a quarter of what is served, however many calls of other classes come."""


class CounterSettings(_Group):
    """Where several gateways count together what limits allow, so that each is one limit and not one for each gateway."""

    url_file: Path | None = None
    """File of one line, `redis://…` (`rediss://` with TLS, `valkey://` and `valkeys://` alike), whose server counts for all gateways; unset, PostgreSQL does where the store is one, the file of SQLite where a gateway has several workers, and else the gateway's memory. A file, because it contains a password. A decision takes 0.3 ms there and 5 ms in PostgreSQL (TEN-11, TEN-12)."""
    cluster: bool = False
    """Whether the address is that of a node of a Redis or Valkey cluster. All counters of a tenant are in one slot."""
    timeout_s: Annotated[float, Field(gt=0, le=5)] = 0.25
    """Seconds a decision waits for the shared counters; longer counts as their outage. Then each gateway counts its share, limit ÷ gateways, until they are back: no call is refused for it, and limits may be overspent once, by no more than themselves where calls are small beside them (TEN-10)."""
    alone_max_s: Annotated[float, Field(ge=0)] | None = None
    """Seconds that a gateway counts its share in one outage; after that, calls that have limits get 503. Unset, for as long as it lasts."""


class ConsoleSettings(_Group):
    """The page at `/console`, where members try models and see their use, and administrators see and steer the rest."""

    enabled: bool = True
    """Whether there is one; without it there are no sessions either, and the API takes keys and tokens alone."""
    title: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")] = "gpt-oss-serving"
    """How the installation is called on the page."""
    url: Annotated[str, Field(pattern=r"^https?://[^/\s?#]+$")] | None = None
    """The address at which browsers reach the console, `https://ai.example.com`: single sign-on leads back there, and with https its cookie is marked so. Unset, the request's own host and the gateway's own TLS say it, which a proxy that ends TLS makes wrong."""
    port: Port | None = None
    """TCP port of its own, for a console that clients of the API cannot reach: the page, its sessions and the routes that it calls are there, and the API's port has no page. Unset, all are on the API's port."""
    session_s: Annotated[float, Field(ge=60, le=2_592_000)] = 28_800.0
    """Seconds after which a session ends and its user signs in anew: a working day. A key that is revoked and a tenant that is disabled end theirs at once; a person who leaves the company's sign-on keeps one until then."""


class StoredSettings(_Group):
    """What is kept of responses and conversations, for tenants whose policy says `store_responses`."""

    retention_days: Annotated[int, Field(ge=1, le=3650)] = 30
    """Days a response is kept after it was made or last gone on from, and a conversation after something was last added; then it is deleted."""
    background_calls_max: Annotated[int, Field(ge=1)] = 64
    """Responses that one gateway runs in the background at once (`background: true`). Beyond it: 503 `overloaded`."""
    background_total_s: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds a response may take that runs in the background: no client waits for it, so it may be longer than `request_total_s`."""


class FileSettings(_Group):
    """Files and batches of tenants (`/v1/files`, `/v1/batches`): where bytes are kept, and how much of them."""

    enabled: bool = True
    """Whether there are files and batches. A tenant has them where its policy turns `store_responses` on."""
    url: Annotated[str, Field(pattern=r"^(s3|gs|az)://[^\s?#]+$")] | None = None
    """Object store that keeps files' bytes, sealed: `s3://BUCKET/PREFIX`, `gs://…` or `az://…`, with credentials from the environment as its clients know them (AWS_*, GOOGLE_*, AZURE_*). Unset, `folder` keeps them."""
    folder: Path | None = None
    """Folder that keeps them; unset, `files` in `home`. Gateways on several machines need an object store, or one folder that all of them see."""
    file_bytes_max: Annotated[int, Field(ge=1024)] = 200 * 1024 * 1024
    """Bytes of one file; OpenAI's own limit for batches."""
    lines_max: Annotated[int, Field(ge=1)] = 50_000
    """Calls in one batch; OpenAI's own limit."""
    tenant_files_max: Annotated[int, Field(ge=1)] = 10_000
    """Files of one tenant, batches' outputs included."""
    tenant_bytes_max: Annotated[int, Field(ge=1024)] = 50 * 1024**3
    """Bytes of all files of one tenant."""
    tenant_batches_max: Annotated[int, Field(ge=1)] = 64
    """Batches of one tenant that have not ended."""
    careful_tokens_per_s: Annotated[float, Field(gt=0)] = 300.0
    """Prompt tokens of batches' lines that begin in a second at each replica at which nothing waits, while other calls are about: a hundredth of what gpt-oss-120b's engine computes on two H100s, so that first tokens come as soon as without batches (BAT-3). A minute after the last other call lines have the fleet to themselves."""
    expires_after_s: Annotated[float, Field(ge=3600)] = 30 * 86_400.0
    """Seconds after which a file is deleted for which its client says nothing else; OpenAI's own for batches. No file is kept for longer, nor a batch after its end."""
    upload_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds an upload may take, and a download; one that is larger than an upload may be, as many times longer. As it begins, 200 MiB at 3 Mbit/s."""


class GatewaySettings(_Group):
    host: str = "127.0.0.1"
    """Address to listen on; the chart sets 0.0.0.0 behind its NetworkPolicy."""
    port: Port = 8080
    """TCP port of the public API."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that serve the API, each on a core of its own; a further one starts from the same memory and takes about 50 MiB. They
    share the port, the database and the bounds below: each may hold its part of `max_open_requests`, `max_held_bytes` and
    `max_waiting_requests`. Each polls directories and has its own cache of keys and connections to the database."""
    metrics_port: Port | None = None
    """TCP port of `/metrics`, and of `/health/models` without a key. Unset, both are on the API's port (for laptops), and every client can read tenants' names and use."""
    tls: Certificate | None = None
    """Serve the API over TLS; unset if a proxy in front does."""
    cors_origins: tuple[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")], ...] = ()
    """Origins of web pages that may call the API from a browser, as the browser spells them (`https://chat.example.com`), or `*`
    for every page; empty, browsers are not served. A page that holds a key shows it to its user."""
    directories: tuple[str, ...] = ()
    """Base URLs of the cells' directories to poll."""
    engines: tuple[str, ...] = ()
    """Base URLs of vLLM servers that run without a directory."""
    prefill_engines: tuple[str, ...] = ()
    """Base URLs of vLLM servers that compute long prompts for those in `engines`, and hand them the KV (prefill and decode apart);
    unset, each engine computes its own. Both need `--kv-transfer-config` with `NixlConnector`, as ENG-63 says. Long prompts
    then no longer stretch the gaps between other streams' tokens; throughput does not grow by it, as vLLM's own documentation says."""
    aliases: dict[str, str] = {}
    """Model names clients may use → the model served, e.g. {"gpt-4o": "gpt-oss-120b"}."""
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")] = "USD"
    """Currency of prices and budgets, by its code of ISO 4217. It is a name alone: with another one, set every price anew."""
    ledger_retention_days: Annotated[int, Field(ge=62)] | None = None
    """Days a call's row is kept; unset, for ever: what was deleted can be neither billed nor disputed. At least two months, because this month's limits and last month's bill are counted from rows."""
    audit_retention_days: Annotated[int, Field(ge=2)] | None = None
    """Days after which `serving audit prune`, run by a job of yours, removes entries of the audit; unset, they are kept for ever: what
    must go and when is a company's own rule. A hundred million calls take about 25 GB."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 8 * 1024 * 1024
    """Bytes of one request body; 131,072 tokens of text are well under 1 MiB."""
    max_open_requests: Annotated[int, Field(ge=1)] = 1024
    """Requests held at once, waiting and streaming together. Beyond it: 503 `overloaded`."""
    max_held_bytes: Annotated[int, Field(ge=HELD_BYTES_MIN)] = 384 * 1024 * 1024
    """Bytes that all of them hold together: bodies as they arrive, and 224 KiB each for answers that clients have not read yet. Beyond it: 503 `overloaded`. The process and the kernel's buffers take up to 512 MiB besides; a pod's memory limit must have room for both."""
    max_waiting_requests: Annotated[int, Field(ge=1)] = 256
    """Requests of one model that wait while no replica is ready, or all are full. Beyond it: 503 with Retry-After, for the tenant with most of them."""
    queue: QueueSettings = QueueSettings()
    poll_interval_s: Annotated[float, Field(gt=0, le=2)] = 0.5
    """Seconds between two polls of each directory; a directory drops a gateway that has not polled for ten seconds."""
    key_cache_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds a looked-up API key is cached before the store is read again. What operators change is known within a second in any case; this bounds how long a change that was not noted, as by an older version, stays unseen."""
    oidc: tuple[Issuer, ...] = ()
    """Issuers of single sign-on whose tokens are taken beside keys; empty, keys alone."""
    console: ConsoleSettings = ConsoleSettings()
    drain_timeout_s: Annotated[float, Field(ge=0)] = 5.0
    """Seconds running answers may take after SIGTERM (graceful shutdown); in a cluster just under the pod's grace period."""
    slo: Slo = Slo()
    """The SLO of every model that is not in `model_slos`."""
    model_slos: dict[str, Slo] = {}
    """Served model → its own SLO."""
    traces_endpoint: Annotated[str, Field(pattern="^https?://")] | None = None
    """Address of an OpenTelemetry collector that takes spans over OTLP/HTTP (`http://collector:4318/v1/traces`); unset, tracing is off."""
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of requests that are traced; a client's own sampling decision overrides it."""
    log_prompts: bool = False
    """Write each call's body into its log line, as it was sent, up to 64 KiB. Everyone who can read the log can then read prompts."""
    timeouts: Timeouts = Timeouts()
    continuation: bool = True
    """Whether a stream whose engine dies goes on at another one, from the tokens that its client has; else it ends in an error event. What cannot go on ends so in any case (serving/README.md lists it)."""
    hand_on_drains: bool = False
    """Whether streams on a replica that drains go on at another one, within seconds, by the same way; else they end where they are, and its pod waits for them for up to `engine.drain_timeout_s`. Each costs the other engine the prefill of what it has read and written."""
    retries: Retries = Retries()
    outliers: Outliers = Outliers()
    counters: CounterSettings = CounterSettings()
    stored: StoredSettings = StoredSettings()
    files: FileSettings = FileSettings()

    @model_validator(mode="after")
    def _workers_have_room(self) -> Self:
        if self.max_held_bytes < self.workers * HELD_BYTES_MIN:
            raise ValueError(f"max_held_bytes must be {HELD_BYTES_MIN} for each of the workers, or more")
        return self

    @model_validator(mode="after")
    def _console_has_a_port(self) -> Self:
        if self.console.port is not None and self.console.port in (self.port, self.metrics_port):
            raise ValueError("console.port must be another than port and metrics_port")
        return self

    @model_validator(mode="after")
    def _prompts_have_takers(self) -> Self:
        if self.prefill_engines and (self.directories or not self.engines):
            raise ValueError("prefill_engines need engines by address, and no directories: a cell's have no connector")
        if both := set(self.prefill_engines) & set(self.engines):
            raise ValueError(
                f"{min(both)} is in prefill_engines and in engines: one computes prompts, the other decodes"
            )
        return self

    @model_validator(mode="after")
    def _issuers_differ(self) -> Self:
        if len({it.issuer for it in self.oidc}) < len(self.oidc):
            raise ValueError("oidc names an issuer twice")
        return self

    def slo_of(self, model: str) -> Slo:
        """The SLO of a served model."""
        return self.model_slos.get(model, self.slo)

    def promised(self, model: str) -> Slo | None:
        """The SLO that is set for a served model; None where only the default speaks."""
        return self.model_slos.get(model, self.slo if "slo" in self.model_fields_set else None)


class StoreSettings(_Group):
    url_file: Path | None = None
    """File of one line, `postgresql://…`, for gateways that share a store; unset, SQLite in `home`. A file, because it contains a password."""
    pepper_file: Path | None = None
    """File of exactly 32 random bytes under which keys are digested, the same for every gateway; unset, `pepper` in `home`, created on first use."""
    vault_file: Path | None = None
    """File of the keys that seal stored responses and conversations, one a line (`serving vault key` makes one), the same for every gateway; the first seals, all open. Unset, `vault.keys` in `home`, created on first use where the store is SQLite."""
    first_key_file: Path | None = None
    """File with a key made in advance, registered by `serving store migrate`; unset, a first start with SQLite creates `admin.key` in `home`."""
    pool_size: Annotated[int, Field(ge=1, le=100)] = 5
    """Maximum connections of one worker of a gateway to PostgreSQL: four threads look up keys, one writes the ledger. Limits that are counted there, without Redis, have four more of their own."""


class EngineSettings(_Group):
    host: str | None = "127.0.0.1"
    """Address an engine listens on and is reached at; null means its node's own address, as in a cluster."""
    port_range: Annotated[tuple[Port, Port] | None, AfterValidator(_in_order)] = None
    """First and last TCP port for engines' HTTP servers, so that a NetworkPolicy can name them; unset, any free port."""
    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """CPU engines: share of the machine's memory that must be free at start; with less, vLLM refuses to start."""
    kv_cache_gib: Annotated[int, Field(ge=1)] = 1
    """CPU engines: whole GiB of KV cache."""
    api_servers: Annotated[int, Field(ge=1)] = 1
    """HTTP front-end processes of one engine, if its profile does not set their number."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds from an engine's first process to its first token, not counting the time to read its weights: imports, graphs, kernels."""
    load_mib_per_s: Annotated[float, Field(gt=0)] = 100.0
    """Slowest rate, in MiB per second, at which weights are read: a checkpoint of 60 GiB adds ten minutes to the start's limit."""
    directory_labels: dict[str, str] = {}
    """Labels of the Ray nodes that may hold the directory; in a cluster, nodes without engines, so that it is not lost with one."""
    gpus_per_node: Annotated[int, Field(ge=1)] = 8
    """GPUs of a node; an engine with more of them spans several."""
    nodes_may_grow: bool = False
    """Whether the cluster adds GPU nodes when an engine waits for one; if not, models share the existing ones by priority."""
    traces_endpoint: Annotated[str, Field(pattern="^https?://")] | None = None
    """Where engines send the spans of requests that the gateway traces, as `gateway.traces_endpoint`; unset, tracing is off in engines."""
    program: tuple[str, ...] = ()
    """A program that replaces vLLM: it takes the same `serve` command line and speaks the same HTTP; empty for vLLM itself."""
    drain_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds running streams may take to finish when a replica stops; not below the gateway's `request_total_s`."""
    heartbeat_s: Annotated[float, Field(gt=0, le=2)] = 0.5
    """Seconds between two reports of a replica to the directory; after five without one its load is stale, after ten the replica is dropped."""


class AdapterSettings(_Group):
    """One LoRA adapter of a model. These lists are the whole registry: a client cannot have any other adapter loaded."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
    """The model name that clients send; plain characters, because vLLM makes a path of it. Changed weights need a new name."""
    path: Annotated[str, Field(pattern="^/")]
    """Absolute path of a folder in the engine's pod with `adapter_config.json` and `adapter_model.safetensors`, as PEFT writes them."""


class ModelSettings(_Group):
    """One model of a cell: which engine, and how many of it.

    Its bounds, its adapters and its default output tokens change live; the rest restarts its own engines.
    """

    name: str
    """A name of the catalogue (`serving models list`)."""
    profile: str | None = None
    """A named GPU profile of the catalogue; unset, the engine runs on vLLM's CPU build."""
    gpu: str | None = None
    """The GPU type whose profile is meant (`h100`, `h200`); unset, the first type that has this profile."""
    tensor: Annotated[int, Field(ge=1)] | None = None
    """Ranks that share each layer; unset, the profile's, or 1."""
    pipeline: Annotated[int, Field(ge=1)] | None = None
    """Ranks that each hold some of the layers; unset, the profile's, or 1."""
    data: Annotated[int, Field(ge=1)] | None = None
    """Copies of the attention layers, each with requests of its own; unset, the profile's, or 1."""
    expert: bool | None = None
    """Whether ranks hold whole experts instead of a piece of each; unset, the profile's, or false."""
    moe_backend: MoeBackend | None = None
    """The kernel of the routed experts (`serving accept` compares them on your GPUs); unset, the profile's."""
    kv_cache_dtype: KvDtype | None = None
    """`fp8` keeps the KV of layers that see everything in 8 bits, for long contexts; unset, the profile's."""
    kv_offloading_gib: HostGib | None = None
    """GiB of the host's memory for each data rank's KV that no longer fits its GPUs; unset, the profile's, or none."""
    kv_offloading_backend: KvOffloading | None = None
    """What keeps it there: vLLM itself, or LMCache, in an image and beside a server of your own; unset, the profile's."""
    speculation: Speculation | None = None
    """Tokens guessed ahead, for fewer steps; unset, the profile's, or none."""
    min_replicas: Annotated[int, Field(ge=0)] = 1
    """Engines that always run; 0 lets the model scale to zero, and its first request waits for a cold start."""
    max_replicas: Annotated[int, Field(ge=1)] = 1
    """Most engines that may run; the same as `min_replicas` for a fixed fleet."""
    priority: int = 0
    """Which model gets GPUs first when there are too few: after every model's minimum, higher values come first."""
    sleep_after_s: Annotated[float, Field(gt=0)] = 900.0
    """Seconds without a request after which the last engine stops, if `min_replicas` is 0: a cold start takes minutes."""
    knee: Knee | None = None
    """What one engine does at the highest load that keeps its SLO, as measured by you; unset, the catalogue's value, or an estimate for the SLO in `gateway`, which without one is 50 ms between tokens."""
    speed: Speed | None = None
    """What `serving accept --speed-out` measured of this model or its `base`, with the kernel that its engines run, for the estimated knee; unset, what published runs say."""
    lora: LoraLimits | None = None
    """Room for adapters in each engine, allocated at its start; unset, the profile's, or none."""
    adapters: tuple[AdapterSettings, ...] = ()
    """Adapters that clients may request as models; each is loaded on first use."""
    default_output_tokens: Annotated[int, Field(ge=0)] | None = None
    """Output tokens of a call that sets no limit of its own; unset, the catalogue's value; 0, all that the context leaves."""

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
    """File with the secret that gateways present to engines, one value per line; unset, `plane.secret` in `home`, created if absent."""
    plane_tls: PlaneTls | None = None
    """Encrypt the traffic between gateways, directories and engines; unset, it is plain HTTP."""
    log_format: Literal["json", "text"] = "json"
    """One JSON object per line for collectors, or text for people."""
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
