// What cuDNN lacks: pixels to normalised half precision, max-pool, average pool and the fully
// connected layer. Half precision is handled as 16-bit patterns, so that one kernel serves both
// types (`bf16` says which) and the same source compiles for a CPU, where the tests run it.
//
// Every kernel runs one-dimensional: thread `i` makes result `i`.

#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void
#define INLINE __device__ __forceinline__
#define INDEX (blockIdx.x * blockDim.x + threadIdx.x)
#else
// A C++ compiler for the CPU: whoever includes this file sets thread_index and calls the function.
#define KERNEL extern "C" void
#define INLINE static inline
#define INDEX thread_index
static thread_local unsigned thread_index;
#endif

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

// Eight channels of one pixel, which are read and written at once.
struct alignas(16) Eight {
    u16 at[8];
};

INLINE u32 bits_of(float x) {
#ifdef __CUDACC__
    return __float_as_uint(x);
#else
    u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
#endif
}

INLINE float float_of(u32 bits) {
#ifdef __CUDACC__
    return __uint_as_float(bits);
#else
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
#endif
}

// To the nearest f16, to the even one of two; beyond 65504 to infinity.
INLINE u16 f16_of(float number) {
    u32 bits = bits_of(number), sign = bits >> 16 & 0x8000, x = bits & 0x7fffffff;
    if (x >= 0x47800000) return sign | (x > 0x7f800000 ? 0x7e00 : 0x7c00);
    // Below 2^-14: adding 0.5 lets the addition round at f16's last place.
    if (x < 0x38800000) return sign | (bits_of(float_of(x) + 0.5f) - 0x3f000000);
    // The exponent's bias is 127 in one type and 15 in the other.
    return sign | (x - (112u << 23) + 0xfff + (x >> 13 & 1)) >> 13;
}

INLINE float of_f16(u16 half) {
    u32 sign = (u32)(half & 0x8000) << 16, x = (u32)(half & 0x7fff) << 13;
    // The product with 2^112 corrects the exponent's bias, of subnormals too.
    if (x < 0x0f800000) return float_of(sign | bits_of(float_of(x) * float_of(0x77800000)));
    return float_of(sign | 0x7f800000 | (x & 0x007fffff));
}

// To the nearest bf16, to the even one of two.
INLINE u16 bf16_of(float number) {
    u32 x = bits_of(number);
    if ((x & 0x7fffffff) > 0x7f800000) return x >> 16 | 0x40;
    return (x + 0x7fff + (x >> 16 & 1)) >> 16;
}

INLINE u16 half_of(float number, u32 bf16) { return bf16 ? bf16_of(number) : f16_of(number); }

INLINE float of_half(u16 half, u32 bf16) { return bf16 ? float_of((u32)half << 16) : of_f16(half); }

// Op::Pixels.
KERNEL imgclass_pixels(const u8 *from, Eight *to, u32 count, float factor0, float factor1, float factor2,
                       float addend0, float addend1, float addend2, u32 reversed, u32 bf16) {
    u32 i = INDEX;
    if (i >= count) return;
    const u8 *pixel = from + 3 * (size_t)i;
    Eight made = {};
    made.at[0] = half_of(pixel[reversed ? 2 : 0] * factor0 + addend0, bf16);
    made.at[1] = half_of(pixel[1] * factor1 + addend1, bf16);
    made.at[2] = half_of(pixel[reversed ? 0 : 2] * factor2 + addend2, bf16);
    to[i] = made;
}

// Op::Planes. `count` is images * area.
KERNEL imgclass_planes(const float *from, Eight *to, u32 count, u32 area, u32 bf16) {
    u32 i = INDEX;
    if (i >= count) return;
    const float *first = from + 3 * (size_t)(i / area) * area + i % area;
    Eight made = {};
    for (u32 plane = 0; plane < 3; plane++) made.at[plane] = half_of(first[(size_t)plane * area], bf16);
    to[i] = made;
}

// Op::MaxPool. `count` is batch * out_height * out_width * groups; a group is eight channels. As
// signed integers the patterns of numbers from 0 on are in the numbers' order, and that of -0 is
// below all of them.
KERNEL imgclass_max_pool(const Eight *from, Eight *to, u32 count, u32 height, u32 width, u32 groups, u32 out_height,
                         u32 out_width) {
    u32 i = INDEX;
    if (i >= count) return;
    u32 group = i % groups, column = i / groups % out_width, row = i / groups / out_width % out_height;
    size_t image = i / groups / out_width / out_height;
    Eight most;
    for (u32 k = 0; k < 8; k++) most.at[k] = 0x8000;
    for (int y = 2 * (int)row - 1; y <= 2 * (int)row + 1; y++) {
        if (y < 0 || y >= (int)height) continue;
        for (int x = 2 * (int)column - 1; x <= 2 * (int)column + 1; x++) {
            if (x < 0 || x >= (int)width) continue;
            Eight found = from[((image * height + y) * width + x) * groups + group];
            for (u32 k = 0; k < 8; k++)
                if ((short)found.at[k] > (short)most.at[k]) most.at[k] = found.at[k];
        }
    }
    to[i] = most;
}

// Op::AveragePool. `count` is batch * channels.
KERNEL imgclass_average_pool(const u16 *from, float *to, u32 count, u32 area, u32 channels, u32 bf16) {
    u32 i = INDEX;
    if (i >= count) return;
    const u16 *first = from + (size_t)(i / channels) * area * channels + i % channels;
    float sum = 0;
    for (u32 pixel = 0; pixel < area; pixel++) sum += of_half(first[(size_t)pixel * channels], bf16);
    to[i] = sum / area;
}

// The first half of Op::Linear: each thread sums one slice of the inputs for one output of up to
// four images. `count` is slices * ceil(batch / 4) * outputs. Neighbours read neighbouring weights.
KERNEL imgclass_linear_partial(const float *from, const float *weights, float *partial, u32 count, u32 batch,
                               u32 inputs, u32 outputs, u32 slices) {
    u32 i = INDEX;
    if (i >= count) return;
    u32 fours = (batch + 3) / 4, output = i % outputs, first = i / outputs % fours * 4, slice = i / outputs / fours;
    u32 length = (inputs + slices - 1) / slices, begin = slice * length;
    u32 end = begin + length < inputs ? begin + length : inputs;
    float sums[4] = {};
    // An image beyond the batch repeats the last one and is not written.
    u32 last = batch - 1;
    const float *rows[4];
    for (u32 k = 0; k < 4; k++) rows[k] = from + (size_t)(first + k < last ? first + k : last) * inputs;
    for (u32 input = begin; input < end; input++) {
        float weight = weights[(size_t)input * outputs + output];
        for (u32 k = 0; k < 4; k++) sums[k] += rows[k][input] * weight;
    }
    for (u32 k = 0; k < 4; k++)
        if (first + k < batch) partial[((size_t)slice * batch + first + k) * outputs + output] = sums[k];
}

// The second half of Op::Linear. `count` is batch * outputs.
KERNEL imgclass_linear_sum(const float *partial, const float *bias, float *to, u32 count, u32 outputs, u32 slices) {
    u32 i = INDEX;
    if (i >= count) return;
    float sum = bias[i % outputs];
    for (u32 slice = 0; slice < slices; slice++) sum += partial[(size_t)slice * count + i];
    to[i] = sum;
}
