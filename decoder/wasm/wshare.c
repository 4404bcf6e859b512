/* wshare.h as a module of WebAssembly, for wshare.js, which has a copy of it: `make decoder-js` renews that.

   One file an instance. The caller lays out the memory, from __heap_base on, and keeps what it needs.

   SPDX-License-Identifier: Apache-2.0 */

#define WSHARE_IMPLEMENTATION
#include "wshare.h"

/* The compiler finds products that overflow 64 bits by those of 128, which its own library would have. */
__extension__ typedef unsigned __int128 wide;

wide __multi3(wide a, wide b) {
    const uint64_t a0 = (uint32_t)a, a1 = (uint64_t)a >> 32, b0 = (uint32_t)b, b1 = (uint64_t)b >> 32;
    const uint64_t low = a0 * b0, first = a1 * b0 + (low >> 32), second = a0 * b1 + (uint32_t)first;
    const uint64_t high = a1 * b1 + (first >> 32) + (second >> 32) + (uint64_t)(a >> 64) * (uint64_t)b +
                          (uint64_t)a * (uint64_t)(b >> 64);
    return (wide)high << 64 | (second << 32 | (uint32_t)low);
}

#define EXPORT(name) __attribute__((export_name(#name))) name

static wshare_file file;
static wshare_tensor tensor;
static size_t found;

/* The size that the last call of `measure` or `scratch` found. */
size_t EXPORT(size)(void) { return found; }

int EXPORT(measure)(const void *bytes, size_t size) { return wshare_measure(bytes, size, &found); }

int EXPORT(start)(const void *bytes, size_t size, void *memory, size_t room) {
    return wshare_open(&file, bytes, size, memory, room);
}

unsigned EXPORT(version)(void) { return file.version; }

uint32_t EXPORT(tensors)(void) { return file.tensors; }

/* The tensor that all functions below are about. */
int EXPORT(choose)(uint32_t number) { return wshare_tensor_at(&file, number, &tensor); }

int EXPORT(type)(void) { return tensor.type; }

uint32_t EXPORT(k)(void) { return tensor.k; }

uint32_t EXPORT(same_as)(void) { return tensor.same_as; }

unsigned EXPORT(axes)(void) { return tensor.axes; }

size_t EXPORT(axis)(unsigned place) { return tensor.shape[place]; }

size_t EXPORT(name)(char *text, size_t room) { return wshare_name(&tensor, text, room); }

size_t EXPORT(bytes)(int form) { return wshare_bytes(&tensor, form); }

int EXPORT(scratch)(int form) { return wshare_scratch(&file, &tensor, form, &found); }

int EXPORT(decode)(int form, void *out, size_t out_room, void *memory, size_t room) {
    return wshare_decode(&file, &tensor, form, out, out_room, memory, room);
}

const char *EXPORT(error_text)(int code) { return wshare_error_text(code); }
