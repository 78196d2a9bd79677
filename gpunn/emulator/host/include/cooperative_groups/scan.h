// cg::inclusive_scan and cg::exclusive_scan over a tile or over coalesced threads; see ../cooperative_groups.h.
#pragma once

#include "reduce.h"

namespace cooperative_groups {

template <class Group, class Type, class Operation>
Type inclusive_scan(const Group& group, Type value, Operation operation) {
    for (unsigned step = 1; step < group.size(); step *= 2) {
        const Type before = group.shfl_up(value, step);
        if (group.thread_rank() >= step) value = operation(before, value);
    }
    return value;
}
template <class Group, class Type>
Type inclusive_scan(const Group& group, Type value) {
    return inclusive_scan(group, value, plus<Type>());
}
// The first thread's result is Type() - for operations other than a sum it is not defined.
template <class Group, class Type, class Operation>
Type exclusive_scan(const Group& group, Type value, Operation operation) {
    const Type before = group.shfl_up(inclusive_scan(group, value, operation), 1);
    return group.thread_rank() ? before : Type();
}
template <class Group, class Type>
Type exclusive_scan(const Group& group, Type value) {
    return exclusive_scan(group, value, plus<Type>());
}

}  // namespace cooperative_groups
