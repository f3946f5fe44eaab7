/* Writes the test vectors of docs/FORMAT.md, section 10, to standard output. */
#include "turbokv.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Slots of rows 0-7: both halves of a page occur. */
static const int slots[] = {0, 37, 62, 1, 2, 33, 61, 40};

/* Row `row` of the test vectors. */
static void make_row(int row, int head_dim, float *x)
{
    uint32_t state = 12345u + 1000u * (uint32_t)row + (uint32_t)head_dim;
    for (int j = 0; j < head_dim; j++) {
        state = state * 1664525u + 1013904223u;
        const float value = (float)((int)(state >> 20) - 2048) / 256.0f;
        switch (row) {
        case 1: x[j] = j < 3 ? value * 16.0f : value; break;
        case 3: x[j] = 0.0f; break;
        case 4: x[j] = value * 0x1p-60f; break;
        case 5: x[j] = value * 0x1p124f; break;
        case 6: x[j] = j == 5 ? 7.0f : 0.0f; break;
        case 7: x[j] = j == 3 ? NAN : value; break;
        default: x[j] = value; break;
        }
    }
}

static void print_bytes(const char *what, const uint8_t *bytes, size_t n)
{
    printf("%s ", what);
    for (size_t i = 0; i < n; i++) {
        printf("%02x", bytes[i]);
    }
    putchar('\n');
}

static void print_words(const char *what, const uint32_t *words, size_t n)
{
    printf("%s", what);
    for (size_t i = 0; i < n; i++) {
        if (words[i]) {
            printf(" %zu:%08x", i, words[i]);
        }
    }
    putchar('\n');
}

static void print_floats(const char *what, const float *x, int n)
{
    printf("%s", what);
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        printf(" %08x", bits);
    }
    putchar('\n');
}

/* FNV-1a, 64 bits. */
static void print_hash(const char *what, const void *bytes, size_t n)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) {
        hash = (hash ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3u;
    }
    printf("%s_hash %016llx\n", what, (unsigned long long)hash);
}

static void print_decoded(bool is_full, const float *x, int n)
{
    int n_nan = 0;
    for (int i = 0; i < n; i++) {
        n_nan += isnan(x[i]) != 0;
    }
    if (n_nan == n) {
        puts("decoded nan");
    } else if (is_full) {
        print_floats("decoded", x, n);
    } else {
        print_hash("decoded", x, (size_t)n * sizeof *x);
    }
}

/* Rows of one page: in full the first three, of the others and of the pages if `is_full` is false
 * only hashes. */
typedef struct vector_case {
    int head_dim;
    int first_row;
    int end_row;
    bool is_full;
} vector_case;

static int write_vectors(tkv_type type, const vector_case *c)
{
    const size_t page_bytes = tkv_page_bytes(type, c->head_dim);
    uint32_t *pages[2] = {calloc(1, page_bytes), calloc(1, page_bytes)};
    float x[TKV_MAX_HEAD_DIM];
    uint8_t record[2 * TKV_MAX_HEAD_DIM];
    if (!pages[0] || !pages[1]) {
        return 1;
    }
    printf("type %s head_dim %d\n", tkv_type_get_info(type)->name, c->head_dim);
    for (int row = c->first_row; row < c->end_row; row++) {
        make_row(row, c->head_dim, x);
        tkv_encode_rows(NULL, type, c->head_dim, 1, x, record, NULL);
        for (int order = 0; order < 2; order++) {
            tkv_encode_page(NULL, type, (tkv_page_order)order, c->head_dim, slots[row], 1, x,
                            pages[order], NULL);
        }
        printf("row %d slot %d\n", row, slots[row]);
        print_bytes("record", record, tkv_row_bytes(type, c->head_dim));
        tkv_decode_rows(NULL, type, c->head_dim, 1, record, x, NULL);
        print_decoded(c->is_full && row < 3, x, c->head_dim);
    }
    for (int order = 0; order < 2; order++) {
        const char *name = order ? "value_page" : "key_page";
        if (c->is_full) {
            print_words(name, pages[order], page_bytes / 4);
        } else {
            print_hash(name, pages[order], page_bytes);
        }
        free(pages[order]);
    }
    return 0;
}

int main(void)
{
    static const vector_case cases[] = {
        {64, 0, 8, true},   {80, 0, 3, true},    {128, 0, 3, true},  {32, 1, 2, false},
        {96, 1, 2, false},  {112, 1, 2, false},  {192, 1, 2, false}, {256, 1, 2, false},
        {576, 1, 2, false}, {1024, 1, 2, false}, {16, 0, 8, true},   {40, 0, 3, true},
        {2, 0, 3, true},    {100, 1, 2, false},  {1022, 1, 2, false}};
    int failed = 0;
    printf("turbokv format %d\n", TKV_FORMAT_VERSION);
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            failed |= write_vectors((tkv_type)type, &cases[i]);
        }
    }
    return failed;
}
