// What stands before and behind the sums of a pair: how its logits move, and its measures. In f64, a thread for each pair.
//
// Pairs are [n_directions][n_rows]. What belongs to rows, to directions and to the vocabulary comes in tables of f64 (`Row`,
// `Direction`, `Vocabulary` say what stands where), what tells variants and cells apart in a table of int (`Layout`); `tables.rs` fills
// them. The formulas are those of `pairs.rs` and `outcome.rs`.

struct Sizes {
    int rows, directions, cells, variants, bases, axes, bands;
    __device__ int tilts() const { return variants - bases; }
    __device__ int measures() const { return 4 + 2 * bands; }
};

struct Vocabulary {
    const double *at;
    const Sizes &n;
    __device__ double d_model() const { return at[0]; }
    __device__ double eps() const { return at[1]; }
    __device__ double neg_entropy_q() const { return at[2]; }
    __device__ double lambda_max() const { return at[3]; }
    __device__ double most_bits() const { return at[4]; }
    __device__ double most_above() const { return at[5]; }
    __device__ const double *slope() const { return at + 6; }
    __device__ const double *intercept() const { return slope() + n.axes; }
    __device__ const double *centre() const { return intercept() + n.axes; }
    __device__ const double *qv(int axis) const { return centre() + n.cells + axis * n.cells; }
    __device__ const double *mass() const { return qv(n.axes); }
    __device__ const double *neg_entropy() const { return mass() + n.bands; }
    __device__ double scale(double norm2) const { return sqrt(norm2 / d_model() + eps()); }
};

struct Layout {
    const int *at;
    const Sizes &n;
    // The variant whose logits a cell has, or -1 for the clean ones.
    __device__ int source(int variant, int cell) const { return at[variant * n.cells + cell]; }
    // The frozen direction of a variant, or -1.
    __device__ int axis(int variant) const { return at[n.variants * n.cells + variant]; }
    // Where the sums of a variant stand among those of a cell.
    __device__ int place(int variant, int cell) const { return at[n.variants * (n.cells + 1) + variant * n.cells + cell]; }
    // Where the sums of a cell begin, in sums of a pair.
    __device__ int offset(int cell) const { return at[n.variants * (2 * n.cells + 1) + cell]; }
    __device__ bool in_band(int band, int cell) const {
        return at[n.variants * (2 * n.cells + 1) + n.cells + band * n.cells + cell];
    }
};

struct Row {
    const double *at;
    const Sizes &n;
    __device__ static int width(const Sizes &n) { return 7 + 7 * n.cells + 2 * n.axes + n.measures(); }
    __device__ double norm2() const { return at[0]; }
    __device__ double scale() const { return at[1]; }
    __device__ double g_target() const { return at[2]; }
    __device__ double l_target() const { return at[3]; }
    __device__ int target_cell() const { return int(at[4]); }
    __device__ double g_max() const { return at[5]; }
    __device__ double above() const { return at[6]; }
    __device__ const double *level() const { return at + 7; }
    __device__ const double *g_q() const { return level() + n.cells; }
    __device__ const double *l_q() const { return g_q() + n.cells; }
    __device__ const double *clean_sums(int cell) const { return l_q() + n.cells + 4 * cell; }
    __device__ const double *g_axes() const { return clean_sums(n.cells); }
    __device__ const double *target_axes() const { return g_axes() + n.axes; }
    __device__ const double *clean() const { return target_axes() + n.axes; }
};

struct Direction {
    const double *at;
    const Sizes &n;
    __device__ static int width(const Sizes &n) { return 2 + n.cells + n.axes; }
    __device__ double norm2() const { return at[0]; }
    __device__ double u_max() const { return at[1]; }
    __device__ const double *u_q() const { return at + 2; }
    __device__ const double *u_axes() const { return u_q() + n.cells; }
};

// Logits of a variant as a change of the clean ones: a g + c u + k v.
struct Shift {
    double a, c, k;
};

struct Pair {
    const Sizes &n;
    Vocabulary vocabulary;
    Layout layout;
    Row row;
    Direction direction;
    double u_target;
    Shift total;
    double frozen_ln;

    __device__ Pair(const Sizes &n, const double *vocabulary, const int *layout, const double *rows, const double *directions,
                    size_t r, size_t d, double change, double cross, double u_target)
        : n(n), vocabulary{vocabulary, n}, layout{layout, n}, row{rows + r * Row::width(n), n},
          direction{directions + d * Direction::width(n), n}, u_target(u_target) {
        const double norm2 = row.norm2() + 2.0 * change * cross + change * change * direction.norm2();
        const double scale = this->vocabulary.scale(norm2);
        total = {1.0 / scale - 1.0 / row.scale(), change / scale, 0.0};
        frozen_ln = change / row.scale();
    }

    // Of the total effect (variant 0), the frozen final norm (another base), or the total effect with a frozen direction.
    __device__ Shift shift(int variant) const {
        if (variant == 0) return total;
        if (variant < n.bases) return {0.0, frozen_ln, 0.0};
        const int axis = layout.axis(variant);
        return {total.a, total.c, -(total.a * row.g_axes()[axis] + total.c * direction.u_axes()[axis])};
    }
};

constexpr double LOG2_E = 1.4426950408889634;
constexpr double LN_2 = 0.6931471805599453;

// `factors`: as `sums.cu` wants them; `left`: whether the sums are not safe in f32.
extern "C" __global__ void moves(const double *rows, const double *directions, const double *vocabulary, const int *layout,
                                 const double *change, const double *cross, float *factors, unsigned char *left, int n_rows,
                                 int n_directions, int n_cells, int n_variants, int n_bases, int n_axes, int n_bands) {
    const Sizes n{n_rows, n_directions, n_cells, n_variants, n_bases, n_axes, n_bands};
    const size_t n_pairs = size_t(n_rows) * n_directions, at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= n_pairs) return;
    const Pair pair(n, vocabulary, layout, rows, directions, at % n_rows, at / n_rows, change[at], cross[at], 0.0);
    double by_bases = 0.0, by_tilts = 0.0;
    for (int base = 0; base < n.bases; base++) {
        const Shift shift = pair.shift(base);
        factors[2 * base * n_pairs + at] = float(shift.a * LOG2_E);
        factors[(2 * base + 1) * n_pairs + at] = float(shift.c * LOG2_E);
        by_bases = fmax(by_bases, fabs(shift.a) * pair.row.g_max() + fabs(shift.c) * pair.direction.u_max());
    }
    for (int tilt = 0; tilt < n.tilts(); tilt++) {
        const int variant = n.bases + tilt;
        const double k = pair.shift(variant).k * pair.vocabulary.slope()[pair.layout.axis(variant)];
        factors[(n.bases + variant) * n_pairs + at] = float(k * LOG2_E);
        by_tilts = fmax(by_tilts, fabs(k) * pair.vocabulary.lambda_max());
    }
    // Written so that a number that is none is left.
    left[at] = !((by_bases + by_tilts) * LOG2_E <= pair.vocabulary.most_bits() && pair.row.above() <= pair.vocabulary.most_above());
}

struct Sums {
    double shift, s0, s1, s2;
};

__device__ inline void merge(Sums &all, Sums part) {
    if (part.s0 == 0.0) return;
    if (all.s0 == 0.0) {
        all = part;
        return;
    }
    if (part.shift > all.shift) {
        const Sums smaller = all;
        all = part;
        part = smaller;
    }
    const double scale = exp(part.shift - all.shift);
    all.s0 += scale * part.s0;
    all.s1 += scale * part.s1;
    all.s2 += scale * part.s2;
}

// `sums`: as `sums.cu` has them, strips added up, for each cell [reading][3][n_directions][n_rows];
// `out`: changes of the clean measures, [n_directions][n_rows][variant][measure].
extern "C" __global__ void measures(const double *rows, const double *directions, const double *vocabulary, const int *layout,
                                    const double *change, const double *cross, const double *u_target, const double *sums,
                                    float *out, int n_rows, int n_directions, int n_cells, int n_variants, int n_bases,
                                    int n_axes, int n_bands) {
    const Sizes n{n_rows, n_directions, n_cells, n_variants, n_bases, n_axes, n_bands};
    const size_t n_pairs = size_t(n_rows) * n_directions, at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= n_pairs) return;
    const Pair pair(n, vocabulary, layout, rows, directions, at % n_rows, at / n_rows, change[at], cross[at], u_target[at]);
    for (int variant = 0; variant < n.variants; variant++) {
        float *values = out + (at * n.variants + variant) * n.measures();
        // The whole vocabulary, then each band.
        for (int band = -1; band < n.bands; band++) {
            Sums all = {0.0, 0.0, 0.0, 0.0};
            double qz = 0.0;
            for (int cell = 0; cell < n.cells; cell++) {
                if (band >= 0 && !pair.layout.in_band(band, cell)) continue;
                const int source = pair.layout.source(variant, cell);
                qz += pair.row.l_q()[cell];
                if (source < 0) {
                    const double *clean = pair.row.clean_sums(cell);
                    merge(all, {clean[0], clean[1], clean[2], clean[3]});
                    continue;
                }
                const Shift shift = pair.shift(source);
                const double centre = pair.vocabulary.centre()[cell];
                double level = pair.row.level()[cell];
                qz += shift.a * pair.row.g_q()[cell] + shift.c * pair.direction.u_q()[cell];
                if (source >= n.bases) {
                    const int axis = pair.layout.axis(source);
                    level += shift.k * (pair.vocabulary.slope()[axis] * centre + pair.vocabulary.intercept()[axis]);
                    qz += shift.k * pair.vocabulary.qv(axis)[cell];
                }
                const double *here = sums + (size_t(pair.layout.offset(cell)) + 3 * pair.layout.place(source, cell)) * n_pairs + at;
                const double s0 = here[0];
                merge(all, {level, s0, LN_2 * here[n_pairs] + level * s0, here[2 * n_pairs] + centre * s0});
            }
            const double lse = all.shift + log(all.s0), mean_z = all.s1 / all.s0, mean_log_q = all.s2 / all.s0;
            const double *clean = pair.row.clean();
            if (band >= 0) {
                const double mass = pair.vocabulary.mass()[band], neg_entropy = pair.vocabulary.neg_entropy()[band];
                const int place = 4 + 2 * band;
                values[place] = float(mean_z - lse - mean_log_q + log(mass) - clean[place]);
                values[place + 1] = float(neg_entropy - (qz / mass - lse) - clean[place + 1]);
                continue;
            }
            const int source = pair.layout.source(variant, pair.row.target_cell());
            double target = pair.row.l_target();
            if (source >= 0) {
                const Shift shift = pair.shift(source);
                target += shift.a * pair.row.g_target() + shift.c * pair.u_target;
                if (source >= n.bases) target += shift.k * pair.row.target_axes()[pair.layout.axis(source)];
            }
            values[0] = float(lse - target - clean[0]);
            values[1] = float(lse - mean_z - clean[1]);
            values[2] = float(mean_z - lse - mean_log_q - clean[2]);
            values[3] = float(pair.vocabulary.neg_entropy_q() - (qz - lse) - clean[3]);
        }
    }
}
