"""Declared: what a file says of tenants, their keys, policies and prices: read, checked, and refused with the line.

prices:
  gpt-oss-120b: {prompt: 0.15, cached_prompt: 0.03, completion: 0.60}
policies:                       # that several refer to by name
  standard: {tokens_per_day: 5000000, models: [gpt-oss-120b]}
tenants:
  acme:
    policy: standard            # or a policy as it stands above
    keys:
      ci: {key_file: ci.key, policy: {open_requests: 4}}
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import yaml
from msgspec import Meta

from serving.errors import Refusal
from serving.gateway.identity.key_files import read_key
from serving.gateway.identity.records import KEY_NAME_MAX, NAME_PATTERN
from serving.gateway.ledger.prices import Price, to_micros
from serving.gateway.nouns import Right, Role
from serving.gateway.policies import ModelName, Policy

#: Bytes of a file; a thousand tenants have about 300 KB.
FILE_BYTES_MAX = 8 * 1024 * 1024

TenantName = Annotated[str, Meta(pattern=f"^{NAME_PATTERN}$")]
KeyName = Annotated[str, Meta(min_length=1, max_length=KEY_NAME_MAX)]
PolicyName = Annotated[str, Meta(min_length=1)]
Place = tuple[str, ...]


class DeclaredKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key of a tenant. What is left out stays as it is, and is the least that a new key can be."""

    #: The key itself, made beforehand; beside this file where it is no absolute path. Without one the key must be there.
    key_file: str | None = None
    role: Role | None = None
    #: What it may do that others may not.
    rights: tuple[Right, ...] | None = None
    #: The name of one of `policies`, or a policy; {} takes every bound away.
    policy: PolicyName | Policy | None = None


class DeclaredTenant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tenant. What is left out stays as it is."""

    disabled: bool | None = None
    policy: PolicyName | Policy | None = None
    keys: dict[KeyName, DeclaredKey | None] | None = None


class DeclaredPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In the currency, for a million tokens."""

    prompt: float | str
    completion: float | str
    #: Of tokens that a prefix cache had; as others where it is left out.
    cached_prompt: float | str | None = None


class TenantsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file: what `serving apply --schema` describes."""

    tenants: dict[TenantName, DeclaredTenant | None] | None = None
    policies: dict[PolicyName, Policy] = {}
    prices: dict[ModelName, DeclaredPrice] | None = None


class WantedKey(msgspec.Struct, frozen=True):
    """A key as it is to be; None leaves what is."""

    name: str
    #: The key itself, where the file names one.
    secret: str | None
    role: Role | None
    rights: tuple[Right, ...] | None
    policy: Policy | None


class WantedTenant(msgspec.Struct, frozen=True):
    """A tenant as it is to be; None leaves what is."""

    name: str
    is_disabled: bool | None
    policy: Policy | None
    #: None: its keys are none of this file's business.
    keys: list[WantedKey] | None


class Declared(msgspec.Struct, frozen=True):
    """What is to be; None: the file has no such section."""

    tenants: list[WantedTenant] | None
    prices: dict[str, Price] | None


KindT = TypeVar("KindT")


def read(path: Path) -> Declared:
    """What the file says. Raises Refusal, with the line, for what there cannot be."""
    document = _Document(path)
    for name in document.names(()):
        if name not in TenantsFile.__struct_fields__:
            raise document.refusal((name,), f"there is no section '{name}': {', '.join(TenantsFile.__struct_fields__)}")
    policies = {name: document.read(("policies", name), Policy) for name in document.names(("policies",))}
    tenants = prices = None
    if document.has(("tenants",)):
        tenants = [_tenant(document, name, policies) for name in document.names(("tenants",))]
        _refuse_shared(document, tenants)
    if document.has(("prices",)):
        prices = {name: _price(document, name) for name in document.names(("prices",))}
    return Declared(tenants, prices)


def schema() -> bytes:
    """The JSON schema of the file, for editors."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(TenantsFile)))


def _tenant(document: _Document, name: str, policies: dict[str, Policy]) -> WantedTenant:
    place = ("tenants", name)
    document.check_name(place, TenantName)
    said = document.read(place, DeclaredTenant, but=("keys",))
    keys = None
    if document.has((*place, "keys")):
        keys = [_key(document, (*place, "keys", it), policies) for it in document.names((*place, "keys"))]
    return WantedTenant(name, said.disabled, _policy(document, place, said.policy, policies), keys)


def _key(document: _Document, place: Place, policies: dict[str, Policy]) -> WantedKey:
    document.check_name(place, KeyName)
    said = document.read(place, DeclaredKey)
    secret = None
    if said.key_file is not None:
        try:
            secret = read_key(document.path.parent / said.key_file)
        except Refusal as refusal:
            raise document.refusal((*place, "key_file"), str(refusal)) from None
    return WantedKey(place[-1], secret, said.role, said.rights, _policy(document, place, said.policy, policies))


def _refuse_shared(document: _Document, tenants: list[WantedTenant]) -> None:
    seen: set[str | None] = set()
    for tenant in tenants:
        for key in tenant.keys or ():
            if key.secret in seen:
                place = ("tenants", tenant.name, "keys", key.name, "key_file")
                raise document.refusal(place, "another key has the same file")
            seen |= {key.secret} - {None}


def _policy(document: _Document, place: Place, said: str | Policy | None, known: dict[str, Policy]) -> Policy | None:
    if not isinstance(said, str):
        return said
    if said not in known:
        raise document.refusal((*place, "policy"), f"there is no policy '{said}' in `policies`")
    return known[said]


def _price(document: _Document, model: str) -> Price:
    place = ("prices", model)
    document.check_name(place, ModelName)
    said = document.read(place, DeclaredPrice)
    cached = said.prompt if said.cached_prompt is None else said.cached_prompt
    try:
        return Price(*(to_micros(Decimal(str(it))) for it in (said.prompt, cached, said.completion)))
    except (ValueError, InvalidOperation):
        raise document.refusal(place, "a price is from 0 to 10,000, with six decimals at most") from None


class _Document:
    """A YAML file: its values, and the lines on which they stand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                content = file.read(FILE_BYTES_MAX + 1)
            if len(content) > FILE_BYTES_MAX:
                raise Refusal(f"The file {path} is larger than {FILE_BYTES_MAX} bytes.")
            loader = yaml.SafeLoader(content)
            self._node: yaml.Node | None = loader.get_single_node()
            if self._node is not None:
                self._refuse_twice(self._node)
            self._values: Any = {} if self._node is None else loader.construct_document(self._node)
        except OSError as error:
            raise Refusal(f"The file {path} cannot be read: {(error.strerror or 'unknown error').lower()}.") from None
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise Refusal(f"{path}{line}: this is no YAML: {error.problem}.") from None
        except (yaml.YAMLError, UnicodeDecodeError):
            raise Refusal(f"{path}: this is no YAML.") from None
        except RecursionError:
            raise Refusal(f"{path}: this is nested too deep.") from None

    def has(self, place: Place) -> bool:
        return self._at(place) is not None

    def names(self, place: Place) -> list[str]:
        """The names in a mapping; none where there is none."""
        found = self._at(place)
        if found is None:
            return []
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise self.refusal(place, "names and what they stand for are wanted here")
        return list(found)

    def read(self, place: Place, kind: type[KindT], but: Place = ()) -> KindT:
        """The value there; of the names `but` it is another's business."""
        value = self._at(place)
        if isinstance(value, dict):
            value = {name: it for name, it in value.items() if name not in but}
        try:
            return msgspec.convert({} if value is None else value, kind)
        except msgspec.ValidationError as error:
            said, _, inner = str(error).partition(" - at `$")
            names = tuple(inner.removesuffix("`").replace("[", ".").replace("]", "").strip(".").split("."))
            if said.startswith("Object contains unknown field"):
                names = (*names, said.split("`")[1])
            raise self.refusal((*place, *(it for it in names if it)), said) from None

    def check_name(self, place: Place, kind: Any) -> None:
        try:
            msgspec.convert(place[-1], kind)
        except msgspec.ValidationError:
            raise self.refusal(place, f"'{place[-1]}' is no name here") from None

    def refusal(self, place: Place, reason: str) -> Refusal:
        return Refusal(
            f"{self.path}, line {self._line(place)}: {'.'.join(place) or 'file'}: {reason.removesuffix('.')}."
        )

    def _at(self, place: Place) -> Any:
        value = self._values
        for name in place:
            if not isinstance(value, dict):
                raise self.refusal(place, "names and what they stand for are wanted here")
            value = value.get(name)
            if value is None:
                return None
        return value

    def _line(self, place: Place) -> int:
        """Of the name there, or of what is around it: anchors that were merged have another place."""
        node, line = self._node, 1
        for name in place:
            if not isinstance(node, yaml.MappingNode):
                break
            for key, value in node.value:
                if key.value == name:
                    node, line = value, key.start_mark.line + 1
                    break
            else:
                break
        return line

    def _refuse_twice(self, node: yaml.Node, seen: set[int] | None = None) -> None:
        """YAML wants names of a mapping to differ, and its reader takes the last one silently."""
        seen = set() if seen is None else seen
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            return
        seen.add(id(node))
        children = [it for pair in node.value for it in pair] if isinstance(node, yaml.MappingNode) else node.value
        if isinstance(node, yaml.MappingNode):
            names: set[object] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in names:
                    raise Refusal(f"{self.path}, line {key.start_mark.line + 1}: '{key.value}' is there twice.")
                names.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        for child in children:
            self._refuse_twice(child, seen)
