"""Inside the build of engine-gpu: CUDA_HOME out of NVIDIA's wheels, and the kernels that FlashInfer would else compile at an
engine's first start. Run by the image's own Python, without a GPU and without a network.

nvcc compiles for Hopper here (sm_90a: H100, H200). FlashInfer looks for what is compiled beside its sources before it
compiles, so a start finds them, whichever cache folder it has (flashinfer/jit/env.py, FLASHINFER_AOT_DIR).
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

CUDA = Path("/usr/local/cuda")
#: Where wheels have what a toolkit has in CUDA_HOME.
WHEELS = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13"
HOPPER = "9.0a"
#: A file system in memory; always the same folder, because its name is in what is compiled.
WORKSPACE = "/tmp/flashinfer"  # noqa: S108 In a build nobody else is there.


def main() -> None:
    """Make CUDA_HOME, compile, and keep the results alone."""
    make_cuda_home()
    # Read when FlashInfer is imported; ninja is beside Python.
    os.environ["PATH"] = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
    os.environ |= {"CUDA_HOME": str(CUDA), "FLASHINFER_CUDA_ARCH_LIST": HOPPER, "FLASHINFER_WORKSPACE_BASE": WORKSPACE}
    compile_kernels()


def make_cuda_home() -> None:
    """What compilers and linkers expect of a CUDA toolkit, as links into the wheels, which have other names for some of it."""
    (CUDA / "lib64" / "stubs").mkdir(parents=True)
    for name in ("bin", "include", "nvvm"):
        (CUDA / name).symlink_to(WHEELS / name)
    (CUDA / "lib64" / "libcudart.so").symlink_to(WHEELS / "lib" / "libcudart.so.13")
    # The driver's library comes with the node. To link against it, its name is enough.
    driver = ["gcc", "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", os.devnull]
    subprocess.run([*driver, "-o", str(CUDA / "lib64" / "stubs" / "libcuda.so")], check=True)


def compile_kernels() -> None:
    """What vLLM takes from FlashInfer for gpt-oss on Hopper: sampling, and for TP above 1 all-reduce and RMSNorm in one."""
    from flashinfer.jit import env
    from flashinfer.jit.comm import gen_trtllm_mnnvl_comm_module
    from flashinfer.jit.sampling import gen_sampling_module

    for module in (gen_sampling_module(), gen_trtllm_mnnvl_comm_module()):
        module.build()
        kept = env.FLASHINFER_AOT_DIR / module.name / f"{module.name}.so"
        kept.parent.mkdir(parents=True)
        # Without its symbols: among them is a name of nvcc's temporary files, by which two builds would differ.
        subprocess.run(["strip", "--strip-all", "-o", str(kept), str(module.jit_library_path)], check=True)
        print(f"  {module.name}: {kept.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
