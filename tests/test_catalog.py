"""The catalogue: entries are closed shapes, found by name, and complete enough to be served and budgeted."""

from __future__ import annotations

import ast
import json
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from serving import catalog
from serving.catalog import HubSource, Model, MountedSource, ObjectStoreSource, Profile, shapes
from serving.errors import Refusal

MODELS = [pytest.param(model, id=name) for name, model in catalog.MODELS.items()]
PROFILES = [(model, profile) for model in catalog.MODELS.values() for profile in model.profiles]

#: The example of serving/catalog/__init__.py.
OWN = {
    "name": "my-model",
    "summary": "What it is and is not.",
    "source": {"kind": "mounted", "path": "/models/my-model"},
    "context_tokens": 32768,
    "download_mib": 0,
    "disk_mib": 16000,
    "license": "proprietary",
    "profiles": [{"name": "balanced", "gpu": "h100", "reason": "It fits one GPU.", "source": "our own measurement"}],
}


def a_profile(**knobs: object) -> Profile:
    return Profile.model_validate({"name": "test", "gpu": "h100", "reason": "Test.", "source": "this test"} | knobs)


def test_an_unknown_name_lists_the_known_ones() -> None:
    """A misspelt model costs the sentence that lists the right ones."""
    with pytest.raises(Refusal, match=r"no model called 'gpt-99'; known are .*gpt-oss-120b.*smollm2"):
        catalog.find("gpt-99")


@pytest.mark.parametrize("model", MODELS)
def test_an_entry_survives_json(model: Model) -> None:
    """What `models show` prints is the entry, key for key: nothing is lost and nothing else is accepted."""
    assert Model.model_validate(json.loads(model.model_dump_json())) == model
    with pytest.raises(ValidationError, match="extra"):
        Model.model_validate(model.model_dump() | {"contxt_tokens": 1})


@pytest.mark.parametrize("model", MODELS)
def test_an_entry_states_its_facts_and_where_they_come_from(model: Model) -> None:
    """No entry of ours lacks an architecture or its source; a generator for GPUs also caps its output."""
    assert model.architecture is not None and model.architecture.source
    assert model.summary.endswith(".")
    assert not model.profiles or model.default_output_tokens


def test_every_field_is_documented_where_it_is_defined() -> None:
    """Under each field of the catalogue's shapes stands its meaning."""
    tree = ast.parse(Path(shapes.__file__).read_text())
    bare = [
        f"{shape.name}.{ast.unparse(field.target)}"
        for shape in tree.body
        if isinstance(shape, ast.ClassDef)
        for field, after in pairwise([*shape.body, None])
        if isinstance(field, ast.AnnAssign) and not isinstance(after, ast.Expr)
    ]

    assert bare == []


@pytest.mark.parametrize("model", MODELS)
def test_experts_add_up_to_the_published_active_parameters(model: Model) -> None:
    """Layers, experts and widths are right when total less idle experts is what the makers call active.

    OpenAI leaves the embedding out of its count; allowed is one embedding and 3 %.
    """
    architecture = model.architecture
    assert architecture is not None
    idle = 0
    if experts := architecture.experts:
        idle = experts.layers * (experts.count - experts.active) * 3 * architecture.hidden * experts.intermediate
    excess = architecture.parameters - idle - architecture.active_parameters

    assert abs(excess) <= architecture.hidden * architecture.vocabulary + 0.03 * architecture.active_parameters


@pytest.mark.parametrize(("model", "profile"), PROFILES, ids=lambda value: value.name)
def test_a_profile_gives_reason_source_and_cost(model: Model, profile: Profile) -> None:
    """A profile says why, from where, what it runs on, by what it grows and what one failure takes."""
    assert profile.reason.endswith(".") and profile.source
    assert profile.gpu in catalog.GPUS
    assert profile.scaling_step_gpus == profile.gpus_per_engine == profile.tensor * profile.pipeline * profile.data
    assert f"{profile.gpus_per_engine} GPU" in profile.blast_radius
    assert model.profile(profile.name, profile.gpu) is profile


def test_a_name_means_one_profile_on_each_gpu() -> None:
    """The same name twice on one GPU would hide the second."""
    keys = [(model.name, profile.name, profile.gpu) for model, profile in PROFILES]

    assert len(keys) == len(set(keys))


def test_gpt_oss_has_the_named_profiles() -> None:
    """The seven on H100 that the plan names, the default first; an H200 has its own."""
    profiles = catalog.find("gpt-oss-120b").profiles
    spread = {p.name: (p.tensor, p.data, p.expert) for p in profiles if p.gpu == "h100"}

    assert (
        spread
        | {
            "balanced": (2, 1, False),
            "latency": (4, 1, False),
            "latency-tp8": (8, 1, False),
            "throughput": (2, 1, False),
            "dp8-ep": (1, 8, True),
            "tp8-ep": (8, 1, True),
            "tight": (1, 1, False),
        }
        == spread
    )
    assert profiles[0].name == "balanced" and {"balanced", "throughput"} <= {
        p.name for p in profiles if p.gpu == "h200"
    }


def test_no_profile_is_a_benchmark_recipe() -> None:
    """Published recipes turn prefix caching off and send twenty tokens a chunk; ours serve people."""
    assert all(profile.prefix_caching and profile.stream_interval == 1 for _, profile in PROFILES)


def test_pods_nodes_and_steps() -> None:
    """An engine larger than a node takes several whole pods, and the fleet grows by all of them."""
    profile = a_profile(tensor=8, pipeline=2)

    assert (profile.pod_gpus, profile.nodes, profile.scaling_step_gpus) == (8, 2, 16)
    assert (a_profile(tensor=2).pod_gpus, a_profile(tensor=2).nodes) == (2, 1)


def test_an_unknown_profile_lists_those_there_are() -> None:
    """Asked for what is not there, the model says what is."""
    with pytest.raises(Refusal, match=r"no GPU profile 'fast' on h100; it has balanced on h100"):
        catalog.find("gpt-oss-20b").profile("fast", "h100")
    with pytest.raises(Refusal, match="it runs on the CPU"):
        catalog.find("smollm2-135m-instruct").profile()


def test_a_users_own_model_is_one_more_entry() -> None:
    """The documented example is valid, closed against misspelling, and its defaults are safe."""
    model = Model.model_validate(OWN)

    assert model.source == MountedSource(path="/models/my-model")
    assert model.profile().prefix_caching
    with pytest.raises(ValidationError, match="source"):
        Model.model_validate(OWN | {"source": {"kind": "ftp", "path": "/x"}})


def test_an_own_model_is_found_before_the_catalogues() -> None:
    """A user's entry is found by name, and may stand in for one of ours."""
    own = [Model.model_validate(OWN), Model.model_validate(OWN | {"name": "gpt-oss-120b"})]

    assert catalog.find("my-model", own) is own[0]
    assert catalog.find("gpt-oss-120b", own) is own[1]
    assert catalog.find("gpt-oss-20b", own) is catalog.MODELS["gpt-oss-20b"]


def test_knobs_are_independent() -> None:
    """Each knob changes alone, an unset one keeps the profile's, and a wrong one is refused."""
    profile = catalog.find("gpt-oss-120b").profile("dp8-ep", "h100")

    assert profile.override() == profile
    assert profile.override(tensor=2).gpus_per_engine == 16
    assert (profile.override(expert=False).expert, profile.override(expert=False).data) == (False, 8)
    with pytest.raises(ValidationError):
        profile.override(tensor=0)


def test_a_fine_tune_is_its_base_with_other_weights() -> None:
    """Shape, parsers and profiles are the base's; name, source and checksums are its own."""
    base = catalog.find("gpt-oss-20b")
    tuned = catalog.fine_tune(base, "support-20b", ObjectStoreSource(url="s3://models/support-20b"))

    assert (tuned.name, tuned.base) == ("support-20b", "gpt-oss-20b")
    assert tuned.architecture == base.architecture and tuned.profiles == base.profiles
    assert tuned.tool_parser == base.tool_parser and tuned.checksums == {}


def test_gpt_oss_is_pinned_to_a_commit() -> None:
    """A branch may change under a running fleet; a commit may not."""
    sources = [catalog.find(name).source for name in ("gpt-oss-120b", "gpt-oss-20b")]

    assert all(isinstance(source, HubSource) and len(source.revision) == 40 for source in sources)


@pytest.mark.parametrize("name", ["../other", "org/model", "", "x" * 64, "ends-", "two words"])
def test_a_models_name_is_a_folder_and_a_label(name: str) -> None:
    """Both are called so: what only clients should see is an alias."""
    with pytest.raises(ValidationError, match="name"):
        Model.model_validate(OWN | {"name": name})
