"""Tensor maps: what a kernel's tensor copies (TMA) need to know of an array.

One class for both worlds. Passed to a kernel in the emulator it becomes the emulator's own 128
bytes (`pack`), on a GPU the driver's (`encode`); the kernel takes it as
``const __grid_constant__ ptx::TensorMap map``. All that the driver would refuse with nothing but
"invalid value" is refused here, in words.

Everything is said in the order of the array's axes; the coordinates in the kernel, as the hardware
has them, are innermost axis first.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import sys
from collections.abc import Sequence

import numpy as np

from gpunn.device.emulated_memory import address_only
from gpunn.errors import DeviceError

# The driver's CUtensorMapDataType, which the emulator shares, for NumPy's names.
_TYPES = {
    "bool": 0, "uint8": 0, "int8": 0, "float8_e4m3fn": 0, "float8_e5m2": 0,
    "uint16": 1, "int16": 1, "uint32": 2, "int32": 3, "uint64": 4, "int64": 5,
    "float16": 6, "float32": 7, "float64": 8, "bfloat16": 9,
}  # fmt: skip
_FLOATING = (6, 7, 8, 9)
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}  # CUtensorMapSwizzle
_FILLS = {"zeros": 0, "nan": 1}  # CUtensorMapFloatOOBfill
_L2_PROMOTION_256 = 3

# As struct PackedMap of the emulator's tensor_map.h.
_PACKED = np.dtype(
    {
        "names": [
            "magic", "address", "strides", "sizes", "box", "steps", "rank", "type", "swizzle",
            "fill_nan", "im2col", "lower", "upper", "channels", "pixels",
        ],
        "formats": [
            "S8", "<u8", "(4,)<u8", "(5,)<u4", "(5,)<u2", "(5,)u1", "u1", "u1", "u1",
            "u1", "u1", "(3,)<i2", "(3,)<i2", "<u2", "<u2",
        ],
        "offsets": [0, 8, 16, 48, 68, 78, 83, 84, 85, 86, 87, 88, 94, 100, 102],
        "itemsize": 128,
    }
)  # fmt: skip
# How the same bytes are passed by value to a kernel through CuPy.
_ARGUMENT = np.dtype([("opaque", np.uint8, (128,))])


class TensorMap:
    """The boxes that tensor copies move between `array` and shared memory.

    A map keeps its array, CuPy's or NumPy's. The maps of gpunn's own kernels keep none: recipes and
    graphs remember them, and to the hardware they are an address. So it is on the device "emulator"
    of a plain NumPy view of its memory, which is what launch code makes a map of: a launch with
    checks says so if the memory was freed before it.

    Parameters
    ----------
    array : NumPy or CuPy array of 1 to 5 axes; views are welcome as long as the last axis is
        contiguous and the other strides are multiples of 16 bytes.
    box : elements that one copy spans along each axis, at most 256 each
    swizzle : bytes of the pattern in shared memory, 128, 64, 32 or 0 for none. With a swizzle the
        box's last axis must be just as many bytes long.
    element_strides : take every n-th element (1 … 8) of the box along each axis; 1 for the last one
    fill : what loads put outside of the array, "zeros" or (floating types) "nan"
    """

    def __init__(
        self,
        array,
        box: Sequence[int],
        *,
        swizzle: int = 128,
        element_strides: Sequence[int] | None = None,
        fill: str = "zeros",
    ):
        self._describe(array, swizzle, element_strides, fill)
        self.box = _integers("box", box, self.rank, 1, 256)
        self.lower = self.upper = ()
        self.channels = self.pixels = 0
        self._check_line("box", self.box[-1])

    @classmethod
    def im2col(
        cls,
        array,
        *,
        lower: Sequence[int],
        upper: Sequence[int],
        channels: int,
        pixels: int,
        swizzle: int = 128,
        element_strides: Sequence[int] | None = None,
        fill: str = "zeros",
    ) -> TensorMap:
        """Columns of pixels of `array` (N, [[D,] H,] W, C), for convolutions.

        A copy takes `channels` channels (at most 256) of `pixels` pixels (at most 1024) that follow
        one another in the bounding box, row by row, image after image. Along each spatial axis the
        box begins at `lower` and ends before `size + upper`. For a filter of size f at padding p,
        stride s and dilation d: lower = -p, upper = p - (f - 1) d, element_strides s.
        """
        self = cls.__new__(cls)
        self._describe(array, swizzle, element_strides, fill)
        if self.rank < 3:
            raise ValueError(f"array: im2col needs 3 to 5 axes, N … C, not {self.rank}")
        spatial = self.rank - 2
        limit = {1: 1 << 15, 2: 1 << 7, 3: 1 << 4}[spatial]
        self.box = ()
        self.lower = _integers("lower", lower, spatial, -limit, limit - 1)
        self.upper = _integers("upper", upper, spatial, -limit, limit - 1)
        (self.channels,) = _integers("channels", (channels,), 1, 1, 256)
        (self.pixels,) = _integers("pixels", (pixels,), 1, 1, 1024)
        for axis, (low, high) in enumerate(zip(self.lower, self.upper, strict=True), 1):
            if array.shape[axis] + high <= low:
                raise ValueError(
                    f"lower {low} and upper {high} leave no pixels along axis {axis} of size "
                    f"{array.shape[axis]}"
                )
        if self.element_strides[0] != 1:
            raise ValueError(f"element_strides: {self.element_strides[0]} would skip images")
        self._check_line("channels", self.channels)
        return self

    def with_array(self, array) -> TensorMap:
        """The same map of another array, on the device say, of the same type, shape and strides."""
        if (array.shape, array.dtype) != (self.array.shape, self.array.dtype):
            raise ValueError(
                f"array: {array.dtype} of shape {array.shape} cannot take the place of "
                f"{self.array.dtype} of shape {self.array.shape}"
            )
        if _strides(array) != self.strides:
            raise ValueError(f"array: strides {array.strides} instead of {self.array.strides}")
        other = copy.copy(self)
        other._argument = None
        other._take(array)
        return other

    def _take(self, array) -> None:
        """Keep an array, but of a plain view of the emulator's memory the address alone."""
        self.array, self.lifetime = array, None
        if type(array) is np.ndarray:
            self.array, self.lifetime = address_only(array)

    @property
    def box_bytes(self) -> int:
        """Bytes of one copy in shared memory: what its barrier expects."""
        if self.pixels:
            return self.pixels * self.channels * self.itemsize
        counts = (-(-b // s) for b, s in zip(self.box, self.element_strides, strict=True))
        return int(np.prod(list(counts))) * self.itemsize

    def pack(self, address: int) -> np.ndarray:
        """The emulator's 128 bytes for the array at `address`, in a buffer aligned to 64 bytes."""
        _check_address(address)
        buffer = _aligned_buffer()
        (packed,) = buffer.view(_PACKED)
        packed["magic"] = b"gpunnTMA"
        packed["address"] = address
        packed["rank"], packed["type"] = self.rank, self.type
        packed["swizzle"], packed["fill_nan"] = _SWIZZLES[self.swizzle], _FILLS[self.fill]
        packed["im2col"], packed["channels"], packed["pixels"] = (
            self.pixels > 0, self.channels, self.pixels,
        )  # fmt: skip
        for name, values in (
            ("strides", self.strides),
            ("sizes", self.array.shape[::-1]),
            ("box", self.box[::-1]),
            ("steps", self.element_strides[::-1]),
            ("lower", self.lower[::-1]),
            ("upper", self.upper[::-1]),
        ):
            packed[name][: len(values)] = values
        return buffer

    def encode(self, address: int) -> np.ndarray:
        """The driver's 128 bytes for the array at the device's `address`, aligned to 64 bytes.

        Raises DeviceError if there is no driver or it is too old, or refuses all the same.
        """
        _check_address(address)
        buffer = _aligned_buffer()
        name = "cuTensorMapEncodeIm2col" if self.pixels else "cuTensorMapEncodeTiled"
        unsigned32, unsigned64 = ctypes.c_uint32, ctypes.c_uint64
        if self.pixels:
            shape = (
                _c_array(ctypes.c_int, self.lower[::-1]),
                _c_array(ctypes.c_int, self.upper[::-1]),
                unsigned32(self.channels),
                unsigned32(self.pixels),
            )
        else:
            shape = (_c_array(unsigned32, self.box[::-1]),)
        status = _driver_function(name)(
            ctypes.c_void_p(buffer.ctypes.data),
            ctypes.c_int(self.type),
            unsigned32(self.rank),
            ctypes.c_void_p(address),
            _c_array(unsigned64, self.array.shape[::-1]),
            _c_array(unsigned64, self.strides or (16,)),  # a vector has none to point at
            *shape,
            _c_array(unsigned32, self.element_strides[::-1]),
            ctypes.c_int(0),  # no interleave
            ctypes.c_int(_SWIZZLES[self.swizzle]),
            ctypes.c_int(_L2_PROMOTION_256),
            ctypes.c_int(_FILLS[self.fill]),
        )
        if status:
            raise DeviceError(f"{name} refused {self!r} at {address:#x}: {_driver_error(status)}")
        return buffer

    def as_argument(self, address: int) -> np.ndarray:
        """What CuPy passes by value: one structure of the 128 bytes for the device's `address`."""
        if self._argument is None or self._argument[0] != address:
            self._argument = address, self.encode(address).view(_ARGUMENT)
        return self._argument[1]

    def __repr__(self) -> str:
        what = f"{self.array.dtype} {self.array.shape}, strides {self.strides}"
        box = (
            f"im2col lower {self.lower}, upper {self.upper}, {self.pixels} pixels x {self.channels}"
            if self.pixels
            else f"box {self.box}"
        )
        return (
            f"<TensorMap of {what}, {box}, element strides {self.element_strides}, "
            f"swizzle {self.swizzle}, fill {self.fill}>"
        )

    def _describe(self, array, swizzle, element_strides, fill) -> None:
        """Check and keep what both kinds of map have."""
        self._argument: tuple[int, np.ndarray] | None = None  # the last that was made
        self.rank, self.itemsize = array.ndim, array.dtype.itemsize
        if array.dtype.name not in _TYPES:
            raise TypeError(f"array: a tensor map cannot hold {array.dtype}")
        self.type = _TYPES[array.dtype.name]
        if not 1 <= self.rank <= 5:
            raise ValueError(f"array: a tensor map has 1 to 5 axes, not {self.rank}")
        for axis, size in enumerate(array.shape):
            if not 1 <= size < 1 << 32:
                raise ValueError(f"array: axis {axis} has size {size}, not 1 … 2^32 - 1")
        self.strides = _strides(array)
        self._take(array)
        if swizzle not in _SWIZZLES:
            raise ValueError(f"swizzle: {swizzle!r} is none of 0, 32, 64 and 128")
        if fill not in _FILLS:
            raise ValueError(f"fill: {fill!r} is neither 'zeros' nor 'nan'")
        if fill == "nan" and self.type not in _FLOATING:
            raise ValueError(f"fill: 'nan' needs a floating type, not {array.dtype}")
        self.swizzle, self.fill = swizzle, fill
        if element_strides is None:
            element_strides = (1,) * self.rank
        self.element_strides = _integers("element_strides", element_strides, self.rank, 1, 8)
        if self.element_strides[-1] != 1:
            raise ValueError(
                "element_strides: the hardware takes no stride along the last axis "
                f"({self.element_strides[-1]})"
            )

    def _check_line(self, name: str, elements: int) -> None:
        """The innermost dimension in shared memory: whole 16 bytes, and as wide as the swizzle."""
        width = elements * self.itemsize
        line = f"{name}: {elements} {self.array.dtype} along the last axis are {width} bytes"
        if width % 16:
            raise ValueError(f"{line}, not a multiple of 16")
        if not self.swizzle:
            return
        if width > self.swizzle:
            raise ValueError(f"{line}, more than the swizzle's {self.swizzle}")
        if width < self.swizzle:
            # The driver takes it, but its documents do not say how such lines lie.
            better = width if width in _SWIZZLES else 0
            raise ValueError(f"{line}, less than the swizzle's: use swizzle={better}")


def _integers(name: str, values, count: int, low: int, high: int) -> tuple[int, ...]:
    """`count` integers within low … high, or an error that names the argument."""
    try:
        result = tuple(int(v) for v in values)
    except TypeError:
        raise TypeError(f"{name}: expected {count} integers, got {values!r}") from None
    if len(result) != count:
        raise ValueError(f"{name}: expected {count} integers, got {len(result)}: {result}")
    for value in result:
        if not low <= value <= high:
            raise ValueError(f"{name}: {value} is not within {low} … {high}")
    return result


def _strides(array) -> tuple[int, ...]:
    """Bytes between indices of all axes but the last, innermost first; checked."""
    if array.shape[-1] > 1 and array.strides[-1] != array.dtype.itemsize:
        raise ValueError(
            f"array: the last axis must be contiguous, its stride is {array.strides[-1]} bytes for "
            f"elements of {array.dtype.itemsize}"
        )
    result: list[int] = []
    extent = array.shape[-1] * array.dtype.itemsize
    for axis in range(array.ndim - 2, -1, -1):
        stride = array.strides[axis]
        if array.shape[axis] == 1:  # never used, and NumPy may hold anything here
            stride = -(-extent // 16) * 16
        if stride % 16 or not 0 < stride < 1 << 40:
            raise ValueError(
                f"array: the stride of axis {axis} is {stride} bytes; a tensor map takes positive "
                "multiples of 16 below 2^40"
            )
        result.append(stride)
        extent = max(extent, stride * array.shape[axis])
    return tuple(result)


def _check_address(address: int) -> None:
    if address % 16 or address <= 0:
        raise ValueError(f"address: {address:#x} is not a multiple of 16 bytes, as TMA needs it")


def _aligned_buffer() -> np.ndarray:
    """128 zero bytes at a multiple of 64."""
    room = np.zeros(128 + 63, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + 128]


# ---- the driver ---------------------------------------------------------------------------------


def _c_array(ctype, values):
    return (ctype * len(values))(*values)


@functools.cache
def _driver() -> ctypes.CDLL:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError as error:
        raise DeviceError(
            f"tensor maps for a GPU are made by NVIDIA's driver, and {name} does not load here "
            f"({error}); in the emulator no driver is needed"
        ) from error
    if status := driver.cuInit(0):
        raise DeviceError(f"NVIDIA's driver does not start: cuInit gave {status}")
    return driver


def _driver_function(name: str):
    try:
        function = getattr(_driver(), name)
    except AttributeError:
        raise DeviceError(
            f"this NVIDIA driver has no {name}: tensor maps need one for CUDA 12.0 or newer"
        ) from None
    function.restype = ctypes.c_int
    return function


def _driver_error(status: int) -> str:
    text = ctypes.c_char_p()
    if _driver().cuGetErrorName(ctypes.c_int(status), ctypes.byref(text)) == 0 and text.value:
        return text.value.decode()
    return f"CUresult {status}"
