/* Coverage-guided fuzzing of wshare.h: `make fuzz-decoder`. Needs clang.

   Hashes are not compared in this build, see ws_same, so that what lies behind them is reached. Memory for the index, the
   result and the work has exactly the size that was asked for: sanitizers see what is read or written beside it. */

#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
#define FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
#endif
#include <stdlib.h>

#define WSHARE_IMPLEMENTATION
#include "wshare.h"

/* A small file may stand for 2^24 numbers, which takes long with sanitizers and shows nothing new. */
#define LARGEST ((size_t)1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *content, size_t size);

static void decode(const wshare_file *file, const wshare_tensor *tensor, int form) {
    const size_t bytes = wshare_bytes(tensor, form);
    size_t room;
    if (bytes > LARGEST || wshare_scratch(file, tensor, form, &room) || room > 16 * LARGEST) return;
    void *out = malloc(bytes), *scratch = malloc(room);
    const int code = wshare_decode(file, tensor, form, out, bytes, scratch, room);
    if (code && code != WSHARE_TENSOR && code != WSHARE_RANGE && code != WSHARE_NO_ROOM) abort();
    free(out);
    free(scratch);
}

static void decode_all(const wshare_file *file) {
    for (uint32_t number = 0; number < file->tensors; number++) {
        wshare_tensor tensor, found;
        if (wshare_tensor_at(file, number, &tensor)) abort();
        const size_t length = wshare_name(&tensor, NULL, 0);
        char *name = malloc(length + 1);
        wshare_name(&tensor, name, length + 1);
        if (wshare_find(file, name, length, &found) || found.number != number) abort();
        free(name);
        for (int form = 0; form < WSHARE_FORMS; form++) decode(file, &tensor, form);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *content, size_t size) {
    wshare_file file;
    size_t memory;
    if (wshare_measure(content, size, &memory)) return 0;
    void *index = malloc(memory);
    if (!wshare_open(&file, content, size, index, memory)) decode_all(&file);
    free(index);
    return 0;
}
