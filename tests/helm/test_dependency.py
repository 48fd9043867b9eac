"""The chart as a dependency of a parent chart, as real helm builds and renders one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import yaml

from tests.helm.cells import CHART, GIVEN, Object, render
from tests.helm.chart import EXAMPLES, helm, pods, read

Parent = Callable[..., Path]
NAME = "gpt-oss-serving"


@pytest.fixture
def parent(tmp_path: Path) -> Parent:
    """Builds a parent chart whose dependencies are this chart, each with the entries given over its own."""

    def build(*dependencies: Object) -> Path:
        own = {"name": NAME, "version": ">=0.0.0-0", "repository": f"file://{CHART}"}
        about = {
            "apiVersion": "v2",
            "name": "platform",
            "version": "1.0.0",
            "dependencies": [own | it for it in dependencies],
        }
        (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(about))
        built = helm("dependency", "build", str(tmp_path))
        assert not built.returncode, built.stderr
        return tmp_path

    return build


def test_it_renders_what_the_chart_alone_renders(parent: Parent) -> None:
    """With a condition, tags, values of all charts and values taken over by the parent, the objects are the chart's own."""
    chart = parent(
        {
            "condition": f"{NAME}.enabled",
            "tags": ["llm"],
            "import-values": [{"child": "gateway.service", "parent": "api"}],
        }
    )
    given: Object = {
        NAME: read(EXAMPLES["production"]) | {"enabled": True, "global": {"team": "own"}},
        "global": {"company": "Example"},
        "tags": {"llm": True},
    }

    assert _rendered(chart, given) == render(
        {"acknowledgePlaintextBetweenPlanes": False, "images": _images("production")}, EXAMPLES["production"]
    )


def test_it_installs_as_a_dependency(parent: Parent) -> None:
    """`helm install` takes a parent chart that enables it, and makes nothing of one that does not."""
    chart = parent({"condition": f"{NAME}.enabled"})
    on, off = (
        helm("install", "test", str(chart), "--dry-run=client", values={NAME: GIVEN | {"enabled": enabled}})
        for enabled in (True, False)
    )

    assert on.returncode == off.returncode == 0, on.stderr + off.stderr
    assert "kind: RayService" in on.stdout
    assert "kind:" not in off.stdout


def test_without_a_condition_it_can_be_off_too(parent: Parent) -> None:
    """`enabled: false` renders nothing where the parent names no condition."""
    assert _rendered(parent({}), {NAME: {"enabled": False}}) == []


@pytest.mark.parametrize("release", ["prod", "prod-east-west-gpt-oss-serving-for-all"])
def test_copies_in_one_release_share_nothing(parent: Parent, release: str) -> None:
    """Aliases tell copies apart, also where the release is called like all of them: no name twice, and each selects its own pods."""
    aliases = ("east", "west", "east-west-gpt-oss-serving")
    chart = parent({}, *({"alias": it} for it in aliases))
    objects = _rendered(chart, dict.fromkeys((NAME, *aliases), GIVEN), release)
    names = [(it["kind"], it["metadata"]["name"]) for it in objects]
    copies = {it["metadata"]["labels"]["app.kubernetes.io/name"] for it in objects}
    services = [it for it in objects if it["kind"] == "Service"]

    assert len(set(names)) == len(names) == 4 * len(render({}))
    assert copies == {NAME, *aliases}
    for service, pod in product(services, pods(objects)):
        if service["spec"]["selector"].items() <= pod.labels.items():
            assert pod.labels["app.kubernetes.io/name"] == service["metadata"]["labels"]["app.kubernetes.io/name"]


def test_an_alias_that_cannot_keep_copies_apart_is_refused(parent: Parent) -> None:
    """One that another copy's Service would be called."""
    chart = parent({"alias": "east-metrics"})
    ends = helm("template", "x", str(chart), values={"east-metrics": GIVEN}).stderr

    assert "* The alias east-metrics could give two Services of this release one name" in ends


@pytest.mark.parametrize(
    ("alias", "given", "sentence"),
    [
        ("west", {"nameOverride": "llm"}, "nameOverride is set in a dependency with the alias west"),
        (None, {"nameOverride": "west"}, "nameOverride is set in a dependency, where another copy could"),
        ("west", {"fullnameOverride": "llm"}, "fullnameOverride is set in a dependency with the alias west"),
        (None, {"fullnameOverride": "prod-west"}, "fullnameOverride is prod-west in a dependency"),
    ],
)
def test_a_name_that_two_copies_could_have_is_refused(
    parent: Parent, alias: str | None, given: Object, sentence: str
) -> None:
    """No copy sees another's values: what only the values keep apart is refused, and the sentence says what to do."""
    chart = parent({"alias": alias} if alias else {})
    refused = helm("template", "prod", str(chart), values={alias or NAME: GIVEN | given})

    assert refused.returncode and f"* {sentence}" in refused.stderr


def test_one_copy_may_still_choose_its_name(parent: Parent) -> None:
    """A dependency without an alias that is called like no copy with one could be."""
    objects = _rendered(parent({}), {NAME: GIVEN | {"fullnameOverride": "llm"}})
    assert {it["metadata"]["name"].split("-")[0] for it in objects} == {"llm"}


def _rendered(chart: Path, values: Object, release: str = "test") -> list[Object]:
    result = helm("template", release, str(chart), "--namespace", "serving", values=values)
    assert not result.returncode, result.stderr
    return [it for it in yaml.load_all(result.stdout, Loader=yaml.CSafeLoader) if it]


def _images(name: str) -> Object:
    return read(EXAMPLES[name])["images"]  # type: ignore[no-any-return]
