/* A user's program: codes a row and says how far off it is. */
#include <stdio.h>
#include <turbokv.h>

int main(void)
{
    float x[64];
    float y[64];
    unsigned char row[64];
    tkv_error error;
    for (int i = 0; i < 64; i++) {
        x[i] = (float)(i % 7 - 3);
    }
    if (tkv_encode_rows(TKV_TYPE_TURBO4, 64, 1, x, row, &error) != TKV_OK ||
        tkv_decode_rows(TKV_TYPE_TURBO4, 64, 1, row, y, &error) != TKV_OK) {
        printf("%s\n", error.message);
        return 1;
    }
    const float difference = x[0] - y[0];
    return tkv_row_bytes(TKV_TYPE_TURBO4, 64) == 34 && difference * difference < 1.0f ? 0 : 1;
}
