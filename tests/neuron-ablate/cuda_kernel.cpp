// Runs the GPU's kernel (`sums.cu`) on the CPU, its threads in turn from one meeting point to the next, and compares it with sums in f64: what it indexes and adds up,
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
static Place threadIdx, blockIdx;

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

#include SOURCE

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

int main() {
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
    if (!(worst < 2e-6)) return EXIT_FAILURE;

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
                    return EXIT_FAILURE;
                }
            }
    std::printf("ranks: all equal\n");
    return EXIT_SUCCESS;
}
