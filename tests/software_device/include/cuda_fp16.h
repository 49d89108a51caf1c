#ifndef PRECAST_CUDA_FP16_H
#define PRECAST_CUDA_FP16_H
#include "precast_software_device.h"
#endif
