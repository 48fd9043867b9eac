"""Shapes: what requests to `/admin/v1` and their answers look like. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Self

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    PlainSerializer,
    PlainValidator,
    Strict,
    WithJsonSchema,
    model_validator,
)

from serving.gateway import policies
from serving.gateway.identity.records import KEY_NAME_MAX, LIFETIME_MAX_S, NAME_PATTERN, Key, Tenant
from serving.gateway.nouns import Caller, Right, Role

#: Things on one page: at most, and where a client does not say.
PAGE_MAX = 500
PAGE = 100

TENANT_NAME = f"^{NAME_PATTERN}$"
KEY_ID = r"^[a-z0-9]{1,32}$"


class PolicyFault(ValueError):
    """What is wrong with a policy, and where in it."""

    def __init__(self, said: str, where: str) -> None:
        super().__init__(said)
        self.where = where
        self.is_unknown = said.startswith("Object contains unknown field")


def _read_policy(value: object) -> policies.Policy:
    if isinstance(value, policies.Policy):
        return value
    try:
        return msgspec.convert(_counted(value), policies.Policy)
    except msgspec.ValidationError as error:
        said, _, path = str(error).partition(" - at `$")
        fault = PolicyFault(said, path.removesuffix("`"))
        if fault.is_unknown:
            fault.where += f".{said.split('`')[1]}"
        raise fault from None


def _counted(value: object) -> object:
    if isinstance(value, dict):
        return {name: _counted(it) for name, it in value.items()}
    return whole(value)


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if reference := node.get("$ref"):
        return _inlined(definitions[reference.rpartition("/")[2]], definitions)
    return {name: _inlined(value, definitions) for name, value in node.items()}


def _schema_of(struct: type[msgspec.Struct]) -> dict[str, Any]:
    schema = msgspec.json.schema(struct)
    return dict(_inlined(schema["$defs"][struct.__name__], schema["$defs"]))


_WRITTEN = Annotated[Any, PlainSerializer(msgspec.to_builtins)]


def told(struct: type[msgspec.Struct]) -> GetPydanticSchema:
    """Annotates a struct that answers tell as it is, with the schema that msgspec has of it."""
    return GetPydanticSchema(lambda _, handler: handler.generate_schema(_WRITTEN), lambda *_: _schema_of(struct))


# As `policies.Policy` reads and writes it, with the schema that has: one source for all who speak of policies.
Policy = Annotated[
    policies.Policy,
    PlainValidator(_read_policy),
    PlainSerializer(msgspec.to_builtins),
    WithJsonSchema(_schema_of(policies.Policy)),
]
TenantName = Annotated[str, Field(pattern=TENANT_NAME, description="A letter or digit, then up to 62 of A-Za-z0-9._-")]
KeyName = Annotated[str, Field(pattern=r"^[ -~]*$", max_length=KEY_NAME_MAX, description="What it is for.")]
# To the microsecond, as the database has it.
Moment = Annotated[
    float, AfterValidator(lambda moment: round(moment, 6)), Field(description="Seconds since the epoch.")
]


def whole(value: object) -> object:
    """JSON has one kind of number: 5.0 is a count there."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# What JSON calls so: no text that looks like a number, and no truth value for one.
Seconds = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Change(_Asked):
    """What is left out stays."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("say what to change")
        return self


class TenantNew(_Asked):
    """A tenant to be."""

    name: TenantName
    policy: Policy = Field(default_factory=policies.Policy)


class TenantChange(_Change):
    """What of a tenant is to be otherwise; what is left out stays."""

    name: TenantName | None = None
    disabled: Flag | None = None
    policy: Policy | None = None


class KeyNew(_Asked):
    """A key to be."""

    name: KeyName = ""
    role: Role = Role.MEMBER
    rights: Annotated[tuple[Right, ...], Field(max_length=len(Right))] = ()
    policy: Policy = Field(default_factory=policies.Policy)
    lifetime_s: Annotated[Seconds, Field(gt=0, le=LIFETIME_MAX_S)] | None = None


class KeyPatch(_Change):
    """What of a key is to be otherwise; what is left out stays."""

    name: KeyName | None = None
    role: Role | None = None
    rights: Annotated[tuple[Right, ...], Field(max_length=len(Right))] | None = None
    policy: Policy | None = None


class Rotation(_Asked):
    """How a key is replaced."""

    grace_s: Annotated[Seconds, Field(ge=0, le=LIFETIME_MAX_S, description="Seconds for which the old one works.")] = (
        86_400.0
    )


class WhoAmI(BaseModel):
    """Whose key this is, and what it may do."""

    tenant: str
    tenant_id: str
    key_id: str
    role: Role
    rights: list[Right]
    tenant_policy: Policy
    key_policy: Policy

    @classmethod
    def of(cls, caller: Caller) -> WhoAmI:
        return cls(
            tenant=caller.tenant,
            tenant_id=caller.tenant_id,
            key_id=caller.key_id,
            role=caller.role,
            rights=sorted(caller.rights),
            tenant_policy=caller.tenant_policy,
            key_policy=caller.key_policy,
        )


class TenantShown(BaseModel):
    """A paying team."""

    id: str
    name: str
    created_at: Moment
    disabled_at: Moment | None
    policy: Policy
    revision: int

    @classmethod
    def of(cls, tenant: Tenant) -> TenantShown:
        return cls(**msgspec.structs.asdict(tenant))


class KeyShown(BaseModel):
    """What may be shown of a key."""

    id: str
    tenant: str
    name: str
    role: Role
    rights: list[Right]
    policy: Policy
    state: str
    created_at: Moment
    expires_at: Moment | None
    revoked_at: Moment | None
    last_used_at: Moment | None
    revision: int

    @classmethod
    def of(cls, key: Key, now: float) -> KeyShown:
        values = msgspec.structs.asdict(key) | {"rights": list(key.rights), "state": key.state(now)}
        return cls(**{name: values[name] for name in cls.model_fields})


class KeyMade(KeyShown):
    """A new key: the only answer that has its secret."""

    key: str


class TenantPage(BaseModel):
    """Tenants by name; `next` is the `after` of the next page."""

    data: list[TenantShown]
    next: str | None


class KeyPage(BaseModel):
    """Keys by id; `next` is the `after` of the next page."""

    data: list[KeyShown]
    next: str | None


class ErrorShown(BaseModel):
    """As OpenAI's errors."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Why a request was refused."""

    error: ErrorShown
