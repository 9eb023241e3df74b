// A CUDA driver and runtime without a GPU: __main__.py says what for. Every function here takes the place of the one of that name in
// libcuda, libcudart, cuBLAS, cuDNN or NCCL (build.py gives the rest of them a body that does nothing); prototypes are those of NVIDIA's
// headers.

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

namespace {

// For the life of the process: libraries free what they hold while it ends, in an order that nobody knows.
template <typename Kept>
Kept& for_life() {
    return *new Kept();
}

std::mutex& lock = for_life<std::mutex>();

// ---- What is launched -------------------------------------------------------------------------------------------------------------

auto& launches = for_life<std::unordered_map<std::string, unsigned long long>>();  // kernel, library call or copy → times
unsigned long long all_launches = 0;
auto& compiled_in = for_life<std::unordered_map<const void*, std::string>>();  // a host function's address → the kernel of torch's own

void launched(const std::string& name) {
    std::lock_guard<std::mutex> held(lock);
    ++launches[name];
    ++all_launches;
}

// ---- The chip: an H200 as `cudaGetDeviceProperties` describes it ------------------------------------------------------------------

const char* const NAME = "NVIDIA H200 (hollow)";
constexpr int MAJOR = 9, MINOR = 0, MULTIPROCESSORS = 132, WARP = 32, THREADS_PER_BLOCK = 1024, THREADS_PER_MULTIPROCESSOR = 2048;
constexpr int BLOCKS_PER_MULTIPROCESSOR = 32, REGISTERS = 65536, SHARED = 49152, SHARED_OPTIN = 232448, SHARED_PER_MULTIPROCESSOR = 233472;
constexpr int L2_BYTES = 50 << 20, BUS_BITS = 6144, CLOCK_KHZ = 1980000, MEMORY_CLOCK_KHZ = 3201000;
constexpr size_t MEMORY_BYTES = 150110011392;  // 139.8 GiB
constexpr int CUDA_13 = 13000;

int attribute(int which) {
    static const auto& values = *new std::map<int, int>{
        {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, THREADS_PER_BLOCK},
        {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024},
        {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024},
        {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64},
        {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 2147483647},
        {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},
        {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, SHARED},
        {CU_DEVICE_ATTRIBUTE_WARP_SIZE, WARP},
        {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, REGISTERS},
        {CU_DEVICE_ATTRIBUTE_CLOCK_RATE, CLOCK_KHZ},
        {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, MULTIPROCESSORS},
        {CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1},
        {CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, MEMORY_CLOCK_KHZ},
        {CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, BUS_BITS},
        {CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, L2_BYTES},
        {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, THREADS_PER_MULTIPROCESSOR},
        {CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 3},
        {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, MAJOR},
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, MINOR},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, SHARED_PER_MULTIPROCESSOR},
        {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, REGISTERS},
        {CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 1},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, SHARED_OPTIN},
        {CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 1},
        {CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR, BLOCKS_PER_MULTIPROCESSOR},
        {CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH, 1},
    };
    const auto found = values.find(which);
    return found == values.end() ? 0 : found->second;
}

bool can_hold(unsigned x, unsigned y, unsigned z, size_t shared) {
    return x * y * z >= 1 && x * y * z <= unsigned(THREADS_PER_BLOCK) && shared <= size_t(SHARED_OPTIN);
}

// ---- Memory: addresses, at which nothing lies ------------------------------------------------------------------------------------

constexpr size_t ADDRESSES = size_t(16) << 40, GRAIN = 2 << 20;

char* const addresses = [] {
    void* const reserved = mmap(nullptr, ADDRESSES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) abort();
    return static_cast<char*>(reserved);
}();
size_t addresses_given = 0, bytes_taken = 0;
auto& allocations = for_life<std::unordered_map<const void*, size_t>>();                // cudaMalloc's
auto& physical = for_life<std::unordered_map<CUmemGenericAllocationHandle, size_t>>();  // cuMemCreate's
auto& pinned = for_life<std::map<const void*, size_t>>();                               // cudaHostAlloc's and cudaHostRegister's

bool on_device(const void* address) { return address >= addresses && address < addresses + ADDRESSES; }

char* fresh_addresses(size_t bytes) {
    char* const given = addresses + addresses_given;
    addresses_given += (bytes + GRAIN - 1) / GRAIN * GRAIN;
    if (addresses_given > ADDRESSES) abort();
    return given;
}

bool take(size_t bytes) {
    if (bytes_taken + bytes > MEMORY_BYTES) return false;
    bytes_taken += bytes;
    return true;
}

// What was copied there is read again until so many kernels later, when one of them has probably written there; all else reads as zeros.
// It takes what processes tell each other through the device (sizes, pickled objects) to where they read it.
constexpr unsigned long long KERNELS_LATER = 64;
constexpr size_t KEPT_AT_MOST = 1 << 20;

struct Copied {
    std::string bytes;
    unsigned long long after;
};
auto& copied = for_life<std::map<const char*, Copied>>();
auto& copied_when = for_life<std::deque<std::pair<unsigned long long, const char*>>>();

void keep(const void* at, std::string bytes) {
    while (!copied_when.empty() && copied_when.front().first + KERNELS_LATER < all_launches) {
        const auto found = copied.find(copied_when.front().second);
        if (found != copied.end() && found->second.after == copied_when.front().first) copied.erase(found);
        copied_when.pop_front();
    }
    copied[static_cast<const char*>(at)] = {std::move(bytes), all_launches};
    copied_when.emplace_back(all_launches, static_cast<const char*>(at));
}

// What lies there on the device; null where it reads as zeros.
const char* kept(const void* at, size_t bytes) {
    const char* const start = static_cast<const char*>(at);
    const auto after = copied.upper_bound(start);
    if (after == copied.begin()) return nullptr;
    const auto& [from, what] = *std::prev(after);
    const bool is_there = start + bytes <= from + what.bytes.size() && what.after + KERNELS_LATER >= all_launches;
    return is_there ? what.bytes.data() + (start - from) : nullptr;
}

void copy(void* to, const void* from, size_t bytes) {
    std::lock_guard<std::mutex> held(lock);
    const char* const what = on_device(from) ? kept(from, bytes) : static_cast<const char*>(from);
    if (!on_device(to)) {
        if (what) memmove(to, what, bytes);
        else memset(to, 0, bytes);
    } else if (what && bytes <= KEPT_AT_MOST) {
        keep(to, std::string(what, bytes));
    } else {
        copied.erase(static_cast<const char*>(to));
    }
}

// ---- Streams, events and handles: numbers -----------------------------------------------------------------------------------------

using Clock = std::chrono::steady_clock;

template <typename Handle>
Handle next_handle() {
    static size_t given = 0x1000;
    std::lock_guard<std::mutex> held(lock);
    return (Handle)(given += 16);
}

void* find(const char* name) {
    for (const char* version : {"_v4", "_v3", "_v2", ""})
        if (void* const found = dlsym(RTLD_DEFAULT, (std::string(name) + version).c_str())) return found;
    return nullptr;
}

}  // namespace

extern "C" {

// ---- For launched.py --------------------------------------------------------------------------------------------------------------

unsigned long long hollow_times() { return all_launches; }

// Lines "times name". Valid until the next call.
const char* hollow_names() {
    static std::string& lines = for_life<std::string>();
    std::lock_guard<std::mutex> held(lock);
    lines.clear();
    for (const auto& [name, times] : launches) lines += std::to_string(times) + " " + name + "\n";
    return lines.c_str();
}

// What build.py's bodies call.
void hollow_launched(const char* name) { launched(name); }
int hollow_refused(const char* name) {
    fprintf(stderr, "hollow GPU: %s is not implemented\n", name);
    return CUDA_ERROR_NOT_SUPPORTED;
}

// ---- Driver -----------------------------------------------------------------------------------------------------------------------

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { return *version = CUDA_13, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int ordinal) { return *device = ordinal, ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE; }
CUresult cuDeviceGetCount(int* count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) { return *value = attribute(which), CUDA_SUCCESS; }
CUresult cuDeviceTotalMem(size_t* bytes, CUdevice) { return *bytes = MEMORY_BYTES, CUDA_SUCCESS; }
CUresult cuDeviceGetName(char* name, int length, CUdevice) { return snprintf(name, length, "%s", NAME), CUDA_SUCCESS; }
CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice) { return memset(uuid, 0, sizeof *uuid), CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return *context = reinterpret_cast<CUcontext>(1), CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) { return *flags = 0, *active = 1, CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* context) { return *context = reinterpret_cast<CUcontext>(1), CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxPushCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent(CUcontext* context) { return cuCtxGetCurrent(context); }
CUresult cuCtxGetDevice(CUdevice* device) { return *device = 0, CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t* value, CUlimit) { return *value = 0, CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
CUresult cuCtxSynchronize() { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char** text) { return *text = "refused by the hollow GPU", CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult, const char** text) { return *text = "HOLLOW", CUDA_SUCCESS; }

CUresult cuGetProcAddress(const char* name, void** function, int, cuuint64_t, CUdriverProcAddressQueryResult* result) {
    *function = find(name);
    if (result) *result = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult cuModuleLoadData(CUmodule* module, const void*) { return *module = next_handle<CUmodule>(), CUDA_SUCCESS; }
CUresult cuModuleLoadDataEx(CUmodule* module, const void*, unsigned, CUjit_option*, void**) { return cuModuleLoadData(module, nullptr); }
CUresult cuModuleLoad(CUmodule* module, const char*) { return cuModuleLoadData(module, nullptr); }
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
    *function = reinterpret_cast<CUfunction>(new std::string(name));  // kept for the process's life, as kernels are
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction) {
    return *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? THREADS_PER_BLOCK : 0, CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }

CUresult cuLaunchKernel(
    CUfunction f, unsigned, unsigned, unsigned, unsigned x, unsigned y, unsigned z, unsigned shared, CUstream, void**, void**) {
    launched(*reinterpret_cast<std::string*>(f));
    return can_hold(x, y, z, shared) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** parameters, void** extra) {
    return cuLaunchKernel(f, 1, 1, 1, c->blockDimX, c->blockDimY, c->blockDimZ, c->sharedMemBytes, c->hStream, parameters, extra);
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int threads, size_t) {
    return *blocks = std::min(BLOCKS_PER_MULTIPROCESSOR, THREADS_PER_MULTIPROCESSOR / std::max(threads, 1)), CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction, const CUlaunchConfig*) { return *clusters = 1, CUDA_SUCCESS; }
CUresult cuTensorMapEncodeTiled(
    CUtensorMap* map, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
    CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    return memset(map, 0, sizeof *map), CUDA_SUCCESS;
}

CUresult cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
    return *bytes = GRAIN, CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
    std::lock_guard<std::mutex> held(lock);
    return *address = reinterpret_cast<CUdeviceptr>(fresh_addresses(bytes)), CUDA_SUCCESS;
}
CUresult cuMemAddressFree(CUdeviceptr, size_t) { return CUDA_SUCCESS; }

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp*, unsigned long long) {
    *handle = next_handle<CUmemGenericAllocationHandle>();
    std::lock_guard<std::mutex> held(lock);
    if (!take(bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    return physical[*handle] = bytes, CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    std::lock_guard<std::mutex> held(lock);
    const auto found = physical.find(handle);
    if (found == physical.end()) return CUDA_ERROR_INVALID_VALUE;
    bytes_taken -= found->second;
    return physical.erase(found), CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long) { return CUDA_SUCCESS; }
CUresult cuMemSetAccess(CUdeviceptr, size_t, const CUmemAccessDesc*, size_t) { return CUDA_SUCCESS; }

CUresult cuMemUnmap(CUdeviceptr, size_t) { return CUDA_SUCCESS; }

CUresult cuPointerGetAttribute(void* value, CUpointer_attribute which, CUdeviceptr address) {
    if (which == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *static_cast<CUdeviceptr*>(value) = address;
    else *static_cast<unsigned*>(value) = which == CU_POINTER_ATTRIBUTE_MEMORY_TYPE ? CU_MEMORYTYPE_DEVICE : 0;
    return on_device(reinterpret_cast<void*>(address)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ---- Runtime: the device and its memory -------------------------------------------------------------------------------------------

cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDA_13, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDA_13, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) { return *value = attribute(which), cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int) { return snprintf(id, length, "0000:00:00.0"), cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : "refused by the hollow GPU";
}
const char* cudaGetErrorName(cudaError_t) { return "HOLLOW"; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* of, int) {
    memset(of, 0, sizeof *of);
    snprintf(of->name, sizeof of->name, "%s", NAME);
    of->totalGlobalMem = MEMORY_BYTES;
    of->major = MAJOR;
    of->minor = MINOR;
    of->multiProcessorCount = MULTIPROCESSORS;
    of->warpSize = WARP;
    of->maxThreadsPerBlock = THREADS_PER_BLOCK;
    of->maxThreadsPerMultiProcessor = THREADS_PER_MULTIPROCESSOR;
    of->maxBlocksPerMultiProcessor = BLOCKS_PER_MULTIPROCESSOR;
    of->regsPerBlock = of->regsPerMultiprocessor = REGISTERS;
    of->sharedMemPerBlock = SHARED;
    of->sharedMemPerBlockOptin = SHARED_OPTIN;
    of->sharedMemPerMultiprocessor = SHARED_PER_MULTIPROCESSOR;
    of->l2CacheSize = L2_BYTES;
    of->memoryBusWidth = BUS_BITS;
    of->unifiedAddressing = of->concurrentKernels = of->cooperativeLaunch = 1;
    for (int axis = 0; axis < 3; ++axis) {
        of->maxThreadsDim[axis] = axis < 2 ? 1024 : 64;
        of->maxGridSize[axis] = axis < 1 ? 2147483647 : 65535;
    }
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** address, size_t bytes) {
    std::lock_guard<std::mutex> held(lock);
    if (!take(bytes)) return cudaErrorMemoryAllocation;
    *address = fresh_addresses(bytes);
    return allocations[*address] = bytes, cudaSuccess;
}

cudaError_t cudaFree(void* address) {
    std::lock_guard<std::mutex> held(lock);
    const auto found = allocations.find(address);
    if (found == allocations.end()) return address ? cudaErrorInvalidValue : cudaSuccess;
    bytes_taken -= found->second;
    return allocations.erase(found), cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    std::lock_guard<std::mutex> held(lock);
    return *total = MEMORY_BYTES, *free = MEMORY_BYTES - bytes_taken, cudaSuccess;
}

cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned) {
    std::lock_guard<std::mutex> held(lock);
    return pinned[address] = bytes, cudaSuccess;
}

cudaError_t cudaHostUnregister(void* address) {
    std::lock_guard<std::mutex> held(lock);
    return pinned.erase(address) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned flags) {
    *address = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *address ? cudaHostRegister(*address, bytes, flags) : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void* address) {
    free(address);
    return cudaHostUnregister(address);
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* of, const void* address) {
    std::lock_guard<std::mutex> held(lock);
    const auto after = pinned.upper_bound(address);
    const bool is_pinned = after != pinned.begin() && [&] {
        const auto& [start, bytes] = *std::prev(after);
        return address < static_cast<const char*>(start) + bytes;
    }();
    memset(of, 0, sizeof *of);
    of->type = on_device(address) ? cudaMemoryTypeDevice : is_pinned ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    of->devicePointer = of->type == cudaMemoryTypeUnregistered ? nullptr : const_cast<void*>(address);
    of->hostPointer = on_device(address) ? nullptr : const_cast<void*>(address);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    return launched("memcpy"), copy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy(to, from, bytes, kind);
}

cudaError_t cudaMemset(void* address, int value, size_t bytes) {
    launched("memset");
    std::lock_guard<std::mutex> held(lock);
    if (value && bytes <= KEPT_AT_MOST) keep(address, std::string(bytes, char(value)));
    else copied.erase(static_cast<const char*>(address));
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) { return cudaMemset(address, value, bytes); }

// ---- Runtime: streams and events --------------------------------------------------------------------------------------------------

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = next_handle<cudaStream_t>(), cudaSuccess; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) { return *least = 0, *greatest = -5, cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
    return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t*, const cudaGraphNode_t**, const cudaGraphEdgeData**,
    size_t*) {
    if (id) *id = 0;
    return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { return cudaErrorNotSupported; }

cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = reinterpret_cast<cudaEvent_t>(new Clock::time_point), cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete reinterpret_cast<Clock::time_point*>(event), cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    return *reinterpret_cast<Clock::time_point*>(event) = Clock::now(), cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) { return cudaEventRecord(event, stream); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    const auto between = *reinterpret_cast<Clock::time_point*>(end) - *reinterpret_cast<Clock::time_point*>(start);
    return *milliseconds = std::chrono::duration<float, std::milli>(between).count(), cudaSuccess;
}

// ---- Runtime: kernels -------------------------------------------------------------------------------------------------------------

void** __cudaRegisterFatBinary(void*) {
    static void* one;
    return &one;
}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
    std::lock_guard<std::mutex> held(lock);
    compiled_in[host] = name;
}
const std::string* name_of(const void* host) {  // null: no kernel; a name stays where it is when others are added
    std::lock_guard<std::mutex> held(lock);
    const auto found = compiled_in.find(host);
    return found == compiled_in.end() ? nullptr : &found->second;
}

thread_local struct { dim3 grid, block; size_t shared; cudaStream_t stream; } configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    return configuration = {grid, block, shared, stream}, 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    *grid = configuration.grid, *block = configuration.block, *shared = configuration.shared;
    return *static_cast<cudaStream_t*>(stream) = configuration.stream, cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* host, dim3, dim3 block, void**, size_t shared, cudaStream_t) {
    const std::string* const name = name_of(host);
    if (!name) return cudaErrorInvalidDeviceFunction;
    launched(*name);
    return can_hold(block.x, block.y, block.z, shared) ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
    return *kernel = static_cast<cudaKernel_t>(const_cast<void*>(host)), cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t stream) {
    return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
cudaError_t cudaLaunchCooperativeKernel(const void* host, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t stream) {
    return cudaLaunchKernel(host, grid, block, arguments, shared, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* host, void** arguments) {
    return cudaLaunchKernel(host, c->gridDim, c->blockDim, arguments, c->dynamicSmemBytes, c->stream);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) { return function(data), cudaSuccess; }

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* of, const void*) {
    memset(of, 0, sizeof *of);
    of->maxThreadsPerBlock = THREADS_PER_BLOCK;
    of->maxDynamicSharedSizeBytes = SHARED_OPTIN;
    of->binaryVersion = of->ptxVersion = 10 * MAJOR + MINOR;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t shared) {
    return static_cast<cudaError_t>(cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, nullptr, threads, shared));
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* host, int threads, size_t shared, unsigned) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, host, threads, shared);
}
cudaError_t cudaGetSymbolAddress(void** address, const void*) { return cudaMalloc(address, 1); }
cudaError_t cudaGetDriverEntryPointByVersion(
    const char* name, void** function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
    *function = find(name);
    if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

// ---- Libraries (prototypes of their headers, which torch does not bring; a handle is any pointer) ---------------------------------

int cublasGetMathMode(void*, int* mode) { return *mode = 0; }
int cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0; }
size_t cublasLtGetVersion() { return 130000; }

struct cublasLtMatmulHeuristicResult { unsigned long long algorithm[8]; size_t workspace; int status; float waves; int reserved[4]; };
int cublasLtMatmulAlgoGetHeuristic(
    void*, void*, void*, void*, void*, void*, void*, int, cublasLtMatmulHeuristicResult* result, int* found) {
    return *result = {}, *found = 1, 0;
}

size_t cudnnGetVersion() { return CUDNN_VERSION; }
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void*, int, int, void*, void*, void*, void*, void*, size_t* bytes) {
    return *bytes = 0, 0;
}
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    void*, int, int, void*, void*, void*, void*, void*, void*, void*, size_t* bytes) {
    return *bytes = 0, 0;
}
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void*, int, int, void*, void*, size_t* bytes) { return *bytes = 0, 0; }

int cudnnBackendCreateDescriptor(int, void** descriptor) { return *descriptor = next_handle<void*>(), 0; }
// One engine, one configuration of it, no workspace, no shared memory, no notes.
int cudnnBackendGetAttribute(void*, int, int type, long requested, long* count, void* values) {
    enum { OF_INT64 = 3, OF_DESCRIPTOR = 15, OF_INT32 = 23 };  // cudnnBackendAttributeType_t
    const size_t bytes = type == OF_INT64 ? 8 : type == OF_INT32 ? 4 : 0;
    if (requested > 0) memset(values, 0, bytes);
    if (count) *count = bytes || type == OF_DESCRIPTOR ? 1 : 0;
    return 0;
}

// NCCL with one process: a collective's answer is what that process has given.
enum { ONE_PROCESS = 0, INVALID_ARGUMENT = 4 };

int ncclGetVersion(int* version) { return *version = NCCL_VERSION, 0; }
const char* ncclGetErrorString(int) { return "the hollow GPU is one: start one process"; }
const char* ncclGetLastError(void*) { return ""; }
int ncclGetUniqueId(char* id) { return memset(id, 0, 128), 0; }
int ncclCommCount(void*, int* count) { return *count = 1, 0; }
int ncclCommUserRank(void*, int* rank) { return *rank = 0; }
int ncclCommGetAsyncError(void*, int* error) { return *error = 0; }

struct ncclUniqueId { char bytes[128]; };
int ncclCommInitRank(void** communicator, int processes, ncclUniqueId, int) {
    *communicator = next_handle<void*>();
    return processes == 1 ? ONE_PROCESS : INVALID_ARGUMENT;
}
int ncclCommInitRankConfig(void** communicator, int processes, ncclUniqueId id, int rank, void*) {
    return ncclCommInitRank(communicator, processes, id, rank);
}
int ncclCommInitRankScalable(void** communicator, int processes, int, int, ncclUniqueId*, void*) {
    return ncclCommInitRank(communicator, processes, {}, 0);
}
int ncclCommSplit(void*, int, int, void** communicator, void*) { return *communicator = next_handle<void*>(), 0; }

static int answer(const char* name, const void* given, void* into, size_t numbers, int type) {
    static const size_t BYTES[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};  // of ncclDataType_t
    launched(name);
    copy(into, given, numbers * BYTES[type]);
    return 0;
}
int ncclAllReduce(const void* given, void* into, size_t n, int type, int, void*, void*) {
    return answer("ncclAllReduce", given, into, n, type);
}
int ncclReduceScatter(const void* given, void* into, size_t n, int type, int, void*, void*) {
    return answer("ncclReduceScatter", given, into, n, type);
}
int ncclAllGather(const void* given, void* into, size_t n, int type, void*, void*) { return answer("ncclAllGather", given, into, n, type); }
int ncclBroadcast(const void* given, void* into, size_t n, int type, int, void*, void*) {
    return answer("ncclBroadcast", given, into, n, type);
}
int ncclReduce(const void* given, void* into, size_t n, int type, int, int, void*, void*) {
    return answer("ncclReduce", given, into, n, type);
}
}
