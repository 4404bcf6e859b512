/* Times the decoder in C: decoder.program <packed file> <rounds>. Used by decoder.py, which says what is printed. */

#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define WSHARE_IMPLEMENTATION
#include "../decoder/wshare.h"

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Opens and decodes all; the memory that the index, and the tensor that needs most, take. */
static int round_of(const uint8_t *bytes, size_t size, size_t *memory, size_t *most) {
    wshare_file file;
    wshare_tensor tensor;
    int code = wshare_measure(bytes, size, memory);
    void *index = malloc(*memory + 1);
    if (!code) code = wshare_open(&file, bytes, size, index, *memory);
    for (uint32_t i = 0; !code && i < file.tensors; i++) {
        size_t room, count;
        wshare_tensor_at(&file, i, &tensor);
        count = wshare_bytes(&tensor, WSHARE_AS_STORED);
        code = wshare_scratch(&file, &tensor, WSHARE_AS_STORED, &room);
        if (room > *most) *most = room;
        void *out = malloc(count + 1), *scratch = malloc(room + 1);
        if (!code) code = wshare_decode(&file, &tensor, WSHARE_AS_STORED, out, count, scratch, room);
        free(out);
        free(scratch);
    }
    free(index);
    return code;
}

int main(int count, char **arguments) {
    FILE *file = fopen(arguments[1], "rb");
    static uint8_t bytes[64 << 20];
    size_t memory, most = 0;
    const size_t size = file && count > 2 ? fread(bytes, 1, sizeof bytes, file) : 0;
    for (int i = 0; i < atoi(arguments[2]); i++) {
        const double start = now();
        const int code = round_of(bytes, size, &memory, &most);
        if (code) return code;
        printf("%.9f\n", now() - start);
    }
    printf("%zu\n%zu\n", memory, most);
    return 0;
}
