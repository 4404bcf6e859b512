/* Lists the tensors of packed.safetensors, or writes them to files.

       cc -O2 -o unpack unpack.c
       unpack packed.safetensors                       a line for each tensor
       unpack packed.safetensors --npy folder          each as folder/<name>.npy, for numpy.load
       unpack packed.safetensors --raw weights.bin     all as one file, as external data of ONNX; a line says where each is
       --float32, --float16                            float tensors in this type, not in their own

   Lines hold name, type, shape, and offset and bytes in the raw file, or shared values (0 for none), apart by tabs.
   Tied tensors are in the raw file once.

   SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define WSHARE_IMPLEMENTATION
#include "wshare.h"

/* Tensors in the raw file start at multiples of this many bytes. */
#define ALIGNMENT 64

static const char *const type_names[WSHARE_TYPES] = {"float16", "float32", "float64", "int8",   "int16",  "int32",
                                                     "int64",   "uint8",   "uint16",  "uint32", "uint64", "bool"};
static const char *const numpy_names[WSHARE_TYPES] = {"f2", "f4", "f8", "i1", "i2", "i4",
                                                      "i8", "u1", "u2", "u4", "u8", "b1"};

typedef struct {
    const char *packed, *npy, *raw;
    int form;
} arguments;

/* Memory that grows and is used again for one tensor after another. */
typedef struct {
    void *bytes;
    size_t size;
} buffer;

/* What the raw file is called until it is whole. */
static char *unfinished;

static void stop(const char *what, const char *why) {
    fprintf(stderr, "unpack: %s: %s\n", what, why);
    if (unfinished) remove(unfinished);
    exit(1);
}

static void check(const char *what, int code) {
    if (code) stop(what, wshare_error_text(code));
}

static void *grown(buffer *memory, size_t size) {
    void *bytes = memory->bytes;
    if (size <= memory->size && bytes) return bytes;
    bytes = realloc(bytes, size ? size : 1);
    if (!bytes) stop("memory", "there is not enough");
    memory->bytes = bytes;
    memory->size = size;
    return bytes;
}

static FILE *opened(const char *path, const char *mode) {
    FILE *file = fopen(path, mode);
    if (!file) stop(path, strerror(errno));
    return file;
}

/* All bytes of a file, whose number may not be known before. */
static uint8_t *read_all(const char *path, size_t *size) {
    FILE *file = opened(path, "rb");
    buffer content = {NULL, 0};
    size_t count = 1;
    *size = 0;
    while (count) {
        uint8_t *bytes = content.bytes;
        if (*size == content.size) bytes = grown(&content, content.size * 2 + 65536);
        count = fread(bytes + *size, 1, content.size - *size, file);
        *size += count;
    }
    if (ferror(file)) stop(path, "cannot be read");
    fclose(file);
    return content.bytes;
}

/* The tensor's name as text of its own. */
static char *name_of(const wshare_tensor *tensor, size_t *length) {
    char *name = NULL;
    *length = wshare_name(tensor, NULL, 0);
    name = malloc(*length + 1);
    if (!name) stop("memory", "there is not enough");
    wshare_name(tensor, name, *length + 1);
    return name;
}

/* Control characters of a name would make lines of their own. */
static void print_name(const wshare_tensor *tensor) {
    size_t length, i;
    char *name = name_of(tensor, &length);
    for (i = 0; i < length; i++)
        if ((unsigned char)name[i] < 32 || name[i] == 127 || name[i] == '\\')
            printf("\\x%02x", (unsigned)(unsigned char)name[i]);
        else
            putchar(name[i]);
    free(name);
}

static void print_shape(FILE *file, const wshare_tensor *tensor, const char *last) {
    unsigned i;
    for (i = 0; i < tensor->axes; i++)
        fprintf(file, "%llu%s", (unsigned long long)tensor->shape[i], i + 1 < tensor->axes ? ", " : last);
}

/* Other types than floats have no other form. */
static int form_of(const wshare_tensor *tensor, int form) {
    return tensor->type <= WSHARE_FLOAT64 ? form : WSHARE_AS_STORED;
}

static int type_of(const wshare_tensor *tensor, int form) {
    form = form_of(tensor, form);
    return form == WSHARE_AS_STORED ? tensor->type : form == WSHARE_AS_FLOAT16 ? WSHARE_FLOAT16 : WSHARE_FLOAT32;
}

/* Decodes a tensor; the buffers are used again for the next. */
static void *decoded(const wshare_file *file, const wshare_tensor *tensor, int form, buffer *out, buffer *scratch) {
    const size_t bytes = wshare_bytes(tensor, form);
    size_t room, length;
    char *name = name_of(tensor, &length);
    check(name, wshare_scratch(file, tensor, form, &room));
    grown(out, bytes);
    grown(scratch, room);
    check(name, wshare_decode(file, tensor, form, out->bytes, out->size, scratch->bytes, scratch->size));
    free(name);
    return out->bytes;
}

static void write_all(FILE *file, const char *path, const void *bytes, size_t size) {
    if (fwrite(bytes, 1, size, file) != size) stop(path, "cannot be written");
}

static void closed(FILE *file, const char *path) {
    if (fclose(file)) stop(path, "cannot be written");
}

/* The header of a .npy file: a Python dictionary, filled up so that the data are aligned. */
static void write_npy_header(FILE *file, const char *path, const wshare_tensor *tensor, int type) {
    static const uint16_t one = 1;
    const int narrow = numpy_names[type][1] == '1', little = *(const uint8_t *)&one;
    uint8_t start[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, 0, 0};
    long end;
    size_t length;
    write_all(file, path, start, sizeof start);
    fprintf(file, "{'descr': '%c%s', 'fortran_order': False, 'shape': (", narrow ? '|' : little ? '<' : '>',
            numpy_names[type]);
    print_shape(file, tensor, tensor->axes == 1 ? "," : "");
    fprintf(file, "), }");
    for (end = ftell(file); (end + 1) % ALIGNMENT; end++) putc(' ', file);
    putc('\n', file);
    length = (size_t)end + 1 - sizeof start;
    start[8] = (uint8_t)(length & 255);
    start[9] = (uint8_t)(length >> 8);
    if (fseek(file, 0, SEEK_SET)) stop(path, "cannot be written");
    write_all(file, path, start, sizeof start);
    if (fseek(file, 0, SEEK_END)) stop(path, "cannot be written");
}

/* Names come from the file, and so may not lead out of the folder. */
static char *npy_path(const char *folder, const wshare_tensor *tensor) {
    size_t length, size;
    char *name = name_of(tensor, &length), *path;
    if (!length || *name == '.' || strlen(name) != length || strpbrk(name, "/\\:")) stop(name, "no name for a file");
    size = strlen(folder) + length + 6;
    path = malloc(size);
    if (!path) stop("memory", "there is not enough");
    snprintf(path, size, "%s/%s.npy", folder, name);
    free(name);
    return path;
}

static void write_npy(const wshare_file *file, const wshare_tensor *tensor, const arguments *given, buffer *out,
                      buffer *scratch) {
    const int form = form_of(tensor, given->form);
    const void *bytes = decoded(file, tensor, form, out, scratch);
    char *path = npy_path(given->npy, tensor);
    FILE *target = opened(path, "wb");
    write_npy_header(target, path, tensor, type_of(tensor, form));
    write_all(target, path, bytes, wshare_bytes(tensor, form));
    closed(target, path);
    free(path);
}

/* Writes a tensor, unless it is tied to one that is there, and tells where it is. */
static void write_raw(const wshare_file *file, const wshare_tensor *tensor, const arguments *given, FILE *target,
                      unsigned long long *offsets, unsigned long long *end, buffer *out, buffer *scratch) {
    static const uint8_t zeros[ALIGNMENT] = {0};
    const int form = form_of(tensor, given->form);
    const size_t bytes = wshare_bytes(tensor, form);
    if (tensor->same_as == tensor->number) {
        const size_t gap = (size_t)((ALIGNMENT - *end % ALIGNMENT) % ALIGNMENT);
        write_all(target, given->raw, zeros, gap);
        write_all(target, given->raw, decoded(file, tensor, form, out, scratch), bytes);
        offsets[tensor->number] = *end + gap;
        *end += gap + bytes;
    }
    printf("\t%llu\t%llu", offsets[tensor->same_as], (unsigned long long)bytes);
}

/* Opens a file beside the raw one, whose name it takes when it is whole. */
static FILE *opened_raw(const char *path) {
    const size_t size = strlen(path) + sizeof ".part";
    char *name = malloc(size);
    FILE *file;
    if (!name) stop("memory", "there is not enough");
    snprintf(name, size, "%s.part", path);
    file = opened(name, "wb");
    unfinished = name;
    return file;
}

static void closed_raw(FILE *file, const char *path) {
    closed(file, path);
    /* Windows renames to no name that is taken. */
    if (rename(unfinished, path) && (remove(path) || rename(unfinished, path))) stop(path, strerror(errno));
    free(unfinished);
    unfinished = NULL;
}

static void unpack(const wshare_file *file, const arguments *given) {
    FILE *target = given->raw ? opened_raw(given->raw) : NULL;
    unsigned long long *offsets = calloc((size_t)file->tensors + 1, sizeof *offsets), end = 0;
    buffer out = {NULL, 0}, scratch = {NULL, 0};
    uint32_t number;
    if (!offsets) stop("memory", "there is not enough");
    for (number = 0; number < file->tensors; number++) {
        wshare_tensor tensor;
        check(given->packed, wshare_tensor_at(file, number, &tensor));
        print_name(&tensor);
        printf("\t%s\t[", type_names[type_of(&tensor, given->form)]);
        print_shape(stdout, &tensor, "");
        printf("]");
        if (given->npy) write_npy(file, &tensor, given, &out, &scratch);
        if (target)
            write_raw(file, &tensor, given, target, offsets, &end, &out, &scratch);
        else
            printf("\t%lu", (unsigned long)tensor.k);
        printf("\n");
    }
    if (target) closed_raw(target, given->raw);
    free(offsets);
    free(out.bytes);
    free(scratch.bytes);
}

static arguments parsed(int count, char **words) {
    arguments given = {NULL, NULL, NULL, WSHARE_AS_STORED};
    int i;
    for (i = 1; i < count; i++) {
        if (!strcmp(words[i], "--float32"))
            given.form = WSHARE_AS_FLOAT32;
        else if (!strcmp(words[i], "--float16"))
            given.form = WSHARE_AS_FLOAT16;
        else if (!strcmp(words[i], "--npy") && i + 1 < count)
            given.npy = words[++i];
        else if (!strcmp(words[i], "--raw") && i + 1 < count)
            given.raw = words[++i];
        else if (*words[i] != '-' && !given.packed)
            given.packed = words[i];
        else
            stop(words[i], "not understood; unpack <packed.safetensors> [--npy <folder>] [--raw <file>] "
                           "[--float32] [--float16]");
    }
    if (!given.packed) stop("no file", "unpack <packed.safetensors> [--npy <folder>] [--raw <file>]");
    return given;
}

int main(int count, char **words) {
    const arguments given = parsed(count, words);
    wshare_file file;
    size_t size, memory;
    uint8_t *bytes = read_all(given.packed, &size);
    void *index;
    check(given.packed, wshare_measure(bytes, size, &memory));
    index = malloc(memory + 1);
    if (!index) stop("memory", "there is not enough");
    check(given.packed, wshare_open(&file, bytes, size, index, memory));
    unpack(&file, &given);
    free(index);
    free(bytes);
    return 0;
}
