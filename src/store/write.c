/* Rows into slots. What goes into a page is worked on together, in the caller's order, so that the
 * last row of a slot counts: first memory is made ready, which can fail, then rows are written. */
#include "base/error.h"
#include "base/half.h"
#include "store/store.h"

#include <stdlib.h>
#include <string.h>

/* Rows times KV heads that are worth threads. */
#define MIN_PARALLEL_ROWS 128

/* Rows that lie one after the other in the caller's array and in a page. */
typedef struct row_run {
    int64_t page;
    int64_t row;
    int slot;
    int n;
    bool is_exact;
    int64_t number; /* of its last row in its region */
} row_run;

/* Runs of one page. */
typedef struct page_group {
    const row_run *runs;
    int64_t n_runs;
    bool is_recent; /* its rows stay exact for now */
} page_group;

typedef struct write_job {
    const tkv_store *store;
    const tkv_store_side *side;
    const void *x;
    tkv_layout layout;
    row_run *runs;
    int64_t n_runs;
    page_group *groups;
    int64_t n_groups;
} write_job;

static int compare_runs(const void *a, const void *b)
{
    const row_run *x = a;
    const row_run *y = b;
    return x->page != y->page ? (x->page < y->page ? -1 : 1)
           : x->row < y->row  ? -1
                              : x->row > y->row;
}

/* Cuts rows into runs, at the ends of pages and of the first slots too, and counts them in their
 * regions. */
static void find_runs(write_job *job, int64_t n_rows, const int64_t *slots)
{
    const tkv_store *store = job->store;
    int64_t n = 0;
    for (int64_t i = 0; i < n_rows; n++) {
        const int64_t page = slots[i] / TKV_PAGE_TOKENS;
        tkv_store_region *region = tkv_store_region_of(store, job->side, page);
        row_run *run = &job->runs[n];
        *run = (row_run){.page = page, .row = i, .slot = (int)(slots[i] % TKV_PAGE_TOKENS)};
        const uint64_t first = tkv_store_first_bits(store, page);
        run->is_exact = job->side->type == TKV_TYPE_F16 || (first >> run->slot & 1);
        do {
            run->n++;
            i++;
        } while (i < n_rows && run->slot + run->n < TKV_PAGE_TOKENS &&
                 slots[i] == slots[i - 1] + 1 &&
                 (first >> (run->slot + run->n) & 1) == (first >> run->slot & 1));
        region->n_written += run->n;
        run->number = region->n_written;
    }
    job->n_runs = n;
}

/* Brings runs of a page together and decides which rows are exact. */
static void find_groups(write_job *job)
{
    qsort(job->runs, (size_t)job->n_runs, sizeof *job->runs, compare_runs);
    for (int64_t r = 0; r < job->n_runs; job->n_groups++) {
        page_group *group = &job->groups[job->n_groups];
        const int64_t page = job->runs[r].page;
        const int64_t n_written = tkv_store_region_of(job->store, job->side, page)->n_written;
        const int64_t begin = r;
        while (r < job->n_runs && job->runs[r].page == page) {
            r++;
        }
        const int64_t newest = job->runs[r - 1].number;
        *group =
            (page_group){&job->runs[begin], r - begin, newest > n_written - job->store->n_exact};
        for (int64_t i = begin; i < r; i++) {
            job->runs[i].is_exact |= group->is_recent;
        }
    }
}

static tkv_status prepare_group(const write_job *job, const page_group *group, tkv_error *error)
{
    bool has_coded = false;
    int n_exact = 0;
    for (int64_t i = 0; i < group->n_runs; i++) {
        const row_run *run = &group->runs[i];
        const int end = run->slot + run->n;
        has_coded |= !run->is_exact;
        n_exact = run->is_exact && end > n_exact ? end : n_exact;
    }
    return tkv_store_prepare(job->store, job->side, &job->side->entries[group->runs->page],
                             has_coded, n_exact, error);
}

static tkv_status prepare_groups(const write_job *job, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int64_t g = 0; status == TKV_OK && g < job->n_groups; g++) {
        status = prepare_group(job, &job->groups[g], error);
    }
    return status;
}

/* As if nothing had been asked for: pages that were made for it go, rows are not counted. */
static void give_up(const write_job *job)
{
    for (int64_t r = 0; r < job->n_runs; r++) {
        const row_run *run = &job->runs[r];
        tkv_store_region_of(job->store, job->side, run->page)->n_written -= run->n;
        tkv_store_drop(job->store, job->side, run->page, 0);
    }
}

/* Rows of a run as pages have them: padded, and as if they had waited in an exact page, if rows do
 * so here, whether these do or not. */
static void load_rows(const write_job *job, int64_t first_row, int n, int kv_head, float *rows)
{
    const tkv_store_side *side = job->side;
    const size_t padded = (size_t)side->padded_dim;
    for (int i = 0; i < n; i++) {
        float *row = rows + (size_t)i * padded;
        const size_t at = (size_t)(first_row + i) * job->layout.row_stride +
                          (size_t)kv_head * job->layout.head_stride;
        tkv_elements_load(job->layout.element, job->x, at, (size_t)side->head_dim, row);
        memset(row + side->head_dim, 0, (padded - (size_t)side->head_dim) * sizeof *row);
        for (int j = 0; job->store->n_exact && j < side->head_dim; j++) {
            row[j] = tkv_half_to_float(tkv_float_to_finite_half(row[j]));
        }
    }
}

static void encode(const write_job *job, const row_run *run, int done, int n, int kv_head,
                   const float *rows, size_t stride)
{
    const tkv_store_side *side = job->side;
    const tkv_context *context = job->store->context;
    const tkv_store_page *page = side->entries[run->page].page;
    const tkv_page_span span = {run->is_exact ? TKV_TYPE_F16 : side->type,
                                side->order,
                                side->padded_dim,
                                run->slot + done,
                                n,
                                context->effort};
    void *to = run->is_exact ? (void *)tkv_store_exact(side, page, kv_head)
                             : tkv_store_coded(side, page, kv_head);
    context->kernels->encode(&span, rows, stride, to);
}

static void write_run(const write_job *job, const row_run *run, int kv_head)
{
    const tkv_store_side *side = job->side;
    const tkv_layout *layout = &job->layout;
    if (side->head_dim == side->padded_dim && layout->element == TKV_ELEMENT_F32 &&
        (run->is_exact || job->store->n_exact == 0)) {
        const float *x = (const float *)job->x + (size_t)run->row * layout->row_stride +
                         (size_t)kv_head * layout->head_stride;
        encode(job, run, 0, run->n, kv_head, x, layout->row_stride);
        return;
    }
    float rows[TKV_STORE_CHUNK_ROWS * TKV_MAX_HEAD_DIM];
    for (int done = 0; done < run->n; done += TKV_STORE_CHUNK_ROWS) {
        const int n = run->n - done < TKV_STORE_CHUNK_ROWS ? run->n - done : TKV_STORE_CHUNK_ROWS;
        load_rows(job, run->row + done, n, kv_head, rows);
        encode(job, run, done, n, kv_head, rows, (size_t)side->padded_dim);
    }
}

static void write_item(void *argument, int item, int thread)
{
    (void)thread;
    const write_job *job = argument;
    const page_group *group = &job->groups[item / job->store->n_kv_heads];
    for (int64_t i = 0; i < group->n_runs; i++) {
        write_run(job, &group->runs[i], item % job->store->n_kv_heads);
    }
}

/* What a page's entry says after its rows are there. */
static void note_group(const write_job *job, const page_group *group)
{
    const int64_t page = group->runs->page;
    tkv_store_entry *entry = &job->side->entries[page];
    for (int64_t i = 0; i < group->n_runs; i++) {
        const row_run *run = &group->runs[i];
        const uint64_t bits = tkv_slot_bits(run->slot, run->n);
        entry->held |= bits;
        entry->page->exact_rows &= ~bits;
        entry->page->exact_rows |= run->is_exact ? bits : 0;
        for (int t = run->slot; entry->turns && t < run->slot + run->n; t++) {
            entry->turns[t] = 0;
        }
    }
    if (group->is_recent && job->side->type != TKV_TYPE_F16) {
        tkv_store_list(job->store, job->side, page, group->runs[group->n_runs - 1].number);
    }
}

static int compare_numbers(const void *a, const void *b)
{
    const page_group *x = a;
    const page_group *y = b;
    const int64_t p = x->runs[x->n_runs - 1].number;
    const int64_t q = y->runs[y->n_runs - 1].number;
    return p < q ? -1 : p > q;
}

static void write_groups(write_job *job, int64_t n_rows)
{
    const tkv_context *context = job->store->context;
    const int n_heads = job->store->n_kv_heads;
    const bool is_much = n_rows * n_heads >= MIN_PARALLEL_ROWS;
    tkv_threads_run(context->threads, is_much ? context->n_threads : 1,
                    (int)job->n_groups * n_heads, write_item, job);
    /* Pages are listed in the order of their newest rows. */
    qsort(job->groups, (size_t)job->n_groups, sizeof *job->groups, compare_numbers);
    for (int64_t g = 0; g < job->n_groups; g++) {
        note_group(job, &job->groups[g]);
    }
    tkv_store_settle(job->store, job->side);
}

/* Everything that can fail. */
static tkv_status start_write(write_job *job, int64_t n_rows, const int64_t *slots,
                              tkv_error *error)
{
    const tkv_allocator *allocator = &job->store->context->allocator;
    job->runs = tkv_allocate(allocator, (size_t)n_rows * sizeof *job->runs);
    job->groups = tkv_allocate(allocator, (size_t)n_rows * sizeof *job->groups);
    if (!job->runs || !job->groups) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to write %lld rows",
                        (long long)n_rows);
    }
    find_runs(job, n_rows, slots);
    find_groups(job);
    return prepare_groups(job, error);
}

tkv_status tkv_store_write_rows(tkv_store *store, int64_t n_rows, const int64_t *slots,
                                const void *k, const tkv_layout *layout_k, const void *v,
                                const tkv_layout *layout_v, tkv_error *error)
{
    const void *const x[] = {k, v};
    const tkv_layout *const layouts[] = {layout_k, layout_v};
    write_job jobs[2] = {{0}};
    tkv_status status = TKV_OK;
    for (int order = 0; order < store->n_sides; order++) {
        const tkv_store_side *side = &store->sides[order];
        jobs[order] = (write_job){
            .store = store,
            .side = side,
            .x = x[order],
            .layout = tkv_layout_of(layouts[order], n_rows, store->n_kv_heads, side->head_dim)};
        if (status == TKV_OK && x[order]) {
            status = start_write(&jobs[order], n_rows, slots, error);
        }
    }
    for (int order = 0; order < store->n_sides; order++) {
        if (status != TKV_OK) {
            give_up(&jobs[order]);
        } else if (x[order]) {
            write_groups(&jobs[order], n_rows);
        }
        tkv_release(&store->context->allocator, jobs[order].runs);
        tkv_release(&store->context->allocator, jobs[order].groups);
    }
    return status;
}
