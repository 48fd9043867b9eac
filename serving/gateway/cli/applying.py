"""Applying: `serving apply FILE`: tenants, keys, policies and prices become what a file says, all in one transaction or none.

What would change is decided first, from the file and what is there (`plan`); the same steps are shown and done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from serving.errors import Refusal
from serving.gateway.cli.printing import settings_of
from serving.gateway.nouns import Role
from serving.gateway.policies import NO_POLICY

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from serving.gateway.cli.declared import Declared, WantedKey, WantedTenant
    from serving.gateway.identity.records import Key, Tenant
    from serving.gateway.identity.registry import Registry
    from serving.gateway.ledger.prices import Price

#: With `--exit-code`: there is something to do.
TO_DO = 2


class Step(msgspec.Struct, frozen=True):
    """One change: what is said of it, and how it is made; None: it is only said."""

    text: str
    make: Callable[[Registry, Connection], object] | None


class There(msgspec.Struct, frozen=True):
    """What is there, as far as a file speaks of it."""

    tenants: dict[str, Tenant]
    #: Tenant → its keys.
    keys: dict[str, list[Key]]
    #: Secret → the key, where it is registered.
    by_secret: dict[str, Key]
    prices: dict[str, Price]


def apply(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="A YAML file of tenants, policies and prices.")] = None,
    is_plan: Annotated[bool, typer.Option("--plan", help="Show what would change, and change nothing.")] = False,
    says_by_code: Annotated[
        bool, typer.Option("--exit-code", help="With --plan: exit code 2 when there is something to change.")
    ] = False,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Disable tenants, revoke keys and remove prices that the file does not name."),
    ] = False,
    prints_schema: Annotated[bool, typer.Option("--schema", help="Print the file's JSON schema, for editors.")] = False,
) -> None:
    """Make tenants, keys, policies and prices what a file says; what it does not name stays. Repeating it changes nothing."""
    from serving.gateway.cli import declared
    from serving.gateway.cli.opening import registered

    if prints_schema:
        typer.echo(declared.schema().decode())
        return
    if file is None:
        raise Refusal("Name the file to apply, or print its schema with --schema.")
    wanted = declared.read(file)
    with registered(settings_of(context)) as registry, registry.together() as (acts, connection):
        steps = list(plan(wanted, _there(acts, wanted, connection), time.time(), prune=prune))
        for step in steps:
            if step.make and not is_plan:
                step.make(acts, connection)
    changes = sum(step.make is not None for step in steps)
    for step in steps:
        typer.echo(step.text)
    typer.echo(f"{changes} to change." if is_plan else f"{changes} changed.")
    if is_plan and says_by_code and changes:
        raise typer.Exit(TO_DO)


def plan(wanted: Declared, there: There, now: float, *, prune: bool) -> Iterator[Step]:
    """What makes `there` what is wanted, in this order. Raises Refusal for what cannot be made so."""
    if wanted.prices is not None:
        yield from _plan_prices(wanted.prices, there.prices, prune=prune)
    for tenant in wanted.tenants or ():
        yield from _plan_tenant(tenant, there.tenants.get(tenant.name))
        for key in tenant.keys or ():
            yield from _plan_key(tenant.name, key, there, now)
    if prune and wanted.tenants is not None:
        yield from _plan_pruning(wanted.tenants, there, now)


def _plan_prices(wanted: dict[str, Price], there: dict[str, Price], *, prune: bool) -> Iterator[Step]:
    from serving.gateway.ledger import price_list

    for model, price in wanted.items():
        if model not in there:
            yield Step(f"+ price of {model}: {_price(price)}", _pricing(price_list.put_in, model, price))
        elif there[model] != price:
            text = f"~ price of {model}: {_price(there[model])} → {_price(price)}"
            yield Step(text, _pricing(price_list.put_in, model, price))
    for model in there:
        if prune and model not in wanted:
            yield Step(f"- price of {model}: removed", _pricing(price_list.remove_in, model))


def _plan_tenant(wanted: WantedTenant, there: Tenant | None) -> Iterator[Step]:
    if there is None:
        policy = wanted.policy or NO_POLICY
        said = _differences({}, {"policy": policy} | ({"disabled": True} if wanted.is_disabled else {}))

        def create(acts: Registry, _: Connection) -> None:
            acts.create_tenant(wanted.name, policy)
            if wanted.is_disabled:
                acts.update_tenant(wanted.name, is_disabled=True)

        yield Step(f"+ tenant {wanted.name}{said}", create)
        return
    before = {"disabled": there.disabled_at is not None, "policy": there.policy}
    after = before | _without_none({"disabled": wanted.is_disabled, "policy": wanted.policy})
    if before != after:

        def update(acts: Registry, _: Connection) -> None:
            acts.update_tenant(wanted.name, is_disabled=wanted.is_disabled, policy=wanted.policy)

        yield Step(f"~ tenant {wanted.name}{_differences(before, after)}", update)


def _plan_key(tenant: str, wanted: WantedKey, there: There, now: float) -> Iterator[Step]:
    from serving.gateway.identity.keys import id_of
    from serving.gateway.identity.records import KeyChange, Wanted

    key = _key_meant(tenant, wanted, there, now)
    if key is None:
        new = Wanted(wanted.name, wanted.rights or (), wanted.role or Role.MEMBER, wanted.policy or NO_POLICY)
        said = _differences({}, _without_none({"role": wanted.role, "rights": wanted.rights, "policy": wanted.policy}))

        def admit(acts: Registry, _: Connection) -> None:
            acts.admit_key(tenant, str(wanted.secret), new)

        yield Step(f"+ key {wanted.name} ({id_of(wanted.secret or '')}) of {tenant}{said}", admit)
        return
    called = f"key {wanted.name} ({key.id}) of {tenant}"
    if (state := key.state(now)) != "active":
        yield Step(f"! {called} is {state} and stays so", None)
        return
    before = {"name": key.name, "role": key.role, "rights": key.rights, "policy": key.policy}
    rights = None if wanted.rights is None else tuple(sorted(set(wanted.rights)))
    named = {"name": wanted.name, "role": wanted.role, "rights": rights, "policy": wanted.policy}
    after = before | _without_none(named)
    if before != after:
        change = KeyChange(wanted.name, rights, wanted.role, wanted.policy)

        def update(acts: Registry, _: Connection) -> None:
            acts.update_key(key.id, change)

        yield Step(f"~ {called}{_differences(before, after)}", update)


def _key_meant(tenant: str, wanted: WantedKey, there: There, now: float) -> Key | None:
    """The key that is there already: the one in its file, else the only active one of that name."""
    if wanted.secret is not None:
        key = there.by_secret.get(wanted.secret)
        if key is not None and key.tenant != tenant:
            raise Refusal(f"The key in the file of '{wanted.name}' of {tenant} is one of {key.tenant} already.")
        return key
    named = [key for key in there.keys.get(tenant, ()) if key.name == wanted.name and key.state(now) == "active"]
    if len(named) != 1:
        how_many = "no active key is" if not named else f"{len(named)} active keys are"
        raise Refusal(f"Of {tenant}, {how_many} called '{wanted.name}': name its key_file.")
    return named[0]


def _plan_pruning(wanted: list[WantedTenant], there: There, now: float) -> Iterator[Step]:
    """Platform administrators' keys stay, and their tenants: an omission in a file must lock no operator out."""
    named = {tenant.name: tenant for tenant in wanted}
    for name, tenant in there.tenants.items():
        keys = [key for key in there.keys.get(name, ()) if key.state(now) == "active"]
        if name not in named:
            is_chief = any(key.role is Role.PLATFORM_ADMIN for key in keys)
            if tenant.disabled_at is None and not is_chief:
                yield Step(f"- tenant {name}: disabled", _disabling(name))
        elif (listed := named[name].keys) is not None:
            secrets = {it.secret for it in listed}
            meant = {it.id for secret, it in there.by_secret.items() if secret in secrets}
            names = {it.name for it in listed if it.secret is None}
            for key in keys:
                if key.id not in meant and key.name not in names and key.role is not Role.PLATFORM_ADMIN:
                    yield Step(f"- key {key.name or '-'} ({key.id}) of {name}: revoked", _revoking(key.id))


def _disabling(tenant: str) -> Callable[[Registry, Connection], object]:
    return lambda acts, _: acts.update_tenant(tenant, is_disabled=True)


def _revoking(key_id: str) -> Callable[[Registry, Connection], object]:
    return lambda acts, _: acts.revoke_key(key_id)


def _pricing(do: Callable[..., object], *arguments: object) -> Callable[[Registry, Connection], object]:
    return lambda acts, connection: do(connection, *arguments, acts.witness)


def _there(registry: Registry, wanted: Declared, connection: Connection) -> There:
    from serving.gateway.ledger import price_list

    keys: dict[str, list[Key]] = {}
    for key in registry.keys(None):
        keys.setdefault(key.tenant, []).append(key)
    secrets = [key.secret for it in wanted.tenants or () for key in it.keys or () if key.secret is not None]
    by_secret = {secret: known for secret in secrets if (known := registry.known(secret)) is not None}
    tenants = {tenant.name: tenant for tenant in registry.tenants()}
    return There(tenants, keys, by_secret, dict(price_list.read_in(connection).by_model))


def _without_none(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _differences(before: dict[str, object], after: dict[str, object]) -> str:
    """`: role member → tenant_admin, policy.weight - → 2.0`, or nothing."""
    old, new = _flat(before), _flat(after)
    said = [
        f"{name} {old.get(name, '-')} → {new.get(name, '-')}"
        for name in (*new, *(it for it in old if it not in new))
        if old.get(name, "-") != new.get(name, "-")
    ]
    return f": {', '.join(said)}" if said else ""


def _flat(values: object, prefix: str = "") -> dict[str, str]:
    plain = msgspec.to_builtins(values)
    if not isinstance(plain, dict):
        words = ",".join(str(it) for it in plain) if isinstance(plain, (list, tuple)) else str(plain)
        return {prefix: words or "-"}
    flat: dict[str, str] = {}
    for name, value in plain.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else name)
    return flat


def _price(price: Price) -> str:
    from serving.gateway.ledger.prices import in_currency

    return "/".join(
        in_currency(it) for it in (price.prompt_micros, price.cached_prompt_micros, price.completion_micros)
    )
