// tensor_map.h - 16-bit numbers, and tensor maps: what a tensor copy (TMA) reads, writes and fills. Plain
// functions of host memory. gpunn/emulator/tensor_map.py packs the 128 bytes that `decode` reads.
#pragma once
#include <cstdint>
#include <cstring>

namespace tensor {

// ---- numbers -------------------------------------------------------------------------------------------

inline float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float bfloat16_to_float(uint16_t bits) { return float_of_bits(static_cast<uint32_t>(bits) << 16); }

inline uint16_t float_to_bfloat16(float value) {  // to nearest, ties to even
    const uint32_t bits = bits_of_float(value);
    if (value != value) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Without branches, so that loops over it become vector code. The product is exact, subnormals too.
inline float half_to_float(uint16_t bits) {
    const float size = float_of_bits((bits & 0x7fffu) << 13) * 0x1p112f;
    const uint32_t special = (bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;  // infinity and NaN
    return float_of_bits(bits_of_float(size) | special | (bits & 0x8000u) << 16);
}

inline uint16_t float_to_half(float value) {  // to nearest, ties to even
    const uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return 0x7fff;
    if (size >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to 65520 or more
    if (size < 0x38800000)  // subnormal: the sum's last bit is the format's, 2^-24
        return static_cast<uint16_t>(sign | (bits_of_float(float_of_bits(size) + 0.5f) - 0x3f000000));
    return static_cast<uint16_t>(sign | ((size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13));
}

// ---- the elements of tensor maps, numbered as the driver's CUtensorMapDataType ------------------------------

enum Element { U8, U16, U32, S32, U64, S64, FLOAT16, FLOAT32, FLOAT64, BFLOAT16 };

inline int bytes_of(int type) {
    static constexpr unsigned char bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
    return bytes[type];
}

// What a reducing store can add; the numbers 0 … 3 are those of emu_bulk_store.
enum Reduction { COPY, ADD_FLOAT32, ADD_FLOAT16, ADD_BFLOAT16, ADD_INT32, ADD_INT64, CANNOT_ADD };

inline Reduction reduction(int type) {
    switch (type) {
        case FLOAT32: return ADD_FLOAT32;
        case FLOAT16: return ADD_FLOAT16;
        case BFLOAT16: return ADD_BFLOAT16;
        case U32: case S32: return ADD_INT32;
        case U64: return ADD_INT64;
        default: return CANNOT_ADD;
    }
}

template <class Number, class Sum> void add_numbers(void* target, const void* source, int bytes, Sum sum) {
    for (int i = 0; i < bytes; i += sizeof(Number)) {
        Number a, b;
        std::memcpy(&a, static_cast<char*>(target) + i, sizeof a);
        std::memcpy(&b, static_cast<const char*>(source) + i, sizeof b);
        a = sum(a, b);
        std::memcpy(static_cast<char*>(target) + i, &a, sizeof a);
    }
}

// Adds `bytes` bytes of numbers at `source` to those at `target`, or copies them. The caller keeps others away.
inline void reduce(int how, void* target, const void* source, int bytes) {
    const auto plain = [](auto a, auto b) { return a + b; };
    const auto halves = [](uint16_t a, uint16_t b) {
        return float_to_half(half_to_float(a) + half_to_float(b));
    };
    const auto bfloats = [](uint16_t a, uint16_t b) {
        return float_to_bfloat16(bfloat16_to_float(a) + bfloat16_to_float(b));
    };
    switch (how) {
        case COPY: std::memcpy(target, source, bytes); break;
        case ADD_FLOAT32: add_numbers<float>(target, source, bytes, plain); break;
        case ADD_FLOAT16: add_numbers<uint16_t>(target, source, bytes, halves); break;
        case ADD_BFLOAT16: add_numbers<uint16_t>(target, source, bytes, bfloats); break;
        case ADD_INT32: add_numbers<uint32_t>(target, source, bytes, plain); break;
        case ADD_INT64: add_numbers<uint64_t>(target, source, bytes, plain); break;
    }
}

// ---- maps ------------------------------------------------------------------------------------------------

// The 128 bytes of a kernel's ptx::TensorMap as the emulator packs them. Dimensions innermost first.
struct PackedMap {
    char magic[8];         // "gpunnTMA"
    uint64_t address;      // of element 0
    uint64_t strides[4];   // bytes from one index to the next, of dimensions 1 … rank - 1
    uint32_t sizes[5];     // elements
    uint16_t box[5];       // elements the box spans (not im2col)
    uint8_t steps[5];      // every steps-th element of the span is copied; steps[0] is 1
    uint8_t rank, type, swizzle, fill_nan, im2col;  // swizzle: 0 none, 1 32, 2 64, 3 128 bytes
    int16_t lower[3], upper[3];  // im2col: corners of the box of pixels, relative to both ends of the tensor
    uint16_t channels, pixels;   // im2col: the box, channels x pixels
    uint8_t zero[24];
};
static_assert(sizeof(PackedMap) == 128, "the layout that tensor_map.py writes");

struct Map : PackedMap {
    int element_bytes;
    int counts[5];   // elements of the box in each dimension (im2col: channels, pixels, 1, 1, 1)
    int line_bytes;  // the box's innermost dimension in shared memory
};

inline bool decode(const void* opaque, Map& map, const char** why_not) {
    std::memcpy(static_cast<PackedMap*>(&map), opaque, sizeof(PackedMap));
    *why_not = nullptr;
    if (std::memcmp(map.magic, "gpunnTMA", 8))
        *why_not = "not a tensor map (the argument must be an emulator.TensorMap, passed to the kernel by value "
                   "as const __grid_constant__ ptx::TensorMap)";
    else if (map.rank < 1 || map.rank > 5 || map.type > BFLOAT16 || map.swizzle > 3)
        *why_not = "a damaged tensor map";
    if (*why_not) return false;
    map.element_bytes = bytes_of(map.type);
    for (int d = 0; d < 5; d++)
        map.counts[d] = map.im2col ? (d == 0 ? map.channels : d == 1 ? map.pixels : 1)
                        : d < map.rank ? (map.box[d] + map.steps[d] - 1) / map.steps[d] : 1;
    map.line_bytes = map.counts[0] * map.element_bytes;
    return true;
}

// Bytes of a box in shared memory, which a load reports to its barrier whatever lies outside the tensor.
inline int box_bytes(const Map& map) {
    int bytes = map.line_bytes;
    for (int d = 1; d < 5; d++) bytes *= map.counts[d];
    return bytes;
}

// What a box's address in shared memory must be a multiple of.
inline int shared_alignment(const Map&) { return 128; }

// A piece of a box, at most 16 bytes: the first `inside` of them belong to the tensor (at `global`), the
// others lie outside of it.
struct Piece {
    uint32_t shared;  // address in the shared window, the swizzle applied
    int bytes, inside;
    uint64_t global;
};

// The pieces of the line of a box at `shared`. `row` is the address of the line's element 0 in the tensor, or
// 0 if the whole line lies outside; `first` is the box's first element along the line, at whole 16 bytes.
template <class Each>
void walk_line(const Map& map, uint32_t shared, uint64_t row, int64_t first, Each& each) {
    const int64_t size = static_cast<int64_t>(map.sizes[0]) * map.element_bytes;
    const uint32_t pattern = (1u << map.swizzle) - 1;
    for (int at = 0; at < map.line_bytes; at += 16) {
        const uint32_t address = shared + at, target = address ^ (address >> 7 & pattern) << 4;
        const int64_t begin = first * map.element_bytes + at;
        if (!row || begin >= size || begin < 0) {
            each(Piece{target, 16, 0, 0});
            continue;
        }
        const int inside = size - begin < 16 ? static_cast<int>(size - begin) : 16;
        each(Piece{target, 16, inside, row + begin});
    }
}

// Calls each(piece) for all pieces of the box at coordinates `at` whose shared memory begins at `shared` (in
// the shared window: the swizzle depends on it). im2col_offsets: rank - 2 of them, or nullptr for none.
template <class Each>
void walk(const Map& map, uint32_t shared, const int* at, const uint16_t* im2col_offsets, Each each) {
    if (!map.im2col) {
        int index[5] = {};
        for (;; shared += map.line_bytes) {
            uint64_t row = map.address;
            for (int d = 1; d < map.rank; d++) {
                const int64_t place = static_cast<int64_t>(at[d]) + index[d] * map.steps[d];
                if (place < 0 || place >= map.sizes[d]) row = 0;
                if (row) row += place * map.strides[d - 1];
            }
            walk_line(map, shared, row, at[0], each);
            int d = 1;
            while (d < map.rank && ++index[d] == map.counts[d]) index[d++] = 0;
            if (d >= map.rank) return;
        }
    }
    // Pixels: dimensions 1 … rank - 2 run through the bounding box, the last one through the images.
    const int last = map.rank - 1;
    int64_t pixel[5];
    for (int d = 1; d <= last; d++) pixel[d] = at[d];
    for (int line = 0; line < map.pixels; line++, shared += map.line_bytes) {
        uint64_t row = map.address;
        for (int d = 1; d <= last; d++) {
            const int64_t place = pixel[d] + (d < last && im2col_offsets ? im2col_offsets[d - 1] : 0);
            if (place < 0 || place >= map.sizes[d]) row = 0;
            if (row) row += place * map.strides[d - 1];
        }
        walk_line(map, shared, row, at[0], each);
        for (int d = 1; d <= last; d++) {
            pixel[d] += d < last ? map.steps[d] : 1;
            if (d == last || pixel[d] < static_cast<int64_t>(map.sizes[d]) + map.upper[d - 1]) break;
            pixel[d] = map.lower[d - 1];
        }
    }
}

// What lies outside the tensor: zeros, or NaN in each element.
inline void fill(const Map& map, void* target, int bytes) {
    std::memset(target, map.fill_nan ? 0xff : 0, bytes);
    if (map.fill_nan)  // the bits 0x7f…ff are a NaN in every format of these
        for (int i = map.element_bytes - 1; i < bytes; i += map.element_bytes)
            static_cast<unsigned char*>(target)[i] = 0x7f;
}

}  // namespace tensor
