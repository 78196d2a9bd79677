// tensor_map.cu - conformance kernels of ptx_tensor_map.cuh. Boxes are shown byte for byte as they lie in
// shared memory, so that swizzles show.
#include "ptx.cuh"

// Block b loads the box at at[b] and writes its bytes to out[b]. 128 threads.
template <int RANK>
__global__ void load_boxes(const __grid_constant__ ptx::TensorMap map, const int* at, int bytes,
                           unsigned char* out) {
    extern __shared__ __align__(1024) unsigned char box[];
    __shared__ uint64 barrier;
    if (threadIdx.x == 0) {
        ptx::prefetch_tensor_map(&map);
        ptx::mbarrier_init(&barrier, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect(&barrier, bytes);
        int place[RANK];
        for (int i = 0; i < RANK; i++) place[i] = at[blockIdx.x * RANK + i];
        ptx::tensor_load<RANK>(box, &map, &barrier, place);
    }
    __syncthreads();
    ptx::mbarrier_wait(&barrier, 0);
    for (int i = threadIdx.x; i < bytes; i += 128) out[blockIdx.x * bytes + i] = box[i];
}

// Block b loads the column of pixels from at[b] on, with offset[b].
template <int RANK>
__global__ void load_columns(const __grid_constant__ ptx::TensorMap map, const int* at, const uint16* offset,
                             int bytes, unsigned char* out) {
    extern __shared__ __align__(1024) unsigned char box[];
    __shared__ uint64 barrier;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(&barrier, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect(&barrier, bytes);
        int place[RANK];
        uint16 filter[RANK - 2];
        for (int i = 0; i < RANK; i++) place[i] = at[blockIdx.x * RANK + i];
        for (int i = 0; i < RANK - 2; i++) filter[i] = offset[blockIdx.x * (RANK - 2) + i];
        ptx::tensor_load_im2col<RANK>(box, &map, &barrier, place, filter);
    }
    __syncthreads();
    ptx::mbarrier_wait(&barrier, 0);
    for (int i = threadIdx.x; i < bytes; i += 128) out[blockIdx.x * bytes + i] = box[i];
}

// A cluster of 2: block r loads the box at at[r] for both, one behind the other in shared memory.
template <int RANK>
__global__ void __cluster_dims__(2, 1, 1)
    multicast_boxes(const __grid_constant__ ptx::TensorMap map, const int* at, int bytes, unsigned char* out) {
    extern __shared__ __align__(1024) unsigned char box[];
    __shared__ uint64 barrier;
    const int rank = ptx::cluster_rank();
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(&barrier, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect(&barrier, 2 * bytes);
    }
    ptx::cluster_sync();
    if (threadIdx.x == 0) {
        int place[RANK];
        for (int i = 0; i < RANK; i++) place[i] = at[rank * RANK + i];
        ptx::tensor_load_multicast<RANK>(box + rank * bytes, &map, &barrier, place, 3);
    }
    ptx::mbarrier_wait(&barrier, 0);
    for (int i = threadIdx.x; i < 2 * bytes; i += 128) out[rank * 2 * bytes + i] = box[i];
    ptx::cluster_sync();
}

// Block b stores source[b], bytes as they lie in shared memory, to the box at at[b], or adds them.
template <int RANK, bool ADD>
__global__ void store_boxes(const __grid_constant__ ptx::TensorMap map, const int* at, int bytes,
                            const unsigned char* source) {
    extern __shared__ __align__(1024) unsigned char box[];
    for (int i = threadIdx.x; i < bytes; i += 128) box[i] = source[blockIdx.x * bytes + i];
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        int place[RANK];
        for (int i = 0; i < RANK; i++) place[i] = at[blockIdx.x * RANK + i];
        if (ADD) ptx::tensor_add<RANK>(&map, box, place);
        else ptx::tensor_store<RANK>(&map, box, place);
        ptx::bulk_commit();
        ptx::bulk_wait<0>();
    }
}
