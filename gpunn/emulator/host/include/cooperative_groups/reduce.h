// cg::reduce over a tile or over coalesced threads; see ../cooperative_groups.h.
#pragma once

#include "../cooperative_groups.h"

namespace cooperative_groups {

template <class Type>
struct plus {
    Type operator()(Type a, Type b) const { return a + b; }
};
template <class Type>
struct less {  // the smaller
    Type operator()(Type a, Type b) const { return b < a ? b : a; }
};
template <class Type>
struct greater {  // the larger
    Type operator()(Type a, Type b) const { return a < b ? b : a; }
};
template <class Type>
struct bit_and {
    Type operator()(Type a, Type b) const { return a & b; }
};
template <class Type>
struct bit_or {
    Type operator()(Type a, Type b) const { return a | b; }
};
template <class Type>
struct bit_xor {
    Type operator()(Type a, Type b) const { return a ^ b; }
};

// A butterfly: every thread has the result.
template <unsigned SIZE_, class Parent, class Type, class Operation>
Type reduce(const thread_block_tile<SIZE_, Parent>& tile, Type value, Operation operation) {
    for (unsigned bits = SIZE_ / 2; bits; bits /= 2) value = operation(value, tile.shfl_xor(value, bits));
    return value;
}
// Any number of threads: in the order of their ranks.
template <class Type, class Operation>
Type reduce(const coalesced_group& group, Type value, Operation operation) {
    Type total = group.shfl(value, 0);
    for (unsigned rank = 1; rank < group.size(); rank++) total = operation(total, group.shfl(value, rank));
    return total;
}

}  // namespace cooperative_groups
