#include "format/codec.h"

#include <string.h>

/* A plane of w bits a code cuts 32 codes into w words. For w = 1, 2, 4, code c = 4n + r lies in
 * nibble n of its word, so that a masked word is a row of nibble selectors for a byte-permute
 * instruction; for w = 8, a word is 4 consecutive bytes. */
typedef struct code_place {
    int word;  /* 0 .. w-1 */
    int shift; /* within the word; below 16 for codes 0-15 when w < 8 */
} code_place;

static code_place place_code(int bits, int code)
{
    if (bits == 8) {
        return (code_place){code >> 2, 8 * (code & 3)};
    }
    const int group_bits = (code & 3) * bits;
    return (code_place){group_bits / 4, 4 * (code >> 2) + group_bits % 4};
}

/* Where the code of (slot, coordinate) lies in a plane of a page. */
typedef struct code_address {
    size_t word;
    int shift;
} code_address;

/* The last 16 coordinates of a head_dim that is not a multiple of 32 fill half-words: two of a
 * token share a word, or with one bit a code those of tokens t and t + 32. */
static code_address key_tail_address(int bits, size_t base, int slot, int coordinate)
{
    const code_place place = place_code(bits, coordinate);
    if (bits == 8) {
        return (code_address){base + (size_t)place.word * TKV_PAGE_TOKENS + (size_t)slot,
                              place.shift};
    }
    if (bits == 1) {
        return (code_address){base + (size_t)(slot % 32), place.shift + 16 * (slot / 32)};
    }
    return (code_address){base + (size_t)(place.word / 2) * TKV_PAGE_TOKENS + (size_t)slot,
                          place.shift + 16 * (place.word % 2)};
}

static code_address page_address(tkv_page_order order, int bits, int head_dim, int slot,
                                 int coordinate)
{
    if (order == TKV_ORDER_VALUE) {
        const code_place place = place_code(bits, slot % 32);
        const int row = slot / 32 * bits + place.word;
        return (code_address){(size_t)row * (size_t)head_dim + (size_t)coordinate, place.shift};
    }
    const int block = coordinate / 32;
    const size_t base = (size_t)block * (size_t)bits * TKV_PAGE_TOKENS;
    if (block == head_dim / 32) {
        return key_tail_address(bits, base, slot, coordinate % 32);
    }
    const code_place place = place_code(bits, coordinate % 32);
    return (code_address){base + (size_t)place.word * TKV_PAGE_TOKENS + (size_t)slot, place.shift};
}

static size_t plane_words(int bits, int head_dim)
{
    return (size_t)head_dim * (size_t)bits * TKV_PAGE_TOKENS / 32;
}

void tkv_pack_slot(tkv_type type, tkv_page_order order, int head_dim, int slot,
                   const tkv_row_codes *row, void *page)
{
    uint32_t *words = page;
    int low_bit = 0;
    for (int p = 0; p < tkv_type_n_planes(type); p++) {
        const int bits = tkv_type_plane_bits(type, p);
        const uint32_t mask = (1u << bits) - 1;
        for (int j = 0; j < head_dim; j++) {
            const code_address at = page_address(order, bits, head_dim, slot, j);
            const uint32_t code = row->codes[j] >> low_bit & mask;
            words[at.word] = (words[at.word] & ~(mask << at.shift)) | code << at.shift;
        }
        words += plane_words(bits, head_dim);
        low_bit += bits;
    }
    uint16_t *fields = (uint16_t *)words;
    for (int f = 0; f < tkv_type_side_fields(type); f++) {
        fields[f * TKV_PAGE_TOKENS + slot] = row->side[f];
    }
}

void tkv_unpack_slot(tkv_type type, tkv_page_order order, int head_dim, int slot, const void *page,
                     tkv_row_codes *row)
{
    const uint32_t *words = page;
    int low_bit = 0;
    memset(row->codes, 0, (size_t)head_dim);
    memset(row->side, 0, sizeof row->side);
    for (int p = 0; p < tkv_type_n_planes(type); p++) {
        const int bits = tkv_type_plane_bits(type, p);
        const uint32_t mask = (1u << bits) - 1;
        for (int j = 0; j < head_dim; j++) {
            const code_address at = page_address(order, bits, head_dim, slot, j);
            row->codes[j] |= (uint8_t)((words[at.word] >> at.shift & mask) << low_bit);
        }
        words += plane_words(bits, head_dim);
        low_bit += bits;
    }
    const uint16_t *fields = (const uint16_t *)words;
    for (int f = 0; f < tkv_type_side_fields(type); f++) {
        row->side[f] = fields[f * TKV_PAGE_TOKENS + slot];
    }
}

/* Bit offset of a code in one plane of a row record: whole words, then for 16 left-over
 * coordinates half-words, little-endian. */
static size_t record_bit(int bits, int head_dim, int coordinate)
{
    const int block = coordinate / 32;
    const bool is_tail = block == head_dim / 32;
    const code_place place = place_code(bits, coordinate % 32);
    const int word_bits = is_tail && bits < 8 ? 16 : 32;
    return (size_t)block * (size_t)bits * 32 + (size_t)(place.word * word_bits + place.shift);
}

void tkv_pack_row(tkv_type type, int head_dim, const tkv_row_codes *row, uint8_t *record)
{
    memset(record, 0, tkv_row_bytes(type, head_dim));
    int low_bit = 0;
    for (int p = 0; p < tkv_type_n_planes(type); p++) {
        const int bits = tkv_type_plane_bits(type, p);
        const unsigned mask = (1u << bits) - 1;
        for (int j = 0; j < head_dim; j++) {
            const size_t bit = record_bit(bits, head_dim, j);
            record[bit / 8] |= (uint8_t)((row->codes[j] >> low_bit & mask) << bit % 8);
        }
        record += head_dim * bits / 8;
        low_bit += bits;
    }
    for (int f = 0; f < tkv_type_side_fields(type); f++) {
        record[2 * f] = (uint8_t)(row->side[f] & 0xff);
        record[2 * f + 1] = (uint8_t)(row->side[f] >> 8);
    }
}

void tkv_unpack_row(tkv_type type, int head_dim, const uint8_t *record, tkv_row_codes *row)
{
    memset(row->codes, 0, (size_t)head_dim);
    memset(row->side, 0, sizeof row->side);
    int low_bit = 0;
    for (int p = 0; p < tkv_type_n_planes(type); p++) {
        const int bits = tkv_type_plane_bits(type, p);
        const unsigned mask = (1u << bits) - 1;
        for (int j = 0; j < head_dim; j++) {
            const size_t bit = record_bit(bits, head_dim, j);
            row->codes[j] |= (uint8_t)((record[bit / 8] >> bit % 8 & mask) << low_bit);
        }
        record += head_dim * bits / 8;
        low_bit += bits;
    }
    for (int f = 0; f < tkv_type_side_fields(type); f++) {
        row->side[f] = (uint16_t)(record[2 * f] | record[2 * f + 1] << 8);
    }
}
