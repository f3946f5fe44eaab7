/* Calls a target with its seeds and then with mutations of them. Input number i depends on nothing
 * but i: `fuzz_NAME FIRST COUNT` repeats some of them, and names each before it runs.
 * `fuzz_NAME --seeds FOLDER` writes the seeds. */
#include "fuzz/fuzz.h"
#include "support/support.h"

#define MAX_SEEDS 32
#define MAX_MUTATIONS 6

typedef struct input {
    uint8_t *data; /* [FUZZ_MAX_INPUT] */
    size_t size;
} input;

/* Bytes at the edges of what integers, floats and texts hold. */
static void put_edge(uint64_t *random, uint8_t *at, size_t room)
{
    static const uint64_t edges[] = {0,
                                     1,
                                     0x7f,
                                     0x80,
                                     0xff,
                                     0x7fff,
                                     0x8000,
                                     0x7fffffff,
                                     0x80000000,
                                     0xffffffff,
                                     0x7f800000,
                                     0x7fc00000,
                                     0x7c007c007c00,
                                     0x7fffffffffffffff,
                                     0x8000000000000000,
                                     UINT64_MAX};
    const uint64_t value = edges[random_below(random, sizeof edges / sizeof *edges)];
    const size_t width = (size_t)1 << random_below(random, 4);
    memcpy(at, &value, width < room ? width : room);
}

/* Moves a piece of the input, or of a seed, to another place. */
static void copy_piece(uint64_t *random, input *in, const input *from)
{
    const size_t length = 1 + (size_t)random_below(random, 64);
    if (from->size <= length || in->size <= length) {
        return;
    }
    const size_t source = random_bits(random) % (from->size - length);
    const size_t target = random_bits(random) % (in->size - length);
    memmove(in->data + target, from->data + source, length);
}

/* Makes room for some bytes, or takes them out. */
static void resize(uint64_t *random, input *in)
{
    const size_t length = 1 + (size_t)random_below(random, 32);
    const size_t at = random_bits(random) % in->size;
    if (random_below(random, 2) && in->size + length <= FUZZ_MAX_INPUT) {
        memmove(in->data + at + length, in->data + at, in->size - at);
        in->size += length;
    } else if (in->size > at + length) {
        memmove(in->data + at, in->data + at + length, in->size - at - length);
        in->size -= length;
    }
}

static void mutate(uint64_t *random, input *in, const input *seed)
{
    /* Half of the changes hit the beginning, where formats have their headers. */
    const size_t reach = random_below(random, 2) && in->size > 256 ? 256 : in->size;
    const size_t at = random_bits(random) % reach;
    switch (random_below(random, 7)) {
    case 0: in->data[at] ^= (uint8_t)(1u << random_below(random, 8)); break;
    case 1: in->data[at] = (uint8_t)random_bits(random); break;
    case 2: put_edge(random, in->data + at, in->size - at); break;
    case 3: copy_piece(random, in, in); break;
    case 4: copy_piece(random, in, seed); break;
    case 5: resize(random, in); break;
    default:
        if (random_below(random, 4) == 0) {
            in->size = 1 + random_bits(random) % in->size;
        }
    }
}

/* The first inputs are the seeds themselves, and then the empty one. */
static void make_input(int number, int n_seeds, const input *seeds, input *in)
{
    uint64_t random = (uint64_t)number;
    if (number == n_seeds) {
        in->size = 0;
        return;
    }
    const input *seed = &seeds[number < n_seeds ? number : random_below(&random, n_seeds)];
    memcpy(in->data, seed->data, seed->size);
    in->size = seed->size;
    if (number > n_seeds) {
        const input *other = &seeds[random_below(&random, n_seeds)];
        for (int i = random_below(&random, MAX_MUTATIONS); i >= 0; i--) {
            mutate(&random, in, other);
        }
    }
}

static int make_seeds(input seeds[MAX_SEEDS])
{
    int n_seeds = 0;
    for (bool is_last = false; !is_last && n_seeds < MAX_SEEDS;) {
        input *seed = &seeds[n_seeds];
        seed->data = allocate(FUZZ_MAX_INPUT);
        seed->size = fuzz_seed(n_seeds, seed->data);
        is_last = seed->size == 0;
        n_seeds += !is_last;
    }
    return n_seeds;
}

static void write_seeds(const char *folder, int n_seeds, const input *seeds)
{
    for (int i = 0; i < n_seeds; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/seed-%d", folder, i);
        fuzz_write_file(path, seeds[i].data, seeds[i].size);
    }
}

int main(int argc, char **argv)
{
    const bool wants_seeds = argc == 3 && strcmp(argv[1], "--seeds") == 0;
    const int first = argc == 3 ? atoi(argv[1]) : 0;
    const int count = wants_seeds ? 0 : argc == 3 ? atoi(argv[2]) : fuzz_runs;
    input seeds[MAX_SEEDS] = {{0}};
    input in = {allocate(FUZZ_MAX_INPUT), 0};
    const int n_seeds = make_seeds(seeds);
    if (wants_seeds) {
        write_seeds(argv[2], n_seeds, seeds);
    }
    for (int number = first; number < first + count; number++) {
        make_input(number, n_seeds, seeds, &in);
        if (argc == 3) {
            fprintf(stderr, "input %d of %zu bytes\n", number, in.size);
        }
        uint8_t *exact = malloc(in.size ? in.size : 1); /* so that one byte too far is seen */
        if (!exact) {
            fuzz_fail("no memory for an input");
        }
        memcpy(exact, in.data, in.size);
        LLVMFuzzerTestOneInput(exact, in.size);
        free(exact);
    }
    for (int i = 0; i < MAX_SEEDS; i++) {
        free(seeds[i].data);
    }
    free(in.data);
    printf("%d inputs\n", count);
    return 0;
}
