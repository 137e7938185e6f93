// Sums of exponentials over the vocabulary for every (row, direction) pair of a block: the fused kernel on a GPU.
//
// Compiled at run time for each number of bases and tilts: BASES (at least 1), TILTS; see `mod.rs` for what the sums are.
// A warp has ROWS x DIRECTIONS pairs and its lanes share the tokens of a strip; the warps of a block share what is staged of
// the vectors. All sums are of f32 over at most a few hundred tokens a lane; strips are added up in f64 elsewhere.

constexpr int ROWS = 2;
constexpr int DIRECTIONS = BASES + TILTS <= 4 ? 4 : BASES + TILTS <= 8 ? 2 : 1;
constexpr int WARPS_OF_ROWS = 2;
constexpr int WARPS_OF_DIRECTIONS = 2;
constexpr int THREADS = 32 * WARPS_OF_ROWS * WARPS_OF_DIRECTIONS;
constexpr int TILE_ROWS = ROWS * WARPS_OF_ROWS;
constexpr int TILE_DIRECTIONS = DIRECTIONS * WARPS_OF_DIRECTIONS;
constexpr int TOKENS = 256;
constexpr int READINGS = BASES + TILTS;

// What stands for a token past the end: 2^-1000 is 0.
constexpr float NOTHING = -1000.0f;

#ifdef __CUDACC__
__device__ __forceinline__ float exp2_of(float t) {
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(t));
    return e;
}
#endif

__device__ __forceinline__ float over_warp(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ __forceinline__ int within(int i, int n) { return i < n ? i : n - 1; }

// `l` in bits, `g`: [n_rows][d_vocab]; `u`: [n_directions][d_vocab]; `lambda`: [d_vocab].
// `factors`: [2 * BASES + TILTS][n_directions][n_rows], in bits: a and c of each base, then k of each tilt (of base 0).
// `strips`: start and length of each; `out`: [strip][READINGS][3][n_directions][n_rows].
extern "C" __global__ void __launch_bounds__(THREADS)
sums(const float* __restrict__ l, const float* __restrict__ g, const float* __restrict__ u,
     const float* __restrict__ lambda, const float* __restrict__ factors, const int2* __restrict__ strips,
     float* __restrict__ out, int n_rows, int n_directions, int d_vocab) {
    __shared__ float s_l[TILE_ROWS][TOKENS];
    __shared__ float s_g[TILE_ROWS][TOKENS];
    __shared__ float s_u[TILE_DIRECTIONS][TOKENS];
    __shared__ float s_lambda[TOKENS];

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row_in_tile = (warp / WARPS_OF_DIRECTIONS) * ROWS;
    const int direction_in_tile = (warp % WARPS_OF_DIRECTIONS) * DIRECTIONS;
    const int first_row = blockIdx.y * TILE_ROWS, first_direction = blockIdx.x * TILE_DIRECTIONS;
    const int start = strips[blockIdx.z].x, length = strips[blockIdx.z].y;
    const size_t n_pairs = size_t(n_rows) * n_directions;

    float a[BASES][ROWS][DIRECTIONS], c[BASES][ROWS][DIRECTIONS];
    float k[TILTS + 1][ROWS][DIRECTIONS];
    float sum[READINGS][3][ROWS][DIRECTIONS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int d = 0; d < DIRECTIONS; d++) {
            const size_t row = within(first_row + row_in_tile + r, n_rows);
            const size_t pair = size_t(within(first_direction + direction_in_tile + d, n_directions)) * n_rows + row;
#pragma unroll
            for (int b = 0; b < BASES; b++) {
                a[b][r][d] = factors[(2 * b) * n_pairs + pair];
                c[b][r][d] = factors[(2 * b + 1) * n_pairs + pair];
            }
#pragma unroll
            for (int i = 0; i < TILTS; i++) k[i][r][d] = factors[(2 * BASES + i) * n_pairs + pair];
#pragma unroll
            for (int i = 0; i < READINGS; i++)
#pragma unroll
                for (int s = 0; s < 3; s++) sum[i][s][r][d] = 0.0f;
        }
    }

    for (int from = 0; from < length; from += TOKENS) {
        __syncthreads();
        for (int i = threadIdx.x; i < TOKENS; i += THREADS) {
            const bool inside = from + i < length;
            const size_t at = start + (inside ? from + i : 0);
#pragma unroll
            for (int r = 0; r < TILE_ROWS; r++) {
                const size_t place = size_t(within(first_row + r, n_rows)) * d_vocab + at;
                s_l[r][i] = inside ? l[place] : NOTHING;
                s_g[r][i] = inside ? g[place] : 0.0f;
            }
#pragma unroll
            for (int d = 0; d < TILE_DIRECTIONS; d++)
                s_u[d][i] = inside ? u[size_t(within(first_direction + d, n_directions)) * d_vocab + at] : 0.0f;
            s_lambda[i] = inside ? lambda[at] : 0.0f;
        }
        __syncthreads();
#pragma unroll 1
        for (int i = lane; i < TOKENS; i += 32) {
            const float of_q = s_lambda[i];
            float u_here[DIRECTIONS];
#pragma unroll
            for (int d = 0; d < DIRECTIONS; d++) u_here[d] = s_u[direction_in_tile + d][i];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const float l_here = s_l[row_in_tile + r][i], g_here = s_g[row_in_tile + r][i];
#pragma unroll
                for (int d = 0; d < DIRECTIONS; d++) {
                    float total = 0.0f;
#pragma unroll
                    for (int b = 0; b < BASES; b++) {
                        const float t = fmaf(c[b][r][d], u_here[d], fmaf(a[b][r][d], g_here, l_here));
                        const float e = exp2_of(t);
                        sum[b][0][r][d] += e;
                        sum[b][1][r][d] = fmaf(e, t, sum[b][1][r][d]);
                        sum[b][2][r][d] = fmaf(e, of_q, sum[b][2][r][d]);
                        if (b == 0) total = t;
                    }
#pragma unroll
                    for (int j = 0; j < TILTS; j++) {
                        const float t = fmaf(k[j][r][d], of_q, total);
                        const float e = exp2_of(t);
                        sum[BASES + j][0][r][d] += e;
                        sum[BASES + j][1][r][d] = fmaf(e, t, sum[BASES + j][1][r][d]);
                        sum[BASES + j][2][r][d] = fmaf(e, of_q, sum[BASES + j][2][r][d]);
                    }
                }
            }
        }
    }

#pragma unroll
    for (int i = 0; i < READINGS; i++)
#pragma unroll
        for (int s = 0; s < 3; s++)
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int d = 0; d < DIRECTIONS; d++) {
                    const float whole = over_warp(sum[i][s][r][d]);
                    const int row = first_row + row_in_tile + r, direction = first_direction + direction_in_tile + d;
                    if (lane == 0 && row < n_rows && direction < n_directions)
                        out[((size_t(blockIdx.z) * READINGS + i) * 3 + s) * n_pairs + size_t(direction) * n_rows + row] = whole;
                }
}

// How many tokens of a strip have a larger logit than the target under base 0: `out`, [strip][n_directions][n_rows].
// `factors`: [2][n_directions][n_rows], a and c; `targets`: places of the targets, [n_rows].
extern "C" __global__ void __launch_bounds__(THREADS)
ranks(const float* __restrict__ l, const float* __restrict__ g, const float* __restrict__ u,
      const long long* __restrict__ targets, const float* __restrict__ factors, const int2* __restrict__ strips,
      int* __restrict__ out, int n_rows, int n_directions, int d_vocab) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = blockIdx.y, first = (blockIdx.x * (THREADS / 32) + warp) * 4;
    const int start = strips[blockIdx.z].x, length = strips[blockIdx.z].y;
    const size_t n_pairs = size_t(n_rows) * n_directions, of_row = size_t(row) * d_vocab;
    const long long target = targets[row];
    const float *u_of[4];
    float a[4], c[4], bar[4];
    int above[4] = {0, 0, 0, 0};
#pragma unroll
    for (int d = 0; d < 4; d++) {
        const size_t direction = within(first + d, n_directions);
        u_of[d] = u + direction * d_vocab;
        a[d] = factors[direction * n_rows + row];
        c[d] = factors[n_pairs + direction * n_rows + row];
        bar[d] = fmaf(c[d], u_of[d][target], fmaf(a[d], g[of_row + target], l[of_row + target]));
    }
    for (int i = start + lane; i < start + length; i += 32) {
        const float l_here = l[of_row + i], g_here = g[of_row + i];
#pragma unroll
        for (int d = 0; d < 4; d++) above[d] += fmaf(c[d], u_of[d][i], fmaf(a[d], g_here, l_here)) > bar[d];
    }
#pragma unroll
    for (int d = 0; d < 4; d++) {
        for (int step = 16; step > 0; step /= 2) above[d] += __shfl_xor_sync(0xffffffffu, above[d], step);
        if (lane == 0 && first + d < n_directions)
            out[size_t(blockIdx.z) * n_pairs + size_t(first + d) * n_rows + row] = above[d];
    }
}
