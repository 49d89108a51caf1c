// CUDA C++ text, compiled for the host: a test tool. See README.md of this crate.
#ifndef PRECAST_PRECAST_SOFTWARE_DEVICE_H
#define PRECAST_PRECAST_SOFTWARE_DEVICE_H
#define PRECAST_SOFTWARE_DEVICE 1
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
// A block-scope thread_local is static; `extern __shared__` finds the `dyn_smem` of softdev_run.h.
#define __shared__ thread_local
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __CUDACC_SOFTWARE__ 1

#include "softdev_vector.h"
#include "softdev_run.h"
#include "softdev_warp.h"
#include "softdev_math.h"
#include "softdev_half.h"
#include "softdev_fp8.h"
#include "softdev_tensor.h"
#endif
