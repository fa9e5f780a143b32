// A GPU in the host's memory, for tests: the calls of CUDA's driver and of cuDNN that
// imgclass-cuda makes. Kernels are kernels.cu, compiled for the CPU, and a convolution is computed
// from its definition. Everything runs when it is queued, except in a capture, where it is kept for
// the graph. tools/check-fake-gpu.sh makes libcuda.so and libcudnn.so of this file.
//
// fake_gpu_fail makes a call fail, and fake_gpu_held counts what is not freed.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "../../src/kernels.cu"

typedef int Result;
typedef unsigned long long Address;
typedef std::function<Result()> Work;

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700 };

namespace {

std::recursive_mutex lock;
#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock)

// The call that fails next: its name, how many calls of that name go before, its status.
std::string failing;
int failing_in, failing_status, lost;
std::map<std::string, long> held;
std::map<Address, size_t> memory;
thread_local void *current;

// Returns the status of this call, if it is to fail. Status 700 and the like stay.
Result fails(const char *name) {
    if (lost) return lost;
    if (failing != name || failing_in-- > 0) return SUCCESS;
    failing.clear();
    // CUDA's statuses from 700 on are errors after which a device is gone; cuDNN's begin at 1000.
    if (failing_status >= 700 && failing_status < 1000) lost = failing_status;
    return failing_status;
}
#define CALL(name)                           \
    LOCKED;                                  \
    if (Result status = fails(name)) return status

bool holds(Address from, size_t bytes) {
    auto found = memory.upper_bound(from);
    if (found == memory.begin()) return false;
    --found;
    return from + bytes <= found->first + found->second;
}

struct Graph {
    std::vector<Work> works;
};
struct Stream {
    Graph *capturing;
};
struct Kernel {
    const char *name;
    size_t arguments;
    void (*run)(void **);
};

Result queue(Stream *stream, Work work) {
    if (stream && stream->capturing) {
        stream->capturing->works.push_back(work);
        return SUCCESS;
    }
    return work();
}

template <typename T> T at(void **arguments, int i) { return *(T *)arguments[i]; }
template <typename T> T *to(void **arguments, int i) { return (T *)at<Address>(arguments, i); }

#define U(i) at<u32>(a, i)
#define F(i) at<float>(a, i)
const Kernel KERNELS[] = {
    {"imgclass_pixels", 11,
     [](void **a) {
         imgclass_pixels(to<u8>(a, 0), to<Eight>(a, 1), U(2), F(3), F(4), F(5), F(6), F(7), F(8), U(9), U(10));
     }},
    {"imgclass_planes", 5, [](void **a) { imgclass_planes(to<float>(a, 0), to<Eight>(a, 1), U(2), U(3), U(4)); }},
    {"imgclass_max_pool", 8,
     [](void **a) { imgclass_max_pool(to<Eight>(a, 0), to<Eight>(a, 1), U(2), U(3), U(4), U(5), U(6), U(7)); }},
    {"imgclass_average_pool", 6,
     [](void **a) { imgclass_average_pool(to<u16>(a, 0), to<float>(a, 1), U(2), U(3), U(4), U(5)); }},
    {"imgclass_linear_partial", 8,
     [](void **a) {
         imgclass_linear_partial(to<float>(a, 0), to<float>(a, 1), to<float>(a, 2), U(3), U(4), U(5), U(6), U(7));
     }},
    {"imgclass_linear_sum", 6,
     [](void **a) { imgclass_linear_sum(to<float>(a, 0), to<float>(a, 1), to<float>(a, 2), U(3), U(4), U(5)); }},
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void fake_gpu_fail(const char *name, int after, int status) {
    LOCKED;
    failing = name, failing_in = after, failing_status = status, lost = 0;
}

// How many things of a kind are held: memory, host, event, stream, graph, module, context, handle,
// descriptor.
EXPORT long fake_gpu_held(const char *kind) {
    LOCKED;
    return held[kind];
}

// ---- CUDA's driver ----

#define EXPORT_CU(name, ...)            \
    EXPORT Result name(__VA_ARGS__) {   \
        CALL(#name);

EXPORT_CU(cuInit, unsigned) return SUCCESS; }
EXPORT_CU(cuDeviceGet, int *device, int ordinal)
    if (ordinal != 0) return 101;
    *device = 0;
    return SUCCESS; }
EXPORT_CU(cuDeviceGetCount, int *count) *count = 1; return SUCCESS; }
EXPORT_CU(cuDeviceGetName, char *name, int length, int) strncpy(name, "a GPU in the host's memory", length); return SUCCESS; }
// 75 and 76 are the compute capability's two numbers; 115 says whether there are memory pools.
EXPORT_CU(cuDeviceGetAttribute, int *value, int attribute, int)
    *value = attribute == 75 ? 9 : attribute == 115 ? 1 : 0;
    return SUCCESS; }
EXPORT_CU(cuDevicePrimaryCtxRetain, void **context, int) *context = &memory; held["context"]++; return SUCCESS; }
EXPORT Result cuDevicePrimaryCtxRelease_v2(int) { LOCKED; held["context"]--; return SUCCESS; }
EXPORT_CU(cuCtxGetCurrent, void **context) *context = current; return SUCCESS; }
EXPORT_CU(cuCtxSetCurrent, void *context) current = context; return SUCCESS; }
// Of contexts of its own, which we do not make; cudarc names it.
EXPORT Result cuCtxDestroy_v2(void *) { return SUCCESS; }
EXPORT_CU(cuCtxSynchronize, void) return SUCCESS; }

EXPORT Result cuGetErrorName(int status, const char **name) { *name = "a name"; return status >= 0 ? SUCCESS : INVALID_VALUE; }
EXPORT Result cuGetErrorString(int status, const char **text) { *text = "the fake GPU's words"; return status >= 0 ? SUCCESS : INVALID_VALUE; }

EXPORT_CU(cuStreamCreate, Stream **stream, unsigned) *stream = new Stream(); held["stream"]++; return SUCCESS; }
EXPORT Result cuStreamDestroy_v2(Stream *stream) { LOCKED; delete stream; held["stream"]--; return SUCCESS; }
EXPORT_CU(cuStreamSynchronize, Stream *) return SUCCESS; }
EXPORT_CU(cuStreamWaitEvent, Stream *, void *, unsigned) return SUCCESS; }
EXPORT_CU(cuStreamBeginCapture_v2, Stream *stream, int) stream->capturing = new Graph(); return SUCCESS; }
EXPORT Result cuStreamEndCapture(Stream *stream, Graph **graph) {
    LOCKED;
    *graph = stream->capturing;
    stream->capturing = nullptr;
    if (Result status = fails("cuStreamEndCapture")) { delete *graph; *graph = nullptr; return status; }
    held["graph"]++;
    return SUCCESS;
}
EXPORT_CU(cuGraphInstantiateWithFlags, Graph **made, Graph *graph, unsigned long long)
    *made = new Graph(*graph);
    held["graph"]++;
    return SUCCESS; }
EXPORT Result cuGraphDestroy(Graph *graph) { LOCKED; delete graph; held["graph"]--; return SUCCESS; }
EXPORT Result cuGraphExecDestroy(Graph *graph) { LOCKED; delete graph; held["graph"]--; return SUCCESS; }
EXPORT_CU(cuGraphLaunch, Graph *graph, Stream *)
    for (Work &work : graph->works)
        if (Result status = work()) return status;
    return SUCCESS; }

EXPORT_CU(cuEventCreate, void **event, unsigned) *event = malloc(1); held["event"]++; return SUCCESS; }
EXPORT Result cuEventDestroy_v2(void *event) { LOCKED; free(event); held["event"]--; return SUCCESS; }
EXPORT_CU(cuEventRecord, void *, Stream *) return SUCCESS; }
EXPORT_CU(cuEventSynchronize, void *) return SUCCESS; }

EXPORT_CU(cuMemAlloc_v2, Address *address, size_t bytes)
    void *made = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!made) return OUT_OF_MEMORY;
    // NaN in every type.
    memset(made, 0xff, bytes);
    memory[*address = (Address)made] = bytes;
    held["memory"]++;
    return SUCCESS; }
EXPORT Result cuMemFree_v2(Address address) {
    LOCKED;
    if (!memory.erase(address)) return INVALID_VALUE;
    free((void *)address);
    held["memory"]--;
    return SUCCESS;
}
EXPORT_CU(cuMemHostAlloc, void **address, size_t bytes, unsigned) *address = malloc(bytes); held["host"]++; return SUCCESS; }
EXPORT Result cuMemFreeHost(void *address) { LOCKED; free(address); held["host"]--; return SUCCESS; }
EXPORT_CU(cuMemcpyHtoD_v2, Address to, const void *from, size_t bytes)
    if (!holds(to, bytes)) return INVALID_VALUE;
    memcpy((void *)to, from, bytes);
    return SUCCESS; }
EXPORT_CU(cuMemcpyHtoDAsync_v2, Address to, const void *from, size_t bytes, Stream *)
    if (!holds(to, bytes)) return INVALID_VALUE;
    memcpy((void *)to, from, bytes);
    return SUCCESS; }
EXPORT_CU(cuMemcpyDtoHAsync_v2, void *to, Address from, size_t bytes, Stream *)
    if (!holds(from, bytes)) return INVALID_VALUE;
    memcpy(to, (void *)from, bytes);
    return SUCCESS; }

EXPORT_CU(cuModuleLoadData, void **module, const void *) *module = &held; held["module"]++; return SUCCESS; }
EXPORT Result cuModuleUnload(void *) { LOCKED; held["module"]--; return SUCCESS; }
EXPORT_CU(cuModuleGetFunction, const Kernel **kernel, void *, const char *name)
    for (const Kernel &one : KERNELS)
        if (!strcmp(one.name, name)) {
            *kernel = &one;
            return SUCCESS;
        }
    return NOT_FOUND; }
EXPORT_CU(cuLaunchKernel, const Kernel *kernel, unsigned grid, unsigned, unsigned, unsigned block, unsigned, unsigned,
          unsigned, Stream *stream, void **arguments, void **)
    // Arguments are read when a kernel is queued.
    std::vector<uint64_t> values(kernel->arguments);
    for (size_t i = 0; i < values.size(); i++) values[i] = *(uint64_t *)arguments[i];
    return queue(stream, [=]() mutable {
        std::vector<void *> pointers;
        for (uint64_t &value : values) pointers.push_back(&value);
        for (thread_index = 0; thread_index < grid * block; thread_index++) kernel->run(pointers.data());
        return (Result)SUCCESS;
    }); }

// ---- cuDNN ----

struct Handle {
    Stream *stream;
};
// One structure for every kind: a tensor's or filter's sizes and strides, a convolution's numbers,
// an activation's mode.
struct Descriptor {
    int type, sizes[4], strides[4], padding, stride, math, compute, mode;
};
enum { CUDNN_BAD_PARAM = 2000, CUDNN_NOT_SUPPORTED = 3000, HALF = 2, BFLOAT16 = 9, FLOAT = 0 };

EXPORT size_t cudnnGetVersion(void) { return 92100; }
EXPORT_CU(cudnnCreate, Handle **handle) *handle = new Handle(); held["handle"]++; return SUCCESS; }
EXPORT Result cudnnDestroy(Handle *handle) { LOCKED; delete handle; held["handle"]--; return SUCCESS; }
EXPORT_CU(cudnnSetStream, Handle *handle, Stream *stream) handle->stream = stream; return SUCCESS; }

#define DESCRIPTOR(kind)                                                                                         \
    EXPORT_CU(cudnnCreate##kind##Descriptor, Descriptor **made) *made = new Descriptor(); held["descriptor"]++; \
    return SUCCESS; }                                                                                            \
    EXPORT Result cudnnDestroy##kind##Descriptor(Descriptor *held_one) {                                         \
        LOCKED;                                                                                                  \
        delete held_one;                                                                                         \
        held["descriptor"]--;                                                                                    \
        return SUCCESS;                                                                                          \
    }
DESCRIPTOR(Tensor)
DESCRIPTOR(Filter)
DESCRIPTOR(Convolution)
DESCRIPTOR(Activation)

EXPORT_CU(cudnnSetTensor4dDescriptorEx, Descriptor *d, int type, int n, int c, int h, int w, int sn, int sc, int sh, int sw)
    *d = {type, {n, c, h, w}, {sn, sc, sh, sw}, 0, 0, 0, 0, 0};
    return SUCCESS; }
EXPORT_CU(cudnnSetFilter4dDescriptor, Descriptor *d, int type, int format, int k, int c, int h, int w)
    // Channels last.
    if (format != 1) return CUDNN_NOT_SUPPORTED;
    *d = {type, {k, c, h, w}, {h * w * c, 1, w * c, c}, 0, 0, 0, 0, 0};
    return SUCCESS; }
EXPORT_CU(cudnnSetConvolution2dDescriptor, Descriptor *d, int pad_h, int pad_w, int u, int v, int dilation_h, int dilation_w,
          int mode, int compute)
    if (pad_h != pad_w || u != v || dilation_h != 1 || dilation_w != 1 || mode != 1) return CUDNN_NOT_SUPPORTED;
    d->padding = pad_h, d->stride = u, d->compute = compute;
    return SUCCESS; }
EXPORT_CU(cudnnSetConvolutionMathType, Descriptor *d, int math) d->math = math; return SUCCESS; }
EXPORT_CU(cudnnSetActivationDescriptor, Descriptor *d, int mode, int, double) d->mode = mode; return SUCCESS; }
// IMPLICIT_PRECOMP_GEMM is 1.
EXPORT_CU(cudnnGetConvolutionForwardWorkspaceSize, Handle *, Descriptor *, Descriptor *, Descriptor *, Descriptor *,
          int algorithm, size_t *bytes)
    if (algorithm != 1) return CUDNN_NOT_SUPPORTED;
    *bytes = 4096;
    return SUCCESS; }

EXPORT_CU(cudnnConvolutionBiasActivationForward, Handle *handle, const float *alpha1, Descriptor *xd, const u16 *x,
          Descriptor *wd, const u16 *w, Descriptor *cd, int algorithm, void *workspace, size_t workspace_bytes,
          const float *alpha2, Descriptor *zd, const u16 *z, Descriptor *bd, const u16 *bias, Descriptor *ad,
          Descriptor *yd, u16 *y)
    Descriptor X = *xd, W = *wd, C = *cd, Z = *zd, B = *bd, A = *ad, Y = *yd;
    float add = *alpha2;
    // What cuDNN's documentation asks for in half precision on tensor cores, in channels last.
    bool types = (X.type == HALF || X.type == BFLOAT16) && W.type == X.type && Z.type == X.type && B.type == X.type &&
                 Y.type == X.type && C.compute == FLOAT && C.math == 1;
    bool layouts = X.strides[1] == 1 && W.strides[1] == 1 && Y.strides[1] == 1 && X.sizes[1] % 8 == 0 && Y.sizes[1] % 8 == 0;
    bool sizes = X.sizes[1] == W.sizes[1] && Y.sizes[1] == W.sizes[0] && B.sizes[1] == W.sizes[0] && X.sizes[0] == Y.sizes[0] &&
                 !memcmp(Z.sizes, Y.sizes, sizeof Y.sizes);
    for (int k = 2; k < 4; k++) sizes &= Y.sizes[k] == (X.sizes[k] + 2 * C.padding - W.sizes[k]) / C.stride + 1;
    auto bytes = [](const Descriptor &d) { return 2 * (size_t)d.sizes[0] * d.sizes[1] * d.sizes[2] * d.sizes[3]; };
    bool places = holds((Address)x, bytes(X)) && holds((Address)w, bytes(W)) && holds((Address)bias, bytes(B)) &&
                  holds((Address)y, bytes(Y)) && holds((Address)z, bytes(Z)) && holds((Address)workspace, 4096) &&
                  workspace_bytes >= 4096 && ((Address)x | (Address)w | (Address)y | (Address)z) % 16 == 0;
    // ReLU is 1 and identity 5.
    if (algorithm != 1 || *alpha1 != 1 || (A.mode != 1 && A.mode != 5)) return CUDNN_NOT_SUPPORTED;
    if (!types || !layouts || !sizes || !places) return CUDNN_BAD_PARAM;
    return queue(handle->stream, [=] {
        u32 bf16 = X.type == BFLOAT16;
        int channels = X.sizes[1], outputs = Y.sizes[1], rows = W.sizes[2];
        // Weights as [row, column, input channel, output channel], so that a compiler makes vectors.
        std::vector<float> weights((size_t)rows * rows * channels * outputs), sums(outputs);
        for (int k = 0; k < outputs; k++)
            for (int i = 0; i < rows * rows * channels; i++)
                weights[(size_t)i * outputs + k] = of_half(w[(size_t)k * rows * rows * channels + i], bf16);
        for (int image = 0; image < Y.sizes[0]; image++)
            for (int row = 0; row < Y.sizes[2]; row++)
                for (int column = 0; column < Y.sizes[3]; column++) {
                    size_t place = image * (size_t)Y.strides[0] + row * Y.strides[2] + column * Y.strides[3];
                    for (int k = 0; k < outputs; k++) sums[k] = of_half(bias[k], bf16) + (add ? add * of_half(z[place + k], bf16) : 0);
                    for (int r = 0; r < rows; r++)
                        for (int s = 0; s < rows; s++) {
                            int from_row = row * C.stride + r - C.padding, from_column = column * C.stride + s - C.padding;
                            if (from_row < 0 || from_row >= X.sizes[2] || from_column < 0 || from_column >= X.sizes[3]) continue;
                            const u16 *from = x + image * (size_t)X.strides[0] + from_row * X.strides[2] + from_column * X.strides[3];
                            const float *weight = &weights[(size_t)(r * rows + s) * channels * outputs];
                            for (int c = 0; c < channels; c++, weight += outputs) {
                                float number = of_half(from[c], bf16);
                                for (int k = 0; k < outputs; k++) sums[k] += number * weight[k];
                            }
                        }
                    for (int k = 0; k < outputs; k++) y[place + k] = half_of(A.mode == 1 && sums[k] < 0 ? 0 : sums[k], bf16);
                }
        return (Result)SUCCESS;
    }); }
