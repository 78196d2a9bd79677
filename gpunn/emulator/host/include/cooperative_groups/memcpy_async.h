// cg::memcpy_async, wait and wait_prior; see ../cooperative_groups.h. The threads of the group share the copy: in
// pieces of 16, 8 or 4 bytes by cp.async where alignment and address spaces allow it, else by plain loads and
// stores.
#pragma once

#include "../cooperative_groups.h"

namespace cooperative_groups {

namespace details {

template <class Piece, class Group>
EMU_INLINE void copy_pieces(const Group& group, char* to, const char* from, size_t bytes) {
    const bool asynchronous = sizeof(Piece) >= 4 && emu_is_shared(to) && !emu_is_shared(from);
    for (size_t at = group.thread_rank() * sizeof(Piece); at < bytes; at += group.size() * sizeof(Piece)) {
        if (asynchronous)
            emu_copy_async(to + at, from + at, sizeof(Piece), sizeof(Piece));
        else
            *(Piece*)(to + at) = *(const Piece*)(from + at);
    }
}

template <class Group>
EMU_INLINE void copy(const Group& group, void* to, const void* from, size_t bytes) {
    const size_t ends = (size_t)to | (size_t)from | bytes;
    if (ends % 16 == 0)
        copy_pieces<uint4>(group, (char*)to, (const char*)from, bytes);
    else if (ends % 8 == 0)
        copy_pieces<uint2>(group, (char*)to, (const char*)from, bytes);
    else if (ends % 4 == 0)
        copy_pieces<unsigned>(group, (char*)to, (const char*)from, bytes);
    else
        copy_pieces<char>(group, (char*)to, (const char*)from, bytes);
    emu_copy_async_commit();
}

}  // namespace details

// `bytes` may be a number or a cuda::aligned_size_t.
template <class Group, class Type, class Source>
void memcpy_async(const Group& group, Type* to, const Source* from, size_t bytes) {
    details::copy(group, to, from, bytes);
}
// The numbers of elements that the destination has room for and the source has.
template <class Group, class Type>
void memcpy_async(const Group& group, Type* to, size_t room, const Type* from, size_t count) {
    details::copy(group, to, from, (count < room ? count : room) * sizeof(Type));
}
template <class Group>
void wait(const Group& group) {
    emu_copy_async_wait(0);
    group.sync();
}
template <unsigned STAGES_, class Group>
void wait_prior(const Group& group) {
    emu_copy_async_wait(STAGES_);
    group.sync();
}

}  // namespace cooperative_groups
