// Lloyd's passes and Hartigan's moves on the inner products.

// The sum of S over each cluster's points, a warp per (cluster, problem): |mean|^2 times its mass squared.
KERNEL within(const double *sums, const int *order, const int *offsets, const int *done, const int *k,
                     i64 N, i64 K, double *result)
{
    const i64 b = blockIdx.y, c = static_cast<i64>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (done[b] || c >= k[b])
        return;
    sums += (b * K + c) * N, order += b * N, offsets += b * (K + 1);
    double total = 0;
    for (int member = offsets[c] + threadIdx.x % WARP; member < offsets[c + 1]; member += WARP)
        total += sums[order[member]];
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
    const double *squares;
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
        return sizes[c] > 1 ? mass[c] / (mass[c] - 1) * distance(i, c) : 0.0;
    }

    __device__ double joining(int i, int c) const
    {
        return mass[c] / (mass[c] + 1) * distance(i, c);
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
        __syncthreads();
        if (threadIdx.x == 0) {
            inner[from] += row[i] - 2.0 * sums[from * N + i];
            inner[to] += row[i] + 2.0 * sums[to * N + i];
            mass[from] -= 1;
            mass[to] += 1;
            sizes[from] -= 1;
            sizes[to] += 1;
            labels[i] = to;
        }
        __syncthreads();
        for (i64 j = threadIdx.x; j < N; j += BLOCK) {
            sums[from * N + j] -= row[j];
            sums[to * N + j] += row[j];
        }
        __syncthreads();
    }
};

// Hartigan's refinement, a block per problem: sweeps over the points that would lower the inertia by more than least[b]
// when moved to another cluster, until none is or `most` sweeps were made. Scratch: flags (B, N).
//   mass (B, K): sizes in float64, so that no quotient is one of integers
KERNEL hartigan(const float *gram, const double *squares, const double *least,
                       const int *n, const int *k, i64 most, i64 N, i64 K, double *sums, double *inner, double *mass,
                       int *sizes, int *flags, int *labels, int *sweeps)
{
    __shared__ Best parts[WARPS];
    const i64 b = blockIdx.x;
    const int count = n[b];
    flags += b * N;
    Clusters state = {gram + b * N * N, squares + b * N, sums + b * K * N, inner + b * K, mass + b * K,
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
