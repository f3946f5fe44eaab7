/* RoPE against the published formula, evaluated directly in double precision. */
#include "support/support.h"

#include <stdbool.h>

#include "model/rope.h"

#define HEAD_DIM 48
#define N_TOKENS 3
#define N_HEADS 2
#define N_VALUES (N_TOKENS * N_HEADS * HEAD_DIM)

typedef struct rope_case {
    tkv_rope_pairing pairing;
    int rope_dim;
    double base;
    double linear_factor;
    bool per_pair_factors;
    double magnitude;
    int first_position;
} rope_case;

static float factor_of_pair(int pair)
{
    return pair < 4 ? 1.0f : 1.0f + 0.35f * (float)pair;
}

/* The turned value of coordinate `index` of a head, from the formula. */
static double expected_value(const rope_case *c, const float *head, int position, int index)
{
    const int n_pairs = c->rope_dim / 2;
    if (index >= c->rope_dim)
        return head[index];
    const bool interleaved = c->pairing == TKV_ROPE_INTERLEAVED;
    const int pair = interleaved ? index / 2 : index % n_pairs;
    const bool second = interleaved ? index % 2 == 1 : index >= n_pairs;
    const int partner = interleaved ? index ^ 1 : (second ? index - n_pairs : index + n_pairs);
    const double factor = c->per_pair_factors ? factor_of_pair(pair) : 1.0;
    const double angle =
        position / c->linear_factor / factor * pow(c->base, -2.0 * pair / c->rope_dim);
    const double own = head[index] * cos(angle);
    const double other = head[partner] * sin(angle);
    return c->magnitude * (second ? own + other : own - other);
}

static void check_case(const rope_case *c)
{
    float factors[HEAD_DIM / 2], table[N_TOKENS * HEAD_DIM], before[N_VALUES], x[N_VALUES];
    double frequencies[HEAD_DIM / 2];
    for (int i = 0; i < c->rope_dim / 2; i++)
        factors[i] = factor_of_pair(i);
    for (int i = 0; i < N_VALUES; i++)
        before[i] = (float)sin(1.0 + 0.7 * i);
    memcpy(x, before, sizeof x);
    tkv_rope_frequencies(c->rope_dim, c->base, c->linear_factor,
                         c->per_pair_factors ? factors : NULL, frequencies);
    tkv_rope_table(c->rope_dim, frequencies, c->magnitude, c->first_position, N_TOKENS, table);
    tkv_rope_apply(c->pairing, c->rope_dim, table, N_TOKENS, N_HEADS, HEAD_DIM, x);
    for (int i = 0; i < N_VALUES; i++) {
        const int head = i / HEAD_DIM;
        const double expected = expected_value(c, before + head * HEAD_DIM,
                                               c->first_position + head / N_HEADS, i % HEAD_DIM);
        assert_float_equal(x[i], expected, 4e-7 * c->magnitude);
    }
}

static void test_interleaved(void **state)
{
    (void)state;
    check_case(&(rope_case){TKV_ROPE_INTERLEAVED, HEAD_DIM, 10000.0, 1.0, false, 1.0, 5});
}

static void test_half_split(void **state)
{
    (void)state;
    check_case(&(rope_case){TKV_ROPE_HALF_SPLIT, HEAD_DIM, 1000000.0, 1.0, false, 1.0, 7});
}

static void test_partial(void **state)
{
    (void)state;
    check_case(&(rope_case){TKV_ROPE_INTERLEAVED, 16, 10000.0, 1.0, false, 1.0, 9});
    check_case(&(rope_case){TKV_ROPE_HALF_SPLIT, 16, 10000.0, 1.0, false, 1.0, 9});
}

static void test_scaling(void **state)
{
    (void)state;
    check_case(&(rope_case){TKV_ROPE_HALF_SPLIT, HEAD_DIM, 10000.0, 4.0, false, 1.0, 1000});
    check_case(&(rope_case){TKV_ROPE_INTERLEAVED, HEAD_DIM, 500000.0, 1.0, true, 1.0, 1000});
    check_case(&(rope_case){TKV_ROPE_INTERLEAVED, HEAD_DIM, 500000.0, 2.0, true, 1.25, 1000});
}

/* A float angle would be wrong by 0.004 here. */
static void test_far_positions(void **state)
{
    (void)state;
    check_case(&(rope_case){TKV_ROPE_INTERLEAVED, HEAD_DIM, 10000.0, 1.0, false, 1.0, 130001});
}

/* Shifting a cached key by -d must equal having turned it at the earlier position. */
static void test_negative_position_turns_back(void **state)
{
    (void)state;
    double frequencies[HEAD_DIM / 2];
    float table[HEAD_DIM], x[HEAD_DIM];
    for (int i = 0; i < HEAD_DIM; i++)
        x[i] = (float)i - 20.0f;
    tkv_rope_frequencies(HEAD_DIM, 10000.0, 1.0, NULL, frequencies);
    tkv_rope_table(HEAD_DIM, frequencies, 1.0, 37, 1, table);
    tkv_rope_apply(TKV_ROPE_HALF_SPLIT, HEAD_DIM, table, 1, 1, HEAD_DIM, x);
    assert_true(fabsf(x[0] + 20.0f) > 0.1f);
    tkv_rope_table(HEAD_DIM, frequencies, 1.0, -37, 1, table);
    tkv_rope_apply(TKV_ROPE_HALF_SPLIT, HEAD_DIM, table, 1, 1, HEAD_DIM, x);
    for (int i = 0; i < HEAD_DIM; i++)
        assert_float_equal(x[i], (float)i - 20.0f, 1e-5f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_interleaved),   cmocka_unit_test(test_half_split),
        cmocka_unit_test(test_partial),       cmocka_unit_test(test_scaling),
        cmocka_unit_test(test_far_positions), cmocka_unit_test(test_negative_position_turns_back),
    };
    return cmocka_run_group_tests_name("rope", tests, NULL, NULL);
}
