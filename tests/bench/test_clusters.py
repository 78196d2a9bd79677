"""What the driver is asked about clusters; the numbers that it answers come from a GPU alone."""

import ctypes

import pytest

from gpunn.bench import clusters
from gpunn.device.device import Device
from gpunn.device.launch import device_properties
from gpunn.errors import DeviceError


class StandIn:
    """libcuda, which notes the question and answers in its way."""

    def __init__(self, status: int = 0):
        self.status = status

    def cuOccupancyMaxActiveClusters(self, found, function, config):  # noqa: N802
        asked = ctypes.cast(config, ctypes.POINTER(clusters._Config)).contents
        attribute = asked.attributes[0]
        self.asked = {
            "function": function.value, "grid": list(asked.grid), "block": list(asked.block),
            "shared": asked.shared, "stream": asked.stream, "count": asked.count,
            "id": attribute.id, "cluster": list(attribute.value)[:3],
        }  # fmt: skip
        ctypes.cast(found, ctypes.POINTER(ctypes.c_int)).contents.value = 31
        return self.status


def test_the_driver_is_asked_as_its_header_says():
    driver = StandIn()
    assert clusters.active(driver, 0x1234, 4, 528, 174336) == 31
    assert driver.asked == {
        "function": 0x1234, "grid": [528, 1, 1], "block": [256, 1, 1], "shared": 174336,
        "stream": None, "count": 1, "id": 4, "cluster": [4, 1, 1],
    }  # fmt: skip
    # sizeof and offsetof in cuda.h of CUDA 12 and 13
    assert (ctypes.sizeof(clusters._Config), ctypes.sizeof(clusters._Attribute)) == (56, 72)
    assert (clusters._Config.attributes.offset, clusters._Attribute.value.offset) == (40, 8)


def test_an_error_of_the_driver_is_told():
    with pytest.raises(DeviceError, match="clusters of 16 blocks .* error 912"):
        clusters.active(StandIn(912), 1, 16, 2112, 174336)


@pytest.mark.gpu
def test_clusters_of_this_gpu():
    found = clusters.clusters(Device("cuda"))
    assert found["1"] == device_properties(0)["multiProcessorCount"]
    assert found["1"] >= found["2"] >= found["4"] >= found["8"] > 0
