// Runs the GPU's kernels (`sums.cu`, `measures.cu`) on the CPU, their threads in turn from one meeting point to the next, and compares them with definitions in f64: what they index and add up,
// not what a GPU's own exponential rounds. Called with BASES and TILTS defined; exits with 1 where a sum is off.

#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads)

struct int2 {
    int x, y;
};
struct Place {
    unsigned x, y, z;
};
static Place threadIdx, blockIdx, blockDim = {128, 1, 1};

constexpr unsigned ALL = 128;
constexpr size_t STACK = 1 << 16;
static ucontext_t scheduler, fibers[ALL];
static std::vector<char> stacks(ALL * STACK);
static std::function<void()> kernel_of_block;
static bool done[ALL];
static float passed[ALL];
static int passed_int[ALL];

// All threads of a block meet at the same places in the same order, so that one round of turns is enough to wait for all.
static void meet() { swapcontext(&fibers[threadIdx.x], &scheduler); }
static void __syncthreads() { meet(); }

template <class T>
static T exchange(T *slots, T x, int step) {
    slots[threadIdx.x] = x;
    meet();
    const T other = slots[threadIdx.x ^ step];
    meet();
    return other;
}
static float __shfl_xor_sync(unsigned, float x, int step) { return exchange(passed, x, step); }
static int __shfl_xor_sync(unsigned, int x, int step) { return exchange(passed_int, x, step); }
static float exp2_of(float t) { return std::exp2(t); }

#include SUMS
#include MEASURES

static unsigned long long state = 1;
static double uniform(double low, double high) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return low + (high - low) * ((state >> 11) / 9007199254740992.0);
}
static std::vector<float> random_values(size_t n, double low, double high) {
    std::vector<float> values(n);
    for (float &value : values) value = float(uniform(low, high));
    return values;
}

static void start() {
    kernel_of_block();
    done[threadIdx.x] = true;
}

static void run(std::function<void()> kernel, unsigned x, unsigned y, unsigned z) {
    kernel_of_block = std::move(kernel);
    for (unsigned block = 0; block < x * y * z; block++) {
        blockIdx = {block % x, block / x % y, block / x / y};
        for (unsigned thread = 0; thread < ALL; thread++) {
            getcontext(&fibers[thread]);
            fibers[thread].uc_stack.ss_sp = &stacks[thread * STACK];
            fibers[thread].uc_stack.ss_size = STACK;
            fibers[thread].uc_link = &scheduler;
            makecontext(&fibers[thread], start, 0);
            done[thread] = false;
        }
        for (bool any = true; any;) {
            any = false;
            for (unsigned thread = 0; thread < ALL; thread++) {
                if (done[thread]) continue;
                threadIdx = {thread, 0, 0};
                swapcontext(&scheduler, &fibers[thread]);
                any |= !done[thread];
            }
        }
    }
}

static bool sums_and_ranks() {
    static_assert(THREADS == ALL);
    // Sizes that fill no tile, and strips that fill no chunk.
    const int n_rows = 5, n_directions = 9, d_vocab = 700;
    const std::vector<int2> strips = {{3, 300}, {303, 256}, {559, 141}};
    const auto l = random_values(n_rows * d_vocab, -20, 5), g = random_values(n_rows * d_vocab, -3, 3);
    const auto u = random_values(n_directions * d_vocab, -3, 3), lambda = random_values(d_vocab, -6, 6);
    const size_t n_pairs = n_rows * n_directions;
    const auto factors = random_values((2 * BASES + TILTS) * n_pairs, -1, 1);
    std::vector<float> out(strips.size() * READINGS * 3 * n_pairs, NAN);
    run(
        [&] {
            sums(l.data(), g.data(), u.data(), lambda.data(), factors.data(), strips.data(), out.data(), n_rows, n_directions,
                 d_vocab);
        },
        (n_directions + TILE_DIRECTIONS - 1) / TILE_DIRECTIONS, (n_rows + TILE_ROWS - 1) / TILE_ROWS, strips.size());

    double worst = 0;
    for (size_t strip = 0; strip < strips.size(); strip++)
        for (int reading = 0; reading < READINGS; reading++)
            for (int d = 0; d < n_directions; d++)
                for (int r = 0; r < n_rows; r++) {
                    const size_t pair = d * n_rows + r;
                    const int base = reading < BASES ? reading : 0;
                    double expected[3] = {0, 0, 0}, size[3] = {0, 0, 0};
                    for (int i = strips[strip].x; i < strips[strip].x + strips[strip].y; i++) {
                        double t = l[r * d_vocab + i] + double(factors[2 * base * n_pairs + pair]) * g[r * d_vocab + i] +
                                   double(factors[(2 * base + 1) * n_pairs + pair]) * u[d * d_vocab + i];
                        if (reading >= BASES) t += double(factors[(BASES + reading) * n_pairs + pair]) * lambda[i];
                        const double e = std::exp2(t), terms[3] = {e, e * t, e * lambda[i]};
                        for (int s = 0; s < 3; s++) {
                            expected[s] += terms[s];
                            size[s] += std::fabs(terms[s]);
                        }
                    }
                    for (int s = 0; s < 3; s++) {
                        const double found = out[((strip * READINGS + reading) * 3 + s) * n_pairs + pair];
                        const double off = std::fabs(found - expected[s]) / size[s];
                        worst = off <= worst ? worst : off; // NaN is the worst
                    }
                }
    std::printf("sums: largest error %.2e of the sum of sizes\n", worst);
    if (!(worst < 2e-6)) return false;

    const std::vector<long long> targets = {0, 10, 302, 303, 699};
    std::vector<int> above(strips.size() * n_pairs, -1);
    run(
        [&] {
            ranks(l.data(), g.data(), u.data(), targets.data(), factors.data(), strips.data(), above.data(), n_rows, n_directions,
                  d_vocab);
        },
        (n_directions + 15) / 16, n_rows, strips.size());
    for (size_t strip = 0; strip < strips.size(); strip++)
        for (int d = 0; d < n_directions; d++)
            for (int r = 0; r < n_rows; r++) {
                const size_t pair = d * n_rows + r;
                const auto logit = [&](int i) {
                    return std::fma(factors[n_pairs + pair], u[d * d_vocab + i],
                                    std::fma(factors[pair], g[r * d_vocab + i], l[r * d_vocab + i]));
                };
                int expected = 0;
                for (int i = strips[strip].x; i < strips[strip].x + strips[strip].y; i++)
                    expected += logit(i) > logit(int(targets[r]));
                if (above[strip * n_pairs + pair] != expected) {
                    std::printf("ranks: %d above instead of %d\n", above[strip * n_pairs + pair], expected);
                    return false;
                }
            }
    std::printf("ranks: all equal\n");
    return true;
}

#if BASES == 2 && TILTS == 2
// Measures of a vector of logits over some tokens, by their definitions: loss (if there is a target), entropy, both divergences.
static std::vector<double> by_definition(const std::vector<double> &z, const std::vector<double> &log_q, int from, int to, int target) {
    double norm = 0, mass = 0;
    for (int i = from; i < to; i++) {
        norm += std::exp(z[i]);
        mass += std::exp(log_q[i]);
    }
    double entropy = 0, model_freq = 0, freq_model = 0;
    for (int i = from; i < to; i++) {
        const double ln_p = z[i] - std::log(norm), ln_q = log_q[i] - std::log(mass);
        entropy -= std::exp(ln_p) * ln_p;
        model_freq += std::exp(ln_p) * (ln_p - ln_q);
        freq_model += std::exp(ln_q) * (ln_q - ln_p);
    }
    if (target < 0) return {model_freq, freq_model};
    return {std::log(norm) - z[target], entropy, model_freq, freq_model};
}

// Two cells, the second one a band; all variants: total, frozen norm, frozen along all tokens, frozen along the band.
static bool all_measures(bool clean_outside) {
    const int n_rows = 3, n_directions = 5, d_vocab = 90, n_cells = 2, n_axes = 2, n_bands = 1, n_variants = 4, n_measures = 6;
    const int cell_from[3] = {0, 50, 90};
    const double d_model = 16, eps = 1e-5;
    std::vector<double> log_q(d_vocab);
    double mass = 0;
    for (double &value : log_q) mass += std::exp(value = uniform(-8, -2));
    for (double &value : log_q) value -= std::log(mass);
    const double slope[2] = {0.05, 0.11}, intercept[2] = {0.2, 0.5}, centre[2] = {-4.5, -5.25};
    const auto axis = [&](int a, int i) { return a == 0 || i >= cell_from[1] ? slope[a] * log_q[i] + intercept[a] : 0.0; };
    const auto g = random_values(n_rows * d_vocab, -3, 3), u = random_values(n_directions * d_vocab, -3, 3);
    const auto dot = [&](const float *x, auto value, int from, int to) {
        double sum = 0;
        for (int i = from; i < to; i++) sum += x[i] * value(i);
        return sum;
    };
    const auto q = [&](int i) { return std::exp(log_q[i]); };

    std::vector<float> lambda(d_vocab);
    std::vector<double> vocabulary = {d_model, eps, 0.0, 8.0, 40.0, 60.0}, rows, directions, scales;
    double band_mass = 0, band_neg_entropy = 0;
    for (int i = 0; i < d_vocab; i++) {
        lambda[i] = float(log_q[i] - centre[i >= cell_from[1]]);
        vocabulary[2] += q(i) * log_q[i];
        if (i >= cell_from[1]) band_mass += q(i);
    }
    for (int i = cell_from[1]; i < d_vocab; i++) band_neg_entropy += q(i) / band_mass * (log_q[i] - std::log(band_mass));
    vocabulary.insert(vocabulary.end(), {slope[0], slope[1], intercept[0], intercept[1], centre[0], centre[1]});
    for (int a = 0; a < n_axes; a++)
        for (int c = 0; c < n_cells; c++) {
            double sum = 0;
            for (int i = cell_from[c]; i < cell_from[c + 1]; i++) sum += q(i) * axis(a, i);
            vocabulary.push_back(sum);
        }
    vocabulary.insert(vocabulary.end(), {band_mass, band_neg_entropy});
    const int outside = clean_outside ? -1 : 0;
    const std::vector<int> layout = {0, 0, 1, 1, 2, 2, outside, 3,  // sources
                                     -1, -1, 0, 1,                  // axes
                                     0, 0, 1, 1, 2, 2, -1, 3,       // places
                                     0, 9,                          // offsets
                                     0, 1};                         // the band

    const int targets[3] = {7, 60, 89};
    std::vector<double> l(n_rows * d_vocab);
    std::vector<float> bits(n_rows * d_vocab);
    for (int r = 0; r < n_rows; r++) {
        const double norm2 = uniform(20, 40), scale = std::sqrt(norm2 / d_model + eps), level[2] = {0.3 * r, -0.4};
        scales.push_back(norm2);
        for (int i = 0; i < d_vocab; i++) {
            l[r * d_vocab + i] = g[r * d_vocab + i] / scale;
            bits[r * d_vocab + i] = float((l[r * d_vocab + i] - level[i >= cell_from[1]]) / std::log(2.0));
        }
        const float *g_row = &g[r * d_vocab];
        const int target = targets[r];
        rows.insert(rows.end(), {norm2, scale, g_row[target], l[r * d_vocab + target], double(target >= cell_from[1]), 3.0, 20.0});
        rows.insert(rows.end(), {level[0], level[1]});
        for (int c = 0; c < n_cells; c++) rows.push_back(dot(g_row, q, cell_from[c], cell_from[c + 1]));
        for (int c = 0; c < n_cells; c++) rows.push_back(dot(g_row, q, cell_from[c], cell_from[c + 1]) / scale);
        for (int c = 0; c < n_cells; c++) {
            double s[3] = {0, 0, 0};
            for (int i = cell_from[c]; i < cell_from[c + 1]; i++) {
                const double z = l[r * d_vocab + i], e = std::exp(z - level[c]);
                s[0] += e;
                s[1] += e * z;
                s[2] += e * log_q[i];
            }
            rows.insert(rows.end(), {level[c], s[0], s[1], s[2]});
        }
        for (int a = 0; a < n_axes; a++) rows.push_back(dot(g_row, [&](int i) { return axis(a, i); }, 0, d_vocab));
        for (int a = 0; a < n_axes; a++) rows.push_back(axis(a, target));
        const std::vector<double> z(&l[r * d_vocab], &l[r * d_vocab] + d_vocab);
        for (double value : by_definition(z, log_q, 0, d_vocab, target)) rows.push_back(value);
        for (double value : by_definition(z, log_q, cell_from[1], d_vocab, -1)) rows.push_back(value);
    }
    for (int d = 0; d < n_directions; d++) {
        const float *u_row = &u[d * d_vocab];
        directions.insert(directions.end(), {0.5 + 0.1 * d, 3.0});
        for (int c = 0; c < n_cells; c++) directions.push_back(dot(u_row, q, cell_from[c], cell_from[c + 1]));
        for (int a = 0; a < n_axes; a++) directions.push_back(dot(u_row, [&](int i) { return axis(a, i); }, 0, d_vocab));
    }
    const size_t n_pairs = n_rows * n_directions;
    std::vector<double> change(n_pairs), cross(n_pairs), u_target(n_pairs);
    for (size_t pair = 0; pair < n_pairs; pair++) {
        change[pair] = pair == 0 ? 1e6 : uniform(-0.6, 0.6); // the first one moves too far
        cross[pair] = uniform(-1, 1);
        u_target[pair] = u[pair / n_rows * d_vocab + targets[pair % n_rows]];
    }

    std::vector<float> factors(6 * n_pairs), out(n_pairs * n_variants * n_measures, NAN);
    std::vector<unsigned char> left(n_pairs, 9);
    run([&] { moves(rows.data(), directions.data(), vocabulary.data(), layout.data(), change.data(), cross.data(), factors.data(),
                    left.data(), n_rows, n_directions, n_cells, n_variants, BASES, n_axes, n_bands); }, 1, 1, 1);
    // The kernel is compiled for two tilts: the one that is not wanted on the first cell is left out of what it gives.
    std::vector<double> raw(21 * n_pairs);
    for (int c = 0; c < n_cells; c++) {
        const std::vector<int2> strips = {{cell_from[c], 30}, {cell_from[c] + 30, cell_from[c + 1] - cell_from[c] - 30}};
        std::vector<float> of_strips(2 * 12 * n_pairs);
        run([&] { sums(bits.data(), g.data(), u.data(), lambda.data(), factors.data(), strips.data(), of_strips.data(), n_rows,
                       n_directions, d_vocab); },
            (n_directions + TILE_DIRECTIONS - 1) / TILE_DIRECTIONS, 1, 2);
        const size_t values = (c == 0 ? 9 : 12) * n_pairs;
        for (size_t i = 0; i < values; i++) raw[(c == 0 ? 0 : 9) * n_pairs + i] = double(of_strips[i]) + of_strips[12 * n_pairs + i];
    }
    run([&] { measures(rows.data(), directions.data(), vocabulary.data(), layout.data(), change.data(), cross.data(), u_target.data(),
                       raw.data(), out.data(), n_rows, n_directions, n_cells, n_variants, BASES, n_axes, n_bands); }, 1, 1, 1);

    double worst = 0;
    for (size_t pair = 0; pair < n_pairs; pair++) {
        if (left[pair] != (pair == 0)) {
            std::printf("measures: pair %zu is left: %d\n", pair, left[pair]);
            return false;
        }
        if (pair == 0) continue;
        const int r = pair % n_rows, d = pair / n_rows;
        const double norm2 = scales[r] + 2 * change[pair] * cross[pair] + change[pair] * change[pair] * (0.5 + 0.1 * d);
        const double s = std::sqrt(scales[r] / d_model + eps), moved = std::sqrt(norm2 / d_model + eps);
        const double a = 1 / moved - 1 / s, c = change[pair] / moved;
        double along[2];
        for (int k = 0; k < n_axes; k++) {
            const auto of_axis = [&](int i) { return axis(k, i); };
            along[k] = a * dot(&g[r * d_vocab], of_axis, 0, d_vocab) + c * dot(&u[d * d_vocab], of_axis, 0, d_vocab);
        }
        for (int v = 0; v < n_variants; v++) {
            std::vector<double> z(d_vocab), clean(&l[r * d_vocab], &l[r * d_vocab] + d_vocab);
            for (int i = 0; i < d_vocab; i++) {
                const double g_i = g[r * d_vocab + i], u_i = u[d * d_vocab + i];
                z[i] = clean[i] + (v == 1 ? change[pair] / s * u_i : a * g_i + c * u_i);
                if (v >= 2) z[i] -= along[v - 2] * axis(v - 2, i);
                if (v == 3 && i < cell_from[1]) z[i] = clean_outside ? clean[i] : clean[i] + a * g_i + c * u_i;
            }
            auto expected = by_definition(z, log_q, 0, d_vocab, targets[r]), before = by_definition(clean, log_q, 0, d_vocab, targets[r]);
            for (double value : by_definition(z, log_q, cell_from[1], d_vocab, -1)) expected.push_back(value);
            for (double value : by_definition(clean, log_q, cell_from[1], d_vocab, -1)) before.push_back(value);
            for (int m = 0; m < n_measures; m++) {
                const double off = std::fabs(out[(pair * n_variants + v) * n_measures + m] - (expected[m] - before[m]));
                worst = off <= worst ? worst : off;
            }
        }
    }
    std::printf("measures: largest error %.2e nats\n", worst);
    return worst < 3e-6;
}
#endif

int main() {
    bool right = sums_and_ranks();
#if BASES == 2 && TILTS == 2
    right &= all_measures(false) & all_measures(true);
#endif
    return right ? EXIT_SUCCESS : EXIT_FAILURE;
}
