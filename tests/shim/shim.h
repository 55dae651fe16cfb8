// Runs CUDA kernels on the host: a fiber per thread, one block after another, blocks and threads in shuffled order.
//
// A thread runs until it waits or ends, so that what is not ordered by a barrier happens in any order. Shared memory is
// filled with NaN before each block. It is an error for a barrier not to be reached by every thread of the block, or by
// threads at different places, and for a warp's exchange not to be reached by all its lanes.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads, blocks)
#define __shared__ static __attribute__((section("block_shared")))
#define __syncthreads() shim::block_barrier(__LINE__)
#define __syncwarp() shim::warp_barrier()
#define __shfl_xor_sync(mask, value, step) shim::exchange(mask, value, shim::lane() ^ (step))
#define __ballot_sync(mask, value) shim::ballot(mask, value)
#define __ffs __builtin_ffs

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

static Index threadIdx, blockIdx, blockDim, gridDim;
using std::fmax;
using std::fmin;
using std::sqrt;

inline int min(int a, int b) { return a < b ? a : b; }

inline int atomicAdd(int *address, int value)
{
    const int old = *address;
    *address += value;
    return old;
}

extern char __start_block_shared[] __attribute__((weak));
extern char __stop_block_shared[] __attribute__((weak));

namespace shim {

constexpr int WARP = 32;
constexpr size_t STACK = 1 << 16;

struct Fiber {
    ucontext_t context;
    jmp_buf at;
    std::unique_ptr<char[]> stack;
    bool started = false, done = false;
    int exchanges = 0;
};

struct Warp {
    int arrived = 0;
    alignas(8) char slots[2][WARP][8];
};

static std::vector<std::unique_ptr<Fiber>> fibers;
static std::vector<Warp> warps;
static std::vector<unsigned> ready;
static std::function<void()> body;
static jmp_buf scheduler;
static unsigned current;
static unsigned at_barrier, finished;
static int barrier_line;
static std::string error;

inline int lane() { return current % WARP; }

__attribute__((noinline)) static void leave()
{
    if (!_setjmp(fibers[current]->at))
        _longjmp(scheduler, 1);
}

inline void trampoline()
{
    for (;;) {
        body();
        fibers[current]->done = true;
        ++finished;
        leave();
    }
}

inline void block_barrier(int line)
{
    if (at_barrier > 0 && line != barrier_line)
        error = "threads of a block meet at different barriers";
    barrier_line = line;
    if (++at_barrier == blockDim.x) {
        at_barrier = 0;
        for (unsigned thread = 0; thread < blockDim.x; ++thread)
            ready.push_back(thread);
    }
    leave();
}

inline void warp_barrier()
{
    const unsigned warp = current / WARP;
    if (++warps[warp].arrived == WARP) {
        warps[warp].arrived = 0;
        for (unsigned thread = warp * WARP; thread < (warp + 1) * WARP; ++thread)
            ready.push_back(thread);
    }
    leave();
}

// Two sets of slots: a lane is never more than one exchange ahead of another.
template <typename T> T exchange(unsigned mask, T value, int from)
{
    static_assert(sizeof(T) <= 8, "a slot has eight bytes");
    if (mask != 0xffffffffu)
        error = "an exchange of a part of a warp";
    char(*slots)[8] = warps[current / WARP].slots[fibers[current]->exchanges++ % 2];
    memcpy(slots[lane()], &value, sizeof value);
    warp_barrier();
    memcpy(&value, slots[from], sizeof value);
    return value;
}

inline unsigned ballot(unsigned mask, bool value)
{
    unsigned votes = 0;
    const int own = lane();
    for (int step = 0; step < WARP; ++step)
        votes |= static_cast<unsigned>(exchange(mask, value, own ^ step)) << (own ^ step);
    return votes;
}

__attribute__((noinline)) static void resume(unsigned thread)
{
    current = thread;
    threadIdx.x = thread;
    Fiber &fiber = *fibers[thread];
    if (_setjmp(scheduler))
        return;
    if (fiber.started)
        _longjmp(fiber.at, 1);
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.stack.reset(new char[STACK]);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, trampoline, 0);
    setcontext(&fiber.context);
}

inline void run_block(std::mt19937 &random)
{
    memset(__start_block_shared, 0xff, __stop_block_shared - __start_block_shared);
    at_barrier = finished = 0;
    warps.assign(blockDim.x / WARP, Warp());
    for (unsigned thread = 0; thread < blockDim.x; ++thread) {
        fibers[thread]->done = false;
        fibers[thread]->exchanges = 0;
        ready.push_back(thread);
    }
    while (!ready.empty() && error.empty()) {
        std::swap(ready[random() % ready.size()], ready.back());
        const unsigned thread = ready.back();
        ready.pop_back();
        resume(thread);
    }
    if (error.empty() && finished < blockDim.x)
        error = "some threads of a block wait for others that never come";
}

// Fibers that wait are left behind by an error: start anew.
inline void reset()
{
    ready.clear();
    fibers.clear();
}

inline void run(const unsigned *grid, unsigned threads, unsigned shuffle)
{
    error.clear();
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    while (fibers.size() < threads)
        fibers.push_back(std::make_unique<Fiber>());
    std::mt19937 random(shuffle);
    std::vector<size_t> order(static_cast<size_t>(grid[0]) * grid[1] * grid[2]);
    for (size_t i = 0; i < order.size(); ++i) {
        order[i] = i;
        std::swap(order[i], order[random() % (i + 1)]);
    }
    for (size_t block : order) {
        blockIdx.x = block % grid[0];
        blockIdx.y = block / grid[0] % grid[1];
        blockIdx.z = block / grid[0] / grid[1];
        run_block(random);
        if (!error.empty())
            return reset();
    }
}

template <typename T> std::string code()
{
    using V = std::remove_cv_t<std::remove_pointer_t<T>>;
    const char *kind = std::is_integral_v<V> ? "i" : "f";
    return (std::is_pointer_v<T> ? "*" : "") + std::string(kind) + std::to_string(sizeof(V));
}

template <typename... A> std::string signature(void (*)(A...)) { return ((code<A>() + " ") + ...); }

template <typename... A, size_t... I>
void call(void (*kernel)(A...), void **args, std::index_sequence<I...>)
{
    kernel(*static_cast<A *>(args[I])...);
}

template <typename... A>
const char *launch(void (*kernel)(A...), void **args, const unsigned *grid, unsigned threads, unsigned shuffle)
{
    body = [=] { call(kernel, args, std::index_sequence_for<A...>()); };
    run(grid, threads, shuffle);
    return error.c_str();
}

} // namespace shim

#define LAUNCHER(kernel)                                                                                               \
    extern "C" const char *launch_##kernel(void **args, const unsigned *grid, unsigned threads, unsigned shuffle)         \
    {                                                                                                                  \
        return shim::launch(kernel, args, grid, threads, shuffle);                                                        \
    }                                                                                                                  \
    extern "C" const char *signature_##kernel()                                                                        \
    {                                                                                                                  \
        static const std::string text = shim::signature(kernel);                                                       \
        return text.c_str();                                                                                           \
    }
