#include "store/sight.h"
#include "base/error.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

/* What is further down counts as minus infinity: the softmax clamps logits there. */
#define UNSEEN (-0x1p99f)

typedef struct sight_job {
    const tkv_store *store;
    const tkv_store_attend_params *params;
    tkv_sight *sight;
    size_t n_words;
    uint64_t *marks;      /* [n_streams][n_words] pages that are seen */
    int64_t *ranks;       /* [n_streams][n_words] pages before those of a word */
    atomic_bool is_wrong; /* a number of the mask is no number */
} sight_job;

/* ---- Ranges ---- */

/* The slots of a view one range after the other, without those that n_seen and the window leave
 * out. */
typedef struct view_walk {
    const tkv_slot_range *range;
    const tkv_slot_range *end;
    int64_t skip; /* slots to leave out first */
    int64_t left; /* slots to see after them */
} view_walk;

static view_walk walk_view(const tkv_store_attend_params *params, int64_t index)
{
    const tkv_slot_view *view = &params->views[index];
    const tkv_slot_range *range = view->n_ranges ? params->ranges + view->first_range : NULL;
    view_walk walk = {range, range ? range + view->n_ranges : NULL, 0, 0};
    for (const tkv_slot_range *r = range; r != walk.end; r++) {
        walk.left += r->end - r->first;
    }
    if (view->n_seen && view->n_seen < walk.left) {
        walk.left = view->n_seen;
    }
    if (params->window && walk.left > params->window) {
        walk.skip = walk.left - params->window;
        walk.left = params->window;
    }
    return walk;
}

static bool next_range(view_walk *walk, tkv_slot_range *seen)
{
    for (; walk->left > 0 && walk->range != walk->end; walk->range++) {
        const int64_t n = walk->range->end - walk->range->first;
        if (walk->skip >= n) {
            walk->skip -= n;
            continue;
        }
        const int64_t first = walk->range->first + walk->skip;
        const int64_t n_left = n - walk->skip < walk->left ? n - walk->skip : walk->left;
        *seen = (tkv_slot_range){first, first + n_left};
        walk->skip = 0;
        walk->left -= n_left;
        walk->range++;
        return true;
    }
    return false;
}

/* ---- The mask ---- */

static int64_t mask_first(const tkv_store_attend_params *params, int stream)
{
    return params->mask_first ? params->mask_first[stream] : 0;
}

/* The slots of a page that the mask covers, and the index of the first one's number. */
static tkv_slots mask_slots(const tkv_store_attend_params *params, int stream, int query,
                            int64_t page, size_t *at)
{
    const int64_t column = page * TKV_PAGE_TOKENS - mask_first(params, stream);
    const int64_t left = params->n_mask_slots - column;
    const tkv_slots slots = {column < 0 ? (int)-column : 0,
                             left < TKV_PAGE_TOKENS ? (int)left : TKV_PAGE_TOKENS};
    const size_t row =
        params->mask_row_stride ? params->mask_row_stride : (size_t)params->n_mask_slots;
    const size_t stream_stride = params->mask_stream_stride
                                     ? params->mask_stream_stride
                                     : (size_t)params->n_queries * (size_t)params->n_mask_slots;
    *at = (size_t)stream * stream_stride + (size_t)query * row + (size_t)(column + slots.first);
    return slots;
}

void tkv_mask_numbers(const tkv_store_attend_params *params, int stream, int query, int64_t page,
                      float *numbers)
{
    size_t at = 0;
    const tkv_slots slots = mask_slots(params, stream, query, page, &at);
    memset(numbers, 0, TKV_PAGE_TOKENS * sizeof *numbers);
    tkv_elements_load(params->mask_element, params->mask, at, (size_t)(slots.end - slots.first),
                      numbers + slots.first);
    for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
        numbers[t] = numbers[t] > UNSEEN ? numbers[t] : 0.0f;
    }
}

/* Whether 64 halves are all zero or all minus infinity, as most of a mask are. */
static bool is_plain(const tkv_store_attend_params *params, size_t at, bool *is_seen)
{
    if (params->mask_element != TKV_ELEMENT_F16) {
        return false;
    }
    uint64_t words[TKV_PAGE_TOKENS / 4];
    memcpy(words, (const uint16_t *)params->mask + at, sizeof words);
    uint64_t any = 0;
    uint64_t differences = 0;
    for (size_t i = 0; i < TKV_PAGE_TOKENS / 4; i++) {
        any |= words[i];
        differences |= words[i] ^ 0xfc00fc00fc00fc00u;
    }
    *is_seen = any == 0;
    return any == 0 || differences == 0;
}

/* What a query's mask shows of a page. */
static uint64_t scan_mask(sight_job *job, int stream, int query, int64_t page, bool *has_added)
{
    size_t at = 0;
    const tkv_slots slots = mask_slots(job->params, stream, query, page, &at);
    const int n = slots.end - slots.first;
    bool is_seen = false;
    *has_added = false;
    if (n == TKV_PAGE_TOKENS && is_plain(job->params, at, &is_seen)) {
        return is_seen ? ~(uint64_t)0 : 0;
    }
    float numbers[TKV_PAGE_TOKENS];
    uint64_t bits = 0;
    tkv_elements_load(job->params->mask_element, job->params->mask, at, (size_t)n, numbers);
    for (int t = 0; t < n; t++) {
        if (isnan(numbers[t]) || numbers[t] == INFINITY) {
            atomic_store(&job->is_wrong, true);
        }
        if (numbers[t] > UNSEEN) {
            bits |= (uint64_t)1 << (slots.first + t);
            *has_added |= numbers[t] != 0.0f;
        }
    }
    return bits;
}

/* ---- Both ---- */

static void mark(sight_job *job, int stream, int64_t first, int64_t end)
{
    uint64_t *marks = job->marks + (size_t)stream * job->n_words;
    for (int64_t page = first / TKV_PAGE_TOKENS; page * TKV_PAGE_TOKENS < end; page++) {
        marks[page / 64] |= (uint64_t)1 << page % 64;
    }
}

static void mark_stream(sight_job *job, int stream)
{
    const tkv_store_attend_params *params = job->params;
    if (params->mask) {
        const int64_t first = mask_first(params, stream);
        mark(job, stream, first, first + params->n_mask_slots);
        return;
    }
    for (int query = 0; query < params->n_queries; query++) {
        view_walk walk = walk_view(params, (int64_t)stream * params->n_queries + query);
        for (tkv_slot_range seen; next_range(&walk, &seen);) {
            mark(job, stream, seen.first, seen.end);
        }
    }
}

/* Slots of a page that hold both. */
static uint64_t held_bits(const tkv_store *store, int64_t page)
{
    uint64_t held = ~(uint64_t)0;
    for (int order = 0; order < store->n_sides; order++) {
        held &= store->sides[order].entries[page].held;
    }
    return held;
}

/* Takes pages that hold nothing from the marks and counts the others. */
static int64_t count_pages(sight_job *job, int stream)
{
    uint64_t *marks = job->marks + (size_t)stream * job->n_words;
    int64_t n = 0;
    for (size_t w = 0; w < job->n_words; w++) {
        job->ranks[(size_t)stream * job->n_words + w] = n;
        for (uint64_t left = marks[w]; left; left &= left - 1) {
            const int bit = __builtin_ctzll(left);
            if (!held_bits(job->store, (int64_t)w * 64 + bit)) {
                marks[w] &= ~((uint64_t)1 << bit);
            }
        }
        n += __builtin_popcountll(marks[w]);
    }
    return n;
}

static void list_pages(const sight_job *job, int stream)
{
    const uint64_t *marks = job->marks + (size_t)stream * job->n_words;
    int64_t *pages = job->sight->pages + job->sight->begin[stream];
    for (size_t w = 0; w < job->n_words; w++) {
        for (uint64_t left = marks[w]; left; left &= left - 1) {
            *pages++ = (int64_t)w * 64 + __builtin_ctzll(left);
        }
    }
}

static void see_by_mask(sight_job *job, int stream, int query)
{
    tkv_sight *sight = job->sight;
    for (int64_t i = 0; i < tkv_sight_pages(sight, stream); i++) {
        const int64_t at = tkv_sight_at(sight, stream, query, i);
        const int64_t page = sight->pages[sight->begin[stream] + i];
        bool has_added = false;
        sight->bits[at] =
            scan_mask(job, stream, query, page, &has_added) & held_bits(job->store, page);
        sight->has_added[at] = has_added;
    }
}

static void see_by_ranges(sight_job *job, int stream, int query)
{
    const uint64_t *marks = job->marks + (size_t)stream * job->n_words;
    const int64_t *ranks = job->ranks + (size_t)stream * job->n_words;
    view_walk walk = walk_view(job->params, (int64_t)stream * job->params->n_queries + query);
    for (tkv_slot_range seen; next_range(&walk, &seen);) {
        for (int n; seen.first < seen.end; seen.first += n) {
            const int64_t page = seen.first / TKV_PAGE_TOKENS;
            const uint64_t before = marks[page / 64] & (((uint64_t)1 << page % 64) - 1);
            n = tkv_slots_in_page(seen.first, seen.end - seen.first);
            if (marks[page / 64] >> page % 64 & 1) {
                const int64_t index = ranks[page / 64] + __builtin_popcountll(before);
                job->sight->bits[tkv_sight_at(job->sight, stream, query, index)] |=
                    tkv_slot_bits((int)(seen.first % TKV_PAGE_TOKENS), n) &
                    held_bits(job->store, page);
            }
        }
    }
}

static void see(void *argument, int item, int thread)
{
    (void)thread;
    sight_job *job = argument;
    const int n_queries = job->params->n_queries;
    if (job->params->mask) {
        see_by_mask(job, item / n_queries, item % n_queries);
    } else {
        see_by_ranges(job, item / n_queries, item % n_queries);
    }
}

static tkv_status no_memory(tkv_error *error)
{
    return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for what queries see");
}

/* Places what the sight holds; all but `begin` are not there before. */
static tkv_status allocate_sight(const sight_job *job, int64_t n_pages, tkv_error *error)
{
    tkv_sight *sight = job->sight;
    const size_t n = (size_t)n_pages;
    const size_t n_bits = n * (size_t)sight->n_queries;
    const size_t n_begin = (size_t)sight->n_streams + 1;
    int64_t *memory = tkv_allocate_zeroed(&job->store->context->allocator,
                                          (n_begin + n + n_bits) * sizeof *memory + n_bits);
    if (!memory) {
        return no_memory(error);
    }
    memcpy(memory, sight->begin, n_begin * sizeof *memory);
    sight->memory = memory;
    sight->begin = memory;
    sight->pages = memory + n_begin;
    sight->bits = (uint64_t *)(memory + n_begin + n);
    sight->has_added = job->params->mask ? (uint8_t *)(sight->bits + n_bits) : NULL;
    return TKV_OK;
}

static tkv_status see_all(sight_job *job, tkv_error *error)
{
    tkv_sight *sight = job->sight;
    const tkv_context *context = job->store->context;
    for (int s = 0; s < sight->n_streams; s++) {
        mark_stream(job, s);
        sight->begin[s + 1] = sight->begin[s] + count_pages(job, s);
    }
    const tkv_status status = allocate_sight(job, sight->begin[sight->n_streams], error);
    if (status != TKV_OK) {
        return status;
    }
    for (int s = 0; s < sight->n_streams; s++) {
        list_pages(job, s);
    }
    tkv_threads_run(context->threads, sight->n_queries > 1 ? context->n_threads : 1,
                    sight->n_streams * sight->n_queries, see, job);
    return !atomic_load(&job->is_wrong)
               ? TKV_OK
               : tkv_fail(error, TKV_ERR_NOT_FINITE,
                          "the mask holds NaN or infinity: expected numbers or minus infinity");
}

tkv_status tkv_sight_create(const tkv_store *store, const tkv_store_attend_params *params,
                            tkv_sight *sight, tkv_error *error)
{
    const tkv_allocator *allocator = &store->context->allocator;
    const size_t n_streams = (size_t)params->n_streams;
    sight_job job = {.store = store,
                     .params = params,
                     .sight = sight,
                     .n_words = (size_t)(store->n_pages + 63) / 64};
    const size_t n = n_streams * job.n_words;
    uint64_t *memory = tkv_allocate_zeroed(allocator, (2 * n + n_streams + 1) * sizeof *memory);
    *sight = (tkv_sight){.n_streams = params->n_streams, .n_queries = params->n_queries};
    if (!memory) {
        return no_memory(error);
    }
    job.marks = memory;
    job.ranks = (int64_t *)(memory + n);
    sight->begin = (int64_t *)(memory + 2 * n);
    const tkv_status status = see_all(&job, error);
    tkv_release(allocator, memory);
    if (status != TKV_OK) {
        tkv_release(allocator, sight->memory);
    }
    return status;
}
