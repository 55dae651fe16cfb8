// Lloyd's passes on the points.

// Centroids as products take them, a block per (cluster, problem): with delta = centroid - shift, delta / 2 as the sum
// of high and low / 2048 (half of it, for the difference of two float16 values may be none). Then |x - c|^2 is
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

// How far apart two scores of a point can be while float32 products leave their order open: 2^-23 of |x| |delta| for
// each of the D terms (what accumulators that cut rather than round lose), on both scores, each twice the product.
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
