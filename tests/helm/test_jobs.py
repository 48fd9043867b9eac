"""Jobs of the chart: secrets made once, tables brought up to date, weights fetched; and `helm test`, run for real."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from serving.config import ENV_PREFIX
from serving.gateway.cli import declared
from serving.gateway.identity.keys import mint
from serving.gateway.ledger.prices import Price
from serving.gateway.policies import Policy
from tests.gateway.test_server import free_port, served
from tests.helm.cells import CHART, Object, Refused, render
from tests.helm.chart import Pod, named, of_kind, pods, shipped
from tests.scripted_engine import MODEL, Ending, Script, ScriptedEngine, chat_stream, failing

CHECK = CHART / "files" / "tests" / "check.py"
CHECKS = ["wrong-key", "chat", "stream", "metrics"]
SHARED: Object = {
    "store": {"postgresql": {"secretName": "serving-database", "key": "database-url"}},
    "networkPolicy": {"postgresql": {"peers": [{"ipBlock": {"cidr": "10.0.0.10/32"}}]}},
}


def test_secrets_are_made_once() -> None:
    """A Job whose account may create Secrets and nothing else makes the three; the names are those that pods mount."""
    objects = render({})
    job = _job(objects, "secrets")
    (role,) = of_kind(objects, "Role")
    commands = [" ".join(it["command"]) for it in job.spec["containers"]]

    assert commands == [
        "serving secrets ensure --namespace serving test-gpt-oss-serving-plane plane.secret=plane",
        "serving secrets ensure --namespace serving test-gpt-oss-serving-keys pepper=pepper admin.key=api-key",
        "serving secrets ensure --namespace serving test-gpt-oss-serving-vault vault.keys=vault",
    ]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}]
    made = {"test-gpt-oss-serving-plane", "test-gpt-oss-serving-keys", "test-gpt-oss-serving-vault"}
    assert _secrets(objects, "gateway") == made


def test_given_secrets_are_left_to_their_owner() -> None:
    """With some given the Job makes the others; with all there is no Job, no account and no right."""
    (container,) = _job(render({"secrets": {"keys": "my-keys", "vault": "my-vault"}}), "secrets").spec["containers"]
    objects = render({"secrets": {"keys": "my-keys", "plane": "my-plane", "vault": "my-vault"}})

    assert container["name"] == "plane"
    assert not [it for it in objects if it["metadata"]["name"].endswith("-secrets")]
    assert _secrets(objects, "gateway") == {"my-plane", "my-keys", "my-vault"}


def test_what_runs_beforehand_runs_in_order_and_goes() -> None:
    """Rights and openings, then secrets, then tables; before the rest at an install and at an upgrade, and gone after it."""
    hooks = {
        (it["kind"], it["metadata"]["name"].rpartition("-")[2]): it["metadata"]["annotations"]
        for it in render(SHARED)
        if it["metadata"].get("annotations", {}).get("helm.sh/hook", "test") != "test"
    }
    weights = {key: int(notes["helm.sh/hook-weight"]) for key, notes in hooks.items()}

    assert {notes["helm.sh/hook"] for notes in hooks.values()} == {"pre-install,pre-upgrade"}
    assert {notes["helm.sh/hook-delete-policy"] for notes in hooks.values()} == {"before-hook-creation,hook-succeeded"}
    jobs = {name: weight for (kind, name), weight in weights.items() if kind == "Job"}
    assert jobs.keys() == {"secrets", "migrate"} and jobs["secrets"] < jobs["migrate"]
    assert all(weight < min(jobs.values()) for (kind, _), weight in weights.items() if kind != "Job")


TENANTS: Object = {
    "keysSecret": "team-keys",
    "file": {
        "prices": {"gpt-oss-120b": {"prompt": 0.15, "completion": 0.6}},
        "policies": {"small": {"tokens_per_day": 50_000_000_000, "weight": 0.5}},
        "tenants": {"acme": {"policy": "small", "keys": {"ci": {"key_file": "ci.key"}}}},
    },
}


@pytest.mark.parametrize("prune", [False, True])
def test_tenants_are_applied_when_the_tables_are_there(prune: bool) -> None:
    """Behind the migration in the same Job, with the same files; `--prune` only where the values say so."""
    job = _job(render(SHARED | {"tenants": TENANTS | {"prune": prune}}), "migrate")
    (migrate,), (apply,) = job.spec["initContainers"], job.spec["containers"]

    assert migrate["command"] == ["serving", "store", "migrate"]
    assert apply["command"] == [
        "serving",
        "apply",
        "/etc/serving/tenants/tenants.yaml",
        *(["--prune"] if prune else []),
    ]
    assert apply["env"] == migrate["env"]
    assert [it for it in apply["volumeMounts"] if it["name"] != "tenants"] == migrate["volumeMounts"]


def test_the_file_of_tenants_is_what_the_values_say(tmp_path: Path) -> None:
    """Read by the program itself, large numbers and all, with keys beside it as the Job mounts them; it holds no key."""
    objects = render(SHARED | {"tenants": TENANTS})
    file = named(objects, "ConfigMap", "test-gpt-oss-serving-tenants")["data"]["tenants.yaml"]
    (volume,) = [it for it in _job(objects, "migrate").spec["volumes"] if it["name"] == "tenants"]
    (tmp_path / "tenants.yaml").write_text(file)
    (tmp_path / "ci.key").write_text(key := mint())
    said = declared.read(tmp_path / "tenants.yaml")

    assert said.tenants is not None and said.tenants[0].policy == Policy(tokens_per_day=50_000_000_000, weight=0.5)
    assert said.tenants[0].keys is not None and said.tenants[0].keys[0].secret == key
    assert said.prices == {"gpt-oss-120b": Price(150_000, 150_000, 600_000)}
    assert volume["projected"]["sources"] == [
        {"configMap": {"name": "test-gpt-oss-serving-tenants"}},
        {"secret": {"name": "team-keys"}},
    ]


def test_a_file_of_tenants_is_checked_by_helm() -> None:
    """Its fields are part of the values' schema: a misspelt one is refused before anything is installed."""
    with pytest.raises(Refused, match="additional properties 'polcy' not allowed"):
        render(SHARED | {"tenants": {"file": {"tenants": {"acme": {"polcy": "small"}}}}})


def test_the_migration_reads_what_gateways_read() -> None:
    """The same files under the same settings' names, from the key of the user's Secret."""
    migrate = _job(render(SHARED), "migrate")
    (container,) = migrate.spec["containers"]
    settings = {it["name"]: it["value"] for it in container["env"] if it["name"].startswith(ENV_PREFIX)}
    mounted = {it["mountPath"] for it in container["volumeMounts"] if it.get("readOnly")}

    assert container["command"] == ["serving", "store", "migrate"]
    assert settings.keys() == {f"SERVING_STORE__{key}" for key in ("URL_FILE", "PEPPER_FILE", "FIRST_KEY_FILE")} | {
        "SERVING_HOME"
    }
    assert {str(Path(path).parent) for name, path in settings.items() if name.endswith("_FILE")} == mounted
    (store,) = [it["secret"] for it in migrate.spec["volumes"] if it["name"] == "store"]
    assert store["items"] == [{"key": "database-url", "path": "url"}]


def test_weights_are_fetched_for_every_model_of_every_cell() -> None:
    """One Job a model, and one for what guesses its tokens, named after what it does: another image, model or source is another
    Job, the same is the same."""
    values: Object = {
        "models": [{"name": "gpt-oss-120b"}, {"name": "gpt-oss-20b", "speculation": {"method": "eagle3"}}],
        "cells": {
            "a": {},
            "b": {
                "models": [{"name": "smollm2-135m-instruct", "profile": "cpu"}],
                "images": {"engine": {"repository": "engine-cpu"}},
            },
        },
    }
    jobs = _weights(values)

    assert [it["metadata"]["labels"]["gpt-oss-serving/model"] for it in jobs] == [
        "gpt-oss-120b", "gpt-oss-20b", "gpt-oss-20b-eagle3", "smollm2-135m-instruct",
    ]  # fmt: skip
    names = {it["metadata"]["name"] for it in jobs}
    assert {it["metadata"]["name"] for it in _weights(values | {"gateway": {"preStopSleepS": 5}})} == names
    for changed in ({"images": {"head": {"tag": "2"}}}, {"jobs": {"nodeSelector": {"pool": "cpu"}}}):
        assert not {it["metadata"]["name"] for it in _weights(values | changed)} & names
    assert (
        not {it["metadata"]["name"] for it in _weights(values | {"weights": {"endpoint": "https://hub.internal"}})}
        & names
    )


def test_a_cell_fetches_by_its_own_image() -> None:
    """A cell that is a version ahead looks for weights where its image says they are; the same image fetches once."""
    both = _weights({"cells": {"a": {}, "b": {"images": {"head": {"tag": "next"}}}}})
    images = [it["spec"]["template"]["spec"]["containers"][0]["image"].rpartition(":")[2] for it in both]

    assert len(images) == 2 and "next" in images
    assert len(_weights({"cells": {"a": {}, "b": {}}})) == 1


def test_every_job_runs_where_jobs_may() -> None:
    """Where every node is tainted, a Job that tolerates nothing is one that an installation waits for in vain."""
    where: Object = {"nodeSelector": {"pool": "cpu"}, "tolerations": [{"operator": "Exists"}]}
    found = [it.spec for it in pods(render({"jobs": where})) if it.labels["app.kubernetes.io/component"] == "job"]

    assert len(found) >= 6
    assert all((it["nodeSelector"], it["tolerations"]) == tuple(where.values()) for it in found)


def test_only_fetch_jobs_are_online() -> None:
    """Token, proxies and certificates reach those Jobs and nobody else; every other pod is told to stay offline. Gateways alone
    have the credentials of files' store.
    """
    for pod in pods(shipped("every-key")):
        is_fetching = pod.labels.get("gpt-oss-serving/job") == "weights"
        for container in pod.containers:
            variables = {it["name"]: it.get("value") for it in container.get("env", [])}
            secrets = [it["secretRef"]["name"] for it in container.get("envFrom", [])]
            assert (secrets == ["serving-files"]) == (container["name"] == "gateway"), pod.owner
            assert bool(secrets) == (is_fetching or container["name"] == "gateway"), pod.owner
            assert variables.get("HF_ENDPOINT", "") == ("https://hub.example.com" if is_fetching else "")
            assert ("SSL_CERT_FILE" in variables) == is_fetching
            if "HF_HUB_OFFLINE" in variables:
                assert variables["HF_HUB_OFFLINE"] == ("0" if is_fetching else "1"), pod.owner


def test_weights_can_be_verified_or_left_alone() -> None:
    """`verify` compares offline what is there; `none` makes no Job."""
    (verify,) = _weights({"weights": {"job": "verify"}})
    (container,) = verify["spec"]["template"]["spec"]["containers"]

    assert container["command"][-3:] == ["models", "verify", "gpt-oss-120b"]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]
    assert _weights({"weights": {"job": "none"}}) == []


def test_weights_go_to_the_engines_volume() -> None:
    """The Job writes where engines read."""
    objects = render({})
    claims = {
        pod.labels["app.kubernetes.io/component"]: volume["persistentVolumeClaim"]["claimName"]
        for pod in pods(objects)
        for volume in pod.spec["volumes"]
        if volume.get("persistentVolumeClaim", {}).get("claimName", "").endswith("-models")
    }

    assert claims["job"] == claims["engine"]
    assert named(objects, "PersistentVolumeClaim", claims["job"])


def test_helm_test_has_a_pod_for_each_check() -> None:
    """In this order, with the first key and the first model, in the gateway's image."""
    found = [it for it in of_kind(render({}), "Pod") if it["metadata"]["annotations"]["helm.sh/hook"] == "test"]
    found.sort(key=lambda it: int(it["metadata"]["annotations"]["helm.sh/hook-weight"]))

    assert [it["spec"]["containers"][0]["command"][-1] for it in found] == CHECKS
    for it in found:
        variables = {one["name"]: one["value"] for one in it["spec"]["containers"][0]["env"]}
        assert variables == {
            "API": "http://test-gpt-oss-serving", "METRICS": "test-gpt-oss-serving-metrics:9090", "MODEL": "gpt-oss-120b",
            "KEY_FILE": "/etc/serving/keys/key", "TIMEOUT_S": "600",
        }  # fmt: skip


def test_helm_test_asks_a_model_that_is_served() -> None:
    """Where every cell has models of its own, nobody serves those of the release: the first cell's first is asked."""
    own: Object = {"a": {"models": [{"name": "gpt-oss-20b"}, {"name": "qwen3-32b"}]}}

    assert _asked({"cells": own}) == {"gpt-oss-20b"}
    assert _asked({"cells": own | {"b": {}}}) == {"gpt-oss-120b"}
    assert _asked({"cells": own, "tests": {"model": "qwen3-32b"}}) == {"qwen3-32b"}


def _asked(values: Object) -> set[str]:
    variables = [it for pod in of_kind(render(values), "Pod") for it in pod["spec"]["containers"][0]["env"]]
    return {it["value"] for it in variables if it["name"] == "MODEL"}


def test_helm_test_brings_its_script() -> None:
    """What the pods run is files/tests/check.py, letter by letter."""
    tests = named(render({}), "ConfigMap", "test-gpt-oss-serving-tests")

    assert tests["data"]["check.py"].strip() == CHECK.read_text().strip()


class Ran(NamedTuple):
    code: int
    said: str


@asynccontextmanager
async def _installation(home: Path) -> AsyncIterator[tuple[ScriptedEngine, dict[str, str]]]:
    """A real gateway before a scripted engine, and what `helm test` would be told of it."""
    port, metrics_port = free_port(), free_port()
    settings = {"SERVING_GATEWAY__METRICS_PORT": str(metrics_port)}
    async with ScriptedEngine() as engine, served(home, port, engine.url, **settings):
        yield (
            engine,
            {
                "API": f"http://127.0.0.1:{port}", "METRICS": f"127.0.0.1:{metrics_port}", "MODEL": MODEL,
                "KEY_FILE": str(home / "admin.key"), "TIMEOUT_S": "10",
            },
        )  # fmt: skip


async def _check(name: str, told: dict[str, str]) -> Ran:
    """The script as a pod runs it: without anything installed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(CHECK), name),
        env=dict(os.environ) | told,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, said.decode())


async def test_the_checks_pass_on_a_gateway_that_works(tmp_path: Path) -> None:
    """All four, in their order, against a running gateway."""
    async with _installation(tmp_path) as (_, told):
        ran = {name: await _check(name, told) for name in CHECKS}

    assert {name: it.code for name, it in ran.items()} == dict.fromkeys(CHECKS, 0), ran


async def test_the_checks_fail_with_a_sentence(tmp_path: Path) -> None:
    """A broken answer, a cut stream, an open door and missing metrics: exit code 1, and what is wrong."""
    async with _installation(tmp_path) as (engine, told):
        engine.say(failing(400, "no such thing"))
        chat = await _check("chat", told)
        engine.say(Script(chat_stream(["Hi"])[:2], ending=Ending.DIE))
        stream = await _check("stream", told)
        # vLLM itself asks nobody for a key.
        wrong_key = await _check("wrong-key", told | {"API": engine.url})
        elsewhere = await _check("wrong-key", told | {"API": f"{engine.url}/nowhere"})
        metrics = await _check("metrics", told | {"METRICS": f"127.0.0.1:{free_port()}"})
        unknown = await _check("chat", told | {"MODEL": "nobodys"})

    assert (chat.code, chat.said.splitlines()[-1][:33]) == (1, f"chat: {MODEL} did not answer"[:33])
    assert stream.code == 1 and "the stream broke" in stream.said
    assert wrong_key == (1, "wrong-key: a call without a valid key was answered\n")
    assert elsewhere == (1, "wrong-key: expected 401 and got 405\n")
    assert metrics.code == 1 and "gives no metrics" in metrics.said
    assert unknown.code == 1 and "model_not_found" in unknown.said


async def test_a_model_that_loads_is_waited_for(tmp_path: Path) -> None:
    """503 is a reason to ask again until the time is over, and no other answer is."""
    async with _installation(tmp_path) as (engine, told):
        await engine.stop()
        early = asyncio.create_task(_check("chat", told | {"TIMEOUT_S": "30"}))
        await asyncio.sleep(1)
        await engine.start()
        ran = await early

    assert ran.code == 0, ran.said


def _job(objects: list[Object], name: str) -> Pod:
    (found,) = [pod for pod in pods(objects) if pod.labels.get("gpt-oss-serving/job") == name]
    return found


def _weights(values: Object) -> list[Object]:
    jobs = [it for it in of_kind(render(values), "Job") if "gpt-oss-serving/model" in it["metadata"]["labels"]]
    return sorted(jobs, key=lambda it: str(it["metadata"]["name"]))


def _secrets(objects: list[Object], component: str) -> set[str]:
    (pod,) = [it for it in pods(objects) if it.labels["app.kubernetes.io/component"] == component]
    return {it["secret"]["secretName"] for it in pod.spec["volumes"] if "secret" in it}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script asks this machine, whatever proxy the environment names."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
