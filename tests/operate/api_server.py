"""An API server of fixtures: real HTTP on loopback, real API types, each object checked against Kubernetes' strict schema.

It answers what was put in, to whoever was granted it; anything else is the 403 that a real server writes.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import jsonschema
import yaml
from kubernetes import client
from kubernetes_validate.utils import latest_version, schema_contents
from referencing import Registry, Resource

from serving.operate.cluster import REQUEST_TIMEOUT_S
from serving.operate.permissions import Rule, Scope

NAMESPACE = "llm"
TOKEN = "not-a-secret"
USER = f"system:serviceaccount:{NAMESPACE}:operator"
_KINDS = {
    "Node": ("", "nodes", True),
    "Pod": ("", "pods", False),
    "Event": ("", "events", False),
    "Service": ("", "services", False),
    "Secret": ("", "secrets", False),
    "Namespace": ("", "namespaces", True),
    "PersistentVolumeClaim": ("", "persistentvolumeclaims", False),
    "Deployment": ("apps", "deployments", False),
    "EndpointSlice": ("discovery.k8s.io", "endpointslices", False),
    "StorageClass": ("storage.k8s.io", "storageclasses", True),
    "CustomResourceDefinition": ("apiextensions.k8s.io", "customresourcedefinitions", True),
    "RayService": ("ray.io", "rayservices", False),
}


class Asked(NamedTuple):
    """One request, as an authorizer sees it."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str


def plain(thing: object) -> dict[str, Any]:
    """An object of the client's model classes, as JSON."""
    document: dict[str, Any] = _serializer().sanitize_for_serialization(thing)
    return document


@cache
def _serializer() -> Any:
    return client.ApiClient(client.Configuration())


@cache
def _validator(kind: str, api_version: str) -> jsonschema.Draft202012Validator:
    """Of kubernetes-validate's strict schemas; its own `validate` reads megabytes of them for every object."""
    version = latest_version()
    folder = f"kubernetes-json-schema/v{version}-local-strict"
    # rbac.authorization.k8s.io/v1 is `rbac-v1` there; Status, whose version is `v1` too, is the one of no group.
    name = "meta-v1" if kind == "Status" else re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema = schema_contents(f"{folder}/{kind.lower()}-{name}.json", version)
    definitions = Resource.from_contents(schema_contents(f"{folder}/_definitions.json", version))
    registry: Registry[Any] = definitions @ (Resource.from_contents(schema) @ Registry())
    return jsonschema.Draft202012Validator(schema, registry=registry)


def validate(document: Mapping[str, Any]) -> None:
    """Raise where an object is not exactly one of its kind: unknown fields are errors."""
    _validator(document["kind"], document["apiVersion"]).validate(document)


class ApiServer:
    """What is in the cluster, and who may see it."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.rules: tuple[Rule, ...] | None = None
        self.asked: list[Asked] = []
        self.denied: list[Asked] = []
        #: Resources that a review of one's own access refuses.
        self.refused: set[str] = set()
        self.groups: dict[str, list[str]] = {"apps": ["v1"]}
        self.minor = "34"
        #: (service as in a proxy request, path) → status, body.
        self.proxied: dict[tuple[str, str], tuple[int, bytes]] = {}
        #: Called with what was deleted and its grace.
        self.on_delete: Callable[[str, str, str | None], None] = lambda resource, name, grace: None
        #: What becomes of a pod that is created.
        self.created_pod_status: dict[str, Any] = {"phase": "Succeeded"}
        #: What went wrong in the server itself.
        self.broken: list[Exception] = []
        #: A secret's content went out.
        self.has_leaked = False
        self._lock = threading.RLock()
        self.url = ""

    # --- Filling it -----------------------------------------------------------------------------------------------------

    def add(self, *things: object) -> None:
        """Put objects in; each is held against the strict schema of its kind."""
        for thing in things:
            document = thing if isinstance(thing, dict) else plain(thing)
            group, resource, _ = _KINDS[document["kind"]]
            if document["kind"] != "RayService":  # KubeRay's kinds have a schema of their own: test_fixtures
                validate(document)
            with self._lock:
                self.objects.setdefault((group, resource), []).append(document)

    def remove(self, kind: str, name: str) -> None:
        group, resource, _ = _KINDS[kind]
        with self._lock:
            kept = [it for it in self.objects.get((group, resource), []) if it["metadata"]["name"] != name]
            self.objects[group, resource] = kept

    def grant(self, rules: Iterable[Rule]) -> None:
        """From now on exactly this may be done; before, everything."""
        self.rules = tuple(rules)

    def names(self, kind: str) -> set[str]:
        group, resource, _ = _KINDS[kind]
        return {it["metadata"]["name"] for it in self.objects.get((group, resource), [])}

    # --- Answering ------------------------------------------------------------------------------------------------------

    def answer(self, method: str, target: str, body: bytes, accept: str) -> tuple[int, bytes]:
        split = urlsplit(target)
        path, query = unquote(split.path), {key: it[-1] for key, it in parse_qs(split.query).items()}
        if path == "/version":
            return 200, _json(plain(_version(self.minor)))
        if path == "/apis":
            return 200, _json(_group_list(self.groups))
        if path.endswith("/selfsubjectaccessreviews"):
            return 201, _json(self._review(json.loads(body)))
        asked, proxy_path = _asked(method, path)
        with self._lock:
            self.asked.append(asked)
            if not self._is_allowed(asked):
                self.denied.append(asked)
                return 403, _json(_forbidden(asked))
            return self._serve(asked, proxy_path, query, body, accept)

    def _serve(
        self, asked: Asked, proxy_path: str, query: Mapping[str, str], body: bytes, accept: str
    ) -> tuple[int, bytes]:
        if asked.resource == "services/proxy":
            return self.proxied.get(
                (asked.name, proxy_path), (503, _json(_status(503, "ServiceUnavailable", "no endpoints available")))
            )
        if asked.verb == "create":
            return self._create(json.loads(body), asked.namespace)
        if asked.verb == "list":
            return 200, _json(self._list(asked, query))
        found = next((it for it in self._of(asked) if it["metadata"]["name"] == asked.name), None)
        if found is None:
            return 404, _json(_status(404, "NotFound", f'{asked.resource} "{asked.name}" not found'))
        if asked.verb == "delete":
            self.remove(found["kind"], asked.name)
            self.on_delete(asked.resource, asked.name, query.get("gracePeriodSeconds"))
        if asked.resource == "secrets":
            if "as=PartialObjectMetadata" not in accept:
                self.has_leaked = True
                return 200, _json(found)
            found = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": found["metadata"]}
        return 200, _json(found)

    def _of(self, asked: Asked) -> list[dict[str, Any]]:
        found = self.objects.get((asked.group, asked.resource), [])
        return [it for it in found if asked.namespace in ("", it["metadata"].get("namespace", asked.namespace))]

    def _list(self, asked: Asked, query: Mapping[str, str]) -> dict[str, Any]:
        found = [it for it in self._of(asked) if _matches(it, query)]
        first, count = int(query.get("continue", "0")), int(query.get("limit", "500"))
        metadata = {"resourceVersion": "1"} | ({"continue": str(first + count)} if first + count < len(found) else {})
        # A real server writes null for none.
        return {"metadata": metadata, "items": found[first : first + count] or None}

    def _create(self, document: dict[str, Any], namespace: str) -> tuple[int, bytes]:
        validate(document)
        document["metadata"]["namespace"] = namespace
        if document["kind"] == "Pod":
            document["status"] = self.created_pod_status
        self.add(document)
        return 201, _json(document)

    def _review(self, review: dict[str, Any]) -> dict[str, Any]:
        validate(review)
        allowed = review["spec"]["resourceAttributes"]["resource"] not in self.refused
        return review | {"status": {"allowed": allowed}}

    def _is_allowed(self, asked: Asked) -> bool:
        return self.rules is None or any(_covers(rule, asked) for rule in self.rules)


def _covers(rule: Rule, asked: Asked) -> bool:
    place = {Scope.CLUSTER: None, Scope.RELEASE: NAMESPACE, Scope.KUBE_SYSTEM: "kube-system"}[rule.scope]
    return (
        (rule.group, rule.resource) == (asked.group, asked.resource)
        and asked.verb in rule.verbs
        and (place is None or place == asked.namespace)
        and (not rule.names or asked.name in rule.names)
    )


def _asked(method: str, path: str) -> tuple[Asked, str]:
    """What an authorizer makes of a request's path, and what a proxied service would be asked."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource, name = rest[0], rest[1] if len(rest) > 1 else ""
    proxy_path = ""
    if len(rest) > 2:
        resource, proxy_path = f"{resource}/{rest[2]}", "/" + "/".join(rest[3:])
    verb = {"POST": "create", "DELETE": "delete"}.get(method, "get" if name else "list")
    return Asked(verb, group, resource, namespace, name), proxy_path


def _matches(document: dict[str, Any], query: Mapping[str, str]) -> bool:
    labels = document["metadata"].get("labels") or {}
    for term in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = term.partition("=")
        if labels.get(key) != value:
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, value = term.partition("=")
        is_not = key.endswith("!")
        found: Any = document
        for part in key.rstrip("!").split("."):
            found = found.get(part, {})
        if (found == value) is is_not:
            return False
    return True


def _json(document: object) -> bytes:
    return json.dumps(document).encode()


def _version(minor: str) -> object:
    return client.VersionInfo(
        major="1",
        minor=minor,
        git_version=f"v1.{minor.rstrip('+')}.2",
        git_commit="0" * 40,
        git_tree_state="clean",
        build_date="2026-01-01T00:00:00Z",
        go_version="go1.25",
        compiler="gc",
        platform="linux/amd64",
    )


def _group_list(groups: Mapping[str, list[str]]) -> dict[str, Any]:
    def one(name: str, versions: list[str]) -> client.V1APIGroup:
        named = [client.V1GroupVersionForDiscovery(group_version=f"{name}/{it}", version=it) for it in versions]
        return client.V1APIGroup(name=name, versions=named)

    return plain(client.V1APIGroupList(groups=[one(name, versions) for name, versions in groups.items()]))


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    status = plain(
        client.V1Status(
            api_version="v1", kind="Status", status="Failure", code=code, reason=reason, message=message,
            metadata=client.V1ListMeta(),
        )
    )  # fmt: skip
    validate(status)
    return status


def _forbidden(asked: Asked) -> dict[str, Any]:
    """In the words of a real authorizer."""
    what = f'{asked.resource} "{asked.name}"' if asked.name else asked.resource
    where = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
    said = f'{what} is forbidden: User "{USER}" cannot {asked.verb} resource "{asked.resource}" in API group "{asked.group}" {where}'
    return _status(403, "Forbidden", said)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one segment an answer: two would wait for each other, 40 ms a request
    api: ApiServer

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status, content = 401, _json(_status(401, "Unauthorized", "Unauthorized"))
        else:
            try:
                status, content = self.api.answer(self.command, self.path, body, self.headers.get("Accept", ""))
            except Exception as error:
                self.api.broken.append(error)
                raise
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = _respond  # noqa: N815 -- http.server's names.

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: pytest shows what matters."""


@contextmanager
def serving_api(api: ApiServer) -> Iterator[ApiServer]:
    """Serve until the end of the `with`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield api
    finally:
        server.shutdown()
        thread.join(REQUEST_TIMEOUT_S)
        server.server_close()


def kubeconfig(folder: Path, url: str, token: str = TOKEN) -> Path:
    """A kubeconfig for the server."""
    path = folder / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE}}],
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": token}}],
    }
    path.write_text(yaml.safe_dump(content))
    return path
