// NVIDIA's driver library, libcuda.so.1, looked for when the process starts instead of being asked for by the binary: a build for CUDA
// then starts on machines without the driver too, where each of these functions answers CUDA_ERROR_STUB_LIBRARY, as the toolkit's own
// stub does. candle links the library by name (cudarc's "dynamic-linking"), and that is a file which must be there or nothing starts.
//
// Each function is a jump through a slot, so that no prototype is repeated here. The list is what cudarc's wrappers call; a function
// that is missing here is an undefined symbol when a binary is linked, and its name is to be added.
#define _GNU_SOURCE
#include <dlfcn.h>

#define FUNCTIONS(X) \
    X(cuCtxCreate_v3) X(cuCtxCreate_v4) X(cuCtxDestroy_v2) X(cuCtxGetCacheConfig) X(cuCtxGetCurrent) X(cuCtxGetLimit) \
    X(cuCtxGetStreamPriorityRange) X(cuCtxSetCacheConfig) X(cuCtxSetCurrent) X(cuCtxSetFlags) X(cuCtxSetLimit) X(cuCtxSynchronize) \
    X(cuDestroyExternalMemory) X(cuDeviceGet) X(cuDeviceGetAttribute) X(cuDeviceGetCount) X(cuDeviceGetDefaultMemPool) \
    X(cuDeviceGetMemPool) X(cuDeviceGetName) X(cuDeviceGetUuid) X(cuDeviceGetUuid_v2) X(cuDevicePrimaryCtxRelease_v2) \
    X(cuDevicePrimaryCtxRetain) X(cuDeviceSetMemPool) X(cuDeviceTotalMem_v2) X(cuEventCreate) X(cuEventDestroy_v2) \
    X(cuEventElapsedTime) X(cuEventElapsedTime_v2) X(cuEventQuery) X(cuEventRecord) X(cuEventSynchronize) \
    X(cuExternalMemoryGetMappedBuffer) X(cuFuncGetAttribute) X(cuFuncSetAttribute) X(cuFuncSetCacheConfig) X(cuGetErrorName) \
    X(cuGetErrorString) X(cuGraphClone) X(cuGraphDestroy) X(cuGraphExecDestroy) X(cuGraphInstantiateWithFlags) X(cuGraphLaunch) \
    X(cuGraphUpload) X(cuImportExternalMemory) X(cuInit) X(cuLaunchCooperativeKernel) X(cuLaunchHostFunc) X(cuLaunchKernel) \
    X(cuMemAdvise_v2) X(cuMemAllocAsync) X(cuMemAllocFromPoolAsync) X(cuMemAllocManaged) X(cuMemAlloc_v2) X(cuMemFreeAsync) \
    X(cuMemFreeHost) X(cuMemFree_v2) X(cuMemGetInfo_v2) X(cuMemHostAlloc) X(cuMemPoolCreate) X(cuMemPoolDestroy) \
    X(cuMemPoolGetAttribute) X(cuMemPoolSetAttribute) X(cuMemPoolTrimTo) X(cuMemPrefetchAsync_v2) X(cuMemcpyDtoDAsync_v2) \
    X(cuMemcpyDtoD_v2) X(cuMemcpyDtoHAsync_v2) X(cuMemcpyDtoH_v2) X(cuMemcpyHtoDAsync_v2) X(cuMemcpyHtoD_v2) X(cuMemcpyPeerAsync) \
    X(cuMemsetD8Async) X(cuMemsetD8_v2) X(cuModuleGetFunction) X(cuModuleGetGlobal_v2) X(cuModuleLoad) X(cuModuleLoadData) \
    X(cuModuleUnload) X(cuOccupancyAvailableDynamicSMemPerBlock) X(cuOccupancyMaxActiveBlocksPerMultiprocessor) \
    X(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags) X(cuOccupancyMaxActiveClusters) X(cuOccupancyMaxPotentialBlockSize) \
    X(cuOccupancyMaxPotentialBlockSizeWithFlags) X(cuOccupancyMaxPotentialClusterSize) X(cuProfilerStart) X(cuProfilerStop) \
    X(cuStreamAttachMemAsync) X(cuStreamBeginCapture_v2) X(cuStreamCreate) X(cuStreamCreateWithPriority) X(cuStreamDestroy_v2) \
    X(cuStreamEndCapture) X(cuStreamIsCapturing) X(cuStreamSynchronize) X(cuStreamWaitEvent)

#if defined(__x86_64__)
#define JUMP(name) "endbr64\n jmp *imgclass_slot_" #name "(%rip)\n"
#elif defined(__aarch64__)
#define JUMP(name) \
    "hint #34\n adrp x16, imgclass_slot_" #name "\n ldr x16, [x16, :lo12:imgclass_slot_" #name "]\n br x16\n"
#else
#error "a jump through a slot is not written for this processor"
#endif

// CUresult's CUDA_ERROR_STUB_LIBRARY and, of an older driver that lacks one of the functions, CUDA_ERROR_NOT_FOUND.
static int no_driver(void) { return 34; }
static int no_function(void) { return 500; }

#define DEFINE(name)                                                                   \
    __attribute__((visibility("hidden"), used)) void *imgclass_slot_##name = no_driver; \
    __asm__(".pushsection .text." #name ",\"ax\",@progbits\n"                          \
            ".globl " #name "\n.hidden " #name "\n.type " #name ",@function\n"         \
            #name ":\n" JUMP(name) ".size " #name ",.-" #name "\n.popsection\n");
FUNCTIONS(DEFINE)

__attribute__((constructor)) static void find_driver(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!driver)
        return;
    void *found;
#define FIND(name)                \
    found = dlsym(driver, #name); \
    imgclass_slot_##name = found ? found : (void *)no_function;
    FUNCTIONS(FIND)
}
