// state.h - what the runtime knows: a launch, its gangs of blocks, their threads, and what they wait for.
//
// A *gang* is a set of blocks that must exist at the same time: one block, the blocks of a cluster, or
// the whole grid of a cooperative launch. Each block of a gang runs on its own thread of the operating
// system (its shared memory is that thread's thread-local storage); within a gang one of them runs at
// a time, so all that belongs to a gang needs no lock. Gangs run side by side.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <string.h>
#include <stdint.h>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>
#include "../interface.h"
#include "tensor_core.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
using emu::Index3;

constexpr int WARP = 32;
constexpr int WARPGROUP = 128;
constexpr int MAX_DYNAMIC_SHARED = 232448;
constexpr size_t PAGE = 4096;

enum Schedule { IN_ORDER, RANDOM, REVERSE };

// The kinds of finding; gpunn/emulator/findings.py has an exception for each, in the same order.
enum Fault {
    RACE,
    OUT_OF_BOUNDS,
    MISALIGNED,
    UNINITIALIZED,
    MISSING_WAIT,
    MISSING_FENCE,
    DEADLOCK,
    DIVERGENCE,
    BARRIER,
    CONST_WRITE,
    STACK_OVERFLOW,
    TRAP,
    LIFETIME,
    DIVERGENCE_IF_LINES_DIFFER,  // to be dropped if the two places are the same line
    FAULTS
};

// ---- clocks: who knows of whose accesses -----------------------------------------------------------

// A gang counts the synchronisations of its threads; an access bears its thread's clock. Thread A knows
// of an access of thread B if a chain of barriers, fences and waits leads from it to A.
// By thread of the gang, then by agent: each block has engines for loads and stores, and its warpgroups' tensor cores.
typedef std::vector<u32> Clocks;
constexpr int AGENTS = 10;

// What a thread of some gang knew when it released: passed on to other gangs through atomics.
struct Snapshot {
    u32 gang, thread, clock;
    std::vector<u32> barriers;  // Block::known of the thread's block
    Clocks clocks;              // Fiber::clocks
    std::vector<u32> agents;    // Block::agents_known
};
// By (gang, thread): the latest snapshot of each. Shared between threads, never changed once made.
typedef std::map<std::pair<u32, u32>, std::shared_ptr<const Snapshot>> Knowledge;
typedef std::shared_ptr<const Knowledge> KnowledgeRef;

// ---- shadow memory -----------------------------------------------------------------------------------

struct Access {
    u32 gang;  // 0 never
    u32 clock;
    u32 thread;
    u32 place;  // in the code, relative to its start
};
enum CellFlag : u32 {
    ATOMIC = 1,
    VOLATILE = 16,
    BY_COPY = 2,      // written through the asynchronous proxy
    IN_FLIGHT = 4,    // an asynchronous copy will write it
    BEING_READ = 8,   // an asynchronous copy will read it
    VOLATILE_READER = 32,  // of read[0]; the next bit is of read[1]
    PLAIN_KEPT = 128,      // read[1] is the last plain write, which atomics came after
};
struct Cell {  // of 1, 2, 4, 8 or 16 bytes of memory
    Access write;
    Access read[2];
    u32 flags;
    u32 reader_place;  // of the copy that will read
};

// Memory that arguments point to: arguments that overlap share one.
struct Memory {
    u64 base, size;
    int granule;  // log2 of the bytes of a cell
    bool read_only;
    Cell* cells;
    int finer;    // what it must be in the next run, if this one met a smaller access
};

// ---- threads of a block --------------------------------------------------------------------------------

struct CopyAsync {
    void* target;
    const void* source;
    int bytes, source_bytes;
    void* place;
};
struct WgmmaStep {
    float* d;
    const u32* a_registers;
    int n, kind;
    u64 a, b;
    bool accumulate, transpose_a, transpose_b;
    void* place;
    u32 clock;  // of the tensor cores' reads, with the thread that checked them
    tensor::WgmmaOp op() const {
        return {n, kind, a, b, a_registers != nullptr, accumulate, transpose_a, transpose_b};
    }
};
struct BulkStore {
    const void* map;  // of a tensor store, else null
    u8 map_copy[128];
    void* global;
    const void* shared;
    int bytes, dimensions, at[5], reduce;
    bool read_done;
    u32 clock;
    void* place;
};

enum FiberState { READY, BLOCKED, DONE };

struct Block;
struct Fiber : emu::Context {
    void* stack_pointer;
    char* stack;
    FiberState state;
    Block* home;
    u32 id;     // in the gang
    u32 clock;
    Clocks clocks;           // empty: knows what the barriers of its block say, no more
    KnowledgeRef foreign;    // of other gangs
    KnowledgeRef last_acquired;
    u32 fence_clock;         // its clock at its last __threadfence
    bool fenced;
    u32 block_fence_clock;   // the same of __threadfence_block
    bool block_fenced;
    u32 proxy_fence_clock;   // at its last fence.proxy.async
    std::vector<u32> proxy_known;  // Block::known at that fence
    Clocks proxy_clocks;
    void* argument;          // to a collective
    const char* waiting_for;
    void* waiting_place;
    std::vector<CopyAsync> copies;               // not yet committed
    std::deque<std::vector<CopyAsync>> copy_groups;
    std::vector<WgmmaStep> steps;
    std::deque<std::vector<WgmmaStep>> step_groups;  // committed, not yet executed
    u64 groups_committed, groups_waited;
    std::vector<BulkStore> stores;
    std::deque<std::vector<BulkStore>> store_groups;
    const char* tile;        // register tile of wgmma: the address range of its accumulators
    u32 tile_bytes;
    bool wgmma_fenced, tile_touched;
    // A write over another thread's write: no fault if it writes the same value, so it is looked at later.
    struct Overwrite {
        const char* address;
        u32 bytes;
        char before[16];
        Access other;
        void* place;
    } overwrite;
    // A plain read of what others change by atomics: no fault if an atomic on the same address follows.
    struct HeldRead {
        u64 address;
        Access other;
        void* place;
    } held;
    std::vector<void*> initialised;  // mbarriers, not yet fenced
    u64 acquire_later;  // address of a flag that was about to be read
    int spins;
};

struct Collective {
    unsigned wanted, arrived;
    emu::CollectiveFunction function;
    const char* what;
    void* arguments[WARP];
};
struct Warp {
    unsigned live, ready;
    unsigned at_activemask;  // lanes that wait for the others to show whether they come
    u32 open;                // the collectives in which some lanes wait for others
    Collective collective[WARP];
};
struct NamedBarrier {
    int arrived = 0, expected = 0, sum = 0;
    std::vector<int> waiting;
    Clocks arriving;        // of a named barrier: what those who arrived had done by then
    KnowledgeRef foreign;
    std::vector<void*> warp_place;
};
struct MBarrier {
    int count = 0, pending = 0;
    bool fenced = false;  // its initialisation is visible to the asynchronous proxy
    long bytes = 0;
    u32 phase = 0;
    Clocks arriving, complete;
    std::vector<Fiber*> waiting;
};
struct EngineJob {  // a load of a copy engine, or an arrival that follows a thread's own copies
    enum Kind { BULK, TENSOR, ARRIVE, STORE } kind;
    char* shared;
    const char* global;
    u8 map[128];
    u16 offsets[3];
    bool im2col;
    int bytes, at[5];
    void* mbarrier;
    Block* barrier_home;
    Fiber* issuer;
    std::vector<CopyAsync> copies;
    Clocks released;
    u64 value;
    void* place;
};
struct Warpgroup {
    u64 executed = 0;  // groups
    u64 committed = 0; // groups, by all threads
    std::deque<int> committing;  // how many threads have committed the groups after these
    u32 clock = 0;     // of its tensor cores when they had done that
    std::vector<Fiber*> waiting;
};

struct Launch;
struct Gang;

// One block, and the thread of the operating system that runs it; kept from launch to launch.
struct Block {
    Launch* launch;
    Gang* gang;
    int rank;
    u64 index;  // in the grid
    int threads, warps, live;
    Fiber* fibers = nullptr;
    int fiber_capacity = 0;
    Warp warp[WARP];
    u32 ready_warps;
    NamedBarrier barrier[16];
    int reduced[2], reduction;
    std::unordered_map<void*, MBarrier> mbarriers;
    std::deque<EngineJob> jobs;
    std::vector<Warpgroup> warpgroups;
    std::vector<u32> known;        // by block of the gang: its threads' accesses up to this clock are known
    std::vector<u32> agents_known; // by agent of the gang: the same
    Clocks remote;                 // latest access to this block's shared memory by threads of other blocks
    KnowledgeRef foreign;
    void* main_stack_pointer;
    char* stacks = nullptr;
    size_t stack_size = 0, stack_count = 0;
    bool guard_each = false;  // whether each stack has a guard page
    char *dynamic, *shared;
    size_t shared_size;
    std::vector<Cell> cells;       // of shared memory, static and dynamic
    u64 random;
    int countdown;                 // to the next random preemption
    size_t last_memory;
    sigjmp_buf escape;
    bool dead, in_callback, exited;
    bool give_turn;                // a thread spins: let other blocks of the gang run
    u64 switches, hooks;
    pthread_t thread;
    std::atomic<bool> running{false};
    u64 seen_switches, seen_hooks;
};

struct Gang {
    Launch* launch;
    int size;
    u32 tag;  // unique among gangs of all launches
    u32 clock;
    std::vector<Block*> blocks;
    std::mutex mutex;
    std::condition_variable changed;
    int ready = 0, finished = 0, generation = 0;
    bool dead = false, stop = false, over = false;
    int turn = 0;                  // rank of the block that runs
    u64 first_block = 0;
    int arrived = 0;               // at the barrier of the cluster
    u32 phase = 0;
    Clocks arriving, complete;
    std::vector<Fiber*> waiting;
    std::vector<u32> arrived_phase;  // by thread
    int total_threads() const { return size * blocks[0]->threads; }
    int agents() const { return size * AGENTS; }
    u32 engine(int rank) const { return total_threads() + rank * AGENTS; }
    u32 tensor_core(int rank, int warpgroup) const { return engine(rank) + 1 + warpgroup; }
    u32 store_engine(int rank) const { return engine(rank) + 9; }
};

struct Report {
    Fault fault;
    u64 place, other_place;
    Index3 block, thread;
    int memory_kind;  // 0 none, 1 argument, 2 static shared, 3 dynamic shared, 4 another place
    u64 address;      // of the argument's byte, or offset in shared memory
    u64 base;         // of the argument meant, where the address is outside of all
    int memory_rank;  // of the block in the cluster whose shared memory it is; -1 its own
    u64 other_gang;
    int other_thread;
    int other_rank;
    std::string text;
};

// How a launch is asked for; the same struct in gpunn/emulator/runtime.py.
struct Options {
    int threads, check, schedule, preempt, cluster, cooperative;
    u64 seed;
    u64 stack;
    double timeout;
    u32 grid[3], block[3], shared;
    int shared_granule;  // in: log2 bytes of a cell of shared memory; out: what it became
    int guard_count;
    const u64* guards;   // offsets of the compiler's own flags in thread-local storage, in order
};
struct ArrayArgument {  // one array of the host; the same struct in gpunn/emulator/runtime.py
    u64 host, bytes;   // its lowest address and extent
    int granule;       // in/out, as above
    int read_only;
    u64 device;        // out: where its lowest address is for the kernel
};

struct Launch {
    void (*kernel)(void**);
    void** arguments;
    Options options;
    Index3 grid, block_size;
    size_t tls_module, tls_size, dynamic_offset;
    u64 image_start, image_end;
    std::vector<Memory> memory;
    std::atomic<u64> next{0};
    u64 gangs;
    int gang_size;
    u32 first_tag;
    std::vector<u32> order;
    std::mutex report_mutex;
    std::vector<Report> reports;
    std::set<std::pair<int, u64>> reported;
    std::atomic<bool> abort{false}, refine{false}, timed_out{false};
    int shared_granule, shared_finer;
    std::mutex sync_mutex;
    std::unordered_map<u64, KnowledgeRef> released;  // by address of the atomic
    // The same for threads of one block alone: by address, gang and rank.
    std::map<std::tuple<u64, u32, int>, KnowledgeRef> released_in_block;
    std::atomic<u64> switches{0}, hooks{0};
};

extern "C" {
__thread emu::Context* emu_current __attribute__((tls_model("initial-exec")));
}
static __thread Block* own_block __attribute__((tls_model("initial-exec")));

// First come, first served: threads that spin on an atomic must not starve the one that would set them free.
class FairLock {
    std::atomic<u32> next_{0}, serving_{0};

public:
    void lock() {
        const u32 ticket = next_.fetch_add(1, std::memory_order_relaxed);
        while (serving_.load(std::memory_order_acquire) != ticket) sched_yield();
    }
    void unlock() { serving_.fetch_add(1, std::memory_order_release); }
};

// Held around an atomic on global memory.
static FairLock atomic_mutex;
static __thread bool atomic_locked __attribute__((tls_model("initial-exec")));

static inline Fiber* current() { return static_cast<Fiber*>(emu_current); }
#define PLACE __builtin_return_address(0)

static inline u32 random_number(Block* b) {  // xorshift64
    b->random ^= b->random << 13;
    b->random ^= b->random >> 7;
    b->random ^= b->random << 17;
    return static_cast<u32>(b->random >> 16);
}
