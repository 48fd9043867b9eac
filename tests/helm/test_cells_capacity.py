"""Two DGX H100: what the values file says of its capacity is computed, and half of it outlives the loss of a node."""

from __future__ import annotations

import copy
import json
import re
import subprocess

import pytest
import yaml

from serving import catalog
from serving.budget import budget
from tests.helm.cells import CHART, Cell, cells, helm_binary

FILE = CHART / "values-dgx-2.yaml"
#: GPUs of a DGX H100.
NODE_GPUS = 8


@pytest.fixture
def two() -> dict[str, Cell]:
    return cells({}, FILE)


def _gpus(cell: Cell) -> int:
    return sum(group["replicas"] * int(group["rayStartParams"]["num-gpus"]) for group in cell.engine_groups.values())


def test_each_node_is_a_cell_of_its_own(two: dict[str, Cell]) -> None:
    """Every pod of a cell is held on that cell's node, whose GPUs it fills: losing the node takes nothing of the other."""
    homes: list[str] = []
    for one in two.values():
        nodes = {template["spec"]["nodeSelector"]["kubernetes.io/hostname"] for template in one.templates.values()}
        assert len(nodes) == 1
        assert _gpus(one) == NODE_GPUS
        homes += nodes
    assert len(set(homes)) == len(two) == 2


def test_the_stated_capacity_is_computed(two: dict[str, Cell]) -> None:
    """The table in the file's head is serving.budget's, for both nodes and after the loss of one."""
    model = catalog.find("gpt-oss-120b")
    memory = budget(model, model.profile("balanced", "h100"))
    each = (1, memory.kv_tokens, memory.requests_8k, memory.requests_128k)
    engines = [group["replicas"] for one in two.values() for group in one.engine_groups.values()]

    stated = {
        line: tuple(int(it.replace(",", "")) for it in re.findall(r"[\d,]+", numbers))
        for line, numbers in re.findall(r"^#\s+(both nodes|after the loss of one)\s+([\d, ]+)$", FILE.read_text(), re.M)
    }

    assert stated["both nodes"] == tuple(sum(engines) * it for it in each)
    assert stated["after the loss of one"] == tuple(max(engines) * it for it in each)


def test_a_change_of_pods_needs_no_second_set_of_gpus(two: dict[str, Cell]) -> None:
    """There are no GPUs besides: every cell is held, so that KubeRay never builds a second cluster beside a full one."""
    assert {one.spec["upgradeStrategy"]["type"] for one in two.values()} == {"None"}


def test_notes_say_what_is_missing_and_what_there_is() -> None:
    """The notes state an engine's capacity as the budget has it, and that without a Redis a head's restart stops its engines."""
    said = _notes()
    model = catalog.find("gpt-oss-120b")
    requests = budget(model, model.profile("balanced", "h100")).requests_8k

    assert f"gpt-oss-120b: an engine holds {requests} requests of 8k tokens at once, 4 of them {4 * requests}" in said
    assert "a head that restarts stops every engine of its cell" in said


def test_notes_carry_numbers_of_pods_into_the_running_cluster(two: dict[str, Cell]) -> None:
    """KubeRay does not (its issue 4568): the notes' patch makes a RayCluster's group what the RayService says."""
    said = _notes("--set", "models[0].name=gpt-oss-120b,models[0].min_replicas=3,models[0].max_replicas=3")
    patch = json.loads(re.findall(r"-p '(.+)' \\$", said, re.M)[0])
    wanted = cells({"models": [{"name": "gpt-oss-120b", "min_replicas": 3, "max_replicas": 3}]}, FILE)["a"]

    running = copy.deepcopy(two["a"].cluster["workerGroupSpecs"])
    for step in patch:
        *_, index, key = step["path"].split("/")
        if step["op"] == "test":
            assert running[int(index)][key] == step["value"]
        else:
            running[int(index)][key] = step["value"]

    assert running == wanted.cluster["workerGroupSpecs"]


def test_notes_give_the_commands_of_a_pause() -> None:
    """For a paused cell, the notes have the command that waits for its pods."""
    said = _notes("--set", "cells.a.paused=true")

    assert "wait --for=delete pod -l gpt-oss-serving/cell=a,app.kubernetes.io/instance=test" in said


def _notes(*more: str) -> str:
    """What helm prints after an install, rendered without a cluster."""
    line = [helm_binary(), "install", "test", str(CHART), "--namespace", "serving", "--dry-run=client", *more]
    result = subprocess.run([*line, "--values", str(FILE)], capture_output=True, text=True, check=False)
    assert not result.returncode, result.stderr
    return result.stdout.partition("NOTES:")[2]


def test_the_file_is_one_of_plain_values() -> None:
    """The file states two cells with one fixed fleet each."""
    values = yaml.safe_load(FILE.read_text())

    assert [(it["min_replicas"], it["max_replicas"]) for it in values["models"]] == [(4, 4)]
