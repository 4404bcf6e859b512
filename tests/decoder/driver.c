/* Decodes packed files from the standard input, each u32 size and its bytes, and writes what came out of each:

   i32 code; if it is WSHARE_OK, u32 version, u32 tensors, and for each tensor
   u32 bytes of the name, name, i32 type, u32 k, u32 same_as, u32 axes, u64 shape [axes], and for each form
   u64 bytes, data; or u64 2^64 - 1 - code where the tensor does not have it, or is damaged.

   The code is that of the file, or of the first tensor that cannot be decoded as it is stored. Every piece of memory
   has exactly the size that was asked for and, with an argument, an odd address. */

#include <stdio.h>
#include <stdlib.h>

#include "wshare.h"

static size_t shift;

/* A piece of memory that ends where it should: sanitizers see what is read or written behind it. */
static void *taken(size_t size) {
    uint8_t *piece = malloc(size + shift);
    if (!piece) exit(9);
    return piece + shift;
}

static void freed(void *piece) { free((uint8_t *)piece - shift); }

static void write_u32(uint32_t number) { fwrite(&number, sizeof number, 1, stdout); }

static void write_u64(uint64_t number) { fwrite(&number, sizeof number, 1, stdout); }

/* Code and data of a tensor in a form; the data have to be freed. */
static int decode(const wshare_file *file, const wshare_tensor *tensor, int form, void **out, size_t *bytes) {
    size_t room = 0;
    int code = wshare_scratch(file, tensor, form, &room);
    *out = NULL;
    *bytes = wshare_bytes(tensor, form);
    if (code) return code;
    *out = taken(*bytes);
    void *scratch = taken(room);
    code = wshare_decode(file, tensor, form, *out, *bytes, scratch, room);
    /* One byte less, of either, has to be found. */
    if (!code && room && wshare_decode(file, tensor, form, *out, *bytes, scratch, room - 8) != WSHARE_NO_ROOM) exit(8);
    if (!code && *bytes && wshare_decode(file, tensor, form, *out, *bytes - 1, scratch, room) != WSHARE_NO_ROOM) exit(7);
    freed(scratch);
    return code;
}

static int first_error(const wshare_file *file) {
    wshare_tensor tensor;
    for (uint32_t number = 0; number < file->tensors; number++) {
        void *out;
        size_t bytes;
        if (wshare_tensor_at(file, number, &tensor)) exit(6);
        const int code = decode(file, &tensor, WSHARE_AS_STORED, &out, &bytes);
        if (out) freed(out);
        if (code) return code;
    }
    return WSHARE_OK;
}

static void write_tensor(const wshare_file *file, const wshare_tensor *tensor) {
    const size_t length = wshare_name(tensor, NULL, 0);
    char *name = taken(length + 1);
    wshare_tensor found;
    wshare_name(tensor, name, length + 1);
    if (wshare_find(file, name, length, &found) || found.number != tensor->number) exit(5);
    write_u32((uint32_t)length);
    fwrite(name, 1, length, stdout);
    freed(name);
    write_u32((uint32_t)tensor->type);
    write_u32(tensor->k);
    write_u32(tensor->same_as);
    write_u32(tensor->axes);
    for (unsigned i = 0; i < tensor->axes; i++) write_u64(tensor->shape[i]);
    for (int form = 0; form < WSHARE_FORMS; form++) {
        void *out;
        size_t bytes;
        const int code = decode(file, tensor, form, &out, &bytes);
        write_u64(code ? UINT64_MAX - (uint64_t)code : bytes);
        if (!code) fwrite(out, 1, bytes, stdout);
        if (out) freed(out);
    }
}

static void decode_file(const uint8_t *content, size_t size) {
    wshare_file file;
    size_t memory = 0;
    int code = wshare_measure(content, size, &memory);
    void *index = taken(memory);
    if (!code) code = wshare_open(&file, content, size, index, memory);
    if (!code && memory >= 8 && wshare_open(&file, content, size, index, memory - 8) != WSHARE_NO_ROOM) exit(4);
    if (!code) code = wshare_open(&file, content, size, index, memory);
    if (!code) code = first_error(&file);
    write_u32((uint32_t)code);
    if (!code) {
        write_u32(file.version);
        write_u32(file.tensors);
        for (uint32_t number = 0; number < file.tensors; number++) {
            wshare_tensor tensor;
            wshare_tensor_at(&file, number, &tensor);
            write_tensor(&file, &tensor);
        }
    }
    freed(index);
}

int main(int count, char **arguments) {
    uint32_t size;
    (void)arguments;
    shift = count > 1;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        uint8_t *content = taken(size);
        if (fread(content, 1, size, stdin) != size) return 3;
        decode_file(content, size);
        freed(content);
    }
    return 0;
}
