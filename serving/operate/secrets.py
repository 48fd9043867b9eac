"""Secrets: those that an installation needs and the operator has not given, created once by a Job; the chart renders no secret.

Spoken in plain HTTP with the pod's own service account, which may create secrets and do nothing else with them: the
gateway's image has no Kubernetes client (126 MB).
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Mapping
from pathlib import Path

from serving.errors import Refusal

#: Folder of a pod's own credentials.
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: Seconds the API server may take.
_TIMEOUT_S = 30.0


def ensure(
    host: str, port: int, namespace: str, name: str, values: Mapping[str, bytes], account: Path = SERVICE_ACCOUNT
) -> bool:
    """Create a Secret with `values`, or leave an existing one as it is; returns whether it was created.

    Raises Refusal when the API server cannot be reached or does not allow it.
    """
    try:
        context = ssl.create_default_context(cafile=account / "ca.crt")
        token = (account / "token").read_text().strip()
    except OSError:
        raise Refusal(f"There is no service account in {account}: this command runs inside a cluster.") from None
    status = _post(host, port, context, token, f"/api/v1/namespaces/{namespace}/secrets", _secret(name, values))
    if status in (201, 409):
        return status == 201
    if status == 403:
        raise Refusal(f"The service account may not create secrets in {namespace}: grant it, or make {name} yourself.")
    raise Refusal(f"Kubernetes answered status {status} when the secret {name} was to be made.")


def _secret(name: str, values: Mapping[str, bytes]) -> bytes:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "gpt-oss-serving"}},
            "data": {key: base64.b64encode(value).decode() for key, value in values.items()},
        }
    ).encode()


def _post(host: str, port: int, context: ssl.SSLContext, token: str, path: str, body: bytes) -> int:
    connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request("POST", path, body, {"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise Refusal(f"Kubernetes cannot be reached ({type(error).__name__}).") from None
    finally:
        connection.close()
