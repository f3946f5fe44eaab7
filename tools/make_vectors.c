/* Writes the test vectors of docs/FORMAT.md to standard output: for each type and head_dim the rows
 * of a page, as records, in both page orders, and decoded. */
#include "turbokv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const int head_dims[] = {64, 80, 128};
enum { N_ROWS = 3 };
/* Rows lie in these slots, so that both halves of a page occur. */
static const int slots[N_ROWS] = {0, 37, 62};

/* Input value i of a row: an integer in [-2048, 2047] from a linear congruential generator, divided
 * by 256; the first coordinates of row 1 are 16 times larger. */
static void make_row(int row, int head_dim, float *x)
{
    uint32_t state = 12345u + 1000u * (uint32_t)row + (uint32_t)head_dim;
    for (int j = 0; j < head_dim; j++) {
        state = state * 1664525u + 1013904223u;
        x[j] = (float)((int)(state >> 20) - 2048) / 256.0f;
        if (row == 1 && j < 3) {
            x[j] *= 16.0f;
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

static int write_vectors(tkv_type type, int head_dim)
{
    const size_t page_bytes = tkv_page_bytes(type, head_dim);
    uint32_t *pages[2] = {calloc(1, page_bytes), calloc(1, page_bytes)};
    float x[128];
    uint8_t record[512];
    if (!pages[0] || !pages[1]) {
        return 1;
    }
    printf("type %s head_dim %d\n", tkv_type_get_info(type)->name, head_dim);
    for (int row = 0; row < N_ROWS; row++) {
        make_row(row, head_dim, x);
        tkv_encode_rows(type, head_dim, 1, x, record, NULL);
        tkv_encode_page(type, TKV_ORDER_KEY, head_dim, slots[row], 1, x, pages[0], NULL);
        tkv_encode_page(type, TKV_ORDER_VALUE, head_dim, slots[row], 1, x, pages[1], NULL);
        printf("row %d slot %d\n", row, slots[row]);
        print_bytes("record", record, tkv_row_bytes(type, head_dim));
        tkv_decode_rows(type, head_dim, 1, record, x, NULL);
        print_floats("decoded", x, head_dim);
    }
    print_words("key_page", pages[0], page_bytes / 4);
    print_words("value_page", pages[1], page_bytes / 4);
    free(pages[0]);
    free(pages[1]);
    return 0;
}

int main(void)
{
    int failed = 0;
    printf("turbokv format %d\n", TKV_FORMAT_VERSION);
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        for (size_t i = 0; i < sizeof head_dims / sizeof *head_dims; i++) {
            failed |= write_vectors((tkv_type)type, head_dims[i]);
        }
    }
    return failed;
}
