"""Every error that this package raises on purpose, as one tree; each is rendered exactly once, at the edge.

    ServingError
    ├── Refusal                    what an operator asked for cannot be done → one sentence; exit code 1, or 400
    │   ├── NotFound               404 where it is asked over HTTP
    │   ├── Conflict               409
    │   └── StaleRevision          412
    └── ApiError                   a request cannot be served → an OpenAI- or Anthropic-shaped body
        ├── InvalidRequest         400 invalid_request_error
        │   ├── UnknownParameter   400 invalid_request_error  unknown_parameter
        │   ├── UnsupportedParameter 400 invalid_request_error  unsupported_parameter
        │   │   └── ThreadUnsupported 400 invalid_request_error  unsupported_parameter
        │   ├── PreviousResponseNotFound 400 invalid_request_error  previous_response_not_found
        │   ├── StorageExceeded    400 invalid_request_error  storage_limit_exceeded
        │   └── ContextExceeded    400 invalid_request_error  context_length_exceeded
        ├── Unauthenticated        401 invalid_request_error  invalid_api_key
        │   ├── MalformedToken     401 invalid_request_error  malformed_token
        │   ├── KeyExpired         401 invalid_request_error  key_expired
        │   ├── KeyRevoked         401 invalid_request_error  key_revoked
        │   ├── SessionEnded       401 invalid_request_error  session_ended
        │   ├── TenantDisabled     401 invalid_request_error  tenant_disabled
        │   ├── TokenExpired       401 invalid_request_error  token_expired
        │   ├── TokenNotYetValid   401 invalid_request_error  token_not_yet_valid
        │   ├── AlgorithmNotAllowed 401 invalid_request_error  algorithm_not_allowed
        │   ├── WrongAudience      401 invalid_request_error  wrong_audience
        │   ├── WrongIssuer        401 invalid_request_error  wrong_issuer
        │   ├── UnknownSigningKey  401 invalid_request_error  unknown_signing_key
        │   ├── InvalidSignature   401 invalid_request_error  invalid_signature
        │   └── UnknownTenant      401 invalid_request_error  unknown_tenant
        ├── Forbidden              403 invalid_request_error  insufficient_permissions
        ├── RouteNotFound          404 invalid_request_error  unknown_url
        ├── ModelNotFound          404 invalid_request_error  model_not_found
        ├── ResourceNotFound       404 invalid_request_error  not_found
        ├── MethodNotAllowed       405 invalid_request_error  method_not_allowed
        ├── RequestTimedOut        408 invalid_request_error  request_timeout
        ├── ResourceConflict       409 invalid_request_error  conflict
        │   └── IdempotencyKeyReused 409 invalid_request_error  idempotency_key_reused
        ├── PreconditionFailed     412 invalid_request_error  stale_revision
        ├── PreconditionRequired   428 invalid_request_error  revision_required
        ├── RequestTooLarge        413 invalid_request_error  request_too_large
        ├── RateLimitExceeded      429 requests or tokens     rate_limit_exceeded
        │   ├── ConcurrencyExceeded 429 requests or tokens     concurrency_limit_exceeded
        │   └── TooLargeForLimit   429 requests or tokens     request_too_large_for_limit
        ├── QuotaExceeded          429 insufficient_quota     insufficient_quota
        │   └── BudgetExceeded     429 insufficient_quota     budget_exceeded
        ├── GatewayFull            503 server_error           overloaded
        ├── NoReplicaReady         503 server_error           no_replica_ready
        ├── StoreUnavailable       503 server_error           store_unavailable
        ├── IssuerUnavailable      503 server_error           issuer_unavailable
        ├── EngineFailed           502 server_error           engine_failed
        ├── EngineTimedOut         504 server_error           engine_timeout
        ├── VaultFailed            500 server_error           vault_failed
        ├── ContentLost            500 server_error           content_lost
        └── InternalError          500 server_error           internal_error

Status, type and code follow OpenAI's error objects (https://platform.openai.com/docs/guides/error-codes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class ServingError(Exception):
    """The root of every error that this package raises on purpose."""


class Refusal(ServingError):
    """A command cannot do what was asked; its text is one sentence that says what to do."""


class NotFound(Refusal):
    """It names something that is not there."""


class Conflict(Refusal):
    """Something else has that name, or its state forbids it."""


class StaleRevision(Refusal):
    """It was meant for a state that has changed meanwhile."""


class ApiError(ServingError):
    """A request cannot be served. The text goes to the client, so it never names an address, a path or a key."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    # Sent to openai-python as `x-should-retry`: a retry of the same request can succeed.
    is_retryable: ClassVar[bool] = False
    # What Anthropic's clients read to go on without what was refused: `error.details` of the body.
    details: ClassVar[Mapping[str, object] | None] = None

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(ApiError):
    status = 400
    type = "invalid_request_error"


class UnknownParameter(InvalidRequest):
    code = "unknown_parameter"

    def __init__(self, param: str) -> None:
        super().__init__(f"Unknown parameter: '{param}'.", param=param)


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class ThreadUnsupported(UnsupportedParameter):
    """Anthropic's official clients then send the whole conversation themselves."""

    details: ClassVar[Mapping[str, object] | None] = {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }


class PreviousResponseNotFound(InvalidRequest):
    """A response to go on from is not here. `gone` says how the tenant's own went; of any other the answer is the same as if it never was."""

    code = "previous_response_not_found"

    def __init__(self, response_id: str, gone: str = "") -> None:
        said = f"Previous response with id '{response_id}' not found.{' ' if gone else ''}{gone}"
        super().__init__(said, param="previous_response_id")


class StorageExceeded(InvalidRequest):
    """A tenant keeps as much as it may."""

    code = "storage_limit_exceeded"


class ContextExceeded(InvalidRequest):
    code = "context_length_exceeded"


class Unauthenticated(ApiError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class MalformedToken(Unauthenticated):
    code = "malformed_token"


class KeyExpired(Unauthenticated):
    code = "key_expired"


class KeyRevoked(Unauthenticated):
    code = "key_revoked"


class SessionEnded(Unauthenticated):
    """Of the console; its page asks its user to sign in again."""

    code = "session_ended"


class TenantDisabled(Unauthenticated):
    code = "tenant_disabled"


class TokenExpired(Unauthenticated):
    code = "token_expired"


class TokenNotYetValid(Unauthenticated):
    code = "token_not_yet_valid"


class AlgorithmNotAllowed(Unauthenticated):
    code = "algorithm_not_allowed"


class WrongAudience(Unauthenticated):
    code = "wrong_audience"


class WrongIssuer(Unauthenticated):
    code = "wrong_issuer"


class UnknownSigningKey(Unauthenticated):
    code = "unknown_signing_key"


class InvalidSignature(Unauthenticated):
    code = "invalid_signature"


class UnknownTenant(Unauthenticated):
    """A token is in order and names no tenant that there is."""

    code = "unknown_tenant"


class Forbidden(ApiError):
    status = 403
    type = "invalid_request_error"
    code = "insufficient_permissions"


class RouteNotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    code = "unknown_url"


class ModelNotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{model}' does not exist or you do not have access to it.", param="model")


class ResourceNotFound(ApiError):
    """Another tenant's things too: what is there is not for everyone to know."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"

    def __init__(
        self, message: str = "There is nothing here with that name or id.", *, param: str | None = None
    ) -> None:
        super().__init__(message, param=param)


class MethodNotAllowed(ApiError):
    """`allowed` is the method that the path takes, or several with commas between them."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class ResourceConflict(ApiError):
    """Something else has that name, or its state forbids it."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class IdempotencyKeyReused(ResourceConflict):
    """An `Idempotency-Key` was sent before, with another request."""

    code = "idempotency_key_reused"


class PreconditionFailed(ApiError):
    """`If-Match` names a revision that is not the newest."""

    status = 412
    type = "invalid_request_error"
    code = "stale_revision"


class PreconditionRequired(ApiError):
    """A change does not say in `If-Match` which revision it is meant for."""

    status = 428
    type = "invalid_request_error"
    code = "revision_required"


class RequestTimedOut(ApiError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class RequestTooLarge(ApiError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RateLimitExceeded(ApiError):
    """A limit that frees itself within minutes; `type` says of what: "requests" or "tokens", as OpenAI's API has it."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"
    is_retryable = True

    def __init__(self, message: str, *, counts_tokens: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.counts_tokens = counts_tokens


class ConcurrencyExceeded(RateLimitExceeded):
    code = "concurrency_limit_exceeded"


class TooLargeForLimit(RateLimitExceeded):
    """A call that its limit never has room for."""

    code = "request_too_large_for_limit"
    is_retryable = False


class QuotaExceeded(ApiError):
    """A day's or a month's tokens are used up; `retry_after_s` is when the next begins."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class BudgetExceeded(QuotaExceeded):
    code = "budget_exceeded"


class GatewayFull(ApiError):
    status = 503
    code = "overloaded"
    is_retryable = True


class NoReplicaReady(ApiError):
    status = 503
    code = "no_replica_ready"
    is_retryable = True


class StoreUnavailable(ApiError):
    """The database does not answer; `reason` is for the operator's log, the client gets a fixed sentence."""

    status = 503
    code = "store_unavailable"
    is_retryable = True

    def __init__(self, reason: str) -> None:
        super().__init__("The service cannot check its records right now; please try again.", retry_after_s=1.0)
        self.reason = reason


class IssuerUnavailable(ApiError):
    """Nothing is known of the key that signed a token, and its issuer cannot be asked."""

    status = 503
    code = "issuer_unavailable"
    is_retryable = True

    def __init__(self) -> None:
        super().__init__("The service cannot check this token right now; please try again.", retry_after_s=1.0)


class EngineFailed(ApiError):
    status = 502
    code = "engine_failed"
    is_retryable = True


class EngineTimedOut(ApiError):
    status = 504
    code = "engine_timeout"


class VaultFailed(ApiError):
    """Something cannot be sealed, or something sealed does not open; `reason` is for the operator, the client gets a fixed sentence."""

    code = "vault_failed"

    def __init__(self, reason: str) -> None:
        super().__init__("The service cannot keep or read stored content; its operator must see to its keys.")
        self.reason = reason


class ContentLost(ApiError):
    """Bytes of a file are gone from where files are kept, which works otherwise."""

    code = "content_lost"

    def __init__(self) -> None:
        super().__init__("The content of this file is lost; please upload it again.")


class InternalError(ApiError):
    """An unexpected exception; only its type is logged."""

    code = "internal_error"
