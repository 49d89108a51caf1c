#ifndef PRECAST_CUDA_RUNTIME_H
#define PRECAST_CUDA_RUNTIME_H
#include "precast_software_device.h"
#endif
