"""The `serving` command. Each command reads its arguments and calls one plane; a Refusal becomes exit code 1."""

from __future__ import annotations

import base64
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from serving import catalog, config, secret
from serving.errors import Refusal
from serving.gateway.cli import (
    accounting,
    applying,
    auditing,
    batching,
    commands,
    policing,
    pricing,
    reconciliation,
    storing,
    users,
)
from serving.gateway.identity import keys
from serving.lifetime import end_with
from serving.operate import commands as operate

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(commands.tenants, name="tenants")
app.add_typer(commands.keys, name="keys")
app.add_typer(policing.policies, name="policies")
app.add_typer(commands.store, name="store")
app.add_typer(pricing.prices, name="prices")
app.add_typer(users.users, name="users")
app.add_typer(storing.stored, name="stored")
app.add_typer(storing.vault, name="vault")
app.add_typer(batching.batch, name="batch")
app.command("apply")(applying.apply)
app.command("usage")(accounting.usage)
app.add_typer(accounting.ledger, name="ledger")
accounting.ledger.command("check")(reconciliation.check)
app.add_typer(auditing.audit, name="audit")
app.command("backup")(commands.backup)
app.command("restore")(commands.restore)
models = typer.Typer(no_args_is_help=True, help="The models this package knows, and their checkpoints here.")
app.add_typer(models, name="models")
secrets = typer.Typer(no_args_is_help=True, help="Secrets of an installation in Kubernetes.")
app.add_typer(secrets, name="secrets")
app.command("preflight")(operate.run_preflight)
app.command("plan")(operate.run_plan)
app.command("status")(operate.run_status)
app.command("accept")(operate.run_accept)
bundle = typer.Typer(no_args_is_help=True, help="A whole installation in one folder or tar, for air-gapped clusters.")
app.add_typer(bundle, name="bundle")

Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="Port of the API.")]
Workers = Annotated[int | None, typer.Option(help="Processes that serve the API, each on a core of its own.")]
Parent = Annotated[int | None, typer.Option(hidden=True, help="End with this process, which started it.")]
Chart = Annotated[Path, typer.Option(help="Folder of the chart.")]
Values = Annotated[list[Path], typer.Option(help="A values file, as given to helm; repeat for more.")]
Sum = Annotated[str | None, typer.Option("--sha256", help="The checksum that `export` printed.")]
Registry = Annotated[
    str | None,
    typer.Option(
        help="Registry that holds the images now; else `images.registry` of the values, which may be the target."
    ),
]
OperatorImage = Annotated[
    str, typer.Option(help="KubeRay's image, if another than the chart's; `none` where the cluster has an operator.")
]


def main() -> None:
    """Run the command line; a Refusal, or a full disk, is one sentence on standard error and exit code 1."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # buffered output may be what the disk has no room for
    except Refusal as refusal:
        sys.exit(str(refusal))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE):
            raise
        # At exit Python would try to write the rest once more, and print a second error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # the reader has closed the pipe, as `head` does
            sys.exit(1)
        sys.exit("The disk is full: free some space, or set SERVING_HOME to a folder on a larger disk.")


@app.callback()
def read_settings(
    context: typer.Context,
    settings: Annotated[
        Path | None, typer.Option(help="A YAML settings file; see serving/config.py for its keys.")
    ] = None,
) -> None:
    """Serve an OpenAI-compatible API from this machine, and manage its tenants, keys and models."""
    context.obj = config.load(settings)


@app.command()
def up(
    context: typer.Context,
    model: Annotated[list[str] | None, typer.Option(help="A name from `serving models list`; repeat for more.")] = None,
    port: Port = None,
    host: Host = None,
    workers: Workers = None,
    parent: Parent = None,
) -> None:
    """Serve models on this machine: gateway, directory and an engine for each, until Ctrl-C."""
    if sys.platform != "linux":
        raise Refusal("`serving up` runs on Linux x86-64 only; the gateway alone runs elsewhere: `serving gateway`.")
    if parent is not None:
        end_with(parent, signal.SIGTERM)
    # Ray reads it when it is imported: its node then has the address 127.0.0.1 and listens there alone (CELL-20).
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        from serving import local
    except ModuleNotFoundError as missing:
        raise _no_engine_plane(missing) from None
    chosen = config.override(context.obj, gateway={"port": port, "host": host, "workers": workers})
    local.up(config.with_models(chosen, model) if model else chosen)


def _no_engine_plane(missing: ModuleNotFoundError) -> Refusal:
    return Refusal(f"The engine plane is not installed ({missing.name} is missing): run `make serve`.")


@app.command()
def gateway(
    context: typer.Context,
    engine: Annotated[list[str] | None, typer.Option(help="Base URL of a vLLM server; repeat for more.")] = None,
    prefill_engine: Annotated[
        list[str] | None,
        typer.Option(help="Base URL of a vLLM server that computes long prompts for the others; repeat for more."),
    ] = None,
    directory: Annotated[
        list[str] | None, typer.Option(help="Base URL of a cell's directory; repeat for more.")
    ] = None,
    port: Port = None,
    host: Host = None,
    workers: Workers = None,
    parent: Parent = None,
) -> None:
    """Run the gateway alone, in front of vLLM servers that are already running."""
    if parent is not None:
        end_with(parent, signal.SIGTERM)
    from serving.gateway import server

    sources = {"engines": engine or None, "prefill_engines": prefill_engine or None, "directories": directory or None}
    listening = {"port": port, "host": host, "workers": workers}
    server.run(config.override(context.obj, gateway=sources | listening))


@secrets.command("ensure")
def secrets_ensure(
    name: str,
    wanted: Annotated[list[str], typer.Argument(help="KEY=KIND; a kind is plane, pepper, vault or api-key.")],
    namespace: Annotated[str, typer.Option(help="Namespace of the Secret.")],
) -> None:
    """Create a Secret with fresh values; an existing one stays as it is. Runs in a pod, as the chart's Job."""
    from serving.operate import secrets as cluster_secrets

    values = {key: _fresh(kind) for key, _, kind in (it.partition("=") for it in wanted)}
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise Refusal("This command runs inside a cluster, and KUBERNETES_SERVICE_HOST is not set.")
    is_new = cluster_secrets.ensure(host, int(port), namespace, name, values)
    print(f"{name} was created." if is_new else f"{name} exists and stays as it is.")


def _fresh(kind: str) -> bytes:
    if kind not in _FRESH:
        raise Refusal(f"There is no secret of kind '{kind}': the kinds are {', '.join(_FRESH)}.")
    return _FRESH[kind]()


#: Kind of secret → a fresh value, as its file holds it.
_FRESH: dict[str, Callable[[], bytes]] = {
    "plane": lambda: f"{secret.fresh()}\n".encode(),
    "pepper": lambda: os.urandom(keys.PEPPER_BYTES),
    "vault": lambda: base64.b64encode(os.urandom(keys.VAULT_KEY_BYTES)) + b"\n",
    "api-key": lambda: f"{keys.mint()}\n".encode(),
}


@models.command("list")
def models_list(context: typer.Context) -> None:
    """List every model: context, default GPU profile, and whether its checkpoint is on this machine."""
    from serving.engine.checkpoints import store as checkpoints

    known = catalog.MODELS | {model.name: model for model in context.obj.own_models}
    ready = {kept.model.name for kept in checkpoints.listing(context.obj.home, known) if kept.is_ready}
    for name, model in known.items():
        state = "on this machine" if name in ready else f"{model.source}, {model.download_mib} MiB to fetch"
        print(f"{name:24} {model.context_tokens:>8} tokens  {state}; {_where(model)}")


def _find(context: typer.Context, name: str) -> catalog.Model:
    """The settings' own model of that name, or the catalogue's."""
    return catalog.find(name, context.obj.own_models)


def _checkpoint(context: typer.Context, name: str) -> catalog.Model:
    """The same, or a draft model: it is fetched like the others, and asked by no client."""
    return catalog.DRAFTS.get(name) or _find(context, name)


def _where(model: catalog.Model) -> str:
    """Where it runs by default."""
    if not model.profiles:
        return "CPU"
    first = model.profiles[0]
    return f"{first.name} on {first.gpus_per_engine} × {first.gpu}"


@models.command("show")
def models_show(context: typer.Context, name: str) -> None:
    """Print one model's catalogue entry as JSON."""
    print(_find(context, name).model_dump_json(indent=2))


@models.command("budget")
def models_budget(
    context: typer.Context,
    name: str,
    gpu: Annotated[str | None, typer.Option(help="GPU type, e.g. h100; else the first profile's.")] = None,
    profile: Annotated[str | None, typer.Option(help="Profile, e.g. balanced; else the first for that GPU.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="GPUs per node; else the setting's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Compute a model's memory and KV cache on its GPUs before anything starts; refuse what cannot work.

    Without --profile and --gpu it is the engine that the settings ask for, where they serve this model on GPUs.
    """
    from serving.budget import placed, refuse, text, with_room

    model = _find(context, name)
    entry = None if profile or gpu else next((it for it in context.obj.models if it.name == name), None)
    node_gpus = gpus_per_node or context.obj.engine.gpus_per_node
    chosen = placed(model, entry, gpus_per_node=node_gpus) if entry else None
    if entry and chosen:
        model = with_room(model, entry)
    else:
        chosen = model.profile(profile, gpu).override(gpus_per_node=node_gpus)
    refuse(model, chosen)
    print(text.as_json(model, chosen) if as_json else text.page(model, chosen))


@models.command("fetch")
def models_fetch(context: typer.Context, name: str) -> None:
    """Download a model's checkpoint to this machine and print its folder; where the settings serve it with a draft model, that too."""
    from serving.engine import specs
    from serving.engine.checkpoints import store as checkpoints

    settings, model = context.obj, _checkpoint(context, name)
    entries = [it for it in settings.models if it.name == name]
    drafts = [draft for it in entries if (draft := specs.wanted_draft(model, it, settings.engine))]
    folders = [
        checkpoints.ensure(it, settings.home, lambda text: print(text, file=sys.stderr)) for it in (model, *drafts)
    ]
    print(folders[0])


@models.command("verify")
def models_verify(context: typer.Context, name: str) -> None:
    """Verify a checkpoint's files against its manifest and the model's checksums."""
    from serving.engine.checkpoints import store as checkpoints

    checkpoints.verify(_checkpoint(context, name), context.obj.home)
    print(f"{name}: every file matches its checksum.")


@models.command("diff")
def models_diff(before: Path, after: Path) -> None:
    """Show which engines restart when settings file AFTER replaces BEFORE, and why; starts and fetches nothing."""
    try:
        from serving.engine import changes
    except ModuleNotFoundError as missing:
        raise _no_engine_plane(missing) from None
    print("\n".join(changes.described(config.load(before), config.load(after))))


@bundle.command("list")
def bundle_list(
    values: Values, chart: Chart = Path("helm"), operator: OperatorImage = "", registry: Registry = None
) -> None:
    """List every image and model that the chart needs with these values; fetches nothing."""
    from serving.operate import carrier

    found = carrier.needed(chart, values, None if operator == "none" else operator, registry)
    print("\n".join([*(f"image  {name}" for name in found.images), *(f"model  {name}" for name in found.models)]))


@bundle.command("export")
def bundle_export(
    context: typer.Context,
    target: Path,
    values: Values,
    chart: Chart = Path("helm"),
    operator: OperatorImage = "",
    registry: Registry = None,
    operator_chart: Annotated[Path | None, typer.Option(help="KubeRay's chart; else helm fetches it.")] = None,
    source: Annotated[str, typer.Option("--from", help="Where images are: registry, podman or docker.")] = "registry",
) -> None:
    """Write images, models and charts to TARGET: a folder, or a tar if its name ends in .tar. Models must be fetched here."""
    from serving.engine.checkpoints import store as checkpoints
    from serving.operate import carrier

    if source not in carrier.SOURCES:
        raise Refusal(f"--from {source} is no source of images: name one of {', '.join(carrier.SOURCES)}.")
    wanted = carrier.needed(chart, values, None if operator == "none" else operator, registry)
    models = [catalog.DRAFTS.get(name) or catalog.find(name, wanted.own_models) for name in wanted.models]
    # A mounted model is on one of the cluster's own volumes.
    carried = [model for model in models if not isinstance(model.source, catalog.MountedSource)]
    folders = [checkpoints.verify(model, context.obj.home) for model in carried]
    checksum = carrier.export(target, chart, values, wanted, folders, source=source, operator_chart=operator_chart)
    print(f"{target} is complete. After copying it, run: serving bundle verify {target.name} --sha256 {checksum}")


@bundle.command("verify")
def bundle_verify(path: Path, sha256: Sum = None) -> None:
    """Verify every file of a bundle against its checksum; refuse damaged, missing and extra files."""
    from serving.operate.bundle import opened, verify

    with opened(path) as files:
        found = verify(files, sha256)
    print(
        f"{path} is complete: {len(found.manifest.images)} images, {len(found.manifest.models)} models, {found.sha256}"
    )


@bundle.command("load")
def bundle_load(
    path: Path,
    into: Annotated[str, typer.Option(help="podman, docker, ctr, or a registry such as registry.example.com.")],
    models: Annotated[Path | None, typer.Option(help="Folder for checkpoints: `models` on the model volume.")] = None,
    sha256: Sum = None,
) -> None:
    """Verify a bundle, then load its images into a container engine or registry and its models into a folder."""
    from serving.operate.bundle import opened, verify
    from serving.operate.carrier import load

    with opened(path) as files:
        print("\n".join(load(verify(files, sha256), into, models)))
