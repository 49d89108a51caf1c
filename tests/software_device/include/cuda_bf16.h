#ifndef PRECAST_CUDA_BF16_H
#define PRECAST_CUDA_BF16_H
#include "precast_software_device.h"
#endif
