// k-means of many problems in one launch: what kernels/batch.py calls, in the order of a run.
//
// Arrays are row-major and padded to one shape for all problems of a batch: B problems of up to N points in D dimensions
// (N a multiple of 64, D of 8) and up to K clusters. n[b] and k[b] are the problem's own; nothing beyond them is read,
// except padded points (zeros) by matrix products. Offsets are 64-bit: B * N * D passes 2^31.
//
// Scores, norms, weights and sums are float64 and added in a fixed order, counts are integers: no result depends on the
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

// ---- Points ----

// Subtracts from each column its mean, rounded to the points' type, where that is exact for all points, and says what it
// subtracted and what mean is left; a thread per column. Points far off the origin lose no digits to their products this
// way, and others are left alone.
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

// ---- Seeding ----

// Draws points in proportion to their mass, closest times weight, a block per problem.
//   counts     (B,)       how many; none: the problem is left alone
//   uniforms   (B, 2, T)  in [0, 1): of the draws, and of the part of its mass that `extend` keeps a point above
//   candidates (B, T), limits (B, T)
KERNEL draw(const double *closest, const double *weights, const int *n, const int *counts, const double *uniforms,
            i64 N, i64 T, int *candidates, double *limits)
{
    __shared__ double starts[BLOCK + 1];
    __shared__ Best parts[WARPS];
    const i64 b = blockIdx.x;
    const int count = n[b], draws = counts[b];
    if (draws == 0)
        return;
    closest += b * N, weights += b * N, candidates += b * T, limits += b * T, uniforms += 2 * b * T;

    const int share = (count + BLOCK - 1) / BLOCK;
    const int begin = min(static_cast<int>(threadIdx.x) * share, count), end = min(begin + share, count);
    double mine = 0;
    int last = -1;
    for (int i = begin; i < end; ++i) {
        mine += closest[i] * weights[i];
        if (closest[i] > 0)
            last = i;
    }
    last = block_best({-static_cast<double>(last), last}, parts).index;
    starts[threadIdx.x + 1] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        starts[0] = 0;
        for (int thread = 1; thread <= BLOCK; ++thread)
            starts[thread] += starts[thread - 1];
    }
    __syncthreads();
    for (int j = threadIdx.x; j < draws; j += BLOCK) {
        const double target = uniforms[j] * starts[BLOCK];
        int low = 0, high = BLOCK; // starts[low] <= target < starts[high]
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            (starts[middle] <= target ? low : high) = middle;
        }
        int point = last; // where rounding puts the target at the end
        double reached = 0;
        for (int i = low * share; i < min((low + 1) * share, count); ++i) {
            reached += closest[i] * weights[i];
            if (starts[low] + reached > target) {
                point = i;
                break;
            }
        }
        candidates[j] = point;
        limits[j] = uniforms[T + j] * closest[point] * weights[point];
    }
}

// Points nearer to a new seed than to the others become its own; where a product cannot give the distance, it is taken
// from the points, so that duplicates are at 0.
__device__ void settle(const float *row, const POINT *points, const double *squares, int count, i64 D, int seed,
                       int number, double *closest, int *nearest)
{
    for (int base = (threadIdx.x / WARP) * WARP; base < count; base += BLOCK) {
        const int i = base + threadIdx.x % WARP;
        double distance = FAR;
        if (i < count)
            distance = squares[i] + squares[seed] - 2.0 * row[i];
        unsigned near = __ballot_sync(ALL, i < count && distance <= NEAR * (squares[i] + squares[seed]));
        for (; near; near &= near - 1) {
            const int lane = __ffs(near) - 1;
            const double exact = squared_distance(points + (base + lane) * D, points + seed * D, D);
            if (static_cast<int>(threadIdx.x % WARP) == lane)
                distance = exact;
        }
        if (i < count && distance < closest[i]) {
            closest[i] = distance;
            nearest[i] = number;
        }
    }
}

// Chooses seeds from the candidates, a block per problem. A candidate is kept while its mass is above its limit; of each
// `trials` kept the one that lowers the weighted sum of squared distances most becomes a seed, until too few are left.
//   rows     (B, R, N)  inner products of some points with all: of candidate j row j, or, by_index, its own row
//   closest  (B, N)     squared distances to the nearest seed, the first of equals, whose number is nearest (B, N)
//   chosen   (B, K)     the seeds, of which there are progress[b]
//   left     (B,)       out: whether a point is off its seed
KERNEL extend(const float *rows, const POINT *points, const double *squares, const double *weights, const int *n,
              const int *k, const int *trials, const int *counts, const int *candidates, const double *limits,
              i64 by_index, i64 R, i64 N, i64 D, i64 K, i64 T, double *closest, int *nearest, int *chosen,
              int *progress, int *left)
{
    __shared__ double parts[WARPS];
    __shared__ int kept[MOST_TRIALS], keeping, next;
    const i64 b = blockIdx.x;
    const int count = n[b];
    if (counts[b] == 0)
        return;
    points += b * N * D, squares += b * N, weights += b * N, rows += b * R * N, candidates += b * T, limits += b * T;
    closest += b * N, nearest += b * N, chosen += b * K;
    const int from = progress[b];
    if (threadIdx.x == 0)
        next = 0;
    int made = from;
    for (; made < k[b]; ++made) {
        __syncthreads();
        if (threadIdx.x == 0)
            for (keeping = 0; next < counts[b] && keeping < trials[b]; ++next)
                if (limits[next] < closest[candidates[next]] * weights[candidates[next]])
                    kept[keeping++] = next;
        __syncthreads();
        if (keeping < trials[b])
            break;
        int best = 0;
        double lowest = FAR;
        for (int trial = 0; trial < trials[b]; ++trial) {
            const int point = candidates[kept[trial]];
            const float *row = rows + (by_index ? point : kept[trial]) * N;
            double mine = 0;
            for (int i = threadIdx.x; i < count; i += BLOCK)
                mine += weights[i] * fmin(closest[i], fmax(squares[i] + squares[point] - 2.0 * row[i], 0.0));
            const double total = block_sum(mine, parts);
            if (total < lowest)
                lowest = total, best = kept[trial];
        }
        const int seed = candidates[best];
        settle(rows + (by_index ? seed : best) * N, points, squares, count, D, seed, made, closest, nearest);
        if (threadIdx.x == 0)
            chosen[made] = seed;
    }
    double off = 0;
    for (int i = threadIdx.x; i < count; i += BLOCK)
        off += closest[i] > 0;
    off = block_sum(off, parts);
    if (threadIdx.x == 0) {
        progress[b] = made;
        left[b] = off > 0;
    }
}

// ---- Clusters ----

// The mean of the rows of each cluster's points, or, plain, their weighted sum; grid (width / 512, K, B).
//   rows (B, N, width), order and offsets as `regroup` leaves them, mass (B, K), result (B, K, width)
template <typename T>
__device__ void mean_rows(const T *rows, const double *weights, const int *order, const int *offsets,
                          const int *changed, const double *mass, const int *k, i64 plain, i64 N, i64 K, i64 width,
                          double *result)
{
    const i64 b = blockIdx.z, c = blockIdx.y;
    const i64 column = 2 * (static_cast<i64>(blockIdx.x) * BLOCK + threadIdx.x);
    if (c >= k[b] || !changed[b * K + c] || column >= width)
        return;
    rows += b * N * width + column, weights += b * N, order += b * N, offsets += b * (K + 1);
    double x = 0, y = 0;
#pragma unroll 4
    for (int member = offsets[c]; member < offsets[c + 1]; ++member) {
        const i64 i = order[member];
        Pair row = load2(rows + i * width);
        x += weights[i] * row.x;
        y += weights[i] * row.y;
    }
    const double divisor = plain ? 1.0 : mass[b * K + c];
    result += (b * K + c) * width + column;
    result[0] = x / divisor;
    result[1] = y / divisor;
}

KERNEL mean_points(const POINT *rows, const double *weights, const int *order, const int *offsets,
                            const int *changed, const double *mass, const int *k, i64 N, i64 K, i64 D, double *result)
{
    mean_rows(rows, weights, order, offsets, changed, mass, k, 0, N, K, D, result);
}

KERNEL sum_products(const float *rows, const double *weights, const int *order, const int *offsets,
                             const int *changed, const int *k, i64 N, i64 K, double *result)
{
    mean_rows(rows, weights, order, offsets, changed, static_cast<const double *>(nullptr), k, 1, N, K, N, result);
}

// Sizes of the clusters and whether one is empty, a block per problem. With `plant`, seed c first gets label c.
KERNEL histogram(const int *chosen, const int *done, const int *n, const int *k, i64 plant, i64 N, i64 K,
                        int *found, int *sizes, int *empty)
{
    const i64 b = blockIdx.x;
    const int count = n[b], clusters = k[b];
    found += b * N, sizes += b * K, chosen += b * K;
    if (threadIdx.x == 0)
        empty[b] = 0;
    if (done[b])
        return;
    if (plant && threadIdx.x == 0)
        for (int c = 0; c < clusters; ++c)
            found[chosen[c]] = c;
    for (int c = threadIdx.x; c < clusters; c += BLOCK)
        sizes[c] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += BLOCK)
        atomicAdd(&sizes[found[i]], 1);
    __syncthreads();
    for (int c = threadIdx.x; c < clusters; c += BLOCK)
        if (sizes[c] == 0)
            empty[b] = 1;
}

// Each empty cluster gets the point farthest from its centroid, never a cluster's only one.
__device__ void fill_empty(const double *distances, int count, int clusters, int *found, int *sizes, Best *parts)
{
    for (int c = 0; c < clusters; ++c) {
        if (sizes[c] > 0)
            continue;
        Best farthest = {FAR, count};
        for (int i = threadIdx.x; i < count; i += BLOCK)
            if (sizes[found[i]] > 1 && better(-distances[i], i, farthest))
                farthest = {-distances[i], i};
        farthest = block_best(farthest, parts);
        if (threadIdx.x == 0) {
            sizes[found[farthest.index]] -= 1;
            sizes[c] = 1;
            found[farthest.index] = c;
        }
        __syncthreads();
    }
}

// The end of a pass, a block per problem: fills empty clusters, takes the labels found, lists each cluster's points in
// index order, and says which clusters changed and whether the problem is done. With `stop`, a problem in which a
// cluster would be left empty is done and keeps its labels.
//   order (B, N), offsets (B, K + 1): points of cluster c are order[offsets[c]:offsets[c + 1]]
KERNEL regroup(const double *distances, const double *weights, const int *empty, const int *n, const int *k,
                      const int *limits, i64 stop, i64 N, i64 K, int *found, int *sizes, int *labels, int *order,
                      int *offsets, double *mass, int *changed, int *passes, int *done)
{
    __shared__ Best parts[WARPS];
    __shared__ int moved;
    const i64 b = blockIdx.x;
    const int count = n[b], clusters = k[b];
    found += b * N, labels += b * N, order += b * N, distances += b * N, weights += b * N;
    sizes += b * K, mass += b * K, changed += b * K, offsets += b * (K + 1);
    const bool over = done[b], stopped = !over && stop && empty[b];
    for (int c = threadIdx.x; c < clusters; c += BLOCK)
        changed[c] = 0;
    __syncthreads();
    if (threadIdx.x == 0 && !over) {
        moved = 0;
        passes[b] += 1;
        if (stopped || passes[b] >= limits[b])
            done[b] = 1;
    }
    if (over || stopped)
        return;
    __syncthreads();
    if (empty[b])
        fill_empty(distances, count, clusters, found, sizes, parts);

    for (int i = threadIdx.x; i < count; i += BLOCK) {
        const int from = labels[i], to = found[i];
        if (from == to)
            continue;
        moved = 1;
        changed[to] = 1;
        if (from >= 0)
            changed[from] = 1;
        labels[i] = to;
    }
    if (threadIdx.x == 0) {
        offsets[0] = 0;
        for (int c = 0; c < clusters; ++c)
            offsets[c + 1] = offsets[c] + sizes[c];
    }
    __syncthreads();
    for (int c = threadIdx.x; c < clusters; c += BLOCK) {
        double total = 0;
        int next = offsets[c];
        for (int i = 0; i < count; ++i)
            if (found[i] == c) {
                order[next++] = i;
                total += weights[i];
            }
        mass[c] = total;
    }
    if (threadIdx.x == 0 && !moved)
        done[b] = 1;
}

// ---- Lloyd on the points ----

// Centroids as products take them, a block per (cluster, problem): with delta = centroid - shift, delta / 2 as the sum of
// high and low / 2048 (half of it, for the difference of two float16 values may be none). Then |x - c|^2 is
// norms[c] - 2 x . delta and what is the same for all c.
//   parts (B, 2, K, D), norms (B, K) |delta|^2 + 2 shift . delta, lengths (B, K) |delta|
KERNEL split(const double *centroids, const double *shift, const int *changed, const int *k, i64 K, i64 D,
                    POINT *parts, double *norms, double *lengths)
{
    __shared__ double sums[WARPS];
    const i64 b = blockIdx.y, c = blockIdx.x;
    if (c >= k[b] || !changed[b * K + c])
        return;
    centroids += (b * K + c) * D, shift += b * D;
    POINT *high = parts + (2 * b * K + c) * D, *low = high + K * D;
    double squares = 0, products = 0;
    for (i64 d = threadIdx.x; d < D; d += BLOCK) {
        const double delta = centroids[d] - shift[d];
        store(high + d, delta / 2);
        store(low + d, LOW * (delta / 2 - load(high + d)));
        squares += delta * delta;
        products += shift[d] * delta;
    }
    squares = block_sum(squares, sums);
    products = block_sum(products, sums);
    if (threadIdx.x == 0) {
        norms[b * K + c] = squares + 2 * products;
        lengths[b * K + c] = sqrt(squares);
    }
}

// products (2, K, N) of one problem
__device__ double score(const float *products, const double *norms, int c, i64 i, i64 N, i64 K)
{
    return norms[c] - 4.0 * (products[c * N + i] + products[(K + c) * N + i] / LOW);
}

// How far apart two scores of a point can be while float32 products leave their order open: 2^-23 of |x| |delta| for each
// of the D terms (what accumulators that cut rather than round lose), on both scores, each twice the product.
__device__ double margin(double square, double longest, i64 D)
{
    return 4.0 * (D + 8) / (1 << 23) * sqrt(square) * longest;
}

__device__ double longest_of(const double *lengths, int clusters)
{
    double longest = 0;
    for (int c = 0; c < clusters; ++c)
        longest = fmax(longest, lengths[c]);
    return longest;
}

// The nearest centroid of each point, a thread per point; ~label where the products leave it open.
KERNEL assign(const float *products, const double *norms, const double *lengths, const double *squares,
                     const int *done, const int *n, const int *k, i64 N, i64 D, i64 K, int *found)
{
    const i64 b = blockIdx.y, i = static_cast<i64>(blockIdx.x) * BLOCK + threadIdx.x;
    if (done[b] || i >= n[b])
        return;
    products += 2 * b * K * N, norms += b * K;
    Best best = {FAR, 0};
    double second = FAR;
    for (int c = 0; c < k[b]; ++c) {
        const double value = score(products, norms, c, i, N, K);
        if (value < best.value) {
            second = best.value;
            best = {value, c};
        } else {
            second = fmin(second, value);
        }
    }
    const double open = margin(squares[b * N + i], longest_of(lengths + b * K, k[b]), D);
    found[b * N + i] = second - best.value <= open ? ~best.index : best.index;
}

// Decides what `assign` left open, a warp per point: float64 distances to the centroids in question.
KERNEL decide(const float *products, const double *norms, const double *lengths, const POINT *points,
                     const double *squares, const double *centroids, const int *done, const int *n, const int *k, i64 N,
                     i64 D, i64 K, int *found)
{
    const i64 b = blockIdx.y, i = static_cast<i64>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (done[b] || i >= n[b] || found[b * N + i] >= 0)
        return;
    products += 2 * b * K * N, norms += b * K, centroids += b * K * D;
    const double square = squares[b * N + i];
    const double limit = score(products, norms, ~found[b * N + i], i, N, K) +
                         margin(square, longest_of(lengths + b * K, k[b]), D);
    Best best = {FAR, 0};
    for (int c = 0; c < k[b]; ++c) {
        if (score(products, norms, c, i, N, K) > limit)
            continue;
        const double distance = squared_distance(points + (b * N + i) * D, centroids + c * D, D);
        if (distance < best.value - TIE * (square + distance))
            best = {distance, c};
    }
    __syncwarp();
    if (threadIdx.x % WARP == 0)
        found[b * N + i] = best.index;
}

// |x - c|^2 of each point to the centroid of its label, a warp per point, in the problems wanted.
KERNEL distances(const POINT *points, const double *centroids, const int *labels, const int *wanted,
                        const int *n, i64 N, i64 D, i64 K, double *result)
{
    const i64 b = blockIdx.y, i = static_cast<i64>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (!wanted[b] || i >= n[b])
        return;
    const double *centroid = centroids + (b * K + labels[b * N + i]) * D;
    const double distance = squared_distance(points + (b * N + i) * D, centroid, D);
    if (threadIdx.x % WARP == 0)
        result[b * N + i] = distance;
}

// ---- Lloyd and Hartigan on the inner products ----

// The sum of S over each cluster's points, a warp per (cluster, problem): |mean|^2 times its mass squared.
KERNEL within(const double *sums, const double *weights, const int *order, const int *offsets, const int *done,
                     const int *k, i64 N, i64 K, double *result)
{
    const i64 b = blockIdx.y, c = static_cast<i64>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (done[b] || c >= k[b])
        return;
    sums += (b * K + c) * N, weights += b * N, order += b * N, offsets += b * (K + 1);
    double total = 0;
    for (int member = offsets[c] + threadIdx.x % WARP; member < offsets[c + 1]; member += WARP)
        total += weights[order[member]] * sums[order[member]];
    total = warp_sum(total);
    if (threadIdx.x % WARP == 0)
        result[b * K + c] = total;
}

// The nearest mean of each point, a thread per point; sums (B, K, N) as sum_products leaves them.
KERNEL assign_gram(const double *sums, const double *inner, const double *mass, const int *done, const int *n,
                          const int *k, i64 N, i64 K, int *found)
{
    const i64 b = blockIdx.y, i = static_cast<i64>(blockIdx.x) * BLOCK + threadIdx.x;
    if (done[b] || i >= n[b])
        return;
    sums += b * K * N + i, inner += b * K, mass += b * K;
    Best best = {FAR, 0};
    for (int c = 0; c < k[b]; ++c) {
        const double part = 1.0 / mass[c], value = part * (inner[c] * part - 2.0 * sums[c * N]);
        if (value < best.value)
            best = {value, c};
    }
    found[b * N + i] = best.index;
}

// What Hartigan's moves read and write, of one problem.
struct Clusters {
    const float *gram;
    const double *squares, *weights;
    double *sums, *inner, *mass;
    int *labels, *sizes;
    i64 N;
    int clusters;

    __device__ double distance(int i, int c) const
    {
        const double part = 1.0 / mass[c];
        return squares[i] + part * (inner[c] * part - 2.0 * sums[c * N + i]);
    }

    __device__ double leaving(int i) const
    {
        const int c = labels[i];
        return sizes[c] > 1 ? weights[i] * mass[c] / (mass[c] - weights[i]) * distance(i, c) : 0.0;
    }

    __device__ double joining(int i, int c) const
    {
        return weights[i] * mass[c] / (mass[c] + weights[i]) * distance(i, c);
    }

    // The best other cluster of a point, over every `stride`-th from `first`.
    __device__ Best best_of(int i, int first, int stride) const
    {
        Best best = {FAR, clusters};
        for (int c = first; c < clusters; c += stride) {
            if (c == labels[i])
                continue;
            const double value = joining(i, c);
            if (better(value, c, best))
                best = {value, c};
        }
        return best;
    }

    // By the whole block.
    __device__ void move(int i, int to)
    {
        const int from = labels[i];
        const float *row = gram + i * N;
        const double weight = weights[i];
        __syncthreads();
        if (threadIdx.x == 0) {
            const double own = weight * weight * row[i];
            inner[from] += own - 2.0 * weight * sums[from * N + i];
            inner[to] += own + 2.0 * weight * sums[to * N + i];
            mass[from] -= weight;
            mass[to] += weight;
            sizes[from] -= 1;
            sizes[to] += 1;
            labels[i] = to;
        }
        __syncthreads();
        for (i64 j = threadIdx.x; j < N; j += BLOCK) {
            sums[from * N + j] -= weight * row[j];
            sums[to * N + j] += weight * row[j];
        }
        __syncthreads();
    }
};

// Hartigan's refinement, a block per problem: sweeps over the points that would lower the inertia by more than least[b]
// when moved to another cluster, until none is or `most` sweeps were made. Scratch: flags (B, N).
KERNEL hartigan(const float *gram, const double *squares, const double *weights, const double *least,
                       const int *n, const int *k, i64 most, i64 N, i64 K, double *sums, double *inner, double *mass,
                       int *sizes, int *flags, int *labels, int *sweeps)
{
    __shared__ Best parts[WARPS];
    const i64 b = blockIdx.x;
    const int count = n[b];
    flags += b * N;
    Clusters state = {gram + b * N * N, squares + b * N, weights + b * N, sums + b * K * N, inner + b * K, mass + b * K,
                      labels + b * N,   sizes + b * K,   N,               k[b]};
    int sweep = 0;
    for (bool again = count > 0; again && sweep < most; ++sweep) {
        again = false;
        for (int i = threadIdx.x; i < count; i += BLOCK)
            flags[i] = state.leaving(i) - state.best_of(i, 0, 1).value > least[b];
        __syncthreads();
        for (int i = 0; i < count; ++i) {
            if (!flags[i])
                continue;
            Best best = block_best(state.best_of(i, threadIdx.x, BLOCK), parts);
            if (state.leaving(i) - best.value <= least[b])
                continue;
            state.move(i, best.index);
            again = true;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0)
        sweeps[b] = sweep;
}
