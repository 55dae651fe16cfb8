// From labels to clusters and their means.

// The mean of the rows of each cluster's points, or, plain, their sum; grid (width / 512, K, B).
//   rows (B, N, width), order and offsets as `regroup` leaves them, mass (B, K), result (B, K, width)
template <typename T>
__device__ void mean_rows(const T *rows, const int *order, const int *offsets, const int *changed,
                          const double *mass, const int *k, i64 plain, i64 N, i64 K, i64 width, double *result)
{
    const i64 b = blockIdx.z, c = blockIdx.y;
    const i64 column = 2 * (static_cast<i64>(blockIdx.x) * BLOCK + threadIdx.x);
    if (c >= k[b] || !changed[b * K + c] || column >= width)
        return;
    rows += b * N * width + column, order += b * N, offsets += b * (K + 1);
    double x = 0, y = 0;
#pragma unroll 4
    for (int member = offsets[c]; member < offsets[c + 1]; ++member) {
        const i64 i = order[member];
        Pair row = load2(rows + i * width);
        x += row.x;
        y += row.y;
    }
    const double divisor = plain ? 1.0 : mass[b * K + c];
    result += (b * K + c) * width + column;
    result[0] = x / divisor;
    result[1] = y / divisor;
}

KERNEL mean_points(const POINT *rows, const int *order, const int *offsets, const int *changed, const double *mass,
                   const int *k, i64 N, i64 K, i64 D, double *result)
{
    mean_rows(rows, order, offsets, changed, mass, k, 0, N, K, D, result);
}

KERNEL sum_products(const float *rows, const int *order, const int *offsets, const int *changed, const int *k, i64 N,
                    i64 K, double *result)
{
    mean_rows(rows, order, offsets, changed, static_cast<const double *>(nullptr), k, 1, N, K, N, result);
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
//   order (B, N), offsets (B, K + 1): points of cluster c are order[offsets[c]:offsets[c + 1]]; mass (B, K): how many
KERNEL regroup(const double *distances, const int *empty, const int *n, const int *k, const int *limits,
                      i64 stop, i64 N, i64 K, int *found, int *sizes, int *labels, int *order,
                      int *offsets, double *mass, int *changed, int *passes, int *done)
{
    __shared__ Best parts[WARPS];
    __shared__ int moved;
    const i64 b = blockIdx.x;
    const int count = n[b], clusters = k[b];
    found += b * N, labels += b * N, order += b * N, distances += b * N;
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
        int next = offsets[c];
        for (int i = 0; i < count; ++i)
            if (found[i] == c)
                order[next++] = i;
        mass[c] = sizes[c];
    }
    if (threadIdx.x == 0 && !moved)
        done[b] = 1;
}
