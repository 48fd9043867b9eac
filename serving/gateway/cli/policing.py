"""Policing: `serving policies`: what tenants and keys may do. Gateways keep to a new policy within a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from serving.errors import Refusal
from serving.gateway.cli.printing import AsJson, print_table, settings_of
from serving.gateway.policies import NO_POLICY, Limits, Policy, PriorityClass

if TYPE_CHECKING:
    from serving.gateway.identity.records import Key, Tenant
    from serving.gateway.identity.registry import Registry

policies = typer.Typer(
    help="What tenants and keys may do, how much of it, in which order. A call keeps its tenant's policy and its key's.",
    no_args_is_help=True,
)

#: Takes a bound away.
NONE = "none"

OfTenant = Annotated[str | None, typer.Argument(help="A tenant.")]
OfKey = Annotated[str | None, typer.Option("--key", help="A key instead, by its id.")]


def _number(help_: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(metavar="NUMBER|none", help=help_)
    return option


@policies.command("show")
def show_policy(context: typer.Context, tenant: OfTenant = None, key: OfKey = None, as_json: AsJson = False) -> None:
    """Show a policy; what is not in it has no bound."""
    with _registry(context) as registry:
        policy = _holder(registry, tenant, key).policy
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(policy)).decode())
    else:
        print_table(("MODEL", "FIELD", "VALUE"), list(_cells(policy)))


@policies.command("set")
def set_policy(
    context: typer.Context,
    tenant: OfTenant = None,
    key: OfKey = None,
    model: Annotated[str | None, typer.Option(help="Limits of this model's calls, besides the others.")] = None,
    requests_per_minute: Annotated[str | None, _number("Calls a minute.")] = None,
    tokens_per_minute: Annotated[str | None, _number("Prompt and output tokens a minute.")] = None,
    tokens_per_day: Annotated[str | None, _number("Prompt and output tokens of a day of UTC.")] = None,
    tokens_per_month: Annotated[str | None, _number("Prompt and output tokens of a month of UTC.")] = None,
    open_requests: Annotated[str | None, _number("Calls that are open at a time.")] = None,
    context_tokens: Annotated[
        str | None, _number("Prompt plus output tokens of one call; of several answers, the longest.")
    ] = None,
    output_tokens: Annotated[str | None, _number("Output tokens of one answer.")] = None,
    allow_model: Annotated[
        list[str] | None, typer.Option(help="A model, alias or adapter that may be asked for; repeat for more.")
    ] = None,
    all_models: Annotated[bool, typer.Option("--all-models", help="Every model may be asked for.")] = False,
    priority: Annotated[
        str | None, typer.Option(metavar=f"{'|'.join(PriorityClass)}|none", help="Who goes first on a full fleet.")
    ] = None,
    weight: Annotated[str | None, _number("Share of a full fleet, relative to others of its class.")] = None,
    soft_budget: Annotated[str | None, _number("Money of a month from which on answers and metrics say so.")] = None,
    store_responses: Annotated[
        bool | None,
        typer.Option(
            "--store-responses/--no-store-responses",
            help="Whether responses and conversations of its calls are stored.",
        ),
    ] = None,
    hard_budget: Annotated[str | None, _number("Money of a month from which on calls are refused.")] = None,
) -> None:
    """Set what is named here; the rest of the policy stays."""
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "tokens_per_day": tokens_per_day,
        "tokens_per_month": tokens_per_month,
        "open_requests": open_requests,
        "context_tokens": context_tokens,
        "output_tokens": output_tokens,
    }
    of_call = {"priority": priority, "weight": weight, "soft": soft_budget, "hard": hard_budget}
    said = {name: _value(text) for name, text in (limits | of_call).items() if text is not None}
    if store_responses is not None:
        said["store_responses"] = store_responses
    if allow_model or all_models:
        said["models"] = None if all_models else allow_model
    if not said:
        raise Refusal(
            "Say what to set, such as --tokens-per-day 1000000; `serving policies clear` takes all bounds away."
        )
    if model is not None and not said.keys() <= set(Limits.__struct_fields__):
        raise Refusal("With --model only limits can be set: requests, tokens, open requests, context and output.")
    _change(context, tenant, key, lambda policy: _with(policy, model, said))


@policies.command("clear")
def clear_policy(
    context: typer.Context,
    tenant: OfTenant = None,
    key: OfKey = None,
    model: Annotated[str | None, typer.Option(help="The limits of this model alone.")] = None,
) -> None:
    """Take every bound of a policy away."""

    def cleared(policy: Policy) -> Policy:
        if model is None:
            return NO_POLICY
        kept = {name: limits for name, limits in policy.per_model.items() if name != model}
        return msgspec.structs.replace(policy, per_model=kept)

    _change(context, tenant, key, cleared)


def _change(context: typer.Context, tenant: str | None, key: str | None, change: Callable[[Policy], Policy]) -> None:
    from serving.gateway.identity.records import KeyChange

    with _registry(context) as registry, registry.together() as (acts, _):
        holder = _holder(acts, tenant, key)
        policy = change(holder.policy)
        if key is None:
            acts.update_tenant(str(tenant), policy=policy)
        else:
            acts.update_key(key, KeyChange(policy=policy))
    typer.echo(f"The policy of {_named(tenant, key)} is set; running gateways keep to it within two seconds.")


def _with(policy: Policy, model: str | None, said: dict[str, object]) -> Policy:
    """A policy with what is said; raises Refusal for what there cannot be."""
    values = msgspec.to_builtins(policy)
    target = values if model is None else values.setdefault("per_model", {}).setdefault(model, {})
    for name, value in said.items():
        if name in ("soft", "hard"):
            values.setdefault("monthly_budget", {})[name] = value
        else:
            target[name] = value
    try:
        return msgspec.convert(values, Policy)
    except msgspec.ValidationError as error:
        raise Refusal(f"That is no policy: {error}.") from None


def _holder(registry: Registry, tenant: str | None, key: str | None) -> Tenant | Key:
    if (tenant is None) == (key is None):
        raise Refusal("Name a tenant, or a key with --key ID.")
    return registry.key(key) if key is not None else registry.tenant(str(tenant))


def _value(text: str) -> object:
    """What is written on a command line: `none`, a number, or a word."""
    if text == NONE:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _cells(policy: Policy) -> Iterator[tuple[str, str, str]]:
    for model, limits in (("-", policy), *policy.per_model.items()):
        for name, value in msgspec.to_builtins(limits).items():
            if name == "monthly_budget":
                yield from ((model, f"{name}.{of}", str(it)) for of, it in value.items())
            elif name != "per_model":
                yield (model, name, ",".join(value) if isinstance(value, (list, tuple)) else str(value))


def _named(tenant: str | None, key: str | None) -> str:
    return f"tenant {tenant}" if key is None else f"key {key}"


@contextmanager
def _registry(context: typer.Context) -> Iterator[Registry]:
    from serving.gateway.cli.opening import registered

    with registered(settings_of(context)) as registry:
        yield registry
