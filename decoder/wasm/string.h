/* What wshare.h takes of string.h, which WebAssembly without a C library does not have. */

#ifndef WSHARE_STRING_H
#define WSHARE_STRING_H

#include <stddef.h>

/* With -mbulk-memory these are instructions. */
static inline void *memcpy(void *to, const void *from, size_t size) { return __builtin_memcpy(to, from, size); }

static inline void *memmove(void *to, const void *from, size_t size) { return __builtin_memmove(to, from, size); }

static inline void *memset(void *to, int byte, size_t size) { return __builtin_memset(to, byte, size); }

static inline int memcmp(const void *a, const void *b, size_t size) {
    const unsigned char *first = (const unsigned char *)a, *second = (const unsigned char *)b;
    for (; size; size--, first++, second++)
        if (*first != *second) return *first < *second ? -1 : 1;
    return 0;
}

static inline size_t strlen(const char *text) {
    size_t length = 0;
    while (text[length]) length++;
    return length;
}

static inline char *strchr(const char *text, int letter) {
    for (; *text != (char)letter; text++)
        if (!*text) return NULL;
    return (char *)text;
}

#endif
