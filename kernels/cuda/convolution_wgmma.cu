// convolution_wgmma.cu - convolutions on the tensor cores of sm_90a (H100, H200): TMA's im2col and wgmma.
#include "convolution.cuh"
#include "matmul_wgmma_run.cuh"

// How tensor copies gather one operand. A map of kind im2col walks over the places at which a kernel can stand: a box
// of places in every image, row by row, image after image; what it copies at each is `offset` further on, zeros
// outside of the image. So a tile's rows are one copy, however many rows and images of the array it touches.
//
//   OUTPUT, WEIGHT   place i stands at s i - p of x,               tap k is d k further on
//   INPUT            place j stands at j + p - d (K - 1) of dy,    tap k is d (K - 1 - k) further on; strides of 1
template <Made MADE> struct Places {
    const Convolution& c;
    bool volume;    // the map has 5 dimensions, else 4: the first is one place with one tap
    int channels;   // lines of 64 channels of a tap

    __device__ __forceinline__ Places(const Convolution& c, bool volume)
        : c(c), volume(volume), channels(((MADE == INPUT ? c.outputs : c.channels) + 63) / 64) {}

    // Counts the places of all images from `number` on, 64 at a time.
    __device__ __forceinline__ Counter count(int number) const {
        const int* places = MADE == INPUT ? c.size : c.out;
        return Counter(number, 64, places[2], places[1], places[0]);
    }
    // Coordinates in the map of a counted place, innermost first. Beyond the last image are zeros.
    __device__ __forceinline__ void find(int (&at)[5], const Counter& place) const {
#pragma unroll
        for (int d = 0; d < 3; d++)
            at[3 - d] = MADE == INPUT ? place.digit[2 - d] + c.low[d] - c.dilation[d] * (c.kernel[d] - 1)
                                      : place.digit[2 - d] * c.stride[d] - c.low[d];
        at[4] = place.digit[3];
    }
};

// Line `line` of 64 channels of the products' taps: which tap, where it lies, and which channels. Tap after tap.
template <Made MADE> struct Line {
    int channel, tap, digit[3];

    __device__ __forceinline__ Line(const Places<MADE>& p, int line) {
        tap = line / p.channels;
        channel = (line - tap * p.channels) * 64;
        int rest = tap;
#pragma unroll
        for (int d = 2; d >= 0; d--) {
            const int next = rest / p.c.kernel[d];
            digit[d] = rest - next * p.c.kernel[d];
            rest = next;
        }
    }
    __device__ __forceinline__ void next(const Places<MADE>& p) {
        channel += 64;
        if (channel < p.channels * 64) return;
        channel = 0, tap++;
        if (++digit[2] < p.c.kernel[2]) return;
        digit[2] = 0;
        if (++digit[1] < p.c.kernel[1]) return;
        digit[1] = 0, digit[0]++;
    }
    // Copies these channels at the places from `at` on.
    __device__ __forceinline__ void load(unsigned char* target, const ptx::TensorMap* map, uint64* full,
                                         const Places<MADE>& p, const int (&at)[5]) const {
        uint16 offset[3];
#pragma unroll
        for (int d = 0; d < 3; d++) {
            const int taps = MADE == INPUT ? p.c.kernel[d] - 1 - digit[d] : digit[d];
            offset[2 - d] = static_cast<uint16>(taps * p.c.dilation[d]);
        }
        if (p.volume) {
            ptx::tensor_load_im2col<5>(target, map, full, {channel, at[1], at[2], at[3], at[4]}, offset);
        } else {
            ptx::tensor_load_im2col<4>(target, map, full, {channel, at[1], at[2], at[4]}, {offset[0], offset[1]});
        }
    }
};

// Keeps the ring full; see keep_loading of matmul_wgmma.cuh. By one thread.
template <typename S, Made MADE>
__device__ __forceinline__ void keep_gathering(unsigned char* ring, const Stages<S>& stages,
                                               const ptx::TensorMap* gathered, const ptx::TensorMap* other,
                                               const Work& work, const Places<MADE>& places, uint32 first, uint32 step,
                                               int rank) {
    Slot<S::STAGES> slot;
    const uint32 units = count_units<S>(work);
    int at[5];
    for (uint32 number = first; number < units; number += step) {
        const Unit unit = find_unit<S>(work, number, rank);
        Counter place = places.count(MADE == WEIGHT ? unit.first * S::BK : unit.m);
        places.find(at, place);
        const Line<MADE> top(places, MADE == WEIGHT ? unit.m / 64 : unit.first);
        Line<MADE> line = top;
        for (int block = 0; block < unit.count; block++, slot.next()) {
            unsigned char* stage = ring + slot.index * S::STAGE;
            uint64* full = &stages.full[slot.index];
            ptx::mbarrier_wait(&stages.empty[slot.index], slot.parity ^ 1);
            ptx::mbarrier_arrive_expect(full, S::STAGE);
            if constexpr (MADE == WEIGHT) {
                places.find(at, place);
                place.advance();
                line = top;
#pragma unroll 1  // few registers are the loader's
                for (int m = unit.m; m < unit.m + S::BM; m += 64, stage += S::BK * S::LINE) {
                    // Taps beyond the last: channels that no pixel has, which are zeros.
                    if (m >= work.M) line.channel = places.channels * 64;
                    line.load(stage, gathered, full, places, at);
                    if (m < work.M) line.next(places);
                }
                const int k = (unit.first + block) * S::BK;
                load_tile<S, S::BN, true, S::SHARE>(stage, other, full, unit.n, k, 0, 0, rank);
            } else {
                line.load(stage, gathered, full, places, at);
                load_tile<S, S::BN, S::ROWS_B, S::SHARE>(stage + S::TILE_A, other, full, unit.n, line.channel,
                                                         line.tap, 0, rank);
                line.next(places);
            }
        }
    }
}

// The result of one pass of a convolution with one group; finish: see matmul_epilogue.cuh, without a scale.
//
//   OUTPUT   M = places of y,       N = outputs,       K = taps and channels
//   INPUT    M = places of x,       N = channels,      K = taps and outputs; strides of 1
//   WEIGHT   M = taps and channels, N = outputs,       K = places of y; channels a multiple of 64; transposed
//
// Who does what, the ring, the clusters and the ways out: as in matmul_wgmma.cu, whose parts these are. Only the
// loading thread differs: A's tiles are copied by TMA's im2col, lines of 64 channels under one tap at BM places
// (WEIGHT: at the 64 places of a k block, in a box for each 64 of M). Each tap's channels are rounded up to whole
// lines, the rest being zeros in both operands.
// `other` is the weight (C innermost, then O, then taps; for INPUT read with contiguous columns, so that it need not
// be turned around), or for WEIGHT the rows of dy.
//
// Shared memory: the ring, (BM + BN) 128 bytes a stage; finished tiles; 16 STAGES bytes of barriers.
// The limit: as of products, 2048 multiply-adds a cycle and multiprocessor. Each place's channels are fetched
// once for each tap, out of the L2 cache but for the first time.
// Why so: only wgmma reaches the full speed of these tensor cores, and gathering by threads takes their registers
// and an address for each 16 bytes. Here a thread computes one address for a tile of 8 to 32 KB.
// Assumes: sm_90a; 16-bit T; one group; places of one array < 2^31; the maps of gpunn/primitives/convolution_wgmma.py.
template <typename T, int BM, int BN, int CONSUMERS, bool PINGPONG, int STAGES, int CLUSTER, Made MADE, Ending ENDING>
__global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(WARPGROUP * (1 + CONSUMERS), 1)
convolution_wgmma(const __grid_constant__ ptx::TensorMap gathered, const __grid_constant__ ptx::TensorMap other,
                  const __grid_constant__ ptx::TensorMap map_out, const __grid_constant__ Convolution c, bool volume,
                  int M, int N, int K, int part, int parts, float* partial, const T* bias, const T* residual, T* out,
                  T* preactivation, int activation, float alpha, bool vector) {
    typedef Shape<T, T, 1, BM, BN, CONSUMERS, PINGPONG, STAGES, CLUSTER, false, MADE == WEIGHT, MADE == WEIGHT,
                  MADE != OUTPUT, ENDING> S;
    static_assert(CONSUMERS == 2, "the registers are shared out for three warpgroups");
    static_assert(ENDING == DIRECT || ENDING == FORWARD, "no sums beside the result");
    extern __shared__ __align__(1024) unsigned char ring[];
    const Stages<S> stages(ring);
    const Work work = {M, N, K, 1, 1, 0, 0, 0, 0, part, parts};
    const int rank = CLUSTER > 1 ? ptx::cluster_rank() : 0;
    const uint32 first = blockIdx.x / CLUSTER, step = gridDim.x / CLUSTER;
    open_ring<S, T>(ring, stages);
    // The loaders that count more, or copy more boxes, have more registers.
    constexpr int LOADER = MADE == OUTPUT ? 40 : 72, MULTIPLIER = MADE == OUTPUT ? 232 : 216;
    if (threadIdx.x < WARPGROUP) {
        ptx::registers_lower<LOADER>();
        if (threadIdx.x == 0) {
            ptx::prefetch_tensor_map(&gathered);
            ptx::prefetch_tensor_map(&other);
            keep_gathering<S, MADE>(ring, stages, &gathered, &other, work, Places<MADE>(c, volume), first, step, rank);
        }
        __syncwarp();
    } else {
        ptx::registers_raise<MULTIPLIER>();
        const Epilogue<T, false> epilogue = {bias, nullptr, residual, out, preactivation, activation, alpha, 1.0f};
        multiply_units<S, 1, T>(ring, stages, work, first, step, rank, &map_out, epilogue, partial, nullptr, vector,
                                nullptr);
    }
    // Nobody leaves while another block of the cluster may still write or read here.
    if (CLUSTER > 1) ptx::cluster_meet();
}
