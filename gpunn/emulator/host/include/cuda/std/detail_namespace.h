// Names of libcu++ (cuda::std) are those of the host's standard library.
#pragma once

namespace cuda {
namespace std {
using namespace ::std;
}
}  // namespace cuda
