// k-means of many problems in one launch: what kernels/batch.py calls. This file comes first, then those of cuda.SOURCES.
//
// Arrays are row-major and padded to one shape for all problems of a batch: B problems of up to N points in D
// dimensions (N a multiple of 64, D of 8) and up to K clusters. n[b] and k[b] are the problem's own; nothing beyond
// them is read, except padded points (zeros) by matrix products. Offsets are 64-bit: B * N * D passes 2^31.
//
// Scores, norms and sums are float64 and added in a fixed order, counts are integers: no result depends on the
// batch or on the order in which blocks run. Of equals the lowest index is taken everywhere.

#include <cuda_fp16.h>

typedef long long i64;

#ifndef POINT
#define POINT __half
#endif

#define KERNEL extern "C" __global__ void __launch_bounds__(BLOCK, 4)

constexpr int WARP = 32;
constexpr int BLOCK = 256; // threads, of every kernel
constexpr int WARPS = BLOCK / WARP;
constexpr int MOST_TRIALS = 16; // 2 + log k is less for all k below a million
constexpr unsigned ALL = 0xffffffffu;    // lanes
constexpr double FAR = 1.7976931348623157e308;
constexpr double LOW = 2048.0;           // what the low half of a split value is multiplied with
constexpr double NEAR = 1.0 / (1 << 13); // of |x|^2 + |y|^2: below it a product does not give |x - y|^2
constexpr double TIE = 1e-12;            // of |x|^2 + |c|^2: float64 distances this close are equal

struct Pair {
    double x, y;
};

struct Best {
    double value;
    int index;
};

__device__ Pair load2(const __half *p)
{
    float2 v = __half22float2(*reinterpret_cast<const __half2 *>(p));
    return {v.x, v.y};
}

__device__ Pair load2(const float *p)
{
    float2 v = *reinterpret_cast<const float2 *>(p);
    return {v.x, v.y};
}

__device__ Pair load2(const double *p)
{
    double2 v = *reinterpret_cast<const double2 *>(p);
    return {v.x, v.y};
}

__device__ void store(__half *p, double v) { *p = __double2half(v); }
__device__ void store(float *p, double v) { *p = static_cast<float>(v); }
__device__ double load(const __half *p) { return __half2float(*p); }
__device__ double load(const float *p) { return *p; }

__device__ bool better(double value, int index, Best than)
{
    return value < than.value || (value == than.value && index < than.index);
}

__device__ double warp_sum(double v)
{
    for (int step = WARP / 2; step > 0; step /= 2)
        v += __shfl_xor_sync(ALL, v, step);
    return v;
}

// The sum over the block, for every thread.
__device__ double block_sum(double v, double *parts)
{
    v = warp_sum(v);
    if (threadIdx.x % WARP == 0)
        parts[threadIdx.x / WARP] = v;
    __syncthreads();
    double total = 0;
    for (int warp = 0; warp < WARPS; ++warp)
        total += parts[warp];
    __syncthreads();
    return total;
}

// The lowest value of the block and its lowest index, for every thread.
__device__ Best block_best(Best mine, Best *parts)
{
    for (int step = WARP / 2; step > 0; step /= 2) {
        double value = __shfl_xor_sync(ALL, mine.value, step);
        int index = __shfl_xor_sync(ALL, mine.index, step);
        if (better(value, index, mine))
            mine = {value, index};
    }
    if (threadIdx.x % WARP == 0)
        parts[threadIdx.x / WARP] = mine;
    __syncthreads();
    Best found = parts[0];
    for (int warp = 1; warp < WARPS; ++warp)
        if (better(parts[warp].value, parts[warp].index, found))
            found = parts[warp];
    __syncthreads();
    return found;
}

// |x - y|^2 by a warp, for every lane, without cancellation.
template <typename X, typename Y> __device__ double squared_distance(const X *x, const Y *y, i64 D)
{
    double total = 0;
    for (i64 d = 2 * (threadIdx.x % WARP); d < D; d += 2 * WARP) {
        Pair a = load2(x + d), c = load2(y + d);
        total += (a.x - c.x) * (a.x - c.x) + (a.y - c.y) * (a.y - c.y);
    }
    return warp_sum(total);
}

// Subtracts from each column its mean, rounded to the points' type, where that is exact for all points, and says what
// it subtracted and what mean is left; a thread per column. Points far off the origin lose no digits to their products
// this way, and others are left alone.
//   points (B, N, D) in and out, offset (B, D), shift (B, D)
__device__ void centre_column(POINT *points, int count, i64 D, POINT *offset, double *shift)
{
    double mean = 0;
    for (int i = 0; i < count; ++i)
        mean += load(points + i * D);
    mean /= count;
    store(offset, mean);
    const double rounded = load(offset);
    bool exact = true;
    for (int i = 0; i < count && exact; ++i) {
        POINT centred;
        store(&centred, load(points + i * D) - rounded);
        exact = load(&centred) == load(points + i * D) - rounded;
    }
    if (!exact)
        store(offset, 0.0);
    *shift = exact ? mean - rounded : mean;
    for (int i = 0; i < count && exact; ++i)
        store(points + i * D, load(points + i * D) - rounded);
}

KERNEL centre(const int *n, i64 N, i64 D, POINT *points, POINT *offset, double *shift)
{
    const i64 b = blockIdx.y, column = static_cast<i64>(blockIdx.x) * BLOCK + threadIdx.x;
    if (n[b] > 0 && column < D)
        centre_column(points + b * N * D + column, n[b], D, offset + b * D + column, shift + b * D + column);
}
