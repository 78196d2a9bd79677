// augment.cu - images of a data set, cropped, mirrored, with a square cut out, jittered and normalised in one pass.
//
//   augment_images   out[i, y, x, c] = v a[c] + b[c],   v = images[indices[i], y + top, x' + left, c]
//
// with x' = x or, mirrored, w - 1 - x; outside of the image its mirror or `fill`; in the square `fill`. Jittered,
// a = factor[c] (1 + contrast r), b = term[c] (1 + contrast r) + brightness r'. What is chosen for image i comes of
// the Philox blocks 2 i and 2 i + 1; formulas and words: gpunn/primitives/augment.py.
// Who does what: `pieces` blocks make an image, a block up to 4 packs of 16 bytes a thread, next to each other in
// `out`. Its first thread draws, all fill the table of the channels. Then a thread walks along its packs pixel by
// pixel; loads are of single elements, which the first-level cache's lines hold together, stores are whole packs.
// A pack that reaches over the ends of the image is stored element by element, so images may begin anywhere.
// Shared memory: 16 bytes a channel {a, b, fill, -} and 40 bytes of choices.
// The limit: memory, 1 byte in and 2 (4) out an element; but some 45 instructions an element, most of them to find
// where it comes from, take longer for 16-bit results. A batch of small images is over in a few microseconds either
// way; a layout with whole pixels a thread would halve them for 3 channels and not for 1.
// Assumes: an image has fewer than 2^31 elements and its elements lie within 2^31 of each other, both ways.
#include "random.cuh"
#include "store.cuh"

struct AugmentSource {
    int64 samples, stride;              // images, elements from one to the next
    uint64 row_factor, channel_factor;  // n / (w channels) = n row_factor >> row_shift, and n / channels
};

struct AugmentShape {
    int height, width, channels, row, pixel, channel;  // of an image; elements from a row, pixel, channel to the next
    int h, w;                                          // of the result
    int padding, reflect, random, flip, cutout, filled, pieces, row_shift, channel_shift;
    int numbered;  // each channel has numbers of its own
};

struct AugmentNumbers {
    float factor[64], term[64];  // the first counts for all channels unless they are numbered
};

struct AugmentChoice {
    int64 sample;                    // -1: there is no such image
    int top, left, flip;             // pixel (y, x) is that at (y + top, (flip ? w - 1 - x : x) + left)
    int cut_y, cut_x, cut;           // where the square begins, its edge
    float contrast, brightness;      // a factor and a term
};

struct __align__(16) AugmentChannel {
    float a, b, fill, unused;
};

__device__ __forceinline__ int below(uint32 word, int places) {
    return static_cast<int>(__umulhi(word, static_cast<uint32>(places)));
}

// most * r with r in [-1, 1) from the upper 24 bits of a word
__device__ __forceinline__ float jitter(uint32 word, float most) {
    const float r = rounded::add(rounded::multiply(static_cast<float>(static_cast<int>(word >> 8)), 0x1p-23f), -1.0f);
    return rounded::multiply(r, most);
}

__device__ __forceinline__ AugmentChoice choose(const AugmentShape& g, int64 image, const Origin& from,
                                                float brightness, float contrast) {
    AugmentChoice choice;
    choice.sample = image;
    const int spare_y = g.height + 2 * g.padding - g.h, spare_x = g.width + 2 * g.padding - g.w;
    if (g.random) {
        const uint4 one = philox(2 * image, from.offset, from.seed);
        const uint4 two = philox(2 * image + 1, from.offset, from.seed);
        choice.top = below(one.x, spare_y + 1) - g.padding, choice.left = below(one.y, spare_x + 1) - g.padding;
        choice.flip = one.z >> 8 < static_cast<uint32>(g.flip);
        choice.cut_y = below(one.w, g.h) - g.cutout / 2, choice.cut_x = below(two.x, g.w) - g.cutout / 2;
        choice.cut = g.cutout;
        choice.contrast = rounded::add(jitter(two.y, contrast), 1.0f);
        choice.brightness = jitter(two.z, brightness);
    } else {
        choice.top = spare_y / 2 - g.padding, choice.left = spare_x / 2 - g.padding;
        choice.flip = 0;
        choice.cut_y = choice.cut_x = choice.cut = 0;
        choice.contrast = 1.0f, choice.brightness = 0.0f;
    }
    return choice;
}

// Pixel i of n of an image that is mirrored at its ends; i itself for one that is inside.
__device__ __forceinline__ int mirrored(int i, int n) { return min(abs(i), 2 * (n - 1) - abs(i)); }

// A thread's way through the elements of the result in their order: where the present one comes from.
struct AugmentWalk {
    const AugmentShape& g;
    const AugmentChoice& choice;
    int y, x, c;        // the element
    int from;           // the pixel of its row that it shows, mirrored or not
    int line;           // where that row begins
    uint32 span, edge;  // of its row: pixels below `span` can be seen, `edge` places from cut_x on are cut out

    __device__ __forceinline__ AugmentWalk(const AugmentShape& shape, const AugmentSource& source,
                                           const AugmentChoice& chosen, uint32 e)
        : g(shape), choice(chosen) {
        y = static_cast<int>(e * source.row_factor >> g.row_shift);
        const uint32 along = e - static_cast<uint32>(y) * static_cast<uint32>(g.w * g.channels);
        x = static_cast<int>(along * source.channel_factor >> g.channel_shift);
        c = static_cast<int>(along) - x * g.channels;
        find_row();
    }
    __device__ __forceinline__ void find_row() {
        const int row = y + choice.top;
        const bool there = static_cast<uint32>(row) < static_cast<uint32>(g.height) || g.reflect;
        const bool cut = static_cast<uint32>(y) - static_cast<uint32>(choice.cut_y) < static_cast<uint32>(choice.cut);
        span = there && choice.sample >= 0 ? static_cast<uint32>(g.width) : 0;
        edge = cut ? static_cast<uint32>(choice.cut) : 0;
        line = mirrored(row, g.height) * g.row;
        from = (choice.flip ? g.w - 1 - x : x) + choice.left;
    }
    __device__ __forceinline__ void next() {
        const bool fresh = ++c == g.channels;
        c = fresh ? 0 : c;
        x += fresh ? 1 : 0;
        from += fresh ? (choice.flip ? -1 : 1) : 0;
        if (__builtin_expect(x == g.w, false)) {
            x = 0, y++;
            find_row();
        }
    }
    template <typename X> __device__ __forceinline__ float value(const X* source, const AugmentChannel* table) const {
        const bool cut = static_cast<uint32>(x) - static_cast<uint32>(choice.cut_x) < edge;
        const int pixel = mirrored(from, g.width);
        const bool inside = static_cast<uint32>(g.reflect ? pixel : from) < span && !cut;
        const int at = line + pixel * g.pixel + c * g.channel;
        const AugmentChannel channel = table[c];
        const float v = inside ? static_cast<float>(source[at]) : 0.0f;
        return inside ? rounded::add(rounded::multiply(v, channel.a), channel.b) : channel.fill;
    }
};

template <typename X, typename Y>
__global__ void __launch_bounds__(128)
augment_images(const X* images, const int64* indices, Y* out, uint64 seed, uint64 offset, const uint64* counter,
               float fill, float brightness, float contrast, const __grid_constant__ AugmentNumbers numbers,
               AugmentSource from, AugmentShape g) {
    constexpr int WIDTH = PACK<Y>;
    DYNAMIC_SHARED(AugmentChannel, table);
    __shared__ AugmentChoice shared_choice;
    const int64 image = blockIdx.x / static_cast<uint32>(g.pieces);
    const int piece = static_cast<int>(blockIdx.x - image * g.pieces);
    if (threadIdx.x == 0) {
        AugmentChoice choice = choose(g, image, Origin(seed, offset, counter), brightness, contrast);
        if (indices != nullptr) choice.sample = indices[image];
        if (choice.sample < 0 || choice.sample >= from.samples) choice.sample = -1;
        shared_choice = choice;
    }
    __syncthreads();
    const AugmentChoice choice = shared_choice;
    for (int c = threadIdx.x; c < g.channels; c += blockDim.x) {
        AugmentChannel channel;
        channel.a = numbers.factor[g.numbered ? c : 0];
        channel.b = numbers.term[g.numbered ? c : 0];
        if (g.random) {
            channel.a = rounded::multiply(channel.a, choice.contrast);
            channel.b = rounded::add(rounded::multiply(channel.b, choice.contrast), choice.brightness);
        }
        channel.fill = g.filled ? rounded::add(rounded::multiply(fill, channel.a), channel.b) : 0.0f;
        if (choice.sample < 0) channel.fill = __int_as_float(0x7fc00000);
        channel.unused = 0.0f;
        table[c] = channel;
    }
    __syncthreads();

    const int size = g.h * g.w * g.channels;
    const X* source = images + (choice.sample < 0 ? 0 : choice.sample * from.stride);
    Y* target = out + image * size;
    // Elements of the image before the first whole pack: they are the end of pack 0, which begins `lead` before them.
    const int lead = static_cast<int>(reinterpret_cast<uint64>(target) % 16 / sizeof(Y));
    const int64 packs = (static_cast<int64>(lead) + size + WIDTH - 1) / WIDTH;
#pragma unroll 1
    for (int turn = 0; turn < 4; turn++) {
        const int64 pack = (static_cast<int64>(piece) * 4 + turn) * blockDim.x + threadIdx.x;
        if (pack >= packs) return;
        const int64 begin = pack * WIDTH - lead;
        if (begin >= 0 && begin + WIDTH <= size) {
            AugmentWalk walk(g, from, choice, static_cast<uint32>(begin));
            Pack<Y, WIDTH> result;
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                if (k > 0) walk.next();
                result.item[k] = narrow<Y>(walk.value(source, table));
            }
            store_at_once(target + begin, result);
        } else {
            const int end = static_cast<int>(begin + WIDTH < size ? begin + WIDTH : size);
#pragma unroll 1
            for (int e = begin < 0 ? 0 : static_cast<int>(begin); e < end; e++) {
                const AugmentWalk walk(g, from, choice, static_cast<uint32>(e));
                target[e] = narrow<Y>(walk.value(source, table));
            }
        }
    }
}
