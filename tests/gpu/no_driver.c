// A library in the driver's place, for building cuDNN's execution plans where there is no GPU: it
// takes what it is given and does nothing. Engines that compile their kernels load them, which has to
// succeed for a plan to be finished; nothing can be run. Only `tests/gpu/dnn_check` uses it.
#define HANDLE(name)                                                                               \
    int name(void **out) {                                                                         \
        static char object[256];                                                                   \
        *out = object;                                                                             \
        return 0;                                                                                  \
    }
#define NUMBER(name, value)                                                                        \
    int name(int *out) {                                                                           \
        *out = value;                                                                              \
        return 0;                                                                                  \
    }
#define TEXT(name)                                                                                 \
    int name(int status, const char **out) {                                                       \
        *out = "there is no driver";                                                               \
        return 0;                                                                                  \
    }
#define NOTHING(name)                                                                              \
    int name(void) {                                                                               \
        return 0;                                                                                  \
    }

NUMBER(cuDriverGetVersion, 13000)
NUMBER(cuDeviceGetCount, 1)
NUMBER(cuDeviceGet, 0)
NUMBER(cuKernelGetAttribute, 2)
NUMBER(cuOccupancyMaxPotentialClusterSize, 2)
TEXT(cuGetErrorName)
TEXT(cuGetErrorString)
HANDLE(cuCtxGetCurrent)
HANDLE(cuStreamGetCtx)
HANDLE(cuLibraryLoadData)
HANDLE(cuLibraryLoadFromFile)
HANDLE(cuLibraryGetKernel)
HANDLE(cuKernelGetFunction)
HANDLE(cuModuleLoadData)
HANDLE(cuModuleLoadDataEx)
HANDLE(cuModuleGetFunction)
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxPopCurrent)
NOTHING(cuCtxPushCurrent)
NOTHING(cuKernelSetAttribute)
NOTHING(cuLaunchCooperativeKernel)
NOTHING(cuLaunchKernel)
NOTHING(cuLaunchKernelEx)
NOTHING(cuLibraryUnload)
NOTHING(cuLinkAddData)
NOTHING(cuLinkComplete)
NOTHING(cuLinkCreate)
NOTHING(cuLinkDestroy)
NOTHING(cuModuleUnload)
NOTHING(cuTensorMapEncodeIm2col)
NOTHING(cuTensorMapEncodeTiled)
