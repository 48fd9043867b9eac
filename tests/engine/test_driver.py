"""The node's driver: what is refused in its absence, and what is not."""

from __future__ import annotations

import pytest

from serving.catalog.gpus import CUDA, DRIVER_MIN
from serving.engine import driver
from serving.errors import Refusal


def test_no_driver_is_refused_in_one_sentence_that_names_it() -> None:
    """Nothing of CUDA is wanted to say so: the library is not there, and the sentence says who brings it."""
    why = driver.shortcoming(driver.cuda_of_driver("libcuda-that-no-machine-has.so.1"))

    assert why is not None
    assert why.endswith(".") and ". " not in why
    for word in (f"NVIDIA's driver {DRIVER_MIN}", f"CUDA {CUDA}", "libcuda.so.1"):
        assert word in why


@pytest.mark.parametrize(("cuda", "is_right"), [(12_090, False), (13_000, True), (13_020, True), (14_000, True)])
def test_any_driver_of_the_same_major_version_will_do(cuda: int, is_right: bool) -> None:
    """A driver for CUDA 12.9 is refused with its version; newer ones than CUDA's own are not."""
    why = driver.shortcoming(cuda)

    assert (why is None) is is_right
    assert is_right or "CUDA 12.9" in str(why)


def test_a_library_of_another_kind_is_no_driver() -> None:
    """A file of that name that is not NVIDIA's says no version."""
    assert driver.cuda_of_driver("libc.so.6") is None


def test_refusal_is_what_a_replica_and_serving_up_print() -> None:
    """Where this machine has no driver, it is refused; where it has one, not."""
    if driver.shortcoming(driver.cuda_of_driver()) is None:
        driver.require()
    else:
        with pytest.raises(Refusal, match="NVIDIA's driver"):
            driver.require()
