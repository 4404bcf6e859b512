#define WSHARE_IMPLEMENTATION
#include "wshare.h"
