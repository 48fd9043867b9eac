"""Cluster: the one place that speaks to a Kubernetes API server. What it reads comes back as structs of `objects`.

The `kubernetes` package finds the cluster, signs in and sends; answers are decoded here, into the few fields that are
looked at, because its own models refuse whole lists for one field that a server of another version left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from serving.errors import Refusal
from serving.operate import kubeconfig as kubeconfigs
from serving.operate.objects import (
    ApiGroup,
    CustomResourceDefinition,
    Deployment,
    EndpointSlice,
    Event,
    Namespace,
    Node,
    Pod,
    RayService,
    Service,
    StorageClass,
    Unknown,
    Version,
)

T = TypeVar("T")
Query = Sequence[tuple[str, str]]

#: Seconds for one answer; a list of a large cluster's pods comes in pages.
REQUEST_TIMEOUT_S = 15.0
#: Seconds for an answer through the API server's proxy: behind a NetworkPolicy none ever comes.
PROXY_TIMEOUT_S = 5.0
#: Objects of one page.
PAGE = 500
_SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class _Failed(Exception):
    """A failed request: the status (0 without an answer), one clause, and the answer's body."""

    def __init__(self, status: int, reason: str, content: bytes = b"") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.content = content


class _Page(msgspec.Struct, frozen=True, rename="camel"):
    items: list[msgspec.Raw] | None = None
    metadata: dict[str, Any] | None = None


class _Status(msgspec.Struct, frozen=True):
    kind: str = ""
    message: str | None = None


class _GroupList(msgspec.Struct, frozen=True):
    groups: list[ApiGroup] = []


class _ReviewStatus(msgspec.Struct, frozen=True):
    allowed: bool = False


class _Review(msgspec.Struct, frozen=True):
    status: _ReviewStatus = _ReviewStatus()


class Access(msgspec.Struct, frozen=True):
    """One action on the API server."""

    verb: str
    resource: str
    group: str = ""
    namespace: str = ""


def connect(kubeconfig: Path | None = None, context: str | None = None, namespace: str | None = None) -> Cluster:
    """The cluster that a kubeconfig names, or the one this pod runs in. Raises Refusal."""
    try:
        from kubernetes import client, config  # imported late: only commands that use a cluster need it
        from kubernetes.client import rest
        from kubernetes.config.config_exception import ConfigException
    except ModuleNotFoundError:
        raise Refusal(
            "The Kubernetes client is not installed here; the gateway image leaves it out. Take the tools image, or"
            " `pip install 'gpt-oss-serving[cluster]'`."
        ) from None
    load: Any = config  # it has types for some of its functions alone
    transport: Any = rest
    no_answer = transport.urllib3.exceptions.HTTPError
    settings = client.Configuration()
    settings.retries = 1
    is_pod = kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ
    chosen = None if is_pod else kubeconfigs.choose(kubeconfig, context, os.environ)
    try:
        if chosen is None:
            load.load_incluster_config(client_configuration=settings)
        else:
            load.load_kube_config(chosen.files, chosen.context, client_configuration=settings)
        api = client.ApiClient(settings)
    except (ConfigException, no_answer, OSError, ValueError, TypeError) as error:
        source = "This pod's service account" if chosen is None else f"The kubeconfig {chosen.files}"
        raise Refusal(
            f"{source} cannot be used ({type(error).__name__}): try `kubectl version`, or name another with --kubeconfig."
        ) from None
    return Cluster(api, namespace or (chosen.namespace if chosen else _own_namespace()), settings.host, no_answer)


def _own_namespace() -> str:
    try:
        return _SERVICE_ACCOUNT_NAMESPACE.read_text().strip()
    except OSError:
        return "default"


class Cluster:
    """An API server, used with the given credentials, for one namespace."""

    def __init__(self, api: Any, namespace: str, host: str, transport_error: type[Exception]) -> None:
        self._api = api
        self._host = host
        #: What the client's transport raises when no answer comes; the client lets it through.
        self._transport_error = transport_error
        self.namespace = namespace

    # --- What the tools look at -----------------------------------------------------------------------------------------

    def version(self) -> Version:
        """The server's version; raises Refusal when it does not answer or rejects the credentials."""
        try:
            return msgspec.json.decode(self._ask("GET", "/version"), type=Version)
        except (_Failed, msgspec.DecodeError, ValueError) as failed:
            raise Refusal(
                f"The cluster at {self._host} does not answer as one ({failed}): try `kubectl version`."
            ) from None

    def groups(self) -> Mapping[str, Sequence[str]] | Unknown:
        """API group → its versions, without the core group."""
        answer = self._one("/apis", _GroupList, "kubectl api-versions")
        if answer is None or isinstance(answer, Unknown):
            return answer or Unknown("the server lists no API groups", "kubectl api-versions")
        return {it.name: [one.version for one in it.versions or ()] for it in answer.groups}

    def nodes(self) -> list[Node] | Unknown:
        return self._list("/api/v1/nodes", Node, "kubectl get nodes -o wide")

    def pods_everywhere(self) -> list[Pod] | Unknown:
        """Every pod that still holds something, in all namespaces."""
        query = [("fieldSelector", "status.phase!=Succeeded,status.phase!=Failed")]
        return self._list("/api/v1/pods", Pod, "kubectl get pods -A", query)

    def deployments_everywhere(self, labels: str) -> list[Deployment] | Unknown:
        command = f"kubectl get deployments -A -l {labels}"
        return self._list("/apis/apps/v1/deployments", Deployment, command, [("labelSelector", labels)])

    def storage_classes(self) -> list[StorageClass] | Unknown:
        return self._list("/apis/storage.k8s.io/v1/storageclasses", StorageClass, "kubectl get storageclass")

    def definition(self, name: str) -> CustomResourceDefinition | None | Unknown:
        """A custom resource's definition; None when the cluster has none of that name."""
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
        return self._one(path, CustomResourceDefinition, f"kubectl get crd {name}")

    def own_namespace(self) -> Namespace | None | Unknown:
        path = f"/api/v1/namespaces/{self.namespace}"
        return self._one(path, Namespace, f"kubectl get namespace {self.namespace} --show-labels")

    def dns(self) -> list[EndpointSlice] | Unknown:
        """Endpoints of the service `kube-dns`, CoreDNS's name too."""
        labels = "kubernetes.io/service-name=kube-dns"
        command = f"kubectl -n kube-system get endpointslices -l {labels}"
        path = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices"
        return self._list(path, EndpointSlice, command, [("labelSelector", labels)])

    def has_secret(self, name: str) -> bool | Unknown:
        """Does the Secret exist? Only its metadata is read: its content never leaves the server."""
        accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
        path, command = f"{self._inside()}/secrets/{quote(name)}", f"kubectl -n {self.namespace} get secret {name}"
        found = self._one(path, Namespace, command, accept=accept)
        return found if isinstance(found, Unknown) else found is not None

    def may(self, access: Access) -> bool | Unknown:
        """May these credentials do this? A SelfSubjectAccessReview: it changes and stores nothing."""
        attributes = {
            "verb": access.verb,
            "resource": access.resource,
            "group": access.group,
            "namespace": access.namespace,
        }
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        where = f" -n {access.namespace}" if access.namespace else ""
        resource = f"{access.resource}.{access.group}" if access.group else access.resource
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = self._decoded("POST", path, _Review, f"kubectl auth can-i {access.verb} {resource}{where}", body=body)
        if answer is None or isinstance(answer, Unknown):
            return answer or Unknown("the server has no such review", "kubectl auth can-i --list")
        return answer.status.allowed

    def pods(self, labels: str) -> list[Pod] | Unknown:
        return self._named("/api/v1", "pods", Pod, labels)

    def deployments(self, labels: str) -> list[Deployment] | Unknown:
        return self._named("/apis/apps/v1", "deployments", Deployment, labels)

    def services(self, labels: str) -> list[Service] | Unknown:
        return self._named("/api/v1", "services", Service, labels)

    def ray_services(self, labels: str) -> list[RayService] | Unknown:
        return self._named("/apis/ray.io/v1", "rayservices", RayService, labels)

    def warnings(self) -> list[Event] | Unknown:
        """Events of the namespace that warn of something."""
        command = f"kubectl -n {self.namespace} get events --field-selector type=Warning"
        return self._list(f"{self._inside()}/events", Event, command, [("fieldSelector", "type=Warning")])

    def through(self, service: str, path: str) -> bytes | Unknown:
        """What a service (`http:name:port`) answers to GET, asked through the API server.

        503 is an answer where it is the service's own: the API server's would be a Status.
        """
        scheme, name, port = service.split(":")
        command = f"kubectl -n {self.namespace} port-forward service/{name} 8080:{port}"
        command += f" & curl -sk {scheme}://localhost:8080{path}"
        try:
            return self._ask("GET", f"{self._inside()}/services/{service}/proxy{path}", timeout_s=PROXY_TIMEOUT_S)
        except _Failed as failed:
            is_its_own = failed.status == 503 and _status(failed.content) is None
            return failed.content if is_its_own else Unknown(failed.reason, command)

    # --- The only changes -----------------------------------------------------------------------------------------------

    def create(self, resource: str, body: Mapping[str, Any]) -> Unknown | None:
        """Make an object of the core group in the namespace; None when it is there."""
        kind = str(body["kind"]).lower()
        answer = self._decoded(
            "POST", f"{self._inside()}/{resource}", msgspec.Raw, f"kubectl auth can-i create {kind}", body=body
        )
        if answer is None:
            return Unknown(f"the namespace {self.namespace} does not exist", "kubectl get namespaces")
        return answer if isinstance(answer, Unknown) else None

    def pod(self, name: str) -> Pod | None | Unknown:
        return self._one(f"{self._inside()}/pods/{name}", Pod, f"kubectl -n {self.namespace} get pod {name}")

    def delete(self, resource: str, name: str, grace_s: int | None = None) -> Unknown | None:
        """Delete an object of the core group; None when it is gone, or going."""
        query = [] if grace_s is None else [("gracePeriodSeconds", str(grace_s))]
        command = f"kubectl -n {self.namespace} delete {resource} {name}"
        answer = self._decoded("DELETE", f"{self._inside()}/{resource}/{name}", msgspec.Raw, command, query)
        return answer if isinstance(answer, Unknown) else None

    # --- How it is asked ------------------------------------------------------------------------------------------------

    def _inside(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}"

    def _named(self, group: str, resource: str, kind: type[T], labels: str) -> list[T] | Unknown:
        command = f"kubectl -n {self.namespace} get {resource} -l {labels}"
        path = f"{group}/namespaces/{self.namespace}/{resource}"
        return self._list(path, kind, command, [("labelSelector", labels)])

    def _list(self, path: str, kind: type[T], command: str, query: Query = ()) -> list[T] | Unknown:
        """Every item of a collection, page by page."""
        found: list[T] = []
        more = ""
        while True:
            asked = [*query, ("limit", str(PAGE)), *([("continue", more)] if more else [])]
            page = self._decoded("GET", path, _Page, command, asked)
            if page is None or isinstance(page, Unknown):
                return page or Unknown("the cluster has no such resource", command)
            try:
                found += [msgspec.json.decode(item, type=kind) for item in page.items or ()]
            except msgspec.DecodeError as error:
                return Unknown(f"the server's answer is not understood: {error}", command)
            more = (page.metadata or {}).get("continue") or ""
            if not more:
                return found

    def _one(self, path: str, kind: type[T], command: str, accept: str = "application/json") -> T | None | Unknown:
        return self._decoded("GET", path, kind, command, accept=accept)

    def _decoded(
        self,
        method: str,
        path: str,
        kind: type[T],
        command: str,
        query: Query = (),
        body: Mapping[str, Any] | None = None,
        accept: str = "application/json",
    ) -> T | None | Unknown:
        """The answer; None for 404; Unknown for any other that is none."""
        try:
            return msgspec.json.decode(self._ask(method, path, query, body, accept), type=kind)
        except _Failed as failed:
            return None if failed.status == 404 else Unknown(failed.reason, command)
        except msgspec.DecodeError as error:
            return Unknown(f"the server's answer is not understood: {error}", command)

    def _ask(
        self,
        method: str,
        path: str,
        query: Query = (),
        body: Mapping[str, Any] | None = None,
        accept: str = "application/json",
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> bytes:
        """The bytes of a 2xx answer; raises _Failed."""
        from kubernetes.client.exceptions import ApiException

        headers = {"Accept": accept} | ({"Content-Type": "application/json"} if body is not None else {})
        serialized = self._api.param_serialize(
            method, path, query_params=list(query), header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            response = self._api.call_api(*serialized, _request_timeout=timeout_s)
            content: bytes = response.read()
        except (ApiException, self._transport_error, OSError) as error:
            raise _Failed(0, f"no answer: {type(error).__name__}") from None
        if not 200 <= response.status < 300:
            raise _Failed(response.status, _said(response.status, content), content)
        return content


def _status(content: bytes) -> _Status | None:
    """The API server's own account of a failure, if that is what was sent."""
    try:
        status = msgspec.json.decode(content, type=_Status)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return status if status.kind == "Status" else None


def _said(status: int, content: bytes) -> str:
    """What the server says of a refusal, in one line."""
    answer = _status(content)
    said = " ".join(answer.message.split())[:300] if answer and answer.message else f"status {status}"
    return f"not permitted: {said}" if status in (401, 403) else said
