// Compares kernels.cu, compiled for the CPU, with plain definitions. Prints each difference.
#include <cstddef>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../src/kernels.cu"

static int wrong;

static void check(bool same, const char *what, double found, double expected) {
    if (!same && wrong++ < 20) printf("%s: %.9g instead of %.9g\n", what, found, expected);
}

static bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

template <typename Kernel> static void run(u32 count, Kernel kernel) {
    // Threads beyond the last result, as in a last block that is not full.
    for (thread_index = 0; thread_index < count + 7; thread_index++) kernel();
}

// The nearest f16 from the definition: of all of them, that with the smallest distance; of two, the
// even one.
static u16 nearest(float x, const std::vector<float> &halves) {
    u32 low = 0, high = 0x7bff;
    float size = fabsf(x);
    u16 sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return sign | 0x7e00;
    if (size >= 65520) return sign | 0x7c00;
    while (low < high) {
        u32 middle = (low + high + 1) / 2;
        if (halves[middle] <= size) low = middle; else high = middle - 1;
    }
    if (low == 0x7bff) return sign | low;
    double below = (double)size - halves[low], above = (double)halves[low + 1] - size;
    return sign | (below < above || (below == above && low % 2 == 0) ? low : low + 1);
}

static void conversions() {
    std::vector<float> halves(0x10000);
    for (u32 bits = 0; bits < 0x10000; bits++) {
        int exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
        float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                     : exponent ? ldexpf(1024 + fraction, exponent - 25) : ldexpf(fraction, -24);
        halves[bits] = bits & 0x8000 ? -size : size;
        check(same(of_half(bits, 0), halves[bits]), "of f16", of_half(bits, 0), halves[bits]);
        float bf16 = float_of(bits << 16);
        check(same(of_half(bits, 1), bf16), "of bf16", of_half(bits, 1), bf16);
        if (!std::isnan(halves[bits])) check(f16_of(halves[bits]) == bits, "to f16", f16_of(halves[bits]), bits);
        if (!std::isnan(bf16)) check(bf16_of(bf16) == bits, "to bf16", bf16_of(bf16), bits);
    }
    u32 state = 1;
    for (int i = 0; i < 2000000; i++) {
        state = state * 1664525 + 1013904223;
        float x = float_of(state);
        // Every second number is in f16's range.
        if (i % 2) x = ldexpf((int)(state >> 8) - (1 << 23), (int)(state & 31) - 40);
        u16 expected = nearest(x, halves);
        check(f16_of(x) == expected || std::isnan(x), "rounded to f16", f16_of(x), expected);
        float back = of_half(bf16_of(x), 1);
        // A bf16 has eight bits: the error is at most half of the last one, 2^-8 of the number.
        bool near = std::isnan(x) ? std::isnan(back) : std::isinf(back) ? fabsf(x) > 3.38e38f
                    : fabs((double)back - x) <= fabs((double)x) / 256 + 1e-40;
        check(near, "rounded to bf16", back, x);
    }
    // The ties of f16.
    check(f16_of(2049) == f16_of(2048), "a tie to the even one", f16_of(2049), f16_of(2048));
    check(f16_of(2051) == f16_of(2052), "a tie to the even one", f16_of(2051), f16_of(2052));
    check(std::isnan(of_half(f16_of(NAN), 0)) && std::isnan(of_half(bf16_of(NAN), 1)), "NaN", 0, NAN);
}

static void images() {
    const u32 count = 10, area = 5;
    u8 bytes[3 * count];
    for (u32 i = 0; i < 3 * count; i++) bytes[i] = 37 * i + 11;
    for (u32 bf16 = 0; bf16 < 2; bf16++)
        for (u32 reversed = 0; reversed < 2; reversed++) {
            Eight to[count];
            run(count, [&] { imgclass_pixels(bytes, to, count, 0.5f, 0.25f, 2, 1, -3, 7, reversed, bf16); });
            const float factor[] = {0.5f, 0.25f, 2}, addend[] = {1, -3, 7};
            for (u32 i = 0; i < count; i++)
                for (u32 c = 0; c < 8; c++) {
                    u32 plane = reversed ? 2 - c : c;
                    u16 expected = c < 3 ? half_of(bytes[3 * i + plane] * factor[c] + addend[c], bf16) : 0;
                    check(to[i].at[c] == expected, "pixels", to[i].at[c], expected);
                }
        }
    float planes[2 * 3 * area];
    for (u32 i = 0; i < 2 * 3 * area; i++) planes[i] = 0.375f * i - 4;
    Eight to[2 * area];
    run(2 * area, [&] { imgclass_planes(planes, to, 2 * area, area, 0); });
    for (u32 image = 0; image < 2; image++)
        for (u32 i = 0; i < area; i++)
            for (u32 c = 0; c < 8; c++) {
                u16 expected = c < 3 ? f16_of(planes[(3 * image + c) * area + i]) : 0;
                check(to[image * area + i].at[c] == expected, "planes", to[image * area + i].at[c], expected);
            }
}

static void pools() {
    const int sizes[][2] = {{6, 8}, {7, 5}, {1, 1}, {2, 9}};
    for (auto &size : sizes)
        for (u32 bf16 = 0; bf16 < 2; bf16++) {
            const int n = 2, groups = 2, channels = 8 * groups, h = size[0], w = size[1], oh = (h + 1) / 2, ow = (w + 1) / 2;
            std::vector<u16> x(n * h * w * channels);
            for (size_t i = 0; i < x.size(); i++) x[i] = i % 5 ? half_of((i * 7919 % 1000) / 16.0f, bf16) : 0x8000;
            std::vector<Eight> from(x.size() / 8), to(n * oh * ow * groups);
            __builtin_memcpy(from.data(), x.data(), 2 * x.size());
            run(to.size(), [&] { imgclass_max_pool(from.data(), to.data(), to.size(), h, w, groups, oh, ow); });
            for (int i = 0; i < n * oh * ow * channels; i++) {
                int c = i % channels, column = i / channels % ow, row = i / channels / ow % oh, image = i / channels / ow / oh;
                float most = 0;
                for (int y = 2 * row - 1; y < 2 * row + 2; y++)
                    for (int z = 2 * column - 1; z < 2 * column + 2; z++)
                        if (y >= 0 && y < h && z >= 0 && z < w)
                            most = fmaxf(most, of_half(x[((image * h + y) * w + z) * channels + c], bf16));
                float found = of_half(to[i / 8].at[i % 8], bf16);
                check(found == most, "max-pool", found, most);
            }
            std::vector<float> means(n * channels);
            run(means.size(), [&] { imgclass_average_pool(x.data(), means.data(), means.size(), h * w, channels, bf16); });
            for (int i = 0; i < n * channels; i++) {
                double sum = 0;
                for (int k = 0; k < h * w; k++) sum += of_half(x[(i / channels * h * w + k) * channels + i % channels], bf16);
                check(fabs(means[i] - sum / (h * w)) < 1e-4, "average pool", means[i], sum / (h * w));
            }
        }
}

static void linear() {
    const u32 shapes[][4] = {{1, 64, 10, 8}, {6, 70, 13, 32}, {8, 5, 3, 8}, {3, 33, 1, 4}};
    for (auto &shape : shapes) {
        u32 n = shape[0], inputs = shape[1], outputs = shape[2], slices = shape[3];
        std::vector<float> x(n * inputs), weights(inputs * outputs), bias(outputs), to(n * outputs);
        for (size_t i = 0; i < x.size(); i++) x[i] = (i * 31 % 17) / 8.0f - 1;
        for (size_t i = 0; i < weights.size(); i++) weights[i] = (i * 57 % 23) / 4.0f - 3;
        for (size_t i = 0; i < bias.size(); i++) bias[i] = i;
        // What is not written stays NaN and shows.
        std::vector<float> partial(slices * n * outputs, NAN);
        u32 count = slices * ((n + 3) / 4) * outputs;
        run(count, [&] {
            imgclass_linear_partial(x.data(), weights.data(), partial.data(), count, n, inputs, outputs, slices);
        });
        run(n * outputs, [&] { imgclass_linear_sum(partial.data(), bias.data(), to.data(), n * outputs, outputs, slices); });
        for (u32 i = 0; i < n * outputs; i++) {
            double sum = bias[i % outputs];
            for (u32 k = 0; k < inputs; k++) sum += (double)x[i / outputs * inputs + k] * weights[k * outputs + i % outputs];
            check(fabs(to[i] - sum) < 1e-3, "linear", to[i], sum);
        }
    }
}

int main() {
    conversions();
    images();
    pools();
    linear();
    if (wrong) printf("%d differences\n", wrong);
    return wrong != 0;
}
