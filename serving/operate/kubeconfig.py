"""Kubeconfig: choose the context, and check that its files exist, before the Kubernetes client reads them.

The client's own errors cannot be shown: some quote a user's whole entry, token and all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from serving.config import read_mapping
from serving.errors import Refusal

T = TypeVar("T")
DEFAULT = "~/.kube/config"


class _Cluster(msgspec.Struct, frozen=True, rename="kebab"):
    server: str = ""
    certificate_authority: str | None = None
    certificate_authority_data: str | None = None


class _User(msgspec.Struct, frozen=True, rename="kebab"):
    client_certificate: str | None = None
    client_certificate_data: str | None = None
    client_key: str | None = None
    client_key_data: str | None = None
    token: str | None = None
    token_file: str | None = msgspec.field(default=None, name="tokenFile")


class _Context(msgspec.Struct, frozen=True):
    cluster: str = ""
    user: str | None = None
    namespace: str | None = None


class _NamedCluster(msgspec.Struct, frozen=True):
    name: str
    cluster: _Cluster | None = None


class _NamedUser(msgspec.Struct, frozen=True):
    name: str
    user: _User | None = None


class _NamedContext(msgspec.Struct, frozen=True):
    name: str
    context: _Context | None = None


class _File(msgspec.Struct, frozen=True, rename="kebab"):
    current_context: str | None = None
    clusters: list[_NamedCluster] | None = None
    users: list[_NamedUser] | None = None
    contexts: list[_NamedContext] | None = None


class Chosen(msgspec.Struct, frozen=True):
    """A context, and the files in the client's form."""

    files: str
    context: str
    namespace: str


def choose(kubeconfig: Path | None, context: str | None, environ: Mapping[str, str]) -> Chosen:
    """The chosen context. Of several files, the first to set a value wins. Raises Refusal when none can work."""
    files = str(kubeconfig) if kubeconfig else environ.get("KUBECONFIG") or DEFAULT
    found = [os.path.expanduser(it) for it in files.split(os.pathsep) if it]
    read = {Path(it): _read(Path(it)) for it in found if os.path.exists(it)}
    if not read:
        raise Refusal(
            f"No cluster is known here, as there is no {files}: name a kubeconfig with --kubeconfig or KUBECONFIG, or run"
            " this in a pod."
        )
    contexts = _first((it.name, it.context or _Context()) for file in read.values() for it in file.contexts or ())
    name = context or next((it.current_context for it in read.values() if it.current_context), "")
    if name not in contexts:
        missing = f"no context '{name}'" if name else "no current context"
        known = ", ".join(contexts) or "none"
        raise Refusal(f"The kubeconfig {files} has {missing}: choose one with --context; it has {known}.")
    _refuse_unusable(files, read, name, contexts[name])
    return Chosen(files, name, contexts[name].namespace or "default")


def _read(path: Path) -> _File:
    try:
        return msgspec.convert(read_mapping(path, "kubeconfig"), type=_File)
    except msgspec.ValidationError as error:
        # The sentence names places and types, never the file's content.
        raise Refusal(f"The kubeconfig file {path} is not one: {error}.") from None


def _first(named: Iterable[tuple[str, T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for name, entry in named:
        found.setdefault(name, entry)
    return found


def _refuse_unusable(files: str, read: Mapping[Path, _File], name: str, context: _Context) -> None:
    clusters = _first((it.name, (path, it.cluster)) for path, file in read.items() for it in file.clusters or ())
    users = _first((it.name, (path, it.user)) for path, file in read.items() for it in file.users or ())
    path, cluster = clusters.get(context.cluster, (Path(), None))
    if cluster is None or not cluster.server:
        raise Refusal(f"The kubeconfig {files} names no server for its context '{name}'.")
    is_tls = cluster.server.startswith("https")
    if is_tls and not cluster.certificate_authority_data:
        _refuse_missing(path, "certificate-authority", cluster.certificate_authority)
    path, user = users.get(context.user or "", (Path(), None))
    if user is None:
        return
    if is_tls and not user.client_certificate_data:
        _refuse_missing(path, "client-certificate", user.client_certificate)
    if is_tls and not user.client_key_data:
        _refuse_missing(path, "client-key", user.client_key)
    if not user.token:
        _refuse_missing(path, "tokenFile", user.token_file)


def _refuse_missing(kubeconfig: Path, key: str, file: str | None) -> None:
    if file and not os.path.isfile(kubeconfig.parent / file):
        raise Refusal(f"The kubeconfig file {kubeconfig} names a {key} that is not there: {file}.")
