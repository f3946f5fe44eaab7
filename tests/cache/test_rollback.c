/* Tokens that are taken back leave no trace: a cache from which drafts, another text or a whole
 * fork were dropped equals, to the bit, one that never saw them. */
#include "cache/cache.h"
#include "support/support.h"

enum { DIM = 64, N_KV_HEADS = 2, ROW = N_KV_HEADS * DIM, N_TOKENS = 900, MAX_JUNK = 32 };

typedef struct policy {
    tkv_type type;
    int sinks;
    int recent;
    int centre;
    int window;
} policy;

static tkv_cache *create(tkv_context *context, const policy *p)
{
    const tkv_layer_shape shape = {
        .n_kv_heads = N_KV_HEADS, .head_dim_k = DIM, .head_dim_v = DIM, .window = p->window};
    const tkv_cache_params params = {.n_layers = 1,
                                     .max_tokens = N_TOKENS + 200,
                                     .types_k = &p->type,
                                     .types_v = &p->type,
                                     .n_sinks = p->sinks,
                                     .n_recent = p->recent,
                                     .centre_tokens = p->centre,
                                     .shapes = &shape};
    tkv_cache *cache = NULL;
    assert_ok(tkv_cache_create(context, &params, &cache, &error));
    return cache;
}

static void append(tkv_cache *cache, const float *x, int n)
{
    assert_ok(tkv_cache_append(cache, 0, n, x, x, &error));
}

/* Tokens of the text have a mean that is worth taking off, and what is taken back another one. */
static float *rows_around(uint64_t seed, int n_tokens, float mean)
{
    float *x = allocate((size_t)(n_tokens * ROW) * sizeof *x);
    for (int i = 0; i < n_tokens * ROW; i++) {
        x[i] = random_gauss(&seed) + (i % 3 ? mean : -mean);
    }
    return x;
}

static void assert_equal_from(const policy *p, const tkv_cache *a, const tkv_cache *b, int first,
                              const char *what)
{
    const int n = tkv_cache_length(b, 0);
    const size_t size = (size_t)((n - first) * ROW);
    float *x = allocate(4 * size * sizeof *x);
    assert_int_equal(tkv_cache_length(a, 0), n);
    assert_ok(tkv_cache_read(a, 0, first, n - first, x, x + size, &error));
    assert_ok(tkv_cache_read(b, 0, first, n - first, x + 2 * size, x + 3 * size, &error));
    if (memcmp(x, x + 2 * size, 2 * size * sizeof *x) != 0) {
        size_t at = 0;
        while (x[at] == x[2 * size + at]) {
            at++;
        }
        fail_msg("%s: type %d, %d sinks, %d recent, %d centred, window %d: %d tokens, token %d "
                 "differs",
                 what, p->type, p->sinks, p->recent, p->centre, p->window, n,
                 first + (int)(at % size) / ROW);
    }
    free(x);
}

/* Position from which both caches hold all tokens. */
static int first_held(const policy *p, const tkv_cache *cache)
{
    const int n = tkv_cache_length(cache, 0);
    return p->window && n > p->window ? n - p->window : 0;
}

static policy policy_of(int index)
{
    static const tkv_type types[] = {TKV_TYPE_TURBO4, TKV_TYPE_TRELLIS3, TKV_TYPE_F16,
                                     TKV_TYPE_TURBO3Q};
    static const int windows[] = {0, 100, 40, 300};
    static const int centres[] = {0, 60, 200}; /* more than a window, too */
    return (policy){types[index % 4], index & 4 ? 4 : 0, index & 8 ? 32 : 0,
                    centres[index / 16 % 3], windows[index / 48]};
}
enum { N_POLICIES = 192 };

/* Speculative decoding: each step some tokens of the text and drafts that are wrong, in one append.
 */
static void drafts(void **state)
{
    float *text = rows_around(1, N_TOKENS, 1.0f);
    float *junk = rows_around(2, MAX_JUNK, -7.0f);
    float *step = allocate((size_t)(2 * MAX_JUNK * ROW) * sizeof *step);
    for (int i = 0; i < N_POLICIES; i++) {
        const policy p = policy_of(i);
        uint64_t seed = (uint64_t)i;
        tkv_cache *drafted = create(*state, &p);
        tkv_cache *plain = create(*state, &p);
        for (int length = 0; length < 420;) {
            const int n = 1 + random_below(&seed, 4);
            const int n_wrong = 1 + random_below(&seed, MAX_JUNK);
            memcpy(step, text + length * ROW, (size_t)(n * ROW) * sizeof *step);
            memcpy(step + n * ROW, junk, (size_t)(n_wrong * ROW) * sizeof *step);
            append(drafted, step, n + n_wrong);
            assert_ok(tkv_cache_truncate(drafted, length + n, &error));
            for (int t = 0; t < n; t++) {
                append(plain, text + (length + t) * ROW, 1);
            }
            length += n;
            if (length % 7 == 0) {
                assert_equal_from(&p, drafted, plain, first_held(&p, plain), "drafts");
            }
        }
        assert_equal_from(&p, drafted, plain, first_held(&p, plain), "drafts");
        tkv_cache_free(drafted);
        tkv_cache_free(plain);
    }
    free(text);
    free(junk);
    free(step);
}

/* A prefix that stays and a text behind it that goes, in any steps, by truncation or by going on
 * with a fork of the prefix; then the text. Coded tokens stay coded, so the caches are compared
 * when these tokens are coded in both. */
static void another_text(void **state)
{
    float *text = rows_around(3, N_TOKENS, 1.0f);
    float *junk = rows_around(4, N_TOKENS, -7.0f);
    const int steps[] = {1, 7, 64, 200};
    for (int i = 0; i < N_POLICIES; i++) {
        const policy p = policy_of(i);
        for (int prefix = 0; prefix <= 180; prefix += prefix < 40 ? 20 : 47) {
            /* Behind a window only what was held may be gone back to. */
            const int n_junk = p.window ? MAX_JUNK : 250;
            const int step = steps[(i + prefix) % 4];
            tkv_cache *a = create(*state, &p);
            tkv_cache *b = create(*state, &p);
            append(a, text, prefix);
            append(b, text, prefix);
            for (int at = 0; at < n_junk; at += step) {
                append(a, junk + at * ROW, n_junk - at < step ? n_junk - at : step);
            }
            if (i % 2) {
                tkv_cache *fork = NULL;
                assert_ok(tkv_cache_fork(a, prefix, &fork, &error));
                tkv_cache_free(a);
                a = fork;
            } else {
                assert_ok(tkv_cache_truncate(a, prefix, &error));
            }
            for (int t = prefix; t < prefix + 200; t++) {
                append(a, text + t * ROW, 1);
                append(b, text + t * ROW, 1);
            }
            assert_equal_from(&p, a, b, first_held(&p, b), "another text");
            tkv_cache_free(a);
            tkv_cache_free(b);
        }
    }
    free(text);
    free(junk);
}

/* A cache that is cleared, or truncated to nothing, is a new one. */
static void starting_again(void **state)
{
    float *text = rows_around(5, N_TOKENS, 1.0f);
    float *junk = rows_around(6, N_TOKENS, -7.0f);
    for (int i = 0; i < N_POLICIES; i++) {
        const policy p = policy_of(i);
        tkv_cache *a = create(*state, &p);
        tkv_cache *b = create(*state, &p);
        append(a, junk, 500);
        append(a, junk, 30);
        if (i % 2) {
            tkv_cache_clear(a);
        } else {
            assert_ok(tkv_cache_truncate(a, 0, &error));
        }
        for (int at = 0; at < 300; at += 50) {
            append(a, text + at * ROW, 50);
            append(b, text + at * ROW, 50);
            assert_equal_from(&p, a, b, first_held(&p, b), "starting again");
        }
        assert_int_equal(tkv_cache_bytes(a), tkv_cache_bytes(b));
        tkv_cache_free(a);
        tkv_cache_free(b);
    }
    free(text);
    free(junk);
}

/* Tokens behind the sinks are dropped by a shift before any mean was made of them. */
static void shifted_away(void **state)
{
    float *text = rows_around(7, N_TOKENS, 1.0f);
    float *junk = rows_around(8, N_TOKENS, -7.0f);
    for (int i = 0; i < N_POLICIES; i++) {
        const policy p = policy_of(i);
        tkv_cache *a = create(*state, &p);
        tkv_cache *b = create(*state, &p);
        append(a, junk, 40);
        assert_ok(tkv_cache_shift(a, 0, 40, NULL, &error));
        for (int t = 0; t < 300; t++) {
            append(a, text + t * ROW, 1);
            append(b, text + t * ROW, 1);
        }
        assert_equal_from(&p, a, b, first_held(&p, b), "shifted away");
        tkv_cache_free(a);
        tkv_cache_free(b);
    }
    free(text);
    free(junk);
}

/* Tokens that come behind a truncation into a coded block are recent, and so exact, until they have
 * left the window; the block is then one again. */
static void what_comes_next_is_exact(void **state)
{
    float *text = rows_around(8, N_TOKENS, 1.0f);
    float *found = allocate((size_t)(N_TOKENS * ROW) * sizeof *found);
    const policy p = {.type = TKV_TYPE_TURBO3, .sinks = 4, .recent = 32, .centre = 60};
    for (int left = 70; left < 128; left += 19) {
        tkv_cache *cache = create(*state, &p);
        append(cache, text, 199);
        append(cache, text + 199 * ROW, 1);
        assert_ok(tkv_cache_truncate(cache, left, &error));
        append(cache, text + left * ROW, 30);
        assert_ok(tkv_cache_read(cache, 0, 0, left + 30, found, NULL, &error));
        assert_true(relative_error(30 * ROW, found + left * ROW, text + left * ROW) < 1e-3);
        assert_true(relative_error(ROW, found + (left - 1) * ROW, text + (left - 1) * ROW) > 1e-2);
        assert_int_equal(cache->layers[0].n_segments, 2);
        append(cache, text + (left + 30) * ROW, 100);
        append(cache, text + (left + 130) * ROW, 1);
        assert_int_equal(cache->layers[0].n_segments, 1);
        tkv_cache_free(cache);
    }
    free(text);
    free(found);
}

static int set_up(void **state)
{
    const tkv_context_params params = {.n_threads = 1, .effort = TKV_EFFORT_FAST};
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(&params, &context, &error));
    *state = context;
    return 0;
}

static int tear_down(void **state)
{
    tkv_context_free(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(drafts), cmocka_unit_test(another_text), cmocka_unit_test(starting_again),
        cmocka_unit_test(shifted_away), cmocka_unit_test(what_comes_next_is_exact)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
