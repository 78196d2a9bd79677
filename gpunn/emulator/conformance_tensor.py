"""The conformance cases of tensor cores and tensor maps, with layouts by NVIDIA's documents."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np

from gpunn.emulator.conformance_cases import CASES, Problem, case, some_integers
from gpunn.emulator.tensor_map import TensorMap

__all__ = ["CASES"]

BF16 = ml_dtypes.bfloat16
# Of each number format of tensor cores: its NumPy type, and the largest integer to use.
FORMATS = {
    "bf16": (BF16, 9),
    "f16": (np.float16, 9),
    "tf32": (np.float32, 99),
    "e4m3": (ml_dtypes.float8_e4m3fn, 4),
    "e5m2": (ml_dtypes.float8_e5m2, 4),
}
KINDS = (*FORMATS, "e4m3_e5m2", "e5m2_e4m3")


def _operands(rng, kind: str, rows: tuple[int, int], bytes_of_k: int) -> list[np.ndarray]:
    """A's rows and B's columns. "e4m3_e5m2" has two formats, the other kinds one for both."""
    left, _, right = kind.partition("_")
    result = []
    for count, name in zip(rows, (left, right or left), strict=True):
        dtype, largest = FORMATS[name]
        shape = (count, bytes_of_k // np.dtype(dtype).itemsize)
        result.append(rng.integers(-largest, largest + 1, shape).astype(dtype))
    return result


def _product(a, b) -> np.ndarray:
    """A times B from B's columns, exactly."""
    return a.astype(np.float64) @ b.astype(np.float64).T


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)


def _words(array: np.ndarray) -> np.ndarray:
    return _bytes(array).view(np.uint32)


def swizzled(offset, width: int):
    """Where a byte of a tile that starts where its pattern does lies under a swizzle (0: none)."""
    return offset ^ ((offset >> 7 & width // 16 - 1) << 4) if width else offset


# ---- mma.cu --------------------------------------------------------------------------------------


def _mma(kind: str) -> None:
    arch = 89 if kind[0] == "e" else 80

    @case(f"mma {kind}", "mma", f"mma multiply<ptx::Kind::{kind}>", arch=arch)
    def make(rng):
        a, b = _operands(rng, kind, (16, 8), 32)
        d = some_integers(rng, 16, 8).astype(np.float32)
        expected = (d + _product(a, b)).astype(np.float32)
        return Problem((_words(a), _words(b), d), [(d, expected)])


for _kind in KINDS:
    _mma(_kind)


@case("mma_s8", "mma_s8", "mma multiply_s8")
def _mma_s8(rng):
    a, b = (rng.integers(-128, 128, (rows, 32)).astype(np.int8) for rows in (16, 8))
    d = some_integers(rng, 16, 8)
    return Problem((_words(a), _words(b), d), [(d, (d + _product(a, b)).astype(np.int32))])


@case("mma_f64", "mma_f64", "mma multiply_f64")
def _mma_f64(rng):
    a, b, d = (some_integers(rng, 8, n).astype(np.float64) for n in (4, 4, 8))
    return Problem((a, b, d), [(d, d + _product(a, b))])


# ---- wgmma.cu ------------------------------------------------------------------------------------


def operand_image(operand: np.ndarray, width: int, rows_contiguous: bool):
    """An operand (rows x K) as it lies in shared memory, by the PTX ISA's canonical layouts.

    Returns the image, the leading and stride byte offsets and the step to the next 32 bytes of K.
    """
    rows, ks = operand.shape
    size, line = operand.itemsize, width or 16  # line: bytes that lie side by side
    row, k = np.meshgrid(np.arange(rows), np.arange(ks), indexing="ij")
    per_step = 32 // size // 8  # groups of 8 k
    if rows_contiguous and width:
        stride, leading = 8 * line, 8 * line * (ks // 8)
        block = row // (line // size) * leading + k // 8 * stride
        step = stride * per_step
    elif rows_contiguous:
        leading, stride = 128, 128 * (ks // 8)
        block = row // 8 * stride + k // 8 * leading
        step = leading * per_step
    elif width:
        leading, stride = 16, 8 * line  # leading is not looked at
        tile = -(-rows // 8) * stride
        block = k * size // line * tile + row // 8 * stride
        step = 32 if line > 32 else tile
    else:
        leading, stride = -(-rows // 8) * 128 + 256, 128  # a gap between the halves, to tell them
        block = k * size // 16 * leading + row // 8 * stride
        step = 2 * leading
    if rows_contiguous:
        offset = block + k % 8 * line + row % (line // size) * size
    else:
        offset = block + row % 8 * line + k * size % line
    image = np.zeros(-(-int(offset.max() + size) // 1024) * 1024, np.uint8)
    for byte in range(size):
        values = _bytes(operand).reshape(rows, ks, size)[..., byte]
        image[swizzled(offset + byte, width)] = values
    return image, leading, stride, step


_WGMMA = "wgmma wgmma_fence wgmma_commit wgmma_wait wgmma_hold matrix_descriptor"
_SWIZZLES = {
    width: f"ptx::Swizzle::bytes{width}" if width else "ptx::Swizzle::none"
    for width in (0, 32, 64, 128)
}


def _wgmma(n, kind, width_a, width_b, transpose_a=False, transpose_b=False, steps=2) -> None:
    """width_a: the swizzle of A, or None for A from registers."""
    words = [str(n), f"ptx::Kind::{kind}", _SWIZZLES[width_b], str(transpose_b).lower(), str(steps)]
    name = f"wgmma n{n} {kind}, A registers"
    kernel = "from_registers"
    if width_a is not None:
        words[2:2] = [_SWIZZLES[width_a]]
        words[4:4] = [str(transpose_a).lower()]
        name = f"wgmma n{n} {kind}, A swizzle {width_a}{' transposed' * transpose_a}"
        kernel = "from_shared"
    name += f", B swizzle {width_b}{' transposed' * transpose_b}"
    kernel = f"wgmma {kernel}<{', '.join(words)}>"

    @case(name, _WGMMA, kernel, block=128, shared=48 * 1024, arch=90)
    def make(rng):
        a, b = _operands(rng, kind, (64, n), 32 * steps)
        image_b, *offsets_b = operand_image(b, width_b, transpose_b)
        numbers_b = [np.int32(v) for v in (image_b.size, *offsets_b)]
        if width_a is None:  # that kernel does not add to what was there
            d = np.zeros((64, n), np.float32)
            arguments = (_words(a), image_b, *numbers_b, d)
        else:
            d = some_integers(rng, 64, n).astype(np.float32)
            image_a, *offsets_a = operand_image(a, width_a, transpose_a)
            numbers_a = [np.int32(v) for v in (image_a.size, *offsets_a)]
            arguments = (image_a, image_b, *numbers_a, *numbers_b, d)
        return Problem(arguments, [(d, (d + _product(a, b)).astype(np.float32))])


for _n in range(8, 257, 8):
    _wgmma(_n, "bf16", 128, 128)
for _kind in KINDS[1:]:
    _wgmma(64, _kind, 128, 64)
for _kind in KINDS:
    _wgmma(64, _kind, None, 128)
for _width in (0, 32, 64):
    _wgmma(32, "bf16", _width, _width)
    _wgmma(24, "tf32", _width, 128)
    _wgmma(40, "e4m3", 128, _width)
for _kind, _width in itertools.product(("bf16", "f16"), _SWIZZLES):
    _wgmma(128, _kind, _width, _width, transpose_a=True, transpose_b=True)
_wgmma(72, "bf16", 128, 32, transpose_a=True)
_wgmma(72, "f16", 64, 128, transpose_b=True)
_wgmma(136, "f16", None, 128, transpose_b=True)
_wgmma(16, "bf16", None, 0, transpose_b=True)

# ---- tensor_map.cu: boxes in array order ---------------------------------------------------------


def _box(array, at, box, steps, outside=0):
    """The box from `at` on with `outside` where the array is not; its places; where it is."""
    axes = [a + s * np.arange(-(-b // s)) for a, b, s in zip(at, box, steps, strict=True)]
    places = np.meshgrid(*axes, indexing="ij")
    inside = np.ones(places[0].shape, bool)
    for place, size in zip(places, array.shape, strict=True):
        inside &= (place >= 0) & (place < size)
    values = np.full(inside.shape, outside, array.dtype)
    values[inside] = array[tuple(place[inside] for place in places)]
    return values, places, inside


def _in_shared(values: np.ndarray, width: int) -> np.ndarray:
    """The bytes of one or more boxes, one behind the other, as they lie in shared memory."""
    flat = _bytes(values).reshape(-1)
    image = np.empty_like(flat)
    image[swizzled(np.arange(flat.size), width)] = flat
    return image


def _array(rng, shape, dtype, pad=0) -> np.ndarray:
    """Small integers; with `pad`, a view that leaves out the last `pad` of each row."""
    whole = rng.integers(-9, 10, (*shape[:-1], shape[-1] + pad)).astype(dtype)
    return whole[..., : shape[-1]]


def _coordinates(places) -> np.ndarray:
    """Places as the kernels take them, innermost axis first."""
    return np.array(places, np.int32)[:, ::-1].copy()


def _loaded(tensor, places, images, *more) -> Problem:
    """The problem of a kernel that shows `images`, one row of bytes each."""
    expected = np.stack(images).view(tensor.array.dtype)
    out = np.zeros_like(expected)
    arguments = (
        tensor,
        _coordinates(places),
        *more,
        np.int32(tensor.box_bytes),
        out.view(np.uint8),
    )
    return Problem(arguments, [(out, expected)])


def _stored(rng, tensor, places, adding: bool) -> Problem:
    array, images = tensor.array, []
    expected = array.copy()
    for at in places:
        _, where, inside = _box(array, at, tensor.box, tensor.element_strides)
        values = rng.integers(-9, 10, inside.shape).astype(array.dtype)
        target = tuple(place[inside] for place in where)
        expected[target] = (expected[target] if adding else 0) + values[inside]
        images.append(_in_shared(values, tensor.swizzle))
    arguments = (tensor, _coordinates(places), np.int32(tensor.box_bytes), np.stack(images))
    return Problem(arguments, [(array, expected)])


def _tiles(number, shape, box, places, dtype, width, steps=None, pad=0) -> None:
    rank, launch = len(shape), {"block": 128, "shared": 16384, "arch": 90}
    what = f"{rank}-D {np.dtype(dtype).name} swizzle {width} #{number}"

    def map_of(rng):
        array = _array(rng, shape, dtype, pad)
        return TensorMap(array, box, swizzle=width, element_strides=steps)

    def boxes_of(tensor, chosen):
        return [_box(tensor.array, at, box, tensor.element_strides)[0] for at in chosen]

    covers = "tensor_load prefetch_tensor_map"
    targets = [place for place in places if min(place) >= 0]

    @case(
        f"tensor_load {what}", covers, f"tensor_map load_boxes<{rank}>", grid=len(places), **launch
    )
    def load(rng):
        tensor = map_of(rng)
        images = [_in_shared(values, width) for values in boxes_of(tensor, places)]
        return _loaded(tensor, places, images)

    kernel = f"tensor_map multicast_boxes<{rank}>"

    @case(f"tensor_load_multicast {what}", "tensor_load_multicast", kernel, grid=2, **launch)
    def multicast(rng):
        tensor = map_of(rng)
        image = _in_shared(np.stack(boxes_of(tensor, places[:2])), width)
        return _loaded(tensor, places[:2], [image, image])

    kernel = f"tensor_map store_boxes<{rank}, false>"

    @case(f"tensor_store {what}", "tensor_store", kernel, **launch)
    def store(rng):
        return _stored(rng, map_of(rng), targets[-1:], False)

    kernel = f"tensor_map store_boxes<{rank}, true>"

    @case(f"tensor_add {what}", "tensor_add", kernel, grid=len(targets), **launch)
    def add(rng):
        return _stored(rng, map_of(rng), targets, True)


# Boxes begin at whole 16 bytes along the innermost dimension; those of stores at no negative place.
_tiles(0, (100,), (64,), [(0,), (-8,), (120,), (48,)], np.int32, 0)
_tiles(1, (70, 100), (16, 64), [(0, 0), (-3, -8), (5, 8), (60, 80)], np.float16, 128, pad=4)
_tiles(2, (20, 24), (8, 16), [(3, 4), (16, 16)], np.int32, 64)
_tiles(3, (20, 24), (12, 16), [(4, 8), (-2, 16), (14, 0)], BF16, 32, steps=(3, 1))
_tiles(4, (5, 9, 40), (2, 5, 32), [(1, 2, 4), (4, 7, 16)], np.float32, 128)
_tiles(5, (3, 4, 5, 16), (2, 1, 3, 16), [(1, 2, 0, 0), (-1, 3, 4, 8), (2, 3, 4, 8)], np.int32, 64)
_tiles(6, (2, 3, 4, 5, 32), (1, 2, 4, 2, 32),
       [(0, 1, -1, 3, 0), (1, 2, 2, 4, 16), (0, 2, 1, 3, 8)], BF16, 64,
       steps=(1, 1, 2, 1, 1))  # fmt: skip


def _not_a_number(dtype) -> None:
    name = f"tensor_load NaN outside {np.dtype(dtype).name}"

    @case(name, "tensor_load", "tensor_map load_boxes<2>", block=128, grid=2, shared=1024, arch=90)
    def make(rng):
        tensor = TensorMap(_array(rng, (10, 16), dtype), (8, 16), swizzle=0, fill="nan")
        places = [(5, -8), (-2, 8)]
        boxes = [_box(tensor.array, at, tensor.box, (1, 1), np.nan)[0] for at in places]
        return _loaded(tensor, places, [_in_shared(values, 0) for values in boxes])


for _dtype in (np.float32, np.float16, BF16):
    _not_a_number(_dtype)


def _columns(number, shape, dtype, width, lower, upper, channels, pixels, columns, steps) -> None:
    """columns: (image, spatial …, channel) and the filter's offset (spatial …)."""
    rank = len(shape)
    name, kernel = f"tensor_load_im2col {rank}-D #{number}", f"tensor_map load_columns<{rank}>"
    launch = {"block": 128, "grid": len(columns), "shared": 16384, "arch": 90}

    @case(name, "tensor_load_im2col", kernel, **launch)
    def make(rng):
        tensor = TensorMap.im2col(
            _array(rng, shape, dtype),
            lower=lower,
            upper=upper,
            channels=channels,
            pixels=pixels,
            swizzle=width,
            element_strides=(1, *steps, 1),
        )
        # The places of a filter's first element, row by row, image after image and one beyond.
        axes = [
            range(low, size + high, step)
            for low, high, size, step in zip(lower, upper, shape[1:-1], steps, strict=True)
        ]
        walk = list(itertools.product(range(shape[0] + 1), *axes))
        images = []
        for at, offset in columns:
            first = walk.index(at[:-1])
            lines = []
            for image, *place in walk[first : first + pixels]:
                pixel = (image, *(p + o for p, o in zip(place, offset, strict=True)), at[-1])
                box = (1,) * (rank - 1) + (channels,)
                lines.append(_box(tensor.array, pixel, box, (1,) * rank)[0].reshape(-1))
            images.append(_in_shared(np.stack(lines), width))
        offsets = np.array([offset for _, offset in columns], np.uint16)[:, ::-1].copy()
        return _loaded(tensor, [at for at, _ in columns], images, offsets)


# A filter of 3 with padding 1 along W.
_columns(0, (3, 10, 16), np.int32, 64, (-1,), (-1,), 16, 12,
         [((0, -1, 0), (0,)), ((1, 4, 0), (2,))], (1,))  # fmt: skip
# Filters of 3 x 5 with padding (1, 2).
_columns(1, (2, 6, 7, 64), BF16, 128, (-1, -2), (-1, -2), 64, 32,
         [((0, -1, -2, 0), (0, 0)), ((0, 3, 1, 0), (2, 1)), ((1, 2, 0, 0), (1, 4))],
         (1, 1))  # fmt: skip
# A filter of 2 x 2 without padding at stride 2, half of the channels.
_columns(2, (2, 8, 6, 32), np.float16, 32, (0, 0), (-1, -1), 16, 16,
         [((0, 0, 0, 0), (1, 0)), ((1, 2, 4, 16), (0, 1))], (2, 2))  # fmt: skip
# A filter of 2 x 2 x 3 with padding (0, 1, 1).
_columns(3, (2, 3, 4, 5, 16), BF16, 32, (0, -1, -1), (-1, 0, -1), 16, 40,
         [((0, 0, -1, -1, 0), (0, 0, 0)), ((1, 1, 2, 3, 0), (1, 0, 2))], (1, 1, 1))  # fmt: skip

# ---- pipeline.cu ---------------------------------------------------------------------------------

_PIPELINE = "tensor_load wgmma matrix_descriptor mbarrier_wait"


def _pipeline(rows_a: bool, rows_b: bool) -> None:
    words = f"<{str(rows_a).lower()}, {str(rows_b).lower()}>"
    name = f"pipeline, A {'K x 64' if rows_a else '64 x K'}, B {'K x 128' if rows_b else '128 x K'}"
    launch = {"block": 160, "shared": 48 * 1024, "arch": 90}

    @case(name, _PIPELINE, f"pipeline multiply_tiles{words}", **launch)
    def make(rng):
        a, b = _operands(rng, "bf16", (64, 128), 320 * 2)
        there_a, there_b = (
            np.ascontiguousarray(x.T if turned else x) for x, turned in ((a, rows_a), (b, rows_b))
        )
        out = np.zeros((64, 128), np.float32)
        maps = TensorMap(there_a, (64, 64)), TensorMap(there_b, (64, 64))
        return Problem((*maps, np.int32(320), out), [(out, _product(a, b).astype(np.float32))])


for _rows_a, _rows_b in itertools.product((False, True), repeat=2):
    _pipeline(_rows_a, _rows_b)
