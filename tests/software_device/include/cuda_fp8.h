#ifndef PRECAST_CUDA_FP8_H
#define PRECAST_CUDA_FP8_H
#include "precast_software_device.h"
#endif
