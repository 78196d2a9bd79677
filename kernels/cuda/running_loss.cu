// running_loss.cu - the loss of a step, taken into a running mean that stays on the device.
//
//   add_loss   state = [total, count, steps, bad step, bad value], all double
//
// One thread: it is the end of a step, and what follows from it is read every few dozen steps. It saves the host
// from waiting for the loss of each step, and a captured graph from ending there. 84 bytes: the launch is the limit.
#include "common.cuh"

struct RunningLoss {
    double total, count, steps;
    double bad_step, bad_value;  // of the first loss that was not finite; 0 while there is none
};

template <typename T> __global__ void add_loss(RunningLoss* state, const T* loss, double weight, double count) {
    if (global_thread() != 0) return;
    const double value = static_cast<double>(widen(*loss));
    state->steps += 1;
    if (state->bad_step != 0) return;
    if (!isfinite(value)) {
        state->bad_step = state->steps;
        state->bad_value = value;
        return;
    }
    state->total += weight * value;
    state->count += count;
}
