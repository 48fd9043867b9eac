"""GPUs: the kinds that profiles are written for."""

from __future__ import annotations

from serving.catalog.shapes import Gpu

#: CUDA of the engine image: torch 2.13 and vLLM 0.32 bring 13.0's libraries (deploy/locks/gpu.txt, a test compares).
CUDA = "13.0"
#: The oldest driver branch for any CUDA 13
#: (docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
DRIVER_MIN = 580

GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="h100",
            title="H100-80GB",
            ray_label="H100",
            memory_gib=79.22,
            bandwidth_tb_per_s=3.35,
            source="memory measured: vLLM's log on an H100-80GB, github.com/vllm-project/vllm/pull/10511; bandwidth: NVIDIA's data sheet of the H100 SXM",
        ),
        Gpu(
            name="h200",
            title="H200-141GB",
            ray_label="H200",
            memory_gib=139.8,
            bandwidth_tb_per_s=4.8,
            source="memory unverified: 141 GB by NVIDIA's data sheet, less what the driver keeps on an H100; bandwidth: NVIDIA's data sheet of the H200 SXM",
        ),
    )
}
