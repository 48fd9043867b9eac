"""Driver: the one part of CUDA that comes with the node, not with the image. Asked before vLLM's GPU build starts, which would
end in a traceback without it.
"""

from __future__ import annotations

import ctypes

from serving.catalog.gpus import CUDA, DRIVER_MIN
from serving.errors import Refusal

#: NVIDIA's container runtime mounts it into pods that were given GPUs.
LIBRARY = "libcuda.so.1"


def require() -> None:
    """Raise Refusal, in one sentence, unless this machine has a driver that is new enough."""
    if why := shortcoming(cuda_of_driver()):
        raise Refusal(why)


def cuda_of_driver(library: str = LIBRARY) -> int | None:
    """The newest CUDA that the driver runs, as it says it itself (13000 is 13.0); None without a driver."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value


def shortcoming(cuda: int | None) -> str | None:
    """What is wrong with that driver; None if nothing is. Within one major version of CUDA any driver will do."""
    wanted = f"vLLM's GPU build needs NVIDIA's driver {DRIVER_MIN} or newer, for CUDA {CUDA}"
    if cuda is None:
        return f"{wanted}, and there is none here: no {LIBRARY}, which comes from a node with GPUs and its container runtime."
    if cuda // 1000 < int(CUDA.partition(".")[0]):
        return f"{wanted}, and the one here is for CUDA {cuda // 1000}.{cuda % 1000 // 10}."
    return None
