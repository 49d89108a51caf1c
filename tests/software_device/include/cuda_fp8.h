#pragma once
#include "precast_software_device.h"
