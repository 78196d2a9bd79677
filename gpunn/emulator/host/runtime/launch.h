// launch.h - a launch from beginning to end: threads of the operating system, the watchdog, what is reported.
#pragma once
#include <dlfcn.h>
#include <link.h>
#include <chrono>
#include <functional>
#include <thread>
#include "block.h"
#include "memory.h"

// ---- threads of the operating system ------------------------------------------------------------------------------

class Pool {
    std::mutex mutex_;
    std::condition_variable work_, done_;
    std::vector<Block*> blocks_;
    std::function<void(Block*, int)> task_;
    u64 round_ = 0;
    int wanted_ = 0, remaining_ = 0;

    void serve(int number, u64 seen) {
        Block* b = new Block();
        own_block = b;
        b->thread = pthread_self();
        stack_t own_stack{};  // signal handlers must not run on a full stack
        own_stack.ss_size = 1 << 16;
        own_stack.ss_sp = malloc(own_stack.ss_size);
        sigaltstack(&own_stack, nullptr);
        std::unique_lock<std::mutex> lock(mutex_);
        blocks_[number] = b;
        for (;;) {
            work_.wait(lock, [&] { return round_ != seen && number < wanted_; });
            seen = round_;
            lock.unlock();
            task_(b, number);
            lock.lock();
            if (--remaining_ == 0) done_.notify_one();
        }
    }

public:
    // Runs task(block, 0 … count-1) on as many threads. `watch` is called every millisecond meanwhile, and ten times as
    // often while it says that some thread spins.
    void run(int count, std::function<void(Block*, int)> task, const std::function<bool(const std::vector<Block*>&)>& watch) {
        std::unique_lock<std::mutex> lock(mutex_);
        while (static_cast<int>(blocks_.size()) < count) {
            const int number = static_cast<int>(blocks_.size());
            blocks_.push_back(nullptr);
            std::thread(&Pool::serve, this, number, round_).detach();
        }
        task_ = std::move(task);
        wanted_ = remaining_ = count;
        round_++;
        work_.notify_all();
        bool hurry = false;
        while (!done_.wait_for(lock, std::chrono::microseconds(hurry ? 100 : 1000), [&] { return remaining_ == 0; }))
            hurry = watch(blocks_);
    }
};

static Pool*& pool() {
    static Pool* made = nullptr;
    if (!made) {
        made = new Pool();
        pthread_atfork(nullptr, nullptr, [] { pool() = new Pool(); });  // threads do not survive a fork
    }
    return made;
}

// ---- the launch ----------------------------------------------------------------------------------------------------------

struct TlsIndex {
    size_t module, offset;
};
extern "C" void* __tls_get_addr(TlsIndex*);

// Finds the shared object of a kernel: its code, its data, and its thread-local storage.
static int find_image(dl_phdr_info* info, size_t, void* pointer) {
    auto* launch = static_cast<Launch*>(pointer);
    const u64 kernel = reinterpret_cast<u64>(launch->kernel);
    bool inside = false;
    u64 low = ~0ull, high = 0, tls = 0, data = 0, data_end = 0, relro_end = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& h = info->dlpi_phdr[i];
        const u64 start = info->dlpi_addr + h.p_vaddr, end = start + h.p_memsz;
        if (h.p_type == PT_LOAD) {
            low = std::min(low, start);
            high = std::max(high, end);
            if (kernel >= start && kernel < end) inside = true;
            if (h.p_flags & PF_W) data = start, data_end = end;
        }
        if (h.p_type == PT_GNU_RELRO) relro_end = (end + PAGE - 1) / PAGE * PAGE;
        if (h.p_type == PT_TLS) tls = h.p_memsz;
    }
    if (!inside) return 0;
    launch->image_start = info->dlpi_addr;
    launch->image_end = high;
    launch->tls_module = info->dlpi_tls_modid;
    launch->tls_size = tls;
    data = std::max(data, relro_end);
    if (data < data_end) launch->memory.push_back({data, data_end - data, 2, false, nullptr, 2});  // __device__ variables
    return 1;
}

constexpr int MOST_GUARDS = 4096;

static void prepare(Block* b, Launch* launch, Gang* gang, int rank) {
    b->launch = launch;
    b->gang = gang;
    b->rank = rank;
    b->threads = launch->block_size.x * launch->block_size.y * launch->block_size.z;
    b->warps = (b->threads + WARP - 1) / WARP;
    b->switches = b->hooks = 0;
    if (b->fiber_capacity < b->warps * WARP) {
        delete[] b->fibers;
        b->fiber_capacity = b->warps * WARP;
        b->fibers = new Fiber[b->fiber_capacity]();
    }
    const size_t stack_size = launch->options.stack + PAGE;
    // A guard page splits a mapping in two, and the system allows some 65,000 mappings: where very many threads exist
    // at once (a cooperative grid), a block has one guard and not one for each thread.
    const bool guard_each = gang->size * b->threads <= MOST_GUARDS;
    if (b->stack_count < static_cast<size_t>(b->threads) || b->stack_size != stack_size || b->guard_each != guard_each) {
        if (b->stacks) munmap(b->stacks, b->stack_size * b->stack_count);
        b->stack_size = stack_size;
        b->stack_count = b->threads;
        b->stacks = static_cast<char*>(mmap(nullptr, stack_size * b->threads, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        b->guard_each = guard_each;
        for (int t = 0; t < b->threads; t += guard_each ? 1 : b->threads)
            mprotect(b->stacks + t * stack_size, PAGE, PROT_NONE);
    }
    TlsIndex index{launch->tls_module, 0};
    char* tls = static_cast<char*>(__tls_get_addr(&index));
    b->shared = tls;
    b->shared_size = launch->tls_size;
    b->dynamic = tls + launch->dynamic_offset;
    if (launch->options.check) {
        const size_t needed = (b->shared_size >> launch->shared_granule) + 1;
        if (b->cells.size() < needed) b->cells.resize(needed);
    }
}

static void work(Launch* launch, Gang* gang, Block* b, int rank) {
    prepare(b, launch, gang, rank);
    gang->blocks[rank] = b;
    const auto begin = [&](u64 number) {
        const u64 chosen = launch->order.empty() ? number : launch->order[number];
        gang->tag = launch->first_tag + static_cast<u32>(chosen);
        gang->clock = 1;
        gang->phase = 0;
        gang->arrived = 0;
        gang->arriving.clear();
        gang->complete.clear();
        gang->turn = 0;
        gang->over = false;
        gang->arrived_phase.clear();
        gang->first_block = chosen * launch->gang_size;
    };
    if (gang->size == 1) {
        for (;;) {
            const u64 number = launch->next++;
            if (number >= launch->gangs || launch->abort) break;
            begin(number);
            run_block(b, gang->first_block);
        }
    } else {
        for (;;) {
            {
                std::unique_lock<std::mutex> lock(gang->mutex);
                if (++gang->ready == gang->size) {
                    gang->ready = 0;
                    const u64 number = launch->next++;
                    // Decided once for all blocks of the gang, or some would wait for others that have left.
                    gang->stop = number >= launch->gangs || launch->abort || gang->dead;
                    if (!gang->stop) begin(number);
                    gang->generation++;
                    gang->changed.notify_all();
                } else {
                    const int before = gang->generation;
                    gang->changed.wait(lock, [&] { return gang->generation != before; });
                }
                if (gang->stop) break;
            }
            run_block(b, gang->first_block + rank);
        }
    }
    launch->switches += b->switches;
    launch->hooks += b->hooks;
}

// Taps those on the shoulder that have not changed threads since the last look; true if there are such.
static bool watch(Launch* launch, const std::vector<Block*>& blocks, std::chrono::steady_clock::time_point start) {
    bool standing = false;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (seconds > launch->options.timeout) launch->timed_out = launch->abort = true;
    for (Block* b : blocks) {
        if (!b || !b->running) continue;
        const bool stands = b->switches == b->seen_switches && b->hooks == b->seen_hooks;
        b->seen_switches = b->switches;
        b->seen_hooks = b->hooks;
        if (stands || launch->timed_out) pthread_kill(b->thread, WATCHDOG_SIGNAL);
        standing |= stands;
    }
    return standing;
}

static void run_once(Launch& launch, ArrayArgument* arrays, int count) {
    for (int i = 0; i < count; i++) copy_in(arrays[i]);
    launch.next = 0;
    launch.abort = launch.refine = launch.timed_out = false;
    launch.reports.clear();
    launch.reported.clear();
    launch.released.clear();
    launch.released_in_block.clear();
    const int size = launch.gang_size;
    const int side_by_side = static_cast<int>(std::min<u64>(std::max(1, launch.options.threads), launch.gangs));
    std::deque<Gang> gangs(side_by_side);
    for (Gang& g : gangs) {
        g.launch = &launch;
        g.size = size;
        g.blocks.assign(size, nullptr);
    }
    const auto start = std::chrono::steady_clock::now();
    pool()->run(
        side_by_side * size, [&](Block* b, int n) { work(&launch, &gangs[n / size], b, n % size); },
        [&](const std::vector<Block*>& blocks) { return watch(&launch, blocks, start); });
}

static std::string as_text(const Launch& launch) {
    std::string out;
    char line[400];
    for (const Report& r : launch.reports) {
        snprintf(line, sizeof line, "%d\t%llu\t%llu\t%u\t%u\t%u\t%u\t%u\t%u\t%d\t%llu\t%llu\t%d\t%llu\t%d\t%d\t", r.fault,
                 static_cast<unsigned long long>(r.place), static_cast<unsigned long long>(r.other_place), r.block.x,
                 r.block.y, r.block.z, r.thread.x, r.thread.y, r.thread.z, r.memory_kind,
                 static_cast<unsigned long long>(r.address), static_cast<unsigned long long>(r.base), r.memory_rank,
                 static_cast<unsigned long long>(r.other_gang), r.other_thread, r.other_rank);
        out += line + r.text + "\n";
    }
    return out;
}

static u32 next_tag = 1;
static std::mutex launch_mutex;

extern "C" {
// Runs a kernel. Returns the number of findings, whose text (a line each) goes to `out`.
int emu_launch(void (*kernel)(void**), void** arguments, size_t (*dynamic_offset)(), Options* options,
               ArrayArgument* arrays, int count, char* out, int out_size, u64* statistics) {
    std::lock_guard<std::mutex> one_at_a_time(launch_mutex);
    Launch launch{};
    launch.kernel = kernel;
    launch.arguments = arguments;
    launch.options = *options;
    launch.grid = {options->grid[0], options->grid[1], options->grid[2]};
    launch.block_size = {options->block[0], options->block[1], options->block[2]};
    launch.shared_granule = launch.shared_finer = options->shared_granule;
    for (int i = 0; i < count; i++)
        launch.memory.push_back({arrays[i].device, arrays[i].bytes, arrays[i].granule, arrays[i].read_only != 0, nullptr,
                                 arrays[i].granule});
    dl_iterate_phdr(find_image, &launch);
    TlsIndex index{launch.tls_module, 0};
    launch.dynamic_offset = dynamic_offset() - reinterpret_cast<size_t>(__tls_get_addr(&index));
    const u64 blocks = static_cast<u64>(options->grid[0]) * options->grid[1] * options->grid[2];
    launch.gang_size = options->cooperative ? static_cast<int>(blocks) : options->cluster;
    launch.gangs = blocks / launch.gang_size;
    if (options->schedule != IN_ORDER && launch.gangs <= 1u << 24) {
        launch.order.resize(launch.gangs);
        for (u64 i = 0; i < launch.gangs; i++) launch.order[i] = static_cast<u32>(i);
        if (options->schedule == REVERSE) std::reverse(launch.order.begin(), launch.order.end());
        u64 state = options->seed * 77 + 5;
        for (u64 i = launch.gangs; options->schedule == RANDOM && i > 1; i--) {
            state = state * 6364136223846793005ull + 1442695040888963407ull;
            std::swap(launch.order[i - 1], launch.order[(state >> 33) % i]);
        }
    }

    struct sigaction action{};
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    action.sa_sigaction = on_fault;
    for (int s : FAULT_SIGNALS) sigaction(s, &action, &previous_action[s]);
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
    action.sa_sigaction = on_watchdog;
    sigaction(WATCHDOG_SIGNAL, &action, &previous_action[WATCHDOG_SIGNAL]);

    const Memory variables = launch.memory.size() > static_cast<size_t>(count) ? launch.memory.back() : Memory{};
    std::vector<char> variables_before(reinterpret_cast<char*>(variables.base),
                                       reinterpret_cast<char*>(variables.base + variables.size));
    for (;;) {
        if (static_cast<u64>(next_tag) + launch.gangs > 0xffffffffull) {  // old cells must not look like new ones
            shadow_pool().clear();
            next_tag = 1;
        }
        launch.first_tag = next_tag;
        next_tag += static_cast<u32>(launch.gangs);
        if (options->check)
            for (Memory& m : launch.memory)
                m.cells = reinterpret_cast<Cell*>(shadow_pool().take(((m.size >> m.granule) + 1) * sizeof(Cell)));
        std::vector<size_t> sizes;
        for (Memory& m : launch.memory) sizes.push_back(((m.size >> m.granule) + 1) * sizeof(Cell));
        run_once(launch, arrays, count);
        if (options->check)
            for (size_t i = 0; i < sizes.size(); i++)
                shadow_pool().give(reinterpret_cast<char*>(launch.memory[i].cells), sizes[i]);
        if (!launch.refine) break;
        for (Memory& m : launch.memory) m.granule = m.finer;
        launch.shared_granule = launch.shared_finer;
        memcpy(reinterpret_cast<void*>(variables.base), variables_before.data(), variables_before.size());
    }

    for (int s : FAULT_SIGNALS) sigaction(s, &previous_action[s], nullptr);
    sigaction(WATCHDOG_SIGNAL, &previous_action[WATCHDOG_SIGNAL], nullptr);
    fflush(stdout);
    options->shared_granule = launch.shared_granule;
    for (int i = 0; i < count; i++) {
        arrays[i].granule = launch.memory[i].granule;
        for (bool behind : {false, true}) {
            if (launch.reports.size() || untouched(behind ? gap_behind(arrays[i]) : gap_before(arrays[i]))) continue;
            Report r{};
            r.fault = OUT_OF_BOUNDS;
            r.memory_kind = 1;
            r.address = arrays[i].device + (behind ? arrays[i].bytes : -1);
            r.base = arrays[i].device;
            r.memory_rank = -1;
            r.other_thread = -1;
            r.text = behind ? "something wrote behind its end; check=True tells where"
                            : "something wrote before its start; check=True tells where";
            launch.reports.push_back(r);
        }
        if (!arrays[i].read_only)
            memcpy(reinterpret_cast<void*>(arrays[i].host), reinterpret_cast<void*>(arrays[i].device), arrays[i].bytes);
    }
    const std::string text = as_text(launch);
    snprintf(out, out_size, "%s", text.c_str());
    statistics[0] = launch.switches;
    statistics[1] = launch.hooks;
    return static_cast<int>(launch.reports.size());
}
}
