// Stands in for NVIDIA's <cuda_pipeline_primitives.h>: asynchronous copies from global to shared memory.
#pragma once

// `zero_fill` bytes at the end are not read but set to 0.
EMU_INLINE void __pipeline_memcpy_async(void* shared, const void* global, size_t bytes, size_t zero_fill = 0) {
    emu_copy_async(shared, global, (int)bytes, (int)(bytes - zero_fill));
}
EMU_INLINE void __pipeline_commit() { emu_copy_async_commit(); }
EMU_INLINE void __pipeline_wait_prior(size_t groups) { emu_copy_async_wait((int)groups); }
