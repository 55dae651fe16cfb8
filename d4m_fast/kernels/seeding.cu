// k-means++: kernels/seeding.py on a device.

// Draws points in proportion to their squared distance, closest, a block per problem.
//   counts     (B,)       how many; none: the problem is left alone
//   uniforms   (B, 2, T)  in [0, 1): of the draws, and of the part of its distance that `extend` keeps a point above
//   candidates (B, T), limits (B, T)
KERNEL draw(const double *closest, const int *n, const int *counts, const double *uniforms,
            i64 N, i64 T, int *candidates, double *limits)
{
    __shared__ double starts[BLOCK + 1];
    __shared__ Best parts[WARPS];
    const i64 b = blockIdx.x;
    const int count = n[b], draws = counts[b];
    if (draws == 0)
        return;
    closest += b * N, candidates += b * T, limits += b * T, uniforms += 2 * b * T;

    const int share = (count + BLOCK - 1) / BLOCK;
    const int begin = min(static_cast<int>(threadIdx.x) * share, count), end = min(begin + share, count);
    double mine = 0;
    int last = -1;
    for (int i = begin; i < end; ++i) {
        mine += closest[i];
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
            reached += closest[i];
            if (starts[low] + reached > target) {
                point = i;
                break;
            }
        }
        candidates[j] = point;
        limits[j] = uniforms[T + j] * closest[point];
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

// Chooses seeds from the candidates, a block per problem. A candidate is kept while its distance is above its limit; of
// each `trials` kept the one that lowers the sum of squared distances most becomes a seed, until too few are
// left.
//   rows     (B, R, N)  inner products of some points with all: of candidate j row j, or, by_index, its own row
//   closest  (B, N)     squared distances to the nearest seed, the first of equals, whose number is nearest (B, N)
//   chosen   (B, K)     the seeds, of which there are progress[b]
//   left     (B,)       out: whether a point is off its seed
KERNEL extend(const float *rows, const POINT *points, const double *squares, const int *n, const int *k,
              const int *trials, const int *counts, const int *candidates, const double *limits,
              i64 by_index, i64 R, i64 N, i64 D, i64 K, i64 T, double *closest, int *nearest, int *chosen,
              int *progress, int *left)
{
    __shared__ double parts[WARPS];
    __shared__ int kept[MOST_TRIALS], keeping, next;
    const i64 b = blockIdx.x;
    const int count = n[b];
    if (counts[b] == 0)
        return;
    points += b * N * D, squares += b * N, rows += b * R * N, candidates += b * T, limits += b * T;
    closest += b * N, nearest += b * N, chosen += b * K;
    const int from = progress[b];
    if (threadIdx.x == 0)
        next = 0;
    int made = from;
    for (; made < k[b]; ++made) {
        __syncthreads();
        if (threadIdx.x == 0)
            for (keeping = 0; next < counts[b] && keeping < trials[b]; ++next)
                if (limits[next] < closest[candidates[next]])
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
                mine += fmin(closest[i], fmax(squares[i] + squares[point] - 2.0 * row[i], 0.0));
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
