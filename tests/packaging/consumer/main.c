/* A user's program: codes a row and says how far off it is. Its argument is the version that the
 * library should have. */
#include <stdio.h>
#include <string.h>
#include <turbokv.h>

int main(int argc, char **argv)
{
    float x[64];
    float y[64];
    unsigned char row[64];
    tkv_error error;
    if (argc != 2 || strcmp(tkv_version(), argv[1]) != 0) {
        printf("the library is version %s\n", tkv_version());
        return 1;
    }
    for (int i = 0; i < 64; i++) {
        x[i] = (float)(i % 7 - 3);
    }
    if (tkv_encode_rows(NULL, TKV_TYPE_TURBO4, 64, 1, x, row, &error) != TKV_OK ||
        tkv_decode_rows(NULL, TKV_TYPE_TURBO4, 64, 1, row, y, &error) != TKV_OK) {
        printf("%s\n", error.message);
        return 1;
    }
    const float difference = x[0] - y[0];
    return tkv_row_bytes(TKV_TYPE_TURBO4, 64) == 34 && difference * difference < 1.0f ? 0 : 1;
}
