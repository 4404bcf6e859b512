/* wshare.h: reads packed.safetensors, the file of a compressed network, in portable C99.

   SPDX-License-Identifier: Apache-2.0

   Copy this file into your project. In one .c file write

       #define WSHARE_IMPLEMENTATION
       #include "wshare.h"

   and include it everywhere else without the first line. It needs stddef.h, stdint.h and string.h, allocates nothing,
   keeps no state of its own and calls nothing but functions of string.h.

       size_t memory, room;
       wshare_file file;
       wshare_tensor tensor;
       wshare_measure(bytes, size, &memory);                      bytes that the index of the file takes
       wshare_open(&file, bytes, size, index, memory);            checks sizes, hashes and names
       for (number = 0; number < file.tensors; number++) {
           wshare_tensor_at(&file, number, &tensor);              shape, type, shared values; wshare_name gives its name
           wshare_scratch(&file, &tensor, form, &room);           bytes to work in
           wshare_decode(&file, &tensor, form, out, wshare_bytes(&tensor, form), scratch, room);
       }

   Functions of type int return WSHARE_OK or what is wrong; wshare_error_text tells it in words. `bytes` is the whole
   file; it, the memory of the index and the file's place have to stay as long as the wshare_file is used. All of them,
   `out` and `scratch` too, may lie at any address. What wshare_decode has written counts only if it returns WSHARE_OK.

   The tensors are those of PyTorch's state dict: shared and kept tensors, batch norms as five of them each, and tied
   tensors under each of their names. docs/format.md of wshare describes the file; all that it says a reader must check
   is checked here: by wshare_open, or by wshare_decode of the tensor that it concerns.

   float and double have to be IEEE 754, rounded to nearest with subnormal numbers and without excess precision
   (FLT_EVAL_METHOD 0): results are then the same bits everywhere. Do not compile with -ffast-math.

   #define WSHARE_ONLY_V3 beside WSHARE_IMPLEMENTATION leaves out versions 1 and 2 of the format. */

#ifndef WSHARE_H
#define WSHARE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    WSHARE_OK,
    WSHARE_NO_FILE,   /* the bytes are no packed file, or not a whole one */
    WSHARE_VERSION,   /* a version of the format that is not read here */
    WSHARE_HASH,      /* a hash or a checksum differs */
    WSHARE_INDEX,     /* the index of the file is damaged */
    WSHARE_TWICE,     /* two tensors have one name */
    WSHARE_CLAIM,     /* the file claims more numbers than its bytes may stand for */
    WSHARE_TENSOR,    /* the data of a tensor are damaged */
    WSHARE_TOO_LARGE, /* a size does not fit size_t, or there are 2^31 tensors */
    WSHARE_NO_ROOM,   /* too few bytes were given for the index, the result or the work */
    WSHARE_NO_TENSOR, /* there is no tensor of that number or name */
    WSHARE_NO_FORM,   /* the tensor does not have that form */
    WSHARE_RANGE,     /* a value is beyond the range of the form */
    WSHARE_ERRORS
};

/* Types of numbers. */
enum {
    WSHARE_FLOAT16,
    WSHARE_FLOAT32,
    WSHARE_FLOAT64,
    WSHARE_INT8,
    WSHARE_INT16,
    WSHARE_INT32,
    WSHARE_INT64,
    WSHARE_UINT8,
    WSHARE_UINT16,
    WSHARE_UINT32,
    WSHARE_UINT64,
    WSHARE_BOOL,
    WSHARE_TYPES
};

/* What wshare_decode writes, in C order and in the byte order of the machine. */
enum {
    WSHARE_AS_STORED,   /* the tensor's type: float32 for shared tensors and batch norms */
    WSHARE_AS_FLOAT32,  /* of float tensors; float64 is rounded, beyond the range it is WSHARE_RANGE */
    WSHARE_AS_FLOAT16,  /* of float tensors, rounded to nearest even; WSHARE_RANGE as above */
    WSHARE_AS_INDEX16,  /* of shared tensors, uint16: places in the codebook */
    WSHARE_AS_INDEX8,   /* the same as uint8, of at most 256 shared values */
    WSHARE_AS_CODEBOOK, /* of shared tensors, float32 [k], ascending */
    WSHARE_AS_SCALES,   /* of scaled tensors, float32 [outputs]: weight = codebook[index] * scale of its output */
    WSHARE_FORMS
};

typedef struct wshare_entry wshare_entry;

typedef struct {
    unsigned version; /* of the format: 1, 2 or 3 */
    uint32_t tensors; /* of the state dict */
    /* The rest is not for you. */
    const wshare_entry *entries;
    const uint32_t *order;
    uint32_t length;
} wshare_file;

typedef struct {
    const size_t *shape; /* lengths of the axes */
    size_t count;        /* numbers, the product of the shape */
    unsigned axes;
    int type;
    uint32_t number;  /* its place in the state dict */
    uint32_t same_as; /* of tied tensors the number of the first, which holds the same; else its own */
    uint32_t k;       /* shared values; 0 if the tensor is not shared */
    /* Outputs that have a scale of their own; 0 if none have. With axis 0 they are counted along the first axis. Else
       the weight at [i, ..., j, ...], with j on `axis`, belongs to output i / (shape[0] / groups) * shape[axis] + j. */
    size_t outputs;
    size_t groups;
    unsigned axis;
    /* The rest is not for you. */
    const wshare_entry *entry;
    const wshare_entry *named;
    unsigned leaf;
} wshare_tensor;

/* Bytes of memory that wshare_open needs for the index of a file. */
int wshare_measure(const void *bytes, size_t size, size_t *memory);

/* Reads the index of a file into memory of `room` bytes, and checks all that can be checked without decoding. */
int wshare_open(wshare_file *file, const void *bytes, size_t size, void *memory, size_t room);

/* The tensor of a number from 0 to file->tensors - 1, in the order of the state dict. */
int wshare_tensor_at(const wshare_file *file, uint32_t number, wshare_tensor *tensor);

/* The tensor of a name in UTF-8, of `length` bytes. */
int wshare_find(const wshare_file *file, const char *name, size_t length, wshare_tensor *tensor);

/* Bytes of the tensor's name in UTF-8. As many as there is room for are written, and a 0 behind them. */
size_t wshare_name(const wshare_tensor *tensor, char *name, size_t room);

/* Bytes that the tensor takes in a form; 0 if it does not have it. */
size_t wshare_bytes(const wshare_tensor *tensor, int form);

/* Bytes that wshare_decode needs to work in. */
int wshare_scratch(const wshare_file *file, const wshare_tensor *tensor, int form, size_t *room);

/* Writes the tensor in a form to `out`, of `out_room` bytes. */
int wshare_decode(const wshare_file *file, const wshare_tensor *tensor, int form, void *out, size_t out_room,
                  void *scratch, size_t scratch_room);

/* What an error code means, in a few words. */
const char *wshare_error_text(int code);

#ifdef __cplusplus
}
#endif
#endif

#ifdef WSHARE_IMPLEMENTATION
#ifndef WSHARE_IMPLEMENTED
#define WSHARE_IMPLEMENTED

#include <string.h>

#define WS_TRY(call)                     \
    do {                                 \
        const int ws_code = (call);      \
        if (ws_code) return ws_code;     \
    } while (0)

enum { WS_SHARED, WS_FOLDED, WS_NORM, WS_KEPT, WS_ALIAS, WS_KINDS };
/* The tensors of a batch norm; without weight and bias it has the last three. */
enum { WS_WEIGHT, WS_BIAS, WS_MEAN, WS_VARIANCE, WS_COUNTER, WS_LEAVES };
/* Codings of kept tensors. */
enum { WS_PLAIN, WS_HALVED, WS_STEPPED };
/* Flags of a shared section. */
enum { WS_FLAG_HALF = 1, WS_FLAG_SCALED = 2, WS_FLAG_PLACED = 4, WS_FLAG_GRID = 8 };

#define WS_AXES 32
#define WS_LEVELS 65536u
#define WS_REACH 1008
#define WS_STEPS ((uint32_t)1 << 31)
#define WS_NAMES ((size_t)1 << 24)
#define WS_TENSORS ((uint32_t)1 << 31)
/* Numbers that a file may claim: what a file of no size may, and what each byte adds. */
#define WS_FREE_CLAIM ((uint64_t)1 << 24)
#define WS_CLAIM_A_BYTE 1024u
/* Integers and floats handled at once, on the stack. */
#define WS_BLOCK 64

typedef struct {
    const uint8_t *text;
    size_t length;
} ws_name;

/* What the index says of a tensor or a batch norm. */
struct wshare_entry {
    ws_name name, target;    /* target: of an alias, what it stands for */
    const uint8_t *data;     /* the section, without a checksum; of version 1 codebook, scale or tensor */
    const uint8_t *more;     /* of version 1 indices or shift */
    size_t size, more_size;
    const size_t *shape;
    size_t count;
    size_t outputs, groups;  /* outputs of a shared tensor; channels of a batch norm */
    double eps;
    uint32_t first;          /* number of its first tensor */
    uint32_t k;
    uint32_t position;       /* of a folded norm the shared entry, of an alias the tensor that it stands for */
    uint8_t axis, axes;
    uint8_t kind, type, more_type, coding, flags;
    uint8_t affine, version;
};

static const char *const ws_leaf_names[WS_LEAVES] = {".weight", ".bias", ".running_mean", ".running_var",
                                                     ".num_batches_tracked"};
static const uint8_t ws_type_bytes[WSHARE_TYPES] = {2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 1};

/* Numbers. */

static uint32_t ws_u16(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }

static uint32_t ws_u32(const uint8_t *p) { return ws_u16(p) | ws_u16(p + 2) << 16; }

static uint64_t ws_u64(const uint8_t *p) { return ws_u32(p) | (uint64_t)ws_u32(p + 4) << 32; }

static float ws_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static double ws_double(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint64_t ws_double_bits(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static int ws_finite(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits >> 23 & 255) != 255;
}

/* Whether a double rounds to a finite float, and that float. */
static int ws_narrow(double value, float *narrow) {
    /* From half a step above the largest float on, and for what is no number. */
    if (!(value < 0x1.ffffffp127 && value > -0x1.ffffffp127)) return 0;
    *narrow = (float)value;
    return 1;
}

/* Bits of the float of a float16's bits. */
static uint32_t ws_widen(uint32_t half) {
    const uint32_t sign = (half & 0x8000) << 16, exponent = half >> 10 & 31;
    uint32_t mantissa = half & 1023, shift = 0;
    if (exponent == 31) return sign | 0x7f800000 | mantissa << 13;
    if (exponent) return sign | (exponent + 112) << 23 | mantissa << 13;
    if (!mantissa) return sign;
    for (; !(mantissa & 1024); shift++) mantissa <<= 1;
    return sign | (113 - shift) << 23 | (mantissa & 1023) << 13;
}

/* Whether a value rounds to a finite float16, and the bits of that. Values that are not finite stay as they are. */
static int ws_half(double value, uint16_t *half) {
    const uint64_t bits = ws_double_bits(value), fraction = bits & (((uint64_t)1 << 52) - 1);
    const uint32_t sign = (uint32_t)(bits >> 63) << 15, exponent = (uint32_t)(bits >> 52) & 2047;
    uint64_t whole = fraction | (uint64_t)1 << 52, rest;
    uint32_t shift = 42, result;
    if (exponent == 2047) {
        *half = (uint16_t)(sign | 0x7c00 | (fraction ? 0x200 | (uint32_t)(fraction >> 42) : 0));
        return 1;
    }
    /* 1009 is the exponent of 2^-14; below it steps stay the same. */
    if (exponent < 1009) shift += 1009 - exponent;
    if (shift > 54) shift = 54; /* less than half of the least step, in any case */
    rest = whole & (((uint64_t)1 << shift) - 1);
    whole >>= shift;
    whole += rest > (uint64_t)1 << (shift - 1) || (rest == (uint64_t)1 << (shift - 1) && (whole & 1));
    /* A carry out of the fraction makes the next exponent, as it should. */
    result = (uint32_t)whole + (exponent > 1009 ? (exponent - 1009) << 10 : 0);
    *half = (uint16_t)(sign | result);
    return result < 0x7c00;
}

/* 2^(exponent / 8), by a table so that it is the same everywhere. */
static float ws_scale(int exponent) {
    static const uint32_t eighths[8] = {0x3f800000, 0x3f8b95c2, 0x3f9837f0, 0x3fa5fed7,
                                        0x3fb504f3, 0x3fc5672a, 0x3fd744fd, 0x3feac0c7};
    const uint32_t place = (uint32_t)(exponent + WS_REACH);
    return ws_float((eighths[place % 8] & 0x007fffff) | (place / 8 + 1) << 23);
}

static int ws_times(size_t a, size_t b, size_t *product) {
    if (b && a > SIZE_MAX / b) return 0;
    *product = a * b;
    return 1;
}

static uint64_t ws_plus_capped(uint64_t a, uint64_t b) { return a > UINT64_MAX - b ? UINT64_MAX : a + b; }

static uint64_t ws_times_capped(uint64_t a, uint64_t b) { return b && a > UINT64_MAX / b ? UINT64_MAX : a * b; }

static unsigned ws_bit_length(uint32_t number) {
    unsigned bits = 0;
    for (; number; number >>= 1) bits++;
    return bits;
}

/* Memory that the caller gave, handed out piece by piece; without any, it is only measured. */

typedef struct {
    uint8_t *start;
    size_t room, used, most;
} ws_arena;

static ws_arena ws_arena_of(void *memory, size_t room) {
    ws_arena arena = {NULL, SIZE_MAX, 0, 0};
    /* All pieces begin at multiples of 8 from an address that is one. */
    const size_t skip = memory ? (8 - (size_t)((uintptr_t)memory & 7)) & 7 : 0;
    if (memory) {
        arena.start = (uint8_t *)memory + (skip <= room ? skip : room);
        arena.room = skip <= room ? room - skip : 0;
    }
    return arena;
}

/* Bytes to ask for, so that the arena has room wherever the memory begins. */
static int ws_arena_needs(const ws_arena *arena, size_t *room) {
    if (arena->most > SIZE_MAX - 7) return WSHARE_TOO_LARGE;
    *room = arena->most ? arena->most + 7 : 0;
    return WSHARE_OK;
}

/* A piece for `count` things of `size` bytes; *piece is NULL if it is only measured. */
static int ws_take(ws_arena *arena, size_t count, size_t size, void **piece) {
    size_t bytes;
    if (!ws_times(count, size, &bytes) || bytes > SIZE_MAX - 7) return WSHARE_TOO_LARGE;
    bytes = (bytes + 7) / 8 * 8;
    if (bytes > arena->room - arena->used) return arena->start ? WSHARE_NO_ROOM : WSHARE_TOO_LARGE;
    *piece = arena->start ? arena->start + arena->used : NULL;
    arena->used += bytes;
    if (arena->used > arena->most) arena->most = arena->used;
    return WSHARE_OK;
}

/* Bytes read one after another. After the end everything is 0, and `bad` says so. */

typedef struct {
    const uint8_t *at;
    size_t left;
    int bad;
} ws_bytes;

static const uint8_t *ws_cut(ws_bytes *bytes, uint64_t size) {
    const uint8_t *part = bytes->at;
    if (size > bytes->left) {
        bytes->bad = 1;
        bytes->left = 0;
        return NULL;
    }
    bytes->at += (size_t)size;
    bytes->left -= (size_t)size;
    return part;
}

static unsigned ws_octet(ws_bytes *bytes) {
    const uint8_t *part = ws_cut(bytes, 1);
    return part ? *part : 0;
}

/* Seven bits a byte, the lowest first, at most nine bytes, and no zeros at the end. */
static uint64_t ws_varint(ws_bytes *bytes) {
    uint64_t number = 0;
    unsigned place, octet;
    for (place = 0; place < 9; place++) {
        octet = ws_octet(bytes);
        if (bytes->bad) return 0;
        number |= (uint64_t)(octet & 127) << 7 * place;
        if (octet < 128) {
            if (place && !octet) bytes->bad = 1;
            return number;
        }
    }
    bytes->bad = 1;
    return 0;
}

/* 0, -1, 1, -2, ... of 0, 1, 2, 3, ... below 2^63. */
static int64_t ws_signed(uint64_t number) {
    return number & 1 ? -(int64_t)(number >> 1) - 1 : (int64_t)(number >> 1);
}

/* SHA-256 (FIPS 180-4). */

typedef struct {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[64];
} ws_sha;

static uint32_t ws_turn(uint32_t x, unsigned n) { return x >> n | x << (32 - n); }

static void ws_sha_block(uint32_t *state, const uint8_t *block) {
    static const uint32_t constants[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64], s[8], first, second;
    unsigned i;
    for (i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
               block[4 * i + 3];
    for (; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] + (ws_turn(w[i - 15], 7) ^ ws_turn(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (ws_turn(w[i - 2], 17) ^ ws_turn(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(s, state, sizeof s);
    for (i = 0; i < 64; i++) {
        first = s[7] + (ws_turn(s[4], 6) ^ ws_turn(s[4], 11) ^ ws_turn(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) +
                constants[i] + w[i];
        second = (ws_turn(s[0], 2) ^ ws_turn(s[0], 13) ^ ws_turn(s[0], 22)) +
                 ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        s[7] = s[6], s[6] = s[5], s[5] = s[4], s[4] = s[3] + first;
        s[3] = s[2], s[2] = s[1], s[1] = s[0], s[0] = first + second;
    }
    for (i = 0; i < 8; i++) state[i] += s[i];
}

static void ws_sha_start(ws_sha *sha) {
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(sha->state, start, sizeof start);
    sha->bytes = 0;
}

static void ws_sha_add(ws_sha *sha, const void *bytes, size_t size) {
    const uint8_t *at = (const uint8_t *)bytes;
    for (; size; at++, size--) {
        const size_t held = (size_t)(sha->bytes & 63);
        if (!held && size >= 64) {
            ws_sha_block(sha->state, at);
            sha->bytes += 64;
            at += 63;
            size -= 63;
            continue;
        }
        sha->block[held] = *at;
        sha->bytes++;
        if (held == 63) ws_sha_block(sha->state, sha->block);
    }
}

static void ws_sha_end(ws_sha *sha, uint8_t *digest) {
    const uint64_t bits = sha->bytes * 8;
    uint8_t octet = 128;
    unsigned i;
    do {
        ws_sha_add(sha, &octet, 1);
        octet = 0;
    } while ((sha->bytes & 63) != 56);
    for (i = 0; i < 8; i++) {
        octet = (uint8_t)(bits >> (56 - 8 * i));
        ws_sha_add(sha, &octet, 1);
    }
    for (i = 0; i < 32; i++) digest[i] = (uint8_t)(sha->state[i / 4] >> (24 - 8 * (i % 4)));
}

/* Whether a hash is the one expected. A fuzzer, which cannot guess hashes, gets past them. */
static int ws_same(const void *found, const void *expected, size_t size) {
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    (void)found, (void)expected, (void)size;
    return 1;
#else
    return !memcmp(found, expected, size);
#endif
}

/* Names. */

/* Whether bytes are UTF-8, without surrogates and overlong forms. */
static int ws_is_utf8(const uint8_t *at, size_t size) {
    size_t i = 0, more;
    while (i < size) {
        const unsigned first = at[i++];
        uint32_t letter;
        if (first < 0x80) continue;
        more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
        if (first < 0xc2 || first > 0xf4 || size - i < more) return 0;
        letter = first & (0x3fu >> more);
        for (; more; more--, i++) {
            if ((at[i] & 0xc0) != 0x80) return 0;
            letter = letter << 6 | (at[i] & 0x3f);
        }
        if (letter > 0x10ffff || (letter >= 0xd800 && letter < 0xe000)) return 0;
        if ((first == 0xe0 && letter < 0x800) || (first == 0xf0 && letter < 0x10000)) return 0;
    }
    return 1;
}

/* A name and what follows it, as of the tensors of a batch norm. */
typedef struct {
    ws_name start, end;
} ws_joined;

static ws_name ws_text(const char *text) {
    ws_name name;
    name.text = (const uint8_t *)text;
    name.length = strlen(text);
    return name;
}

static unsigned ws_letter(const ws_joined *name, size_t place) {
    return place < name->start.length ? name->start.text[place] : name->end.text[place - name->start.length];
}

/* Below, at or above 0, as memcmp. */
static int ws_compare(const ws_joined *a, const ws_joined *b) {
    const size_t first = a->start.length + a->end.length, second = b->start.length + b->end.length;
    const size_t common = a->start.length < b->start.length ? a->start.length : b->start.length;
    size_t place = common;
    const int order = common ? memcmp(a->start.text, b->start.text, common) : 0;
    if (order) return order;
    for (; place < first && place < second; place++)
        if (ws_letter(a, place) != ws_letter(b, place)) return ws_letter(a, place) < ws_letter(b, place) ? -1 : 1;
    return (first > second) - (first < second);
}

/* Heap sort, which takes no memory and never long. `compare` gets two of the numbers. */

typedef int ws_comparison(const void *things, uint32_t a, uint32_t b);

static void ws_sift(uint32_t *order, uint32_t root, uint32_t count, ws_comparison *compare, const void *things) {
    const uint32_t moved = order[root];
    uint32_t child;
    /* There are fewer than 2^31, so that this cannot overflow. */
    for (; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && compare(things, order[child], order[child + 1]) < 0) child++;
        if (compare(things, moved, order[child]) >= 0) break;
        order[root] = order[child];
    }
    order[root] = moved;
}

static void ws_sort(uint32_t *order, uint32_t count, ws_comparison *compare, const void *things) {
    uint32_t i, last;
    for (i = 0; i < count; i++) order[i] = i;
    for (i = count / 2; i; i--) ws_sift(order, i - 1, count, compare, things);
    for (i = count; i > 1; i--) {
        last = order[i - 1];
        order[i - 1] = order[0];
        order[0] = last;
        ws_sift(order, 0, i - 1, compare, things);
    }
}

/* JSON, as far as the header of the container and the indices of versions 1 and 2 use it. */

typedef struct {
    const uint8_t *at, *end;
    /* The text of an index is a string of the header, and so its escapes have to be taken out first. */
    uint8_t quoted, have, held[4];
} ws_json;

static int ws_hex4(const uint8_t *at, const uint8_t *end, uint32_t *code) {
    unsigned i;
    *code = 0;
    if (end - at < 4) return 0;
    for (i = 0; i < 4; i++) {
        const unsigned c = at[i], digit = c >= 'a' ? c - 'a' + 10 : c >= 'A' ? c - 'A' + 10 : c - '0';
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))) return 0;
        *code = *code << 4 | digit;
    }
    return 1;
}

static unsigned ws_encode(uint32_t code, uint8_t *out) {
    const unsigned more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    unsigned i;
    for (i = more; i; i--, code >>= 6) out[i] = (uint8_t)(0x80 | (code & 0x3f));
    out[0] = (uint8_t)(more ? (0xf0u << (3 - more) & 0xff) | code : code);
    return more + 1;
}

/* The bytes, at most 4, that the next byte or escape of a string stands for; how many there are, or 0 if it is none. */
static unsigned ws_unit(const uint8_t **at, const uint8_t *end, uint8_t *out) {
    static const char escapes[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    uint32_t code, second;
    const char *found;
    if (*at == end || **at < 0x20) return 0;
    out[0] = *(*at)++;
    if (out[0] != '\\') return 1;
    if (*at == end) return 0;
    if (**at != 'u') {
        found = **at ? strchr(escapes, **at) : NULL;
        ++*at;
        out[0] = found ? (uint8_t)meant[found - escapes] : 0;
        return found != NULL;
    }
    if (!ws_hex4(++*at, end, &code)) return 0;
    *at += 4;
    if (code >= 0xdc00 && code < 0xe000) return 0;
    if (code >= 0xd800 && code < 0xdc00) {
        if (end - *at < 6 || (*at)[0] != '\\' || (*at)[1] != 'u' || !ws_hex4(*at + 2, end, &second)) return 0;
        if (second < 0xdc00 || second >= 0xe000) return 0;
        *at += 6;
        code = 0x10000 + ((code - 0xd800) << 10 | (second - 0xdc00));
    }
    return ws_encode(code, out);
}

/* The next byte of the text, or -1 at its end. */
static int ws_peek(ws_json *json) {
    if (!json->quoted) return json->at < json->end ? *json->at : -1;
    if (!json->have) {
        unsigned i, count = json->at < json->end ? ws_unit(&json->at, json->end, json->held) : 0;
        if (!count) return -1;
        /* The last one first, so that bytes are taken off the end. */
        for (i = 0; i < count / 2; i++) {
            const uint8_t byte = json->held[i];
            json->held[i] = json->held[count - 1 - i];
            json->held[count - 1 - i] = byte;
        }
        json->have = (uint8_t)count;
    }
    return json->held[json->have - 1];
}

/* Behind what ws_peek gave. */
static void ws_step(ws_json *json) {
    if (json->quoted)
        json->have--;
    else
        json->at++;
}

static void ws_space(ws_json *json) {
    int c;
    while ((c = ws_peek(json)) == ' ' || c == '\t' || c == '\n' || c == '\r') ws_step(json);
}

/* Whether the next letter is this one, which is then taken. */
static int ws_is(ws_json *json, char letter) {
    ws_space(json);
    if (ws_peek(json) != letter) return 0;
    ws_step(json);
    return 1;
}

/* The escape that comes next, behind its backslash, as ws_unit gives it. */
static unsigned ws_escape(ws_json *json, uint8_t *out) {
    ws_json ahead = *json;
    uint8_t letters[12];
    const uint8_t *at = letters, *end = letters;
    unsigned count;
    int c;
    letters[0] = '\\';
    for (count = 1; count < sizeof letters && (c = ws_peek(&ahead)) >= 0; count++) {
        letters[count] = (uint8_t)c;
        ws_step(&ahead);
    }
    end += count;
    count = ws_unit(&at, end, out);
    for (at--; at > letters; at--) {
        ws_peek(json);
        ws_step(json);
    }
    return count;
}

/* A string: its bytes, as many as there is room for, and how many there are. */
static int ws_string(ws_json *json, uint8_t *out, size_t room, size_t *length) {
    uint8_t unit[4];
    unsigned count, i;
    int c;
    *length = 0;
    if (!ws_is(json, '"')) return 0;
    while ((c = ws_peek(json)) != '"') {
        if (c < 0x20) return 0;
        ws_step(json);
        unit[0] = (uint8_t)c;
        count = c == '\\' ? ws_escape(json, unit) : 1;
        if (!count) return 0;
        for (i = 0; i < count; i++, ++*length)
            if (*length < room) out[*length] = unit[i];
    }
    ws_step(json);
    return 1;
}

/* A string that is one of a few short ones: its place among them, or -1. */
static int ws_one_of(ws_json *json, const char *const *words, int count) {
    uint8_t word[24];
    size_t length;
    int i;
    if (!ws_string(json, word, sizeof word, &length)) return -1;
    for (i = 0; i < count; i++)
        if (length == strlen(words[i]) && !memcmp(word, words[i], length)) return i;
    return -1;
}

/* An integer from 0 to 2^64 - 1. */
static int ws_integer(ws_json *json, uint64_t *number) {
    int c, digits = 0;
    *number = 0;
    ws_space(json);
    /* In an index, which Python reads, -0 is an integer and 0. */
    if (json->quoted && ws_peek(json) == '-') {
        ws_step(json);
        if (ws_peek(json) != '0') return 0;
    }
    while ((c = ws_peek(json)) >= '0' && c <= '9') {
        const unsigned digit = (unsigned)(c - '0');
        if ((digits && !*number) || *number > (UINT64_MAX - digit) / 10) return 0;
        *number = *number * 10 + digit;
        digits = 1;
        ws_step(json);
    }
    return digits && c != '.' && c != 'e' && c != 'E';
}

/* Whether another member of an object or an array comes; -1 if it goes on otherwise. `first` is 1 before all. */
static int ws_more(ws_json *json, char close, int *first) {
    const int before = *first;
    *first = 0;
    if (ws_is(json, close)) return 0;
    return before || ws_is(json, ',') ? 1 : -1;
}

/* What a file holds: first counted, then kept in memory that is laid out by the counts. */

/* A tensor of the container. */
typedef struct {
    ws_name name;
    const size_t *shape;
    const uint8_t *data;
    size_t start, size, count;
    uint8_t type, axes, taken;
} ws_array;

typedef struct {
    int keeps; /* in the second round */
    uint32_t arrays, entries, tensors;
    size_t axes, letters;
    ws_array *array;
    wshare_entry *entry;
    uint32_t *order;
    size_t *axis;
    uint8_t *letter;
    ws_array spare_array;
    wshare_entry spare_entry;
    const uint8_t *data; /* of the container */
    size_t data_size;
    ws_json text; /* of versions 1 and 2 */
    int has_text;
    unsigned version;
} ws_index;

static int ws_new_array(ws_index *index, ws_array **array) {
    if (index->arrays == WS_TENSORS) return WSHARE_TOO_LARGE;
    *array = index->keeps ? index->array + index->arrays : &index->spare_array;
    memset(*array, 0, sizeof **array);
    index->arrays++;
    return WSHARE_OK;
}

static int ws_new_entry(ws_index *index, unsigned kind, wshare_entry **entry) {
    if (index->entries == WS_TENSORS) return WSHARE_TOO_LARGE;
    *entry = index->keeps ? index->entry + index->entries : &index->spare_entry;
    memset(*entry, 0, sizeof **entry);
    (*entry)->kind = (uint8_t)kind;
    (*entry)->version = (uint8_t)index->version;
    index->entries++;
    return WSHARE_OK;
}

/* Numbers the tensors of an entry, when all is known of it. */
static int ws_count_tensors(ws_index *index, wshare_entry *entry) {
    const int norm = entry->kind == WS_FOLDED || entry->kind == WS_NORM;
    const uint32_t tensors = norm ? (entry->affine ? WS_LEAVES : WS_LEAVES - 2) : 1;
    if (index->tensors > WS_TENSORS - tensors) return WSHARE_TOO_LARGE;
    entry->first = index->tensors;
    index->tensors += tensors;
    return WSHARE_OK;
}

static int ws_new_axis(ws_index *index, uint64_t length) {
    if (length > SIZE_MAX) return WSHARE_TOO_LARGE;
    if (index->keeps) index->axis[index->axes] = (size_t)length;
    index->axes++;
    return WSHARE_OK;
}

/* Numbers in a shape whose axes were added last; those that are 0 may hide no others. */
static int ws_count(const ws_index *index, unsigned axes, unsigned bytes, const size_t **shape, size_t *count) {
    uint64_t whole = bytes;
    unsigned i;
    *shape = NULL;
    *count = 1;
    if (!index->keeps) return WSHARE_OK;
    *shape = index->axis + index->axes - axes;
    for (i = 0; i < axes; i++) {
        const size_t axis = (*shape)[i];
        if (axis) whole = ws_times_capped(whole, axis);
        if (whole > INT64_MAX || whole > SIZE_MAX) return WSHARE_TOO_LARGE;
        *count *= axis;
    }
    return WSHARE_OK;
}

/* A string of JSON as a name. */
static int ws_new_name(ws_index *index, ws_json *json, ws_name *name) {
    uint8_t *out = index->keeps ? index->letter + index->letters : NULL;
    if (!ws_string(json, out, out ? SIZE_MAX : 0, &name->length)) return WSHARE_INDEX;
    name->text = out;
    index->letters += name->length;
    return WSHARE_OK;
}

/* An array of integers as a shape. */
static int ws_json_shape(ws_index *index, ws_json *json, unsigned *axes) {
    uint64_t axis;
    int first = 1, more;
    *axes = 0;
    if (!ws_is(json, '[')) return WSHARE_INDEX;
    while ((more = ws_more(json, ']', &first)) > 0) {
        if (!ws_integer(json, &axis) || ++*axes > WS_AXES) return WSHARE_INDEX;
        WS_TRY(ws_new_axis(index, axis));
    }
    return more ? WSHARE_INDEX : WSHARE_OK;
}

/* The header of the container (safetensors). */

static int ws_read_array(ws_index *index, ws_json *json, ws_array *array) {
    static const char *const keys[] = {"dtype", "shape", "data_offsets"};
    static const char *const types[WSHARE_TYPES] = {"F16", "F32", "F64", "I8",  "I16", "I32",
                                                    "I64", "U8",  "U16", "U32", "U64", "BOOL"};
    unsigned seen = 0, axes = 0;
    uint64_t start = 0, stop = 0;
    int first = 1, more, key, type = -1;
    if (!ws_is(json, '{')) return WSHARE_INDEX;
    while ((more = ws_more(json, '}', &first)) > 0) {
        key = ws_one_of(json, keys, 3);
        if (key < 0 || seen & 1u << key || !ws_is(json, ':')) return WSHARE_INDEX;
        seen |= 1u << key;
        if (key == 0 && (type = ws_one_of(json, types, WSHARE_TYPES)) < 0) return WSHARE_INDEX;
        if (key == 1) WS_TRY(ws_json_shape(index, json, &axes));
        if (key == 2 && !(ws_is(json, '[') && ws_integer(json, &start) && ws_is(json, ',') &&
                          ws_integer(json, &stop) && ws_is(json, ']')))
            return WSHARE_INDEX;
    }
    if (more || seen != 7 || start > stop || stop > index->data_size) return WSHARE_INDEX;
    array->type = (uint8_t)type;
    array->axes = (uint8_t)axes;
    array->start = (size_t)start;
    array->size = (size_t)(stop - start);
    array->data = index->data + array->start;
    return ws_count(index, axes, ws_type_bytes[type], &array->shape, &array->count);
}

/* The text of an index: the one string of the metadata. */
static int ws_read_metadata(ws_index *index, ws_json *json) {
    static const char *const keys[] = {"wshare"};
    const uint8_t *start;
    size_t length;
    if (index->has_text || !ws_is(json, '{') || ws_one_of(json, keys, 1) || !ws_is(json, ':')) return WSHARE_INDEX;
    ws_space(json);
    start = json->at + 1;
    if (!ws_string(json, NULL, 0, &length)) return WSHARE_INDEX;
    index->text.at = start;
    index->text.end = json->at - 1;
    index->text.quoted = 1;
    index->text.have = 0;
    index->has_text = 1;
    return ws_is(json, '}') ? WSHARE_OK : WSHARE_INDEX;
}

/* Tensors of the container, and the text of the index if there is one. */
static int ws_read_header(ws_index *index, const uint8_t *bytes, size_t size) {
    static const char *const metadata[] = {"__metadata__"};
    uint64_t length;
    ws_json json = {NULL, NULL, 0, 0, {0, 0, 0, 0}};
    int first = 1, more;
    if (size < 8) return WSHARE_NO_FILE;
    length = ws_u64(bytes);
    if (length > 100000000 || length > size - 8) return WSHARE_NO_FILE;
    json.at = bytes + 8;
    json.end = json.at + (size_t)length;
    index->data = json.end;
    index->data_size = size - 8 - (size_t)length;
    if (!ws_is_utf8(json.at, (size_t)length) || !ws_is(&json, '{')) return WSHARE_NO_FILE;
    while ((more = ws_more(&json, '}', &first)) > 0) {
        ws_json key = json;
        ws_array *array;
        if (!ws_one_of(&key, metadata, 1)) {
            json = key;
            if (!ws_is(&json, ':')) return WSHARE_NO_FILE;
            WS_TRY(ws_read_metadata(index, &json));
            continue;
        }
        WS_TRY(ws_new_array(index, &array));
        WS_TRY(ws_new_name(index, &json, &array->name));
        if (!ws_is(&json, ':')) return WSHARE_NO_FILE;
        WS_TRY(ws_read_array(index, &json, array));
    }
    ws_space(&json);
    return more || json.at != json.end ? WSHARE_NO_FILE : WSHARE_OK;
}

static int ws_by_place(const void *things, uint32_t a, uint32_t b) {
    const ws_array *first = (const ws_array *)things + a, *second = (const ws_array *)things + b;
    if (first->start != second->start) return first->start < second->start ? -1 : 1;
    return (first->size > second->size) - (first->size < second->size);
}

/* Whether the arrays have the bytes of their shapes, and fill the data one after another. */
static int ws_check_places(ws_index *index) {
    size_t end = 0, bytes;
    uint32_t i;
    ws_sort(index->order, index->arrays, ws_by_place, index->array);
    for (i = 0; i < index->arrays; i++) {
        const ws_array *array = index->array + index->order[i];
        if (!ws_times(array->count, ws_type_bytes[array->type], &bytes)) return WSHARE_TOO_LARGE;
        if (array->start != end || array->size != bytes) return WSHARE_NO_FILE;
        end += bytes;
    }
    return end == index->data_size ? WSHARE_OK : WSHARE_NO_FILE;
}

/* The one tensor of a container that may have no other: bytes in a row. */
static int ws_only_array(const ws_index *index, const char *name, ws_bytes *bytes) {
    const ws_array *array = index->array;
    if (index->arrays != 1 || array->name.length != strlen(name) || memcmp(array->name.text, name, strlen(name)))
        return WSHARE_NO_FILE;
    if (array->type != WSHARE_UINT8 || array->axes != 1) return WSHARE_NO_FILE;
    bytes->at = array->data;
    bytes->left = array->size;
    bytes->bad = 0;
    return WSHARE_OK;
}

/* An index, of any version. */

static int ws_set_eps(wshare_entry *entry, double eps) {
    entry->affine = !(ws_double_bits(eps) >> 63);
    entry->eps = entry->affine ? eps : -eps;
    return entry->eps < 1e6 ? WSHARE_OK : WSHARE_INDEX;
}

/* Bytes of the section of a batch norm or a kept tensor. */
static int ws_set_size(wshare_entry *entry, uint64_t size) {
    if (size > SIZE_MAX) return WSHARE_INDEX;
    entry->size = (size_t)size;
    return WSHARE_OK;
}

static int ws_set_norm(wshare_entry *entry, uint64_t channels, unsigned type) {
    if (channels > SIZE_MAX / 8 || (type != WSHARE_FLOAT16 && type != WSHARE_FLOAT32)) return WSHARE_INDEX;
    entry->type = (uint8_t)type;
    entry->outputs = (size_t)channels;
    entry->size = 2 * entry->outputs * ws_type_bytes[type];
    return WSHARE_OK;
}

static int ws_set_k(wshare_entry *entry, uint64_t k) {
    if (!k || k > WS_LEVELS) return WSHARE_INDEX;
    entry->type = WSHARE_FLOAT32;
    entry->k = (uint32_t)k;
    return WSHARE_OK;
}

static int ws_set_position(wshare_entry *entry, uint64_t position) {
    if (position >= WS_TENSORS) return WSHARE_INDEX;
    entry->position = (uint32_t)position;
    return WSHARE_OK;
}

/* Version 3. */

/* Where a name belongs; of an alias there are two, its own and that of the tensor it stands for. */
static ws_name *ws_slot(ws_index *index, uint64_t place, uint64_t plain) {
    wshare_entry *entry;
    if (!index->keeps) return &index->spare_entry.name;
    if (place < plain) return &index->entry[place].name;
    entry = &index->entry[plain + (place - plain) / 2];
    return (place - plain) % 2 ? &entry->target : &entry->name;
}

/* A name is the first bytes of an earlier one, its own bytes, and the last bytes of the earlier one. */
static int ws_read_name(ws_index *index, ws_bytes *bytes, uint64_t place, uint64_t plain) {
    const uint64_t back = ws_varint(bytes), first = ws_varint(bytes), last = ws_varint(bytes), own = ws_varint(bytes);
    const uint8_t *part = ws_cut(bytes, own);
    ws_name *name = ws_slot(index, place, plain), other = {NULL, 0};
    uint8_t *out;
    if (bytes->bad || back > place || first > WS_NAMES || last > WS_NAMES || own > WS_NAMES) return WSHARE_INDEX;
    if (index->letters + (size_t)(first + last + own) > WS_NAMES) return WSHARE_INDEX;
    if (index->keeps) {
        out = index->letter + index->letters;
        if (back) other = *ws_slot(index, place - back, plain);
        if (first + last > other.length) return WSHARE_INDEX;
        if (first) memcpy(out, other.text, (size_t)first);
        if (own) memcpy(out + first, part, (size_t)own);
        if (last) memcpy(out + first + own, other.text + (other.length - (size_t)last), (size_t)last);
        name->text = out;
        name->length = (size_t)(first + own + last);
        if (!ws_is_utf8(name->text, name->length)) return WSHARE_INDEX;
    }
    index->letters += (size_t)(first + own + last);
    return WSHARE_OK;
}

static int ws_read_shape(ws_index *index, ws_bytes *bytes, wshare_entry *entry, unsigned size) {
    const uint64_t axes = ws_varint(bytes);
    unsigned i;
    if (bytes->bad || axes > WS_AXES) return WSHARE_INDEX;
    for (i = 0; i < axes; i++) WS_TRY(ws_new_axis(index, ws_varint(bytes)));
    entry->axes = (uint8_t)axes;
    return ws_count(index, (unsigned)axes, size, &entry->shape, &entry->count);
}

static int ws_read_kept(ws_index *index, ws_bytes *bytes, wshare_entry *entry) {
    const unsigned octet = ws_octet(bytes), type = octet & 15, coding = octet >> 4;
    if (bytes->bad || type >= WSHARE_TYPES || coding > WS_STEPPED) return WSHARE_INDEX;
    if (coding && type != WSHARE_FLOAT32) return WSHARE_INDEX;
    entry->type = (uint8_t)type;
    entry->coding = (uint8_t)coding;
    WS_TRY(ws_read_shape(index, bytes, entry, ws_type_bytes[type]));
    if (coding == WS_STEPPED) return ws_set_size(entry, ws_varint(bytes));
    return ws_set_size(entry, (uint64_t)entry->count * ws_type_bytes[coding == WS_HALVED ? WSHARE_FLOAT16 : type]);
}

/* What the header says of an entry; `eps` are the different epsilons. */
static int ws_read_entry(ws_index *index, ws_bytes *bytes, wshare_entry *entry, const uint8_t *eps, uint64_t eps_count) {
    uint64_t first, second;
    if (entry->kind == WS_KEPT) return ws_read_kept(index, bytes, entry);
    if (entry->kind == WS_SHARED) {
        WS_TRY(ws_read_shape(index, bytes, entry, 4));
        WS_TRY(ws_set_k(entry, ws_varint(bytes)));
        return ws_set_size(entry, ws_varint(bytes));
    }
    first = ws_varint(bytes);
    second = ws_varint(bytes);
    if (bytes->bad || second >= eps_count) return WSHARE_INDEX;
    WS_TRY(ws_set_eps(entry, ws_double(ws_u64(eps + 8 * (size_t)second))));
    if (entry->kind == WS_NORM) return ws_set_norm(entry, first, ws_octet(bytes));
    WS_TRY(ws_set_position(entry, first));
    return ws_set_size(entry, ws_varint(bytes));
}

/* The header; what follows it is left in `bytes`. */
static int ws_read_third(ws_index *index, ws_bytes *bytes) {
    uint64_t counts[WS_KINDS], eps_count, i, plain = 0, place = 0;
    const uint8_t *eps;
    wshare_entry *entry;
    unsigned form, kind;
    if ((index->version = ws_octet(bytes)) != 3) return bytes->bad ? WSHARE_NO_FILE : WSHARE_VERSION;
    form = ws_octet(bytes);
    if (form & ~3u) return WSHARE_INDEX;
    if (form & 2) ws_cut(bytes, 9);
    for (kind = 0; kind < WS_KINDS; kind++) {
        /* A name takes four bytes at least. */
        if ((counts[kind] = ws_varint(bytes)) > bytes->left / 4) return WSHARE_INDEX;
        if (kind != WS_ALIAS) plain += counts[kind];
    }
    eps_count = ws_varint(bytes);
    if (eps_count > bytes->left / 8) return WSHARE_INDEX;
    eps = ws_cut(bytes, 8 * eps_count);
    for (kind = 0; kind < WS_KINDS; kind++)
        for (i = 0; i < counts[kind]; i++) WS_TRY(ws_new_entry(index, kind, &entry));
    for (i = 0; i < plain + 2 * counts[WS_ALIAS]; i++) WS_TRY(ws_read_name(index, bytes, i, plain));
    for (kind = 0; kind < WS_KINDS; kind++)
        for (i = 0; i < counts[kind]; i++) {
            entry = index->keeps ? index->entry + place++ : &index->spare_entry;
            entry->kind = (uint8_t)kind;
            if (kind != WS_ALIAS) WS_TRY(ws_read_entry(index, bytes, entry, eps, eps_count));
            WS_TRY(ws_count_tensors(index, entry));
        }
    return bytes->bad ? WSHARE_INDEX : WSHARE_OK;
}

#ifndef WSHARE_ONLY_V3

/* Versions 1 and 2: an index of JSON. */

#define WS_HASH 43  /* letters of a SHA-256 in base64 without padding */
#define WS_LIMBS 50 /* of 32 bits: room for a number of 40 digits, shifted by WS_SHIFT bits */
#define WS_SHIFT 1408
#define WS_DIGITS 40

static void ws_base64(const uint8_t *digest, uint8_t *text) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned i, bits;
    for (i = 0; i < WS_HASH; i++) {
        const unsigned byte = 6 * i / 8, shift = 6 * i % 8;
        bits = (unsigned)digest[byte] << 8 | (byte < 31 ? digest[byte + 1] : 0u);
        text[i] = (uint8_t)letters[bits >> (10 - shift) & 63];
    }
}

/* Whether the SHA-256 of all that was added is the one that a text gives. */
static int ws_check_hash(ws_sha *sha, const uint8_t *text, size_t length) {
    uint8_t digest[32], found[WS_HASH];
    ws_sha_end(sha, digest);
    ws_base64(digest, found);
    return length == WS_HASH && ws_same(found, text, WS_HASH) ? WSHARE_OK : WSHARE_HASH;
}

/* number * factor + addend, in place. */
static void ws_limbs_times(uint32_t *limbs, uint32_t factor, uint32_t addend) {
    uint64_t carry = addend;
    unsigned i;
    for (i = 0; i < WS_LIMBS; i++) {
        carry += (uint64_t)limbs[i] * factor;
        limbs[i] = (uint32_t)carry;
        carry >>= 32;
    }
}

/* The remainder of the division, which is done in place. */
static uint32_t ws_limbs_over(uint32_t *limbs, uint32_t divisor) {
    uint64_t rest = 0;
    unsigned i;
    for (i = WS_LIMBS; i--;) {
        rest = rest << 32 | limbs[i];
        limbs[i] = (uint32_t)(rest / divisor);
        rest %= divisor;
    }
    return (uint32_t)rest;
}

static int ws_limbs_bit(const uint32_t *limbs, int place) { return limbs[place / 32] >> (place % 32) & 1; }

/* The double nearest to limbs / 2^WS_SHIFT, ties to even; `sticky` tells that there is a rest below the limbs. */
static double ws_limbs_double(const uint32_t *limbs, int sticky) {
    int top = 32 * WS_LIMBS - 1, low, i;
    uint64_t mantissa = 0;
    while (top >= 0 && !ws_limbs_bit(limbs, top)) top--;
    /* The last bit that a double holds: of 53, or that of 2^-1074. */
    low = top - 52 > WS_SHIFT - 1074 ? top - 52 : WS_SHIFT - 1074;
    for (i = top; i >= low; i--) mantissa = mantissa << 1 | (uint64_t)ws_limbs_bit(limbs, i);
    for (i = 0; i < low - 1; i++) sticky |= ws_limbs_bit(limbs, i);
    mantissa += (uint64_t)(ws_limbs_bit(limbs, low - 1) & (sticky | (int)(mantissa & 1)));
    /* The first bit of the mantissa, and a carry out of it, add to the exponent. */
    return ws_double(((uint64_t)(low - WS_SHIFT + 1074) << 52) + mantissa);
}

/* digits * 10^exponent, correctly rounded, below 10^6; or 10^6. The digits are in limbs. */
static double ws_decimal(uint32_t *limbs, int exponent) {
    unsigned i;
    int sticky = 0, zero = 1;
    for (i = 0; i < WS_LIMBS; i++) zero &= !limbs[i];
    if (zero || exponent < -400) return 0;
    if (exponent > 5) return 1e6;
    for (; exponent > 0; exponent--) ws_limbs_times(limbs, 10, 0);
    memmove(limbs + WS_SHIFT / 32, limbs, (WS_LIMBS - WS_SHIFT / 32) * sizeof *limbs);
    memset(limbs, 0, WS_SHIFT / 32 * sizeof *limbs);
    for (; exponent <= -9; exponent += 9) sticky |= ws_limbs_over(limbs, 1000000000) != 0;
    for (; exponent < 0; exponent++) sticky |= ws_limbs_over(limbs, 10) != 0;
    return ws_limbs_double(limbs, sticky);
}

/* The letters of a number, at most WS_DIGITS of them, with a 0 behind them. */
static int ws_number_text(ws_json *json, char *text) {
    unsigned length = 0;
    int c;
    ws_space(json);
    while ((c = ws_peek(json)) > 0 && strchr("+-.0123456789Ee", c)) {
        if (length == WS_DIGITS) return 0;
        text[length++] = (char)c;
        ws_step(json);
    }
    text[length] = 0;
    return 1;
}

/* Digits from `text` on, added to the limbs; how many there are. */
static int ws_digits(const char **text, uint32_t *limbs) {
    int count = 0;
    for (; **text >= '0' && **text <= '9'; ++*text, count++) ws_limbs_times(limbs, 10, (uint32_t)(**text - '0'));
    return count;
}

/* A number as the nearest double; 10^6 stands for all that are larger. */
static int ws_number(ws_json *json, double *number) {
    char text[WS_DIGITS + 1];
    const char *at = text;
    uint32_t limbs[WS_LIMBS] = {0};
    int negative, exponent = 0, whole = 1, sign;
    if (!ws_number_text(json, text)) return 0;
    negative = *at == '-';
    at += negative;
    if (*at == '0' && at[1] >= '0' && at[1] <= '9') return 0;
    if (!ws_digits(&at, limbs)) return 0;
    if (*at == '.') {
        at++;
        whole = 0;
        if (!(exponent = -ws_digits(&at, limbs))) return 0;
    }
    if (*at == 'e' || *at == 'E') {
        int value = 0;
        at++;
        whole = 0;
        sign = *at == '-' ? -1 : 1;
        if (*at == '-' || *at == '+') at++;
        if (!*at) return 0;
        for (; *at >= '0' && *at <= '9'; at++) value = value < 9999 ? value * 10 + (*at - '0') : value;
        exponent += sign * value;
    }
    *number = ws_decimal(limbs, exponent);
    /* An integer has no negative zero. */
    if (negative && !(whole && *number == 0)) *number = -*number;
    return !*at;
}

static int ws_json_eps(ws_json *json, wshare_entry *entry) {
    double eps;
    return ws_number(json, &eps) ? ws_set_eps(entry, eps) : WSHARE_INDEX;
}

/* A type as an index names it. */
static int ws_json_type(ws_json *json) {
    static const char *const types[WSHARE_TYPES] = {"f2", "f4", "f8", "i1", "i2", "i4",
                                                    "i8", "u1", "u2", "u4", "u8", "b1"};
    return ws_one_of(json, types, WSHARE_TYPES);
}

/* A shape, and the comma behind it. */
static int ws_json_entry_shape(ws_index *index, ws_json *json, wshare_entry *entry) {
    unsigned axes;
    WS_TRY(ws_json_shape(index, json, &axes));
    entry->axes = (uint8_t)axes;
    return ws_is(json, ',') ? WSHARE_OK : WSHARE_INDEX;
}

static int ws_json_kept(ws_index *index, ws_json *json, wshare_entry *entry) {
    int type;
    WS_TRY(ws_json_entry_shape(index, json, entry));
    if ((type = ws_json_type(json)) < 0) return WSHARE_INDEX;
    entry->type = (uint8_t)type;
    WS_TRY(ws_count(index, entry->axes, ws_type_bytes[type], &entry->shape, &entry->count));
    return ws_set_size(entry, (uint64_t)entry->count * ws_type_bytes[type]);
}

/* What version 2 says of an entry, behind the opening bracket. */
static int ws_json_second(ws_index *index, ws_json *json, wshare_entry *entry) {
    uint64_t first, size;
    if (entry->kind == WS_KEPT) return ws_json_kept(index, json, entry);
    if (entry->kind == WS_SHARED) {
        WS_TRY(ws_json_entry_shape(index, json, entry));
        WS_TRY(ws_count(index, entry->axes, 4, &entry->shape, &entry->count));
        if (!ws_integer(json, &first) || !ws_is(json, ',') || !ws_integer(json, &size)) return WSHARE_INDEX;
        WS_TRY(ws_set_k(entry, first));
        return ws_set_size(entry, size);
    }
    if (!ws_integer(json, &first) || !ws_is(json, ',')) return WSHARE_INDEX;
    WS_TRY(ws_json_eps(json, entry));
    if (!ws_is(json, ',')) return WSHARE_INDEX;
    if (entry->kind == WS_NORM) {
        const int type = ws_json_type(json);
        return type < 0 ? WSHARE_INDEX : ws_set_norm(entry, first, (unsigned)type);
    }
    if (!ws_integer(json, &size)) return WSHARE_INDEX;
    WS_TRY(ws_set_position(entry, first));
    return ws_set_size(entry, size);
}

/* What version 1 says of an entry. The hash stays in `target` until it is checked. */
static int ws_json_first(ws_index *index, ws_json *json, wshare_entry *entry) {
    if (entry->kind == WS_SHARED) {
        WS_TRY(ws_json_entry_shape(index, json, entry));
        WS_TRY(ws_count(index, entry->axes, 4, &entry->shape, &entry->count));
    } else if (entry->kind == WS_NORM) {
        WS_TRY(ws_json_eps(json, entry));
        if (!ws_is(json, ',')) return WSHARE_INDEX;
    }
    return ws_new_name(index, json, &entry->target);
}

static int ws_json_value(ws_index *index, ws_json *json, wshare_entry *entry) {
    const int listed = entry->kind != WS_ALIAS && !(entry->kind == WS_KEPT && index->version == 1);
    if (listed && !ws_is(json, '[')) return WSHARE_INDEX;
    if (entry->kind == WS_ALIAS)
        WS_TRY(ws_new_name(index, json, &entry->target));
    else
        WS_TRY(index->version == 1 ? ws_json_first(index, json, entry) : ws_json_second(index, json, entry));
    return !listed || ws_is(json, ']') ? WSHARE_OK : WSHARE_INDEX;
}

/* Whether this key comes next in the index. */
static int ws_json_key(ws_json *json, const char *key) {
    return ws_is(json, ',') && !ws_one_of(json, &key, 1) && ws_is(json, ':');
}

/* All entries of a kind. */
static int ws_json_kind(ws_index *index, ws_json *json, unsigned kind) {
    static const char *const keys[WS_KINDS] = {"shared", "folded", "batch_norm", "kept", "aliases"};
    wshare_entry *entry;
    int first = 1, more;
    if (!ws_json_key(json, keys[kind]) || !ws_is(json, '{')) return WSHARE_INDEX;
    while ((more = ws_more(json, '}', &first)) > 0) {
        WS_TRY(ws_new_entry(index, kind, &entry));
        WS_TRY(ws_new_name(index, json, &entry->name));
        if (!ws_is(json, ':')) return WSHARE_INDEX;
        WS_TRY(ws_json_value(index, json, entry));
        WS_TRY(ws_count_tensors(index, entry));
    }
    return more ? WSHARE_INDEX : WSHARE_OK;
}

/* The hash of the text up to the key of the hash, and a brace. `json` is at the comma before that key. */
static int ws_json_hash(const ws_json *start, ws_json *json) {
    static const char key[] = ",\"hash\":";
    ws_json at = *start;
    uint8_t hash[WS_HASH], byte;
    size_t length;
    ws_sha sha;
    const char *letter;
    ws_sha_start(&sha);
    while (ws_peek(&at) >= 0 && (ws_peek(json), at.at != json->at || at.have != json->have)) {
        byte = (uint8_t)ws_peek(&at);
        ws_sha_add(&sha, &byte, 1);
        ws_step(&at);
    }
    ws_sha_add(&sha, "}", 1);
    for (letter = key; *letter; letter++) {
        if (ws_peek(json) != *letter) return WSHARE_INDEX;
        ws_step(json);
    }
    if (!ws_string(json, hash, sizeof hash, &length) || !ws_is(json, '}')) return WSHARE_INDEX;
    ws_space(json);
    if (ws_peek(json) >= 0 || json->at != json->end) return WSHARE_INDEX;
    return ws_check_hash(&sha, hash, length);
}

/* The index of version 1 or 2. Its hash is checked in the second round only; so is that of the payload. */
static int ws_read_text(ws_index *index, uint8_t *payload_hash) {
    static const char *const version[] = {"version"}, *const forms[] = {"fixed", "entropy"};
    ws_json json = index->text, before;
    uint64_t number;
    size_t length;
    unsigned kind;
    if (!ws_is(&json, '{') || ws_one_of(&json, version, 1) || !ws_is(&json, ':') || !ws_integer(&json, &number))
        return WSHARE_INDEX;
    if (number != 1 && number != 2) return WSHARE_VERSION;
    index->version = (unsigned)number;
    if (number == 2 && (!ws_json_key(&json, "form") || ws_one_of(&json, forms, 2) < 0)) return WSHARE_INDEX;
    for (kind = 0; kind < WS_KINDS; kind++)
        if (number == 2 || kind != WS_FOLDED) WS_TRY(ws_json_kind(index, &json, kind));
    if (number == 2) {
        before = json;
        if (!ws_json_key(&json, "float32"))
            json = before;
        else if (!ws_string(&json, NULL, 0, &length))
            return WSHARE_INDEX;
        if (!ws_json_key(&json, "payload") || !ws_string(&json, payload_hash, WS_HASH, &length) || length != WS_HASH)
            return WSHARE_INDEX;
    }
    ws_space(&json);
    return index->keeps ? ws_json_hash(&index->text, &json) : WSHARE_OK;
}

/* CRC-32, as zlib has it. */
static uint32_t ws_crc(const uint8_t *at, size_t size) {
    static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
                                       0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                       0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    uint32_t crc = UINT32_MAX;
    for (; size; size--) {
        crc ^= *at++;
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

/* Version 1: the arrays that an entry is made of. */

static int ws_by_name(const void *things, uint32_t a, uint32_t b) {
    ws_joined first = {{NULL, 0}, {NULL, 0}}, second = first;
    first.start = ((const ws_array *)things)[a].name;
    second.start = ((const ws_array *)things)[b].name;
    return ws_compare(&first, &second);
}

/* The array of this name, which belongs to no other entry. */
static ws_array *ws_find_array(ws_index *index, ws_name name, const char *end) {
    ws_joined wanted, found = {{NULL, 0}, {NULL, 0}};
    uint32_t low = 0, high = index->arrays;
    wanted.start = name;
    wanted.end = ws_text(end);
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        ws_array *array = index->array + index->order[middle];
        int order;
        found.start = array->name;
        order = ws_compare(&wanted, &found);
        if (!order) {
            if (array->taken) return NULL;
            array->taken = 1;
            return array;
        }
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static void ws_add_text(ws_sha *sha, const char *text) { ws_sha_add(sha, text, strlen(text)); }

static void ws_add_number(ws_sha *sha, size_t number) {
    char digits[21];
    char *at = digits + sizeof digits - 1;
    *at = 0;
    do {
        *--at = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    ws_add_text(sha, at);
}

/* Type, shape and bytes, as entries of version 1 are hashed. */
static void ws_add_array(ws_sha *sha, const ws_array *array) {
    static const char *const types[WSHARE_TYPES] = {"<f2(", "<f4(", "<f8(", "|i1(", "<i2(", "<i4(",
                                                    "<i8(", "|u1(", "<u2(", "<u4(", "<u8(", "|b1("};
    unsigned i;
    ws_add_text(sha, types[array->type]);
    for (i = 0; i < array->axes; i++) {
        if (i) ws_add_text(sha, ", ");
        ws_add_number(sha, array->shape[i]);
    }
    ws_add_text(sha, array->axes == 1 ? ",)" : ")");
    ws_sha_add(sha, array->data, array->size);
}

static unsigned ws_index_bits(uint32_t k) { return ws_bit_length(k - 1); }

static int ws_place_shared(wshare_entry *entry, const ws_array *codebook, const ws_array *indices) {
    uint64_t bits = entry->count;
    if (codebook->type != WSHARE_FLOAT32 || codebook->axes != 1) return WSHARE_TENSOR;
    WS_TRY(ws_set_k(entry, codebook->count));
    if (bits > UINT64_MAX / 16) return WSHARE_TOO_LARGE;
    bits *= ws_index_bits(entry->k);
    if (indices->type != WSHARE_UINT8 || indices->axes != 1 || indices->size != bits / 8 + (bits % 8 != 0))
        return WSHARE_TENSOR;
    return WSHARE_OK;
}

static int ws_place_norm(wshare_entry *entry, const ws_array *scale, const ws_array *shift) {
    if (scale->type > WSHARE_FLOAT32 || shift->type > WSHARE_FLOAT32 || scale->axes != 1 || shift->axes != 1)
        return WSHARE_TENSOR;
    entry->outputs = scale->count;
    return scale->count == shift->count ? WSHARE_OK : WSHARE_TENSOR;
}

/* Finds the arrays of an entry and checks their hash. */
static int ws_place_arrays(ws_index *index, wshare_entry *entry) {
    static const char *const ends[WS_KINDS][2] = {
        {".codebook", ".indices"}, {NULL, NULL}, {".scale", ".shift"}, {"", NULL}, {NULL, NULL}};
    const char *const *end = ends[entry->kind];
    ws_array *first, *second;
    ws_sha sha;
    if (entry->kind == WS_ALIAS) return WSHARE_OK;
    first = second = ws_find_array(index, entry->name, end[0]);
    if (end[1] && first) second = ws_find_array(index, entry->name, end[1]);
    if (!second) return WSHARE_INDEX;
    ws_sha_start(&sha);
    ws_add_array(&sha, first);
    if (end[1]) ws_add_array(&sha, second);
    WS_TRY(ws_check_hash(&sha, entry->target.text, entry->target.length));
    entry->data = first->data;
    entry->size = first->size;
    entry->type = first->type;
    entry->more = second->data;
    entry->more_size = second->size;
    entry->more_type = second->type;
    if (entry->kind == WS_SHARED) return ws_place_shared(entry, first, second);
    if (entry->kind == WS_NORM) return ws_place_norm(entry, first, second);
    entry->shape = first->shape;
    entry->axes = first->axes;
    entry->count = first->count;
    return WSHARE_OK;
}

static int ws_finish_first(ws_index *index) {
    uint32_t i;
    ws_sort(index->order, index->arrays, ws_by_name, index->array);
    for (i = 1; i < index->arrays; i++)
        if (!ws_by_name(index->array, index->order[i - 1], index->order[i])) return WSHARE_TWICE;
    for (i = 0; i < index->entries; i++) WS_TRY(ws_place_arrays(index, index->entry + i));
    for (i = 0; i < index->arrays; i++)
        if (!index->array[i].taken) return WSHARE_INDEX;
    return WSHARE_OK;
}

#endif

/* Sections of versions 2 and 3. */

#ifndef WSHARE_ONLY_V3
/* A section of version 2 begins with the CRC-32 of its rest, which sizes in the index count. */
static int ws_place_second(ws_bytes *bytes, wshare_entry *entry) {
    const uint8_t *checksum = ws_cut(bytes, 4);
    uint32_t expected, found;
    if (!checksum) return WSHARE_INDEX;
    if (entry->kind == WS_SHARED || entry->kind == WS_FOLDED) {
        if (entry->size < 4) return WSHARE_INDEX;
        entry->size -= 4;
    }
    entry->data = ws_cut(bytes, entry->size);
    if (bytes->bad) return WSHARE_INDEX;
    expected = ws_u32(checksum);
    found = ws_crc(entry->data, entry->size);
    return ws_same(&found, &expected, sizeof found) ? WSHARE_OK : WSHARE_HASH;
}
#endif

/* Finds the section of each entry. */
static int ws_place_sections(ws_index *index, ws_bytes *bytes) {
    uint32_t i;
    for (i = 0; i < index->entries; i++) {
        wshare_entry *entry = index->entry + i;
        if (entry->kind == WS_ALIAS) continue;
#ifndef WSHARE_ONLY_V3
        if (index->version == 2) {
            WS_TRY(ws_place_second(bytes, entry));
            continue;
        }
#endif
        entry->data = ws_cut(bytes, entry->size);
        if (bytes->bad) return WSHARE_INDEX;
    }
    return bytes->left ? WSHARE_INDEX : WSHARE_OK;
}

/* How outputs of a shared tensor are counted, from the start of its section; `bytes` goes on behind it. */
static int ws_read_layout(const wshare_entry *entry, ws_bytes *bytes, unsigned *flags, uint64_t *axis, uint64_t *groups) {
    const unsigned known = WS_FLAG_HALF | WS_FLAG_SCALED | WS_FLAG_PLACED | (entry->version == 3 ? WS_FLAG_GRID : 0);
    const uint8_t *part;
    bytes->at = entry->data;
    bytes->left = entry->size;
    bytes->bad = 0;
    *flags = ws_octet(bytes);
    *axis = 0;
    *groups = 1;
    if (bytes->bad || *flags & ~known || (*flags & (WS_FLAG_HALF | WS_FLAG_GRID)) == (WS_FLAG_HALF | WS_FLAG_GRID))
        return WSHARE_TENSOR;
    if (!(*flags & WS_FLAG_PLACED)) return WSHARE_OK;
    if (entry->version == 2) {
        *axis = ws_octet(bytes);
        part = ws_cut(bytes, 4);
        *groups = part ? ws_u32(part) : 0;
    } else {
        *axis = ws_varint(bytes);
        *groups = ws_varint(bytes);
    }
    if (bytes->bad || *axis < 1 || *axis >= entry->axes || *groups < 1) return WSHARE_TENSOR;
    if (*groups > (entry->shape[0] ? entry->shape[0] : 1) || entry->shape[0] % *groups) return WSHARE_TENSOR;
    return WSHARE_OK;
}

/* Outputs of each shared tensor, and with them channels of the norms folded into it. */
static int ws_set_outputs(ws_index *index) {
    uint32_t i, shared = 0;
    for (i = 0; i < index->entries; i++) {
        wshare_entry *entry = index->entry + i;
        uint64_t axis = 0, groups = 1;
        ws_bytes bytes;
        unsigned flags = 0;
        if (entry->kind == WS_SHARED) {
            shared++;
            if (entry->version > 1) WS_TRY(ws_read_layout(entry, &bytes, &flags, &axis, &groups));
            if (flags & WS_FLAG_SCALED && !entry->axes) return WSHARE_TENSOR;
            entry->flags = (uint8_t)flags;
            entry->axis = (uint8_t)axis;
            entry->groups = (size_t)groups;
            entry->outputs = entry->axes ? entry->shape[axis] : 0;
            if (axis && !ws_times(entry->outputs, entry->groups, &entry->outputs)) return WSHARE_TOO_LARGE;
        } else if (entry->kind == WS_FOLDED) {
            if (entry->position >= shared) return WSHARE_INDEX;
            entry->outputs = index->entry[entry->position].outputs;
        }
    }
    return WSHARE_OK;
}

/* Numbers that the file claims to hold beyond its bytes. */
static int ws_check_claim(const ws_index *index, size_t bytes) {
    uint64_t claim = 0;
    uint32_t i;
    for (i = 0; i < index->entries; i++) {
        const wshare_entry *entry = index->entry + i;
        uint64_t numbers = 1;
        unsigned axis;
        if (entry->kind == WS_FOLDED) {
            const wshare_entry *layer = index->entry + entry->position;
            const size_t first = layer->axes && layer->shape[0] > 1 ? layer->shape[0] : 1;
            numbers = ws_times_capped(4, first > entry->outputs ? first : entry->outputs);
        } else if (entry->kind == WS_SHARED || (entry->kind == WS_KEPT && entry->coding == WS_STEPPED)) {
            /* An axis of length 0 must not hide others. */
            for (axis = 0; axis < entry->axes; axis++)
                numbers = ws_times_capped(numbers, entry->shape[axis] ? entry->shape[axis] : 1);
        } else {
            continue;
        }
        claim = ws_plus_capped(claim, numbers);
    }
    return claim > WS_FREE_CLAIM + WS_CLAIM_A_BYTE * (uint64_t)bytes ? WSHARE_CLAIM : WSHARE_OK;
}

/* Names of the state dict. */

static unsigned ws_leaf(const wshare_entry *entry, uint32_t number) {
    return number - entry->first + (entry->affine ? WS_WEIGHT : WS_MEAN);
}

/* The entry that a tensor belongs to. */
static const wshare_entry *ws_entry_of(const wshare_entry *entries, uint32_t count, uint32_t number) {
    uint32_t low = 0, high = count;
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        if (entries[middle].first <= number)
            low = middle;
        else
            high = middle;
    }
    return entries + low;
}

static ws_joined ws_name_of(const wshare_entry *entries, uint32_t count, uint32_t number) {
    const wshare_entry *entry = ws_entry_of(entries, count, number);
    ws_joined name = {{NULL, 0}, {NULL, 0}};
    name.start = entry->name;
    if (entry->kind == WS_FOLDED || entry->kind == WS_NORM) name.end = ws_text(ws_leaf_names[ws_leaf(entry, number)]);
    return name;
}

static int ws_by_tensor_name(const void *things, uint32_t a, uint32_t b) {
    const ws_index *index = (const ws_index *)things;
    const ws_joined first = ws_name_of(index->entry, index->entries, a);
    const ws_joined second = ws_name_of(index->entry, index->entries, b);
    return ws_compare(&first, &second);
}

/* Whether there is a tensor of this name, and its number. `order` sorts them. */
static int ws_search(const wshare_file *file, ws_name name, uint32_t *number) {
    ws_joined wanted = {{NULL, 0}, {NULL, 0}};
    uint32_t low = 0, high = file->tensors;
    wanted.start = name;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        const ws_joined found = ws_name_of(file->entries, file->length, file->order[middle]);
        const int order = ws_compare(&wanted, &found);
        *number = file->order[middle];
        if (!order) return 1;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return 0;
}

/* Sorts the names, finds equal ones, and what aliases stand for. */
static int ws_set_names(ws_index *index, wshare_file *file) {
    uint32_t i, number;
    ws_sort(index->order, index->tensors, ws_by_tensor_name, index);
    for (i = 1; i < index->tensors; i++)
        if (!ws_by_tensor_name(index, index->order[i - 1], index->order[i])) return WSHARE_TWICE;
    file->tensors = index->tensors;
    file->entries = index->entry;
    file->order = index->order;
    file->length = index->entries;
    file->version = index->version;
    for (i = 0; i < index->entries; i++) {
        wshare_entry *entry = index->entry + i;
        if (entry->kind != WS_ALIAS) continue;
        if (!ws_search(file, entry->target, &number) || number >= entry->first) return WSHARE_INDEX;
        entry->position = number;
        /* An alias of an alias stands for what that stands for. */
        if (ws_entry_of(index->entry, index->entries, number)->kind == WS_ALIAS)
            entry->position = ws_entry_of(index->entry, index->entries, number)->position;
    }
    return WSHARE_OK;
}

/* One round through a file: `bytes` are the sections at its end, in versions 2 and 3. */
static int ws_round(ws_index *index, const uint8_t *content, size_t size, ws_bytes *bytes) {
#ifndef WSHARE_ONLY_V3
    uint8_t payload_hash[WS_HASH];
    ws_sha sha;
#endif
    uint8_t digest[32];
    ws_sha third;
    WS_TRY(ws_read_header(index, content, size));
    if (index->keeps) WS_TRY(ws_check_places(index));
    if (!index->has_text) {
        /* In the first round there is no table to look into; the header of version 3 has one tensor, all the data. */
        if (index->arrays != 1 || index->data_size <= 8) return WSHARE_NO_FILE;
        bytes->at = index->data;
        bytes->left = index->data_size;
        bytes->bad = 0;
        if (index->keeps) WS_TRY(ws_only_array(index, "wshare", bytes));
        bytes->left -= 8;
        if (index->keeps && *bytes->at == 3) {
            ws_sha_start(&third);
            ws_sha_add(&third, bytes->at, bytes->left);
            ws_sha_end(&third, digest);
            if (!ws_same(digest, bytes->at + bytes->left, 8)) return WSHARE_HASH;
        }
        return ws_read_third(index, bytes);
    }
#ifdef WSHARE_ONLY_V3
    return WSHARE_VERSION;
#else
    WS_TRY(ws_read_text(index, payload_hash));
    if (!index->keeps || index->version == 1) return WSHARE_OK;
    WS_TRY(ws_only_array(index, "payload", bytes));
    ws_sha_start(&sha);
    ws_sha_add(&sha, bytes->at, bytes->left);
    return ws_check_hash(&sha, payload_hash, WS_HASH);
#endif
}

/* Lays the tables out in memory, by the counts of the first round. */
static int ws_lay_out(ws_index *index, ws_arena *arena) {
    const uint32_t most = index->arrays > index->tensors ? index->arrays : index->tensors;
    void *piece;
    WS_TRY(ws_take(arena, index->arrays, sizeof *index->array, &piece));
    index->array = (ws_array *)piece;
    WS_TRY(ws_take(arena, index->entries, sizeof *index->entry, &piece));
    index->entry = (wshare_entry *)piece;
    WS_TRY(ws_take(arena, most, sizeof *index->order, &piece));
    index->order = (uint32_t *)piece;
    WS_TRY(ws_take(arena, index->axes, sizeof *index->axis, &piece));
    index->axis = (size_t *)piece;
    WS_TRY(ws_take(arena, index->letters, 1, &piece));
    index->letter = (uint8_t *)piece;
    return WSHARE_OK;
}

int wshare_measure(const void *bytes, size_t size, size_t *memory) {
    ws_arena arena = ws_arena_of(NULL, 0);
    ws_index index;
    ws_bytes sections;
    *memory = 0;
    memset(&index, 0, sizeof index);
    WS_TRY(ws_round(&index, (const uint8_t *)bytes, size, &sections));
    WS_TRY(ws_lay_out(&index, &arena));
    return ws_arena_needs(&arena, memory);
}

int wshare_open(wshare_file *file, const void *bytes, size_t size, void *memory, size_t room) {
    ws_arena arena = ws_arena_of(memory, room);
    ws_index index;
    ws_bytes sections = {NULL, 0, 0};
    const uint8_t *content = (const uint8_t *)bytes;
    memset(file, 0, sizeof *file);
    memset(&index, 0, sizeof index);
    if (!memory) return WSHARE_NO_ROOM;
    WS_TRY(ws_round(&index, content, size, &sections));
    WS_TRY(ws_lay_out(&index, &arena));
    index.arrays = index.entries = index.tensors = 0;
    index.axes = index.letters = 0;
    index.has_text = 0;
    index.keeps = 1;
    WS_TRY(ws_round(&index, content, size, &sections));
#ifndef WSHARE_ONLY_V3
    if (index.version == 1) WS_TRY(ws_finish_first(&index));
#endif
    size = index.version == 3 ? sections.left : index.data_size;
    if (index.version > 1) WS_TRY(ws_place_sections(&index, &sections));
    WS_TRY(ws_set_outputs(&index));
    WS_TRY(ws_check_claim(&index, size));
    return ws_set_names(&index, file);
}

/* Coded integers. */

/* Decisions of adaptive integers: those that tell the number of bits, the first and second bit below the highest, and
   the sign; and the classes and contexts that they are kept apart by. */
enum { WS_CLASSES = 33, WS_CONTEXTS = 12, WS_NO_CONTEXT = 6 };
enum {
    WS_TOP = WS_CLASSES * WS_CONTEXTS,
    WS_SECOND = 2 * WS_TOP,
    WS_SIGN = WS_SECOND + 2 * WS_CLASSES,
    WS_DECISIONS = WS_SIGN + 1
};

/* The probability of "1", in 65,536ths, and how often it was asked for. */
typedef struct {
    uint16_t p, n;
} ws_decision;

typedef struct {
    uint32_t number, range;
    const uint8_t *at, *end;
} ws_coder;

/* Integers that come one after another. */
typedef struct {
    size_t count; /* to come */
    uint32_t limit;
    unsigned bits; /* low bits, as they are */
    const uint8_t *low;
    uint64_t held;
    unsigned have;
    /* Of a stream of the high bits: starts of the shares, and of each slot the symbol at its start. */
    uint32_t *starts;
    uint16_t *slots;
    unsigned shift;
    const uint8_t *stream;
    size_t left;
    uint64_t state;
    /* Of adaptive integers. */
    ws_decision *decisions;
    uint32_t *columns;
    size_t row, column;
    uint32_t mean, along, centre;
    ws_coder coder;
} ws_integers;

/* The next `count` low bits, from the lowest bit up. */
static uint32_t ws_low_bits(ws_integers *integers) {
    uint32_t found;
    for (; integers->have < integers->bits; integers->have += 8)
        integers->held |= (uint64_t)*integers->low++ << integers->have;
    found = (uint32_t)integers->held & (((uint32_t)1 << integers->bits) - 1);
    integers->held >>= integers->bits;
    integers->have -= integers->bits;
    return found;
}

/* Takes the low bits off the front of `bytes`. */
static int ws_start_low_bits(ws_integers *integers, ws_bytes *bytes) {
    uint64_t bits = integers->count, size;
    if (bits > UINT64_MAX / 32) return WSHARE_TENSOR;
    bits *= integers->bits;
    size = bits / 8 + (bits % 8 != 0);
    integers->low = ws_cut(bytes, size);
    if (bytes->bad) return WSHARE_TENSOR;
    /* The last byte is filled up with zeros. */
    if (bits % 8 && integers->low[(size_t)size - 1] >> bits % 8) return WSHARE_TENSOR;
    return WSHARE_OK;
}

/* The start of a share of the 2^24, as float32 has it: floor(before / 2^precision * room), the product rounded. */
static uint32_t ws_share(uint32_t before, unsigned precision, uint32_t room) {
    uint64_t product = (uint64_t)before * room, rest;
    unsigned excess = 0;
    while (product >> excess >> 24) excess++;
    if (excess) {
        rest = product & (((uint64_t)1 << excess) - 1);
        product >>= excess;
        if (rest > (uint64_t)1 << (excess - 1) || (rest == (uint64_t)1 << (excess - 1) && (product & 1))) product++;
        product <<= excess;
    }
    return (uint32_t)(product >> precision);
}

/* The next of the words, of four bytes, that are taken off the end. */
static void ws_next_word(ws_integers *integers) {
    const size_t start = (integers->left - 1) / 4 * 4;
    uint32_t word = 0;
    while (integers->left > start) word = word << 8 | integers->stream[--integers->left];
    integers->state = integers->state << 32 | word;
}

/* Reads the table of frequencies; `bytes` goes on behind it. */
static int ws_start_table(ws_integers *integers, ws_bytes *bytes, ws_arena *arena) {
    const uint8_t *head = ws_cut(bytes, 3);
    uint32_t alphabet, symbol, slot, before = 0, room;
    unsigned precision, width;
    ws_integers fields;
    void *piece;
    if (!head) return WSHARE_TENSOR;
    precision = (unsigned)(head[0] >> 4) + 1;
    width = (head[0] & 15u) + 1;
    alphabet = ws_u16(head + 1) + 1;
    if (alphabet < 2 || alphabet > ((integers->limit - 1) >> integers->bits) + 1) return WSHARE_TENSOR;
    memset(&fields, 0, sizeof fields);
    fields.count = alphabet;
    fields.bits = width;
    if (!(fields.low = ws_cut(bytes, ((uint64_t)alphabet * width + 7) / 8))) return WSHARE_TENSOR;
    WS_TRY(ws_take(arena, (size_t)alphabet + 1, sizeof *integers->starts, &piece));
    integers->starts = (uint32_t *)piece;
    /* About two slots a symbol. */
    integers->shift = 24 - (ws_bit_length(alphabet - 1) + (alphabet <= WS_LEVELS / 2));
    WS_TRY(ws_take(arena, ((size_t)1 << (24 - integers->shift)) + 1, sizeof *integers->slots, &piece));
    integers->slots = (uint16_t *)piece;
    if (!piece) return WSHARE_OK;
    room = ((uint32_t)1 << 24) - alphabet;
    for (symbol = 0; symbol < alphabet; symbol++) {
        if (before > (uint32_t)1 << precision) return WSHARE_TENSOR;
        integers->starts[symbol] = ws_share(before, precision, room) + symbol;
        before += ws_low_bits(&fields);
    }
    if (before != (uint32_t)1 << precision) return WSHARE_TENSOR;
    integers->starts[alphabet] = (uint32_t)1 << 24;
    for (slot = symbol = 0; slot < (uint32_t)1 << (24 - integers->shift); slot++) {
        while (integers->starts[symbol + 1] <= slot << integers->shift) symbol++;
        integers->slots[slot] = (uint16_t)symbol;
    }
    integers->slots[slot] = (uint16_t)(alphabet - 1);
    return WSHARE_OK;
}

/* Starts integers of `bits` low bits; `coded` says whether a table and a stream follow. */
static int ws_start_plain(ws_integers *integers, ws_bytes *bytes, int coded, ws_arena *arena) {
    if (coded) WS_TRY(ws_start_table(integers, bytes, arena));
    WS_TRY(ws_start_low_bits(integers, bytes));
    if (!coded) return bytes->left ? WSHARE_TENSOR : WSHARE_OK;
    integers->stream = bytes->at;
    integers->left = bytes->left;
    if (bytes->left && !bytes->at[bytes->left - 1]) return WSHARE_TENSOR;
    if (integers->left) ws_next_word(integers);
    if (integers->left) ws_next_word(integers);
    return WSHARE_OK;
}

static void ws_start_decisions(ws_decision *decisions, int scale, int contexts) {
    static const uint16_t prior[24] = {65355, 65280, 65175, 65025, 64814, 64517, 64100, 63513,
                                       62692, 61547, 59955, 57759, 54917, 50990, 46020, 39749,
                                       32312, 24109, 15933, 8869,  3874,  1200,  229,   24};
    static const int8_t shifts[WS_CONTEXTS] = {-7, -4, -3, -2, -1, 0, 0, 1, 1, 1, 2, 2};
    int place;
    for (place = 0; place < WS_DECISIONS; place++) {
        decisions[place].p = 32768;
        decisions[place].n = 0;
        if (place < WS_TOP) {
            int at = 2 * (place % WS_CLASSES) - scale + 16 - (contexts ? shifts[place / WS_CLASSES] : 0);
            at = at < 0 ? 0 : at > 23 ? 23 : at;
            decisions[place].p = prior[at];
            decisions[place].n = 6;
        }
    }
}

static uint32_t ws_next_byte(ws_coder *coder) { return coder->at < coder->end ? *coder->at++ : 0; }

/* Adaptive integers, behind their mark. */
static int ws_start_adaptive(ws_integers *integers, ws_bytes *bytes, size_t row, ws_arena *arena) {
    const unsigned head = ws_octet(bytes), contexts = head & 128;
    const uint64_t centre = ws_varint(bytes);
    const uint8_t *mean = contexts ? ws_cut(bytes, 2) : NULL;
    void *piece;
    size_t i;
    if (bytes->bad || head & 64 || centre >= integers->limit) return WSHARE_TENSOR;
    integers->centre = (uint32_t)centre;
    integers->mean = mean ? ws_u16(mean) : 0;
    if (contexts && !integers->mean) return WSHARE_TENSOR;
    if (bytes->left && !bytes->at[bytes->left - 1]) return WSHARE_TENSOR;
    WS_TRY(ws_take(arena, WS_DECISIONS, sizeof *integers->decisions, &piece));
    integers->decisions = (ws_decision *)piece;
    integers->row = row ? row : 1;
    if (contexts) {
        WS_TRY(ws_take(arena, integers->row, sizeof *integers->columns, &piece));
        integers->columns = (uint32_t *)piece;
    }
    if (!piece) return WSHARE_OK;
    for (i = 0; contexts && i < integers->row; i++) integers->columns[i] = integers->mean;
    ws_start_decisions(integers->decisions, (int)(head & 63) - 32, contexts != 0);
    integers->coder.at = bytes->at;
    integers->coder.end = bytes->at + bytes->left;
    integers->coder.range = UINT32_MAX;
    for (i = 0; i < 4; i++) integers->coder.number = integers->coder.number << 8 | ws_next_byte(&integers->coder);
    return integers->coder.number == UINT32_MAX ? WSHARE_TENSOR : WSHARE_OK;
}

/* Starts `count` coded integers below `limit`, in rows of `row`, of all bytes that there are. */
static int ws_start(ws_integers *integers, ws_bytes bytes, size_t count, size_t row, uint32_t limit, ws_arena *arena) {
    unsigned head;
    memset(integers, 0, sizeof *integers);
    integers->count = count;
    integers->limit = limit;
    head = ws_octet(&bytes);
    if (bytes.bad) return WSHARE_TENSOR;
    if (head == 127) return ws_start_adaptive(integers, &bytes, row, arena);
    integers->bits = head & 127;
    if (integers->bits > ws_bit_length(limit - 1)) return WSHARE_TENSOR;
    return ws_start_plain(integers, &bytes, head & 128, arena);
}

/* A decision: narrows the range, and moves the probability by less and less. */
static unsigned ws_narrowed(ws_coder *coder, uint32_t bound) {
    const unsigned bit = coder->number < bound;
    if (bit) {
        coder->range = bound;
    } else {
        coder->range -= bound;
        coder->number -= bound;
    }
    while (coder->range < (uint32_t)1 << 24) {
        coder->range <<= 8;
        coder->number = coder->number << 8 | ws_next_byte(coder);
    }
    return bit;
}

static unsigned ws_decide(ws_coder *coder, ws_decision *decision) {
    const uint32_t p = decision->p, share = p >> 4 ? p >> 4 : 1, rate = 65536 / (decision->n + 2u);
    const unsigned bit = ws_narrowed(coder, (coder->range >> 12) * share);
    /* Both round down, p being lowered in the second case. */
    decision->p = (uint16_t)(bit ? p + ((65535 - p) * rate >> 16) : p - ((p * rate + 65535) >> 16));
    if (decision->n < 254) decision->n++;
    return bit;
}

/* The distance of the next adaptive integer from the centre; 33 classes or more are an error. */
static int ws_distance(ws_coder *coder, ws_decision *decisions, unsigned context, uint32_t *size, unsigned *negative) {
    ws_decision *of_class = decisions + context * WS_CLASSES;
    unsigned bits = 0, left;
    uint32_t found = 1;
    while (ws_decide(coder, of_class + bits))
        if (++bits == WS_CLASSES) return WSHARE_TENSOR;
    *size = 0;
    *negative = 0;
    if (!bits) return WSHARE_OK;
    *negative = ws_decide(coder, decisions + WS_SIGN);
    left = bits - 1;
    if (left) {
        found = found << 1 | ws_decide(coder, of_class + WS_TOP + bits);
        left--;
    }
    if (left) {
        found = found << 1 | ws_decide(coder, decisions + WS_SECOND + 2 * bits + (found & 1));
        left--;
    }
    for (; left; left--) found = found << 1 | ws_narrowed(coder, (coder->range >> 12) * 2048);
    *size = found;
    return WSHARE_OK;
}

static int ws_read_adaptive(ws_integers *integers, uint32_t *out, size_t count) {
    ws_coder coder = integers->coder;
    const uint32_t mean = integers->mean, limit = integers->limit, centre = integers->centre;
    uint32_t *column = integers->columns, size, value, reach;
    unsigned context = WS_NO_CONTEXT, negative;
    size_t i;
    for (i = 0; i < count; i++) {
        if (mean) {
            if (!integers->column) integers->along = mean;
            column = integers->columns + integers->column;
            context = 3 * (*column + integers->along) / mean;
            if (context >= WS_CONTEXTS) context = WS_CONTEXTS - 1;
        }
        WS_TRY(ws_distance(&coder, integers->decisions, context, &size, &negative));
        if (negative ? size > centre : size >= limit - centre) return WSHARE_TENSOR;
        value = negative ? centre - size : centre + size;
        out[i] = value;
        if (mean) {
            reach = size < 32767 ? size : 32767;
            *column += (reach << 4) - (*column >> 4);
            integers->along += (reach << 3) - (integers->along >> 5);
            if (++integers->column == integers->row) integers->column = 0;
        }
    }
    integers->coder = coder;
    return WSHARE_OK;
}

/* The high bits of the next integers, of a stream. */
static void ws_read_stream(ws_integers *integers, uint32_t *out, size_t count) {
    const uint32_t *starts = integers->starts;
    size_t i;
    for (i = 0; i < count; i++) {
        const uint32_t r = (uint32_t)integers->state & 0xffffff, slot = r >> integers->shift;
        uint32_t low = integers->slots[slot], high = integers->slots[slot + 1];
        while (low < high) {
            const uint32_t middle = (low + high + 1) / 2;
            if (starts[middle] <= r)
                low = middle;
            else
                high = middle - 1;
        }
        out[i] = low << integers->bits;
        integers->state = (integers->state >> 24) * (starts[low + 1] - starts[low]) + (r - starts[low]);
        if (integers->state >> 32 == 0 && integers->left) ws_next_word(integers);
    }
}

/* The next integers, of which there have to be as many. */
static int ws_read(ws_integers *integers, uint32_t *out, size_t count) {
    size_t i;
    integers->count -= count;
    if (integers->decisions) return ws_read_adaptive(integers, out, count);
    if (integers->starts)
        ws_read_stream(integers, out, count);
    else
        memset(out, 0, count * sizeof *out);
    for (i = 0; integers->bits && i < count; i++) out[i] |= ws_low_bits(integers);
    for (i = 0; i < count; i++)
        if (out[i] >= integers->limit) return WSHARE_TENSOR;
    return WSHARE_OK;
}

/* Whether the bytes end with the last integer. */
static int ws_end(const ws_integers *integers) {
    const int whole = integers->decisions ? integers->coder.at == integers->coder.end
                                          : !integers->state && !integers->left;
    return whole ? WSHARE_OK : WSHARE_TENSOR;
}

/* Offset integers: the least, and by how many bits the coded distances from it are shifted. */
typedef struct {
    ws_integers integers;
    int64_t least;
    unsigned shift;
} ws_offsets;

/* Starts `count` offset integers within `reach` of the least; `bytes` of version 2 have a least of so many bytes. */
static int ws_start_offsets(ws_offsets *offsets, ws_bytes bytes, unsigned version, unsigned least_bytes, size_t count,
                            uint32_t reach, ws_arena *arena) {
    offsets->shift = 0;
    if (version == 2) {
        const uint8_t *part = ws_cut(&bytes, least_bytes);
        uint32_t bits;
        if (!part) return WSHARE_TENSOR;
        bits = least_bytes == 2 ? ws_u16(part) : ws_u32(part);
        offsets->least = (int64_t)bits - (bits >> (8 * least_bytes - 1) ? (int64_t)1 << 8 * least_bytes : 0);
    } else {
        const uint64_t least = ws_varint(&bytes);
        offsets->least = ws_signed(least);
        offsets->shift = ws_octet(&bytes);
        if (bytes.bad || least > (uint64_t)1 << 32 || offsets->shift > 31) return WSHARE_TENSOR;
    }
    return ws_start(&offsets->integers, bytes, count, count, ((reach - 1) >> offsets->shift) + 1, arena);
}

/* The next of them, `count` at most WS_BLOCK. */
static int ws_read_offsets(ws_offsets *offsets, int64_t *out, size_t count) {
    uint32_t block[WS_BLOCK];
    size_t i;
    WS_TRY(ws_read(&offsets->integers, block, count));
    for (i = 0; i < count; i++) out[i] = offsets->least + (int64_t)((uint64_t)block[i] << offsets->shift);
    return WSHARE_OK;
}

/* What is decoded, in the form that was asked for. */

typedef struct {
    uint8_t *out;
    int form;
} ws_output;

static size_t ws_smaller(size_t a, size_t b) { return a < b ? a : b; }

static int ws_put(ws_output *output, const float *values, size_t count) {
    size_t i;
    if (output->form != WSHARE_AS_FLOAT16) {
        memcpy(output->out, values, count * sizeof *values);
        output->out += count * sizeof *values;
        return WSHARE_OK;
    }
    for (i = 0; i < count; i++, output->out += 2) {
        uint16_t half;
        if (!ws_half((double)values[i], &half)) return WSHARE_RANGE;
        memcpy(output->out, &half, sizeof half);
    }
    return WSHARE_OK;
}

/* A float of the file: float16 or float32. */
static float ws_read_float(const uint8_t *at, unsigned type, size_t place) {
    return ws_float(type == WSHARE_FLOAT16 ? ws_widen(ws_u16(at + 2 * place)) : ws_u32(at + 4 * place));
}

/* A shared tensor whose section has been taken apart. */
typedef struct {
    const wshare_entry *entry;
    ws_bytes codebook, scales, coded;
    float step;
    int64_t least;
    int16_t *exponents; /* NULL if there are none */
    int largest;        /* of the exponents */
    float *levels;      /* NULL for a grid */
    uint32_t *used;     /* of a grid, a bit for each place */
    uint16_t *before;   /* of a grid, used places before each word of `used` */
    ws_integers indices;
    size_t coded_room;  /* where the memory of the coded indices starts */
} ws_shared;

/* Takes the section apart. */
static int ws_cut_shared(ws_shared *shared, const wshare_entry *entry) {
    ws_bytes bytes;
    unsigned flags;
    uint64_t axis, groups, size;
    const uint8_t *part;
    memset(shared, 0, sizeof *shared);
    shared->entry = entry;
    shared->codebook.at = entry->data;
    shared->coded.at = entry->more;
    shared->coded.left = entry->more_size;
    if (entry->version == 1) return WSHARE_OK;
    WS_TRY(ws_read_layout(entry, &bytes, &flags, &axis, &groups));
    if (flags & WS_FLAG_GRID) {
        part = ws_cut(&bytes, 2);
        shared->step = part ? ws_float(ws_u16(part) << 16) : 0;
        shared->least = ws_signed(ws_varint(&bytes));
        if (!(shared->step > 0) || shared->least > (int64_t)WS_STEPS || shared->least < -(int64_t)WS_STEPS)
            return WSHARE_TENSOR;
    } else {
        shared->codebook.at = ws_cut(&bytes, (flags & WS_FLAG_HALF ? 2 : 4) * (uint64_t)entry->k);
    }
    if (flags & WS_FLAG_SCALED) {
        part = entry->version == 2 ? ws_cut(&bytes, 3) : NULL;
        size = part ? ws_u16(part) | (uint32_t)part[2] << 16 : entry->version == 2 ? 0 : ws_varint(&bytes);
        shared->scales.at = ws_cut(&bytes, size);
        shared->scales.left = (size_t)size;
    }
    shared->coded = bytes;
    return bytes.bad ? WSHARE_TENSOR : WSHARE_OK;
}

/* The exponents, if there are any. */
static int ws_read_exponents(ws_shared *shared, ws_arena *arena) {
    const size_t count = shared->entry->outputs;
    size_t done, part, i, used;
    int64_t block[WS_BLOCK];
    ws_offsets offsets;
    void *piece;
    shared->largest = -WS_REACH;
    if (!(shared->entry->flags & WS_FLAG_SCALED)) return WSHARE_OK;
    WS_TRY(ws_take(arena, count, sizeof *shared->exponents, &piece));
    shared->exponents = (int16_t *)piece;
    used = arena->used;
    WS_TRY(ws_start_offsets(&offsets, shared->scales, shared->entry->version, 2, count, 2 * WS_REACH + 1, arena));
    arena->used = used;
    if (!arena->start) return WSHARE_OK;
    for (done = 0; done < count; done += part) {
        part = ws_smaller(WS_BLOCK, count - done);
        WS_TRY(ws_read_offsets(&offsets, block, part));
        for (i = 0; i < part; i++) {
            if (block[i] < -WS_REACH || block[i] > WS_REACH) return WSHARE_TENSOR;
            shared->exponents[done + i] = (int16_t)block[i];
            if (block[i] > shared->largest) shared->largest = (int)block[i];
        }
    }
    return ws_end(&offsets.integers);
}

/* Whether no weight leaves the range of float32, of two shared values that are the largest, by size, if any are. */
static int ws_check_levels(const ws_shared *shared, float low, float high) {
    const double least = low < 0 ? -(double)low : (double)low, most = high < 0 ? -(double)high : (double)high;
    if (!ws_finite(low) || !ws_finite(high)) return WSHARE_TENSOR;
    if (!shared->exponents || !shared->entry->outputs) return WSHARE_OK;
    return (least > most ? least : most) * (double)ws_scale(shared->largest) > 0x1.fffffep127 ? WSHARE_TENSOR
                                                                                              : WSHARE_OK;
}

static int ws_read_codebook(ws_shared *shared, ws_arena *arena) {
    const unsigned type = shared->entry->flags & WS_FLAG_HALF ? WSHARE_FLOAT16 : WSHARE_FLOAT32;
    const uint32_t k = shared->entry->k;
    uint32_t i;
    void *piece;
    WS_TRY(ws_take(arena, k, sizeof *shared->levels, &piece));
    shared->levels = (float *)piece;
    if (!piece) return WSHARE_OK;
    for (i = 0; i < k; i++) {
        shared->levels[i] = ws_read_float(shared->codebook.at, type, i);
        if (!ws_finite(shared->levels[i]) || (i && shared->levels[i] < shared->levels[i - 1])) return WSHARE_TENSOR;
    }
    return ws_check_levels(shared, shared->levels[0], shared->levels[k - 1]);
}

static int ws_is_grid(const ws_shared *shared) { return shared->entry->flags & WS_FLAG_GRID; }

/* A shared value of a grid; infinite if it leaves the range, which ws_end_grid finds. */
static float ws_level(const ws_shared *shared, uint32_t place) {
    const int64_t steps = shared->least + place;
    float level;
    /* Both factors are exact in float32, and so the one product is rounded once. */
    if (steps > -((int64_t)1 << 24) && steps < (int64_t)1 << 24) return (float)steps * shared->step;
    return ws_narrow((double)steps * (double)shared->step, &level) ? level : ws_float(0x7f800000);
}

/* Starts the indices, or the places on a grid. */
static int ws_start_indices(ws_shared *shared, ws_arena *arena) {
    const wshare_entry *entry = shared->entry;
    const uint32_t limit = ws_is_grid(shared) ? WS_LEVELS : entry->k;
    ws_bytes coded = shared->coded;
    size_t row = entry->count, i;
    arena->used = shared->coded_room;
#ifndef WSHARE_ONLY_V3
    if (entry->version == 1) {
        memset(&shared->indices, 0, sizeof shared->indices);
        shared->indices.count = entry->count;
        shared->indices.limit = limit;
        shared->indices.bits = ws_index_bits(entry->k);
        return ws_start_plain(&shared->indices, &coded, 0, arena);
    }
#endif
    if (entry->version == 3 && entry->axes > 1)
        for (row = 1, i = 1; i < entry->axes; i++) row *= entry->shape[i];
    return ws_start(&shared->indices, coded, entry->count, row, limit, arena);
}

/* Reads of a shared tensor what the form needs, and starts its indices. */
static int ws_start_shared(ws_shared *shared, const wshare_entry *entry, int form, ws_arena *arena) {
    void *piece = NULL;
    WS_TRY(ws_cut_shared(shared, entry));
    WS_TRY(ws_read_exponents(shared, arena));
    if (form == WSHARE_AS_SCALES) return WSHARE_OK;
    if (ws_is_grid(shared)) {
        WS_TRY(ws_take(arena, WS_LEVELS / 32, sizeof *shared->used, &piece));
        shared->used = (uint32_t *)piece;
        WS_TRY(ws_take(arena, WS_LEVELS / 32, sizeof *shared->before, &piece));
        shared->before = (uint16_t *)piece;
        if (piece) memset(shared->used, 0, WS_LEVELS / 8);
    } else {
        WS_TRY(ws_read_codebook(shared, arena));
        if (form == WSHARE_AS_CODEBOOK) return WSHARE_OK;
    }
    shared->coded_room = arena->used;
    return ws_start_indices(shared, arena);
}

/* When all places of a grid are known: whether they are as many as there are shared values, and all of these finite. */
static int ws_end_grid(ws_shared *shared) {
    uint32_t word, bit, found = 0, highest = 0;
    for (word = 0; word < WS_LEVELS / 32; word++) {
        shared->before[word] = (uint16_t)found;
        for (bit = 0; bit < 32; bit++)
            if (shared->used[word] >> bit & 1) {
                highest = 32 * word + bit;
                found++;
            }
    }
    if (found != shared->entry->k || !(shared->used[0] & 1)) return WSHARE_TENSOR;
    return ws_check_levels(shared, ws_level(shared, 0), ws_level(shared, highest));
}

/* The index of a place on a grid: how many used places lie before it. */
static uint32_t ws_rank(const ws_shared *shared, uint32_t place) {
    uint32_t before = shared->used[place / 32] & (((uint32_t)1 << place % 32) - 1), rank = shared->before[place / 32];
    for (; before; before &= before - 1) rank++;
    return rank;
}

/* Weights of one output that lie in a row. Such runs go along the axis of outputs, then along the axes between the
   first and that one, then along the first axis of a group, then from group to group. */
typedef struct {
    size_t length, left;
    size_t wide, column;
    size_t middle, middle_done;
    size_t rows, row;
    size_t base; /* first output of the group */
} ws_run;

static ws_run ws_first_run(const wshare_entry *entry) {
    ws_run run = {1, 0, 1, 0, 1, 0, 1, 0, 0};
    unsigned i;
    for (i = entry->axis + 1u; i < entry->axes; i++) run.length *= entry->shape[i];
    if (entry->axis) {
        run.wide = entry->shape[entry->axis];
        run.rows = entry->shape[0] / entry->groups;
    }
    for (i = 1; i < entry->axis; i++) run.middle *= entry->shape[i];
    run.left = run.length;
    return run;
}

static void ws_next_run(ws_run *run) {
    run->left = run->length;
    if (++run->column < run->wide) return;
    run->column = 0;
    if (++run->middle_done < run->middle) return;
    run->middle_done = 0;
    if (++run->row < run->rows) return;
    run->row = 0;
    run->base += run->wide;
}

/* Multiplies the next weights by the scales of their outputs. */
static void ws_apply_scales(const ws_shared *shared, ws_run *run, float *values, size_t count) {
    size_t done, part, i;
    for (done = 0; done < count; done += part) {
        const float scale = ws_scale(shared->exponents[run->base + run->column]);
        part = ws_smaller(run->left, count - done);
        for (i = done; i < done + part; i++) values[i] *= scale;
        run->left -= part;
        if (!run->left) ws_next_run(run);
    }
}

/* The next indices, or places on the grid, which are marked as used. */
static int ws_read_places(ws_shared *shared, uint32_t *places, size_t count) {
    size_t i;
    WS_TRY(ws_read(&shared->indices, places, count));
    if (ws_is_grid(shared))
        for (i = 0; i < count; i++) shared->used[places[i] / 32] |= (uint32_t)1 << places[i] % 32;
    return WSHARE_OK;
}

static int ws_write_weights(ws_shared *shared, ws_output *output) {
    ws_run run = ws_first_run(shared->entry);
    uint32_t places[WS_BLOCK];
    float values[WS_BLOCK];
    size_t left, part, i;
    for (left = shared->entry->count; left; left -= part) {
        part = ws_smaller(WS_BLOCK, left);
        WS_TRY(ws_read_places(shared, places, part));
        if (ws_is_grid(shared))
            for (i = 0; i < part; i++) values[i] = ws_level(shared, places[i]);
        else
            for (i = 0; i < part; i++) values[i] = shared->levels[places[i]];
        if (shared->exponents) ws_apply_scales(shared, &run, values, part);
        WS_TRY(ws_put(output, values, part));
    }
    WS_TRY(ws_end(&shared->indices));
    return ws_is_grid(shared) ? ws_end_grid(shared) : WSHARE_OK;
}

static int ws_write_indices(ws_shared *shared, ws_output *output) {
    uint32_t places[WS_BLOCK];
    size_t left, part, i;
    for (left = shared->entry->count; left; left -= part) {
        part = ws_smaller(WS_BLOCK, left);
        WS_TRY(ws_read(&shared->indices, places, part));
        for (i = 0; i < part; i++) {
            const uint16_t index = (uint16_t)(ws_is_grid(shared) ? ws_rank(shared, places[i]) : places[i]);
            const uint8_t narrow = (uint8_t)index;
            const size_t size = output->form == WSHARE_AS_INDEX8 ? 1 : 2;
            memcpy(output->out, size == 1 ? (const void *)&narrow : (const void *)&index, size);
            output->out += size;
        }
    }
    return ws_end(&shared->indices);
}

/* Reads all places of a grid, to know which are used. */
static int ws_find_places(ws_shared *shared) {
    uint32_t places[WS_BLOCK];
    size_t left, part;
    for (left = shared->entry->count; left; left -= part) {
        part = ws_smaller(WS_BLOCK, left);
        WS_TRY(ws_read_places(shared, places, part));
    }
    WS_TRY(ws_end(&shared->indices));
    return ws_end_grid(shared);
}

static int ws_write_codebook(const ws_shared *shared, ws_output *output) {
    uint32_t place;
    float level;
    if (!ws_is_grid(shared)) return ws_put(output, shared->levels, shared->entry->k);
    for (place = 0; place < WS_LEVELS; place++)
        if (shared->used[place / 32] >> place % 32 & 1) {
            level = ws_level(shared, place);
            WS_TRY(ws_put(output, &level, 1));
        }
    return WSHARE_OK;
}

static int ws_write_scales(const ws_shared *shared, ws_output *output) {
    size_t i;
    for (i = 0; i < shared->entry->outputs; i++) {
        const float scale = ws_scale(shared->exponents[i]);
        WS_TRY(ws_put(output, &scale, 1));
    }
    return WSHARE_OK;
}

static int ws_decode_shared(const wshare_entry *entry, ws_output *output, ws_arena *arena) {
    const int form = output->form, indexed = form == WSHARE_AS_INDEX8 || form == WSHARE_AS_INDEX16;
    ws_shared shared;
    WS_TRY(ws_start_shared(&shared, entry, form, arena));
    if (!arena->start) return WSHARE_OK;
    if (form == WSHARE_AS_SCALES) return ws_write_scales(&shared, output);
    if (ws_is_grid(&shared) && (indexed || form == WSHARE_AS_CODEBOOK)) {
        WS_TRY(ws_find_places(&shared));
        if (indexed) WS_TRY(ws_start_indices(&shared, arena));
    }
    if (form == WSHARE_AS_CODEBOOK) return ws_write_codebook(&shared, output);
    return indexed ? ws_write_indices(&shared, output) : ws_write_weights(&shared, output);
}

/* Batch norms. */

typedef struct {
    const wshare_entry *entry;
    ws_shared layer; /* of a folded norm */
    ws_offsets steps;
    float unit;
} ws_norm;

/* Whether the values of a leaf come from the steps of a folded norm, whose scale is 1. */
static int ws_is_stepped(const wshare_entry *entry, unsigned leaf) {
    return entry->kind == WS_FOLDED && (leaf == WS_BIAS || (leaf == WS_MEAN && !entry->affine));
}

static int ws_start_norm(ws_norm *norm, const wshare_file *file, const wshare_entry *entry, unsigned leaf,
                         ws_arena *arena) {
    ws_bytes bytes = {NULL, 0, 0};
    const uint8_t *unit;
    norm->entry = entry;
    if (!ws_is_stepped(entry, leaf)) return WSHARE_OK;
    WS_TRY(ws_cut_shared(&norm->layer, file->entries + entry->position));
    WS_TRY(ws_read_exponents(&norm->layer, arena));
    bytes.at = entry->data;
    bytes.left = entry->size;
    if (!(unit = ws_cut(&bytes, 4))) return WSHARE_TENSOR;
    norm->unit = ws_float(ws_u32(unit));
    return ws_start_offsets(&norm->steps, bytes, entry->version, 4, entry->outputs, WS_STEPS, arena);
}

/* Shifts of the next channels, which follow `done`: step * unit * scale of the output, in float64. */
static int ws_read_steps(ws_norm *norm, size_t done, size_t count, float *shifts) {
    int64_t steps[WS_BLOCK];
    size_t i;
    WS_TRY(ws_read_offsets(&norm->steps, steps, count));
    for (i = 0; i < count; i++) {
        double shift = (double)steps[i] * (double)norm->unit;
        if (steps[i] < INT32_MIN || steps[i] > INT32_MAX) return WSHARE_TENSOR;
        if (norm->layer.exponents) shift *= (double)ws_scale(norm->layer.exponents[done + i]);
        if (!ws_narrow(shift, shifts + i)) return WSHARE_TENSOR;
    }
    return WSHARE_OK;
}

/* Scale and shift of a channel of a batch norm that is not folded. */
static void ws_read_channel(const wshare_entry *entry, size_t channel, float *scale, float *shift) {
    *scale = ws_read_float(entry->data, entry->type, channel);
    *shift = entry->version == 1 ? ws_read_float(entry->more, entry->more_type, channel)
                                 : ws_read_float(entry->data, entry->type, entry->outputs + channel);
}

/* A number of the state dict, of scale and shift; whether it is finite. */
static int ws_leaf_value(const wshare_entry *entry, unsigned leaf, float scale, float shift, float *value) {
    const float square = scale * scale;
    *value = leaf == WS_WEIGHT ? scale : leaf == WS_BIAS ? shift : 0;
    if (leaf == WS_VARIANCE && entry->affine) *value = (float)(1 - entry->eps);
    if (!entry->affine && leaf == WS_MEAN) {
        if (scale == 0) return 0;
        *value = -shift / scale;
    }
    if (!entry->affine && leaf == WS_VARIANCE) {
        if (square == 0) return 0;
        *value = 1 / square - (float)entry->eps;
    }
    return ws_finite(*value);
}

static int ws_decode_norm(const wshare_file *file, const wshare_entry *entry, unsigned leaf, ws_output *output,
                          ws_arena *arena) {
    const int stepped = ws_is_stepped(entry, leaf);
    float values[WS_BLOCK], scale = 1;
    size_t done, part, i;
    ws_norm norm;
    memset(&norm, 0, sizeof norm);
    WS_TRY(ws_start_norm(&norm, file, entry, leaf, arena));
    if (!arena->start && stepped) return WSHARE_OK;
    if (!output->out) return WSHARE_OK;
    if (leaf == WS_COUNTER) {
        memset(output->out, 0, 8);
        return WSHARE_OK;
    }
    for (done = 0; done < entry->outputs; done += part) {
        part = ws_smaller(WS_BLOCK, entry->outputs - done);
        memset(values, 0, sizeof values);
        if (stepped) WS_TRY(ws_read_steps(&norm, done, part, values));
        for (i = 0; i < part; i++) {
            float shift = values[i];
            if (entry->kind == WS_NORM) ws_read_channel(entry, done + i, &scale, &shift);
            if (!ws_leaf_value(entry, leaf, scale, shift, values + i)) return WSHARE_TENSOR;
        }
        WS_TRY(ws_put(output, values, part));
    }
    return stepped ? ws_end(&norm.steps.integers) : WSHARE_OK;
}

/* Kept tensors. */

/* Multiples of a power of two. */
static int ws_decode_steps(const wshare_entry *entry, ws_output *output, ws_arena *arena) {
    ws_bytes bytes = {NULL, 0, 0};
    ws_offsets offsets;
    int64_t steps[WS_BLOCK], power;
    float values[WS_BLOCK];
    size_t left, part, i;
    double unit;
    bytes.at = entry->data;
    bytes.left = entry->size;
    power = ws_signed(ws_varint(&bytes));
    if (bytes.bad || power < -149 || power > 127) return WSHARE_TENSOR;
    unit = ws_double((uint64_t)(power + 1023) << 52);
    WS_TRY(ws_start_offsets(&offsets, bytes, 3, 0, entry->count, WS_STEPS, arena));
    if (!arena->start) return WSHARE_OK;
    for (left = entry->count; left; left -= part) {
        part = ws_smaller(WS_BLOCK, left);
        WS_TRY(ws_read_offsets(&offsets, steps, part));
        for (i = 0; i < part; i++)
            if (!ws_narrow((double)steps[i] * unit, values + i)) return WSHARE_TENSOR;
        WS_TRY(ws_put(output, values, part));
    }
    return ws_end(&offsets.integers);
}

/* Numbers as they are, in the byte order of the machine. */
static int ws_write_raw(const wshare_entry *entry, ws_output *output) {
    const size_t size = ws_type_bytes[entry->type];
    const uint8_t *at = entry->data;
    size_t i;
    for (i = 0; i < entry->count; i++, at += size, output->out += size) {
        const uint16_t two = (uint16_t)(size == 2 ? ws_u16(at) : 0);
        const uint32_t four = size == 4 ? ws_u32(at) : 0;
        const uint64_t eight = size == 8 ? ws_u64(at) : 0;
        if (entry->type == WSHARE_BOOL && *at > 1) return WSHARE_TENSOR;
        if (size == 1) *output->out = *at;
        if (size == 2) memcpy(output->out, &two, sizeof two);
        if (size == 4) memcpy(output->out, &four, sizeof four);
        if (size == 8) memcpy(output->out, &eight, sizeof eight);
    }
    return WSHARE_OK;
}

/* Floats of the file as floats of another type. */
static int ws_write_floats(const wshare_entry *entry, ws_output *output) {
    const unsigned type = entry->coding == WS_HALVED ? WSHARE_FLOAT16 : entry->type;
    size_t i;
    for (i = 0; i < entry->count; i++) {
        float value;
        uint16_t half;
        if (type != WSHARE_FLOAT64) {
            value = ws_read_float(entry->data, type, i);
        } else {
            const double wide = ws_double(ws_u64(entry->data + 8 * i));
            const int finite = (ws_double_bits(wide) >> 52 & 2047) != 2047;
            if (output->form == WSHARE_AS_FLOAT16) {
                if (!ws_half(wide, &half)) return WSHARE_RANGE;
                memcpy(output->out, &half, sizeof half);
                output->out += sizeof half;
                continue;
            }
            if (finite && !ws_narrow(wide, &value)) return WSHARE_RANGE;
            if (!finite) value = (float)wide;
        }
        WS_TRY(ws_put(output, &value, 1));
    }
    return WSHARE_OK;
}

static int ws_decode_kept(const wshare_entry *entry, ws_output *output, ws_arena *arena) {
    if (entry->coding == WS_STEPPED) return ws_decode_steps(entry, output, arena);
    if (!output->out) return WSHARE_OK;
    if (entry->coding == WS_PLAIN && output->form == WSHARE_AS_STORED) return ws_write_raw(entry, output);
    return ws_write_floats(entry, output);
}

/* What is offered. */

static int ws_form_bytes(const wshare_tensor *tensor, int form, size_t *bytes) {
    static const uint8_t sizes[WSHARE_FORMS] = {0, 4, 2, 2, 1, 4, 4};
    size_t count = tensor->count;
    if (form < 0 || form >= WSHARE_FORMS) return WSHARE_NO_FORM;
    if (form == WSHARE_AS_STORED) return ws_times(count, ws_type_bytes[tensor->type], bytes) ? 0 : WSHARE_TOO_LARGE;
    if (form <= WSHARE_AS_FLOAT16 && tensor->type > WSHARE_FLOAT64) return WSHARE_NO_FORM;
    if (form > WSHARE_AS_FLOAT16 && !tensor->k) return WSHARE_NO_FORM;
    if (form == WSHARE_AS_INDEX8 && tensor->k > 256) return WSHARE_NO_FORM;
    if (form == WSHARE_AS_CODEBOOK) count = tensor->k;
    if (form == WSHARE_AS_SCALES) {
        if (!(tensor->entry->flags & WS_FLAG_SCALED)) return WSHARE_NO_FORM;
        count = tensor->outputs;
    }
    return ws_times(count, sizes[form], bytes) ? WSHARE_OK : WSHARE_TOO_LARGE;
}

static int ws_decode(const wshare_file *file, const wshare_tensor *tensor, ws_output *output, ws_arena *arena) {
    const wshare_entry *entry = tensor->entry;
    if (entry->kind == WS_SHARED) return ws_decode_shared(entry, output, arena);
    if (entry->kind == WS_KEPT) return ws_decode_kept(entry, output, arena);
    return ws_decode_norm(file, entry, tensor->leaf, output, arena);
}

int wshare_tensor_at(const wshare_file *file, uint32_t number, wshare_tensor *tensor) {
    const wshare_entry *entry;
    memset(tensor, 0, sizeof *tensor);
    if (number >= file->tensors) return WSHARE_NO_TENSOR;
    tensor->number = tensor->same_as = number;
    tensor->named = entry = ws_entry_of(file->entries, file->length, number);
    if (entry->kind == WS_ALIAS) {
        tensor->same_as = entry->position;
        entry = ws_entry_of(file->entries, file->length, entry->position);
    }
    tensor->entry = entry;
    tensor->type = entry->type;
    tensor->shape = entry->shape;
    tensor->axes = entry->axes;
    tensor->count = entry->count;
    if (entry->kind == WS_SHARED) {
        tensor->k = entry->k;
        tensor->outputs = entry->flags & WS_FLAG_SCALED ? entry->outputs : 0;
        tensor->axis = entry->axis;
        tensor->groups = entry->groups;
    } else if (entry->kind != WS_KEPT) {
        tensor->leaf = ws_leaf(entry, tensor->same_as);
        tensor->type = tensor->leaf == WS_COUNTER ? WSHARE_INT64 : WSHARE_FLOAT32;
        tensor->shape = &entry->outputs;
        tensor->axes = tensor->leaf != WS_COUNTER;
        tensor->count = tensor->axes ? entry->outputs : 1;
    }
    return WSHARE_OK;
}

int wshare_find(const wshare_file *file, const char *name, size_t length, wshare_tensor *tensor) {
    ws_name wanted;
    uint32_t number;
    wanted.text = (const uint8_t *)name;
    wanted.length = length;
    memset(tensor, 0, sizeof *tensor);
    return ws_search(file, wanted, &number) ? wshare_tensor_at(file, number, tensor) : WSHARE_NO_TENSOR;
}

size_t wshare_name(const wshare_tensor *tensor, char *name, size_t room) {
    const int whole = tensor->named != tensor->entry || !(tensor->entry->kind == WS_FOLDED || tensor->entry->kind == WS_NORM);
    ws_joined joined;
    size_t i, length;
    joined.start = tensor->named->name;
    joined.end = ws_text(whole ? "" : ws_leaf_names[tensor->leaf]);
    length = joined.start.length + joined.end.length;
    for (i = 0; i < length && i + 1 < room; i++) name[i] = (char)ws_letter(&joined, i);
    if (room) name[i] = 0;
    return length;
}

size_t wshare_bytes(const wshare_tensor *tensor, int form) {
    size_t bytes;
    return ws_form_bytes(tensor, form, &bytes) ? 0 : bytes;
}

int wshare_scratch(const wshare_file *file, const wshare_tensor *tensor, int form, size_t *room) {
    ws_arena arena = ws_arena_of(NULL, 0);
    ws_output output = {NULL, 0};
    size_t bytes;
    *room = 0;
    output.form = form;
    WS_TRY(ws_form_bytes(tensor, form, &bytes));
    WS_TRY(ws_decode(file, tensor, &output, &arena));
    return ws_arena_needs(&arena, room);
}

int wshare_decode(const wshare_file *file, const wshare_tensor *tensor, int form, void *out, size_t out_room,
                  void *scratch, size_t scratch_room) {
    /* Where nothing is needed nothing has to be given. */
    uint8_t none[8];
    ws_arena arena = scratch ? ws_arena_of(scratch, scratch_room) : ws_arena_of(none, 0);
    ws_output output;
    size_t bytes;
    output.out = out ? (uint8_t *)out : none;
    output.form = form;
    WS_TRY(ws_form_bytes(tensor, form, &bytes));
    if (bytes > (out ? out_room : 0)) return WSHARE_NO_ROOM;
    return ws_decode(file, tensor, &output, &arena);
}

const char *wshare_error_text(int code) {
    static const char *const texts[WSHARE_ERRORS] = {
        "no error",
        "no packed file of wshare, or not a whole one",
        "a version of the format that this decoder does not read",
        "damaged: a hash differs",
        "damaged index",
        "two tensors have one name",
        "the file claims more numbers than its bytes may stand for",
        "damaged tensor",
        "too large for this machine",
        "too little memory was given",
        "no such tensor",
        "the tensor does not have this form",
        "a value is beyond the range of the form",
    };
    return code >= 0 && code < WSHARE_ERRORS ? texts[code] : "unknown error";
}

#undef WS_TRY

#endif
#endif
