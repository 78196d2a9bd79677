// memory.h - the kernel's view of arrays: copies that end at a page which cannot be touched.
#pragma once
#include <sys/mman.h>
#include <algorithm>
#include <cstring>
#include "state.h"

constexpr size_t MARGIN = 16;

// Areas of whole pages, kept for the next launch; between two guard pages if asked for.
class PagePool {
    std::multimap<size_t, char*> free_;
    size_t kept_ = 0;
    const bool guarded_;

public:
    explicit PagePool(bool guarded) : guarded_(guarded) {}
    static size_t pages(size_t bytes) { return std::max<size_t>(1, (bytes + PAGE - 1) / PAGE); }
    char* take(size_t bytes) {
        const size_t n = pages(bytes);
        auto found = free_.find(n);
        if (found != free_.end()) {
            char* area = found->second;
            free_.erase(found);
            kept_ -= n;
            return area;
        }
        const size_t guard = guarded_ ? PAGE : 0;
        void* map = mmap(nullptr, n * PAGE + 2 * guard, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED) return nullptr;
        char* area = static_cast<char*>(map) + guard;
        if (guarded_) {
            mprotect(map, PAGE, PROT_NONE);
            mprotect(area + n * PAGE, PAGE, PROT_NONE);
        } else {
            madvise(map, n * PAGE, MADV_HUGEPAGE);
        }
        return area;
    }
    void give(char* area, size_t bytes) {
        const size_t n = pages(bytes);
        if (kept_ + n > (256u << 20) / PAGE) {  // more than 256 MiB is given back
            unmap(area, n);
            return;
        }
        kept_ += n;
        free_.insert({n, area});
    }
    void clear() {
        for (auto& entry : free_) unmap(entry.second, entry.first);
        free_.clear();
        kept_ = 0;
    }

private:
    void unmap(char* area, size_t n) {
        const size_t guard = guarded_ ? PAGE : 0;
        munmap(area - guard, n * PAGE + 2 * guard);
    }
};

static PagePool& array_pool() {
    static PagePool* pool = new PagePool(true);
    return *pool;
}
static PagePool& shadow_pool() {
    static PagePool* pool = new PagePool(false);
    return *pool;
}

// Where a copy of `bytes` that starts as the host's does modulo 16 lies in its area: as near the end as can be.
static char* place_in(char* area, u64 bytes, u64 host) {
    const size_t body = PagePool::pages(bytes + MARGIN) * PAGE;
    u64 start = reinterpret_cast<u64>(area) + body - bytes;
    start -= (start - host) & 15;
    return reinterpret_cast<char*>(start);
}
static char* area_of(const ArrayArgument& a) {
    return reinterpret_cast<char*>((a.device + a.bytes + PAGE - 1) / PAGE * PAGE) -
           PagePool::pages(a.bytes + MARGIN) * PAGE;
}

// The bytes around a copy that no guard page protects; a kernel that is right leaves them as they are.
static std::pair<char*, size_t> gap_before(const ArrayArgument& a) {
    char* start = reinterpret_cast<char*>(a.device);
    const size_t room = std::min<size_t>(256, start - area_of(a));
    return {start - room, room};
}
static std::pair<char*, size_t> gap_behind(const ArrayArgument& a) {
    char* end = reinterpret_cast<char*>(a.device + a.bytes);
    return {end, area_of(a) + PagePool::pages(a.bytes + MARGIN) * PAGE - end};
}
static void copy_in(const ArrayArgument& a) {
    memcpy(reinterpret_cast<void*>(a.device), reinterpret_cast<void*>(a.host), a.bytes);
    memset(gap_before(a).first, 0xFF, gap_before(a).second);
    memset(gap_behind(a).first, 0xFF, gap_behind(a).second);
}
static bool untouched(std::pair<char*, size_t> gap) {
    for (size_t i = 0; i < gap.second; i++)
        if (static_cast<u8>(gap.first[i]) != 0xFF) return false;
    return true;
}

extern "C" {
// Gives each array an address for the kernel; 0 if there is no memory.
int emu_map(ArrayArgument* arrays, int count) {
    for (int i = 0; i < count; i++) {
        ArrayArgument& a = arrays[i];
        char* area = array_pool().take(a.bytes + MARGIN);
        if (!area) {
            while (i--) array_pool().give(area_of(arrays[i]), arrays[i].bytes + MARGIN);
            return 0;
        }
        a.device = reinterpret_cast<u64>(place_in(area, a.bytes, a.host));
    }
    return 1;
}
void emu_unmap(ArrayArgument* arrays, int count) {
    for (int i = 0; i < count; i++) array_pool().give(area_of(arrays[i]), arrays[i].bytes + MARGIN);
}
}
