// A GPU in the host's memory, for tests: the calls of CUDA's driver and of cuDNN that
// imgclass-cuda makes. Kernels are kernels.cu, compiled for the CPU, and a convolution is computed
// from its definition. tools/check-fake-gpu.sh makes libcuda.so and libcudnn.so of this file. With
// NO_CUDNN it is the driver alone, beside which the real cuDNN runs.
//
// Streams are as lazy as CUDA allows: what is queued runs when somebody waits for it, and a stream
// waits for another one only where an event says so. So a pass whose upload nobody joins computes
// with what was there before, and host memory that changes too early arrives changed.
//
// fake_gpu_fail makes a call fail, and fake_gpu_held counts what is not freed. fake_gpu_calls lists
// the calls, fake_gpu_cost and fake_gpu_wrong say what an engine of cuDNN's takes and gives, and
// fake_gpu_runs counts its runs.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
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
std::map<Address, size_t> memory, host;
// Every call since fake_gpu_fail, one a line.
std::string calls;
thread_local void *current;
// What the GPU's time is, and what engines of cuDNN's cost: -1 is the fixed algorithm.
double now;
std::map<long, double> costs;
std::map<long, long> runs;
// From which batch size on an engine gives wrong results.
std::map<long, int> wrong;

// Returns the status of this call, if it is to fail. Status 700 and the like stay.
Result fails(const char *name) {
    calls += name;
    calls += '\n';
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

bool within(const std::map<Address, size_t> &places, Address from, size_t bytes) {
    auto found = places.upper_bound(from);
    if (found == places.begin()) return false;
    --found;
    return from + bytes <= found->first + found->second;
}
bool holds(Address from, size_t bytes) { return within(memory, from, bytes); }

struct Graph {
    std::vector<Work> works;
};
struct Stream {
    Graph *capturing = nullptr;
    std::deque<Work> queued;
    bool uploads = false, computes = false;
};
std::vector<Stream *> streams;
// A point of a stream, which an event stands for.
struct Point {
    Stream *stream;
    bool passed = false;
    double at = 0;
};
struct Event {
    std::shared_ptr<Point> last;
};
struct Kernel {
    const char *name;
    size_t arguments;
    void (*run)(void **);
};

// Runs what is queued, up to a point if one is named.
Result drain(Stream *stream, Point *until = nullptr) {
    while (!stream->queued.empty() && !(until && until->passed)) {
        Work work = std::move(stream->queued.front());
        stream->queued.pop_front();
        if (Result status = work()) {
            if (status >= 700 && status < 1000) lost = status;
            return status;
        }
    }
    return SUCCESS;
}
Result drain_all() {
    for (Stream *stream : streams)
        if (Result status = drain(stream)) return status;
    return SUCCESS;
}

Result queue(Stream *stream, Work work) {
    if (stream && stream->capturing)
        stream->capturing->works.push_back(work);
    else if (stream)
        stream->queued.push_back(work);
    else
        return work();
    return SUCCESS;
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
    calls.clear(), costs.clear(), runs.clear(), wrong.clear();
}

// Copies the names of the calls since fake_gpu_fail, one a line, and returns their length.
EXPORT long fake_gpu_calls(char *to, long room) {
    LOCKED;
    if ((long)calls.size() <= room) memcpy(to, calls.data(), calls.size());
    return calls.size();
}

EXPORT void fake_gpu_cost(long engine, double cost) {
    LOCKED;
    costs[engine] = cost;
}
EXPORT void fake_gpu_wrong(long engine, int from_batch) {
    LOCKED;
    wrong[engine] = from_batch;
}
EXPORT long fake_gpu_runs(long engine) {
    LOCKED;
    return runs[engine];
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
EXPORT_CU(cuCtxSynchronize, void) return drain_all(); }

EXPORT Result cuGetErrorName(int status, const char **name) { *name = "a name"; return status >= 0 ? SUCCESS : INVALID_VALUE; }
EXPORT Result cuGetErrorString(int status, const char **text) { *text = "the fake GPU's words"; return status >= 0 ? SUCCESS : INVALID_VALUE; }

EXPORT_CU(cuStreamCreate, Stream **stream, unsigned)
    *stream = new Stream();
    streams.push_back(*stream);
    held["stream"]++;
    return SUCCESS; }
EXPORT Result cuStreamDestroy_v2(Stream *stream) {
    LOCKED;
    drain(stream);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == stream) streams.erase(streams.begin() + i);
    delete stream;
    held["stream"]--;
    return SUCCESS;
}
EXPORT_CU(cuStreamSynchronize, Stream *stream) return drain(stream); }
EXPORT_CU(cuStreamWaitEvent, Stream *stream, Event *event, unsigned)
    std::shared_ptr<Point> point = event->last;
    // An event that was never recorded is no reason to wait.
    if (!point) return SUCCESS;
    return queue(stream, [point] { return point->passed ? (Result)SUCCESS : drain(point->stream, point.get()); }); }
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
EXPORT_CU(cuGraphLaunch, Graph *graph, Stream *stream)
    for (Work &work : graph->works)
        if (Result status = queue(stream, work)) return status;
    return SUCCESS; }

EXPORT_CU(cuEventCreate, Event **event, unsigned) *event = new Event(); held["event"]++; return SUCCESS; }
EXPORT Result cuEventDestroy_v2(Event *event) { LOCKED; delete event; held["event"]--; return SUCCESS; }
EXPORT_CU(cuEventRecord, Event *event, Stream *stream)
    std::shared_ptr<Point> point = std::make_shared<Point>();
    point->stream = stream;
    event->last = point;
    return queue(stream, [point] { point->passed = true, point->at = now; return (Result)SUCCESS; }); }
EXPORT_CU(cuEventSynchronize, Event *event)
    if (!event->last || event->last->passed) return SUCCESS;
    return drain(event->last->stream, event->last.get()); }
EXPORT_CU(cuEventElapsedTime_v2, float *milliseconds, Event *begin, Event *end)
    if (!begin->last || !end->last || !begin->last->passed || !end->last->passed) return 600;
    *milliseconds = end->last->at - begin->last->at;
    return SUCCESS; }
EXPORT Result cuEventElapsedTime(float *milliseconds, Event *begin, Event *end) { return cuEventElapsedTime_v2(milliseconds, begin, end); }

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
    // It waits for everything that may use the memory.
    drain_all();
    if (!memory.erase(address)) return INVALID_VALUE;
    free((void *)address);
    held["memory"]--;
    return SUCCESS;
}
EXPORT_CU(cuMemHostAlloc, void **address, size_t bytes, unsigned)
    *address = malloc(bytes);
    host[(Address)*address] = bytes;
    held["host"]++;
    return SUCCESS; }
EXPORT Result cuMemFreeHost(void *address) {
    LOCKED;
    host.erase((Address)address);
    free(address);
    held["host"]--;
    return SUCCESS;
}
EXPORT_CU(cuMemcpyHtoD_v2, Address to, const void *from, size_t bytes)
    if (!holds(to, bytes)) return INVALID_VALUE;
    memcpy((void *)to, from, bytes);
    return SUCCESS; }
// A copy from memory that is not page-locked, or on the stream that computes, would not overlap with
// the batch before it: both are refused. The host's side is read or written when the copy runs, and
// has to be there still.
EXPORT_CU(cuMemcpyHtoDAsync_v2, Address to, const void *from, size_t bytes, Stream *stream)
    if (stream->computes) return INVALID_VALUE;
    stream->uploads = true;
    if (!holds(to, bytes) || !within(host, (Address)from, bytes)) return INVALID_VALUE;
    return queue(stream, [=] {
        if (!holds(to, bytes) || !within(host, (Address)from, bytes)) return (Result)ILLEGAL_ADDRESS;
        memcpy((void *)to, from, bytes);
        return (Result)SUCCESS;
    }); }
EXPORT_CU(cuMemcpyDtoHAsync_v2, void *to, Address from, size_t bytes, Stream *stream)
    if (!holds(from, bytes) || !within(host, (Address)to, bytes)) return INVALID_VALUE;
    return queue(stream, [=] {
        if (!holds(from, bytes) || !within(host, (Address)to, bytes)) return (Result)ILLEGAL_ADDRESS;
        memcpy(to, (void *)from, bytes);
        return (Result)SUCCESS;
    }); }

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
    if (stream->uploads) return INVALID_VALUE;
    stream->computes = true;
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

#ifndef NO_CUDNN

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
EXPORT void cudnnGetLastErrorString(char *text, size_t length) { strncpy(text, "the fake cuDNN's words", length); }
EXPORT_CU(cudnnCreate, Handle **handle) *handle = new Handle(); held["handle"]++; return SUCCESS; }
EXPORT Result cudnnDestroy(Handle *handle) { LOCKED; delete handle; held["handle"]--; return SUCCESS; }
EXPORT_CU(cudnnSetStream, Handle *handle, Stream *stream) handle->stream = stream; return SUCCESS; }

namespace {

// y = act(conv(x, w) + bias + z), by engine `engine`.
Result convolve(const Descriptor &X, const Descriptor &W, const Descriptor &Y, int padding, int stride, const u16 *x,
                const u16 *w, const u16 *bias, const u16 *z, u16 *y, bool relu, long engine) {
    auto bytes = [](const Descriptor &d) { return 2 * (size_t)d.sizes[0] * d.sizes[1] * d.sizes[2] * d.sizes[3]; };
    if (!holds((Address)x, bytes(X)) || !holds((Address)w, bytes(W)) || !holds((Address)y, bytes(Y)) ||
        !holds((Address)bias, 2 * Y.sizes[1]) || (z && !holds((Address)z, bytes(Y))))
        return ILLEGAL_ADDRESS;
    runs[engine]++;
    now += costs.count(engine) ? costs[engine] : 1;
    bool off = wrong.count(engine) && Y.sizes[0] >= wrong[engine];
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
                for (int k = 0; k < outputs; k++) sums[k] = of_half(bias[k], bf16) + (z ? of_half(z[place + k], bf16) : 0);
                for (int r = 0; r < rows; r++)
                    for (int s = 0; s < rows; s++) {
                        int from_row = row * stride + r - padding, from_column = column * stride + s - padding;
                        if (from_row < 0 || from_row >= X.sizes[2] || from_column < 0 || from_column >= X.sizes[3]) continue;
                        const u16 *from = x + image * (size_t)X.strides[0] + from_row * X.strides[2] + from_column * X.strides[3];
                        const float *weight = &weights[(size_t)(r * rows + s) * channels * outputs];
                        for (int c = 0; c < channels; c++, weight += outputs) {
                            float number = of_half(from[c], bf16);
                            for (int k = 0; k < outputs; k++) sums[k] += number * weight[k];
                        }
                    }
                for (int k = 0; k < outputs; k++) y[place + k] = half_of(relu && sums[k] < 0 ? 0 : off ? k % 7 : sums[k], bf16);
            }
    return SUCCESS;
}

// Whether sizes, types and strides are what cuDNN's documentation asks for in half precision on
// tensor cores, in channels last.
bool fits(const Descriptor &X, const Descriptor &W, const Descriptor &Y, int padding, int stride) {
    bool good = (X.type == HALF || X.type == BFLOAT16) && W.type == X.type && Y.type == X.type;
    for (const Descriptor *d : {&X, &W, &Y}) {
        int c = d->sizes[1], h = d->sizes[2], w = d->sizes[3], strides[] = {h * w * c, 1, w * c, c};
        good &= !memcmp(strides, d->strides, sizeof strides) && c % 8 == 0;
    }
    good &= X.sizes[1] == W.sizes[1] && Y.sizes[1] == W.sizes[0] && X.sizes[0] == Y.sizes[0] && W.sizes[2] == W.sizes[3];
    for (int k = 2; k < 4; k++) good &= Y.sizes[k] == (X.sizes[k] + 2 * padding - W.sizes[k]) / stride + 1;
    return good;
}

}  // namespace

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
    bool types = Z.type == X.type && B.type == X.type && C.compute == FLOAT && C.math == 1;
    bool sizes = B.sizes[1] == W.sizes[0] && !memcmp(Z.sizes, Y.sizes, sizeof Y.sizes);
    bool places = holds((Address)workspace, 4096) && workspace_bytes >= 4096 &&
                  ((Address)x | (Address)w | (Address)y | (Address)z) % 16 == 0;
    // ReLU is 1 and identity 5.
    if (algorithm != 1 || *alpha1 != 1 || (add != 0 && add != 1) || (A.mode != 1 && A.mode != 5)) return CUDNN_NOT_SUPPORTED;
    if (!types || !sizes || !places || !fits(X, W, Y, C.padding, C.stride)) return CUDNN_BAD_PARAM;
    return queue(handle->stream, [=] {
        return convolve(X, W, Y, C.padding, C.stride, x, w, bias, add ? z : nullptr, y, A.mode == 1, -1);
    }); }

// ---- cuDNN's graph interface ----

namespace {

// The kinds of descriptors, the attributes' names and their types, as cudnn_graph.h numbers them.
enum Kind { POINTWISE, CONVOLUTION, ENGINE, CONFIGURATION, HEURISTICS, PLAN, OPERATION_CONVOLUTION = 10,
            OPERATION_POINTWISE = 13, GRAPH = 15, PACK, TENSOR };
enum AttributeType { T_HANDLE, T_NUMBER, T_BOOL, T_INT64, T_FLOAT, T_POINTER = 6, T_CONVOLUTION_MODE, T_HEURISTICS_MODE,
                     T_POINTWISE_MODE = 14, T_DESCRIPTOR, T_NOTE = 19 };

struct Backend {
    struct Value {
        int type;
        std::vector<char> bytes;
        std::vector<std::shared_ptr<Backend>> descriptors;
    };
    int kind = 0;
    bool finalized = false;
    std::map<int, Value> values;
    // Of an engine, and of what is made with it.
    long engine = -1;

    bool has(int name, int type, size_t count) const {
        auto found = values.find(name);
        if (found == values.end() || found->second.type != type) return false;
        const size_t sizes[] = {8, 4, 1, 8, 4, 8, 8, 4, 4, 4, 4, 4, 4, 4, 4, 8};
        return found->second.bytes.size() == count * sizes[type];
    }
    template <typename T> const T *get(int name) const { return (const T *)values.at(name).bytes.data(); }
    std::shared_ptr<Backend> descriptor(int name) const { return values.at(name).descriptors.at(0); }
};
std::map<Backend *, std::shared_ptr<Backend>> backends;

// A graph as a convolution with what is fused to it.
struct Fused {
    Descriptor x, w, y;
    long x_id, w_id, bias_id, z_id, y_id;
    int padding, stride;
    bool relu;
};

Descriptor described(const Backend &tensor) {
    Descriptor made = {};
    made.type = *tensor.get<int>(901);
    for (int k = 0; k < 4; k++) made.sizes[k] = tensor.get<int64_t>(902)[k], made.strides[k] = tensor.get<int64_t>(903)[k];
    return made;
}
bool is_virtual(const Backend &tensor) { return *tensor.get<bool>(907); }
long id(const Backend &tensor) { return *tensor.get<int64_t>(906); }

// Reads a graph; false if it is not the one pattern that this library has engines for: a
// convolution, then perhaps the sum with a tensor of the result's shape, the sum with a bias, and
// perhaps a ReLU.
bool read(const Backend &graph, Fused &made) {
    auto &operations = graph.values.at(801).descriptors;
    const Backend &convolution = *operations.at(0);
    if (convolution.kind != OPERATION_CONVOLUTION) return false;
    if (*convolution.get<float>(700) != 1 || *convolution.get<float>(701) != 0) return false;
    std::shared_ptr<Backend> x = convolution.descriptor(704), w = convolution.descriptor(703), y = convolution.descriptor(705),
                             numbers = convolution.descriptor(702);
    const int64_t *before = numbers->get<int64_t>(105), *after = numbers->get<int64_t>(104);
    const int64_t *strides = numbers->get<int64_t>(103), *dilations = numbers->get<int64_t>(102);
    // CUDNN_CROSS_CORRELATION is 1.
    if (*numbers->get<int>(100) != FLOAT || *numbers->get<int>(101) != 1 || *numbers->get<int64_t>(106) != 2) return false;
    if (before[0] != before[1] || memcmp(before, after, 16) || strides[0] != strides[1] || dilations[0] != 1 || dilations[1] != 1)
        return false;
    made = {described(*x), described(*w), {}, id(*x), id(*w), 0, 0, 0, (int)before[0], (int)strides[0], false};
    std::shared_ptr<Backend> result = y;
    for (size_t i = 1; i < operations.size(); i++) {
        const Backend &operation = *operations[i];
        if (operation.kind != OPERATION_POINTWISE || made.relu) return false;
        // It takes the result before it, which lies in no memory and is float32.
        if (id(*operation.descriptor(751)) != id(*result) || !is_virtual(*result) || described(*result).type != FLOAT) return false;
        std::shared_ptr<Backend> how = operation.descriptor(750);
        if (*how->get<int>(1) != FLOAT) return false;
        result = operation.descriptor(753);
        if (*how->get<int>(0) == 100) {
            if (!made.bias_id) return false;
            made.relu = true;
            continue;
        }
        std::shared_ptr<Backend> b = operation.descriptor(752);
        Descriptor B = described(*b), Y = described(*result);
        if (B.type != made.x.type || is_virtual(*b) || B.sizes[1] != made.w.sizes[0] || B.strides[1] != 1) return false;
        bool whole = !memcmp(B.sizes, Y.sizes, sizeof B.sizes);
        if (!whole && (B.sizes[0] != 1 || B.sizes[2] != 1 || B.sizes[3] != 1)) return false;
        // A bias of a batch of one pixel has the result's shape too: the first of two is z.
        if (made.bias_id) return false;
        bool another = i + 1 < operations.size() && *operations[i + 1]->descriptor(750)->get<int>(0) == 0;
        if (another && !whole) return false;
        (another ? made.z_id : made.bias_id) = id(*b);
    }
    made.y = described(*result), made.y_id = id(*result);
    return made.bias_id && !is_virtual(*result) && fits(made.x, made.w, made.y, made.padding, made.stride);
}

// Engine 0 would be compiled when it first runs, 3 cannot be planned, 4 does not run, and 5 wants
// more memory than anybody has. Only the fallback names 6.
const std::vector<long> PROPOSED = {0, 1, 2, 3, 4, 5}, FALLBACK = {6};
size_t workspace_of(long engine) { return engine == 5 ? (size_t)1 << 40 : engine == 2 ? 8192 : 0; }

}  // namespace

EXPORT_CU(cudnnBackendCreateDescriptor, int kind, Backend **made)
    std::shared_ptr<Backend> one = std::make_shared<Backend>();
    one->kind = kind;
    *made = one.get();
    backends[one.get()] = one;
    held["descriptor"]++;
    return SUCCESS; }
EXPORT Result cudnnBackendDestroyDescriptor(Backend *one) {
    LOCKED;
    if (!backends.erase(one)) return CUDNN_BAD_PARAM;
    held["descriptor"]--;
    return SUCCESS;
}
EXPORT_CU(cudnnBackendSetAttribute, Backend *one, int name, int type, int64_t count, const void *from)
    const size_t sizes[] = {8, 4, 1, 8, 4, 8, 8, 4, 4, 4, 4, 4, 4, 4, 4, 8};
    if (one->finalized || type > T_DESCRIPTOR || count < 1) return CUDNN_BAD_PARAM;
    Backend::Value value = {type, {(const char *)from, (const char *)from + count * sizes[type]}, {}};
    if (type == T_DESCRIPTOR)
        for (int64_t i = 0; i < count; i++) {
            auto found = backends.find(((Backend **)from)[i]);
            if (found == backends.end() || !found->second->finalized) return CUDNN_BAD_PARAM;
            value.descriptors.push_back(found->second);
        }
    one->values[name] = value;
    return SUCCESS; }
EXPORT_CU(cudnnBackendFinalize, Backend *one)
    const Backend &b = *one;
    bool good = !b.finalized;
    auto is = [&](int name, int kind) { return b.has(name, T_DESCRIPTOR, 1) && b.descriptor(name)->kind == kind; };
    switch (b.kind) {
        case TENSOR:
            good &= b.has(901, T_NUMBER, 1) && b.has(902, T_INT64, 4) && b.has(903, T_INT64, 4) && b.has(906, T_INT64, 1) &&
                    b.has(900, T_INT64, 1) && b.has(907, T_BOOL, 1) && id(b) != 0 && *b.get<int64_t>(900) == 16;
            break;
        case CONVOLUTION:
            good &= b.has(100, T_NUMBER, 1) && b.has(101, T_CONVOLUTION_MODE, 1) && b.has(106, T_INT64, 1);
            for (int name = 102; name < 106; name++) good &= b.has(name, T_INT64, 2);
            break;
        case POINTWISE: good &= b.has(0, T_POINTWISE_MODE, 1) && b.has(1, T_NUMBER, 1); break;
        case OPERATION_CONVOLUTION:
            good &= b.has(700, T_FLOAT, 1) && b.has(701, T_FLOAT, 1) && is(702, CONVOLUTION) && is(703, TENSOR) &&
                    is(704, TENSOR) && is(705, TENSOR);
            break;
        case OPERATION_POINTWISE:
            good &= is(750, POINTWISE) && is(751, TENSOR) && is(753, TENSOR);
            // A sum has two summands, a ReLU has one input.
            good &= is(752, TENSOR) == (*b.descriptor(750)->get<int>(0) == 0);
            break;
        case GRAPH: {
            Fused fused;
            good &= b.has(800, T_HANDLE, 1) && b.values.count(801);
            if (good && !read(b, fused)) return CUDNN_NOT_SUPPORTED;
            break;
        }
        case HEURISTICS: good &= is(201, GRAPH) && b.has(200, T_HEURISTICS_MODE, 1); break;
        case PLAN:
            good &= is(401, CONFIGURATION) && b.has(400, T_HANDLE, 1);
            if (good && b.descriptor(401)->engine == 3) return CUDNN_NOT_SUPPORTED;
            if (good) one->engine = b.descriptor(401)->engine;
            break;
        case PACK:
            good &= b.values.count(1000) && b.values.count(1001) && b.has(1003, T_POINTER, 1) &&
                    b.values.at(1000).bytes.size() == b.values.at(1001).bytes.size();
            break;
        default: good = false;
    }
    if (!good) return CUDNN_BAD_PARAM;
    one->finalized = true;
    return SUCCESS; }
EXPORT_CU(cudnnBackendGetAttribute, Backend *one, int name, int type, int64_t room, int64_t *count, void *to)
    if (one->kind == HEURISTICS && name == 202 && type == T_DESCRIPTOR) {
        // HEUR_MODE_A is 3 and HEUR_MODE_FALLBACK is 2.
        const std::vector<long> &proposed = *one->get<int>(200) == 3 ? PROPOSED : FALLBACK;
        for (int64_t i = 0; i < room && i < (int64_t)proposed.size(); i++) {
            Backend *configuration = ((Backend **)to)[i];
            if (!backends.count(configuration) || configuration->kind != CONFIGURATION) return CUDNN_BAD_PARAM;
            configuration->engine = proposed[i], configuration->finalized = true;
            configuration->values[201] = one->values.at(201);
        }
        // All that there are, even where fewer were asked for.
        *count = proposed.size();
        return SUCCESS;
    }
    if (room < 1) return CUDNN_BAD_PARAM;
    *count = 1;
    if (one->kind == CONFIGURATION && name == 300 && type == T_DESCRIPTOR) {
        Backend *engine = *(Backend **)to;
        if (!backends.count(engine) || engine->kind != ENGINE) return CUDNN_BAD_PARAM;
        engine->engine = one->engine, engine->finalized = true;
    } else if (one->kind == ENGINE && name == 1305 && type == T_NOTE) {
        // CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION is 0.
        *count = one->engine == 0;
        if (*count) *(int *)to = 0;
    } else if (one->kind == ENGINE && name == 1301 && type == T_INT64) {
        *(int64_t *)to = one->engine;
    } else if (one->kind == PLAN && name == 402 && type == T_INT64) {
        *(int64_t *)to = workspace_of(one->engine);
    } else {
        return CUDNN_NOT_SUPPORTED;
    }
    return SUCCESS; }
EXPORT_CU(cudnnBackendExecute, Handle *handle, Backend *plan, Backend *pack)
    if (plan->kind != PLAN || !plan->finalized || pack->kind != PACK || !pack->finalized) return CUDNN_BAD_PARAM;
    if (*plan->get<Handle *>(400) != handle) return CUDNN_BAD_PARAM;
    Fused f;
    read(*plan->descriptor(401)->descriptor(201), f);
    std::map<long, u16 *> at;
    for (size_t i = 0; i < pack->values.at(1000).bytes.size() / 8; i++)
        at[pack->get<int64_t>(1000)[i]] = pack->get<u16 *>(1001)[i];
    for (auto &one : at)
        if ((Address)one.second % 16) return CUDNN_BAD_PARAM;
    // All of them, and no more.
    if (at.size() != (f.z_id ? 5 : 4) || !at[f.x_id] || !at[f.w_id] || !at[f.bias_id] || !at[f.y_id] || (f.z_id && !at[f.z_id]))
        return CUDNN_BAD_PARAM;
    long engine = plan->engine;
    if (!holds(*pack->get<Address>(1003), workspace_of(engine))) return CUDNN_BAD_PARAM;
    if (engine == 4) return CUDNN_NOT_SUPPORTED;
    u16 *x = at[f.x_id], *w = at[f.w_id], *bias = at[f.bias_id], *z = f.z_id ? at[f.z_id] : nullptr, *y = at[f.y_id];
    return queue(handle->stream, [=] { return convolve(f.x, f.w, f.y, f.padding, f.stride, x, w, bias, z, y, f.relu, engine); }); }

#endif
