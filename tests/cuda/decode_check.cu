/* Checks decode attention on random pages against float64 on the host, then times it: medians of
 * graph replays over buffers larger than the L2 cache. */
#include "device/cuda/kernels_cuda.h"
extern "C" {
#include "base/half.h"
#include "format/codec.h"
}

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define CHECK(call)                                                                                \
    do {                                                                                           \
        const cudaError_t e = (call);                                                              \
        if (e != cudaSuccess) {                                                                    \
            fprintf(stderr, "%s:%d %s\n", __FILE__, __LINE__, cudaGetErrorString(e));              \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static const int PAGE = 64;

struct shape {
    tkv_type type_k, type_v;
    int head_dim, n_kv_heads, group, n_sequences, n_tokens, n_queries;
    int window;
    float softcap, sparse;
    bool sinks, means;
    int n_sinks;
    int exact_every = 0; /* every so manieth block is exact; 0: none */
};

static uint32_t mix(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x85ebca6b;
    x ^= x >> 13;
    x *= 0xc2b2ae35;
    return x ^ x >> 16;
}

__device__ uint32_t mix_device(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x85ebca6b;
    x ^= x >> 13;
    x *= 0xc2b2ae35;
    return x ^ x >> 16;
}

/* What a pair of pages is made of. */
struct pair_words {
    int key_words, key_side, value_words, value_side; /* side fields are the last words */
    int types[2];
};

/* Random codes; side fields between 0.5 and 1.5 (of a sketch's step: a tenth); halves up to 1. */
__global__ void fill_pairs(uint32_t *words, size_t n_pairs, pair_words pair, uint32_t seed)
{
    const int pair_size = pair.key_words + pair.value_words;
    const size_t n = n_pairs * pair_size;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        const int at = (int)(i % pair_size);
        const bool is_value = at >= pair.key_words;
        const int type = pair.types[is_value];
        const int left = (is_value ? pair_size : pair.key_words) - at;
        const bool is_trellis = type == TKV_TYPE_TRELLIS3 || type == TKV_TYPE_TRELLIS2;
        uint32_t x = mix_device((uint32_t)i * 2654435761u + seed);
        if (type == TKV_TYPE_F16) {
            x = 0x30003000u + (x & 0x87ff87ffu);
        } else if (left <= (is_value ? pair.value_side : pair.key_side)) {
            const bool is_step = left <= 32 && (is_value ? pair.value_side : pair.key_side) == 64;
            x = (is_step ? 0x2c002c00u : 0x38003800u) + (x & 0x05ff05ffu) +
                (is_trellis ? x & 0x80008000u : 0);
        }
        words[i] = x;
    }
}

struct problem {
    shape s;
    size_t key_bytes, value_bytes, block_bytes, set_bytes;
    int n_blocks, n_sets;
    uint8_t *pages;
    uint8_t *exact_pages; /* for every block, in order */
    size_t exact_bytes;
    float *q, *out, *mean_k, *mean_v, *sinks;
    std::vector<tkv_device_block *> blocks;
    std::vector<tkv_device_sequence *> sequences; /* a set */
    std::vector<float> host_q, host_mean_k, host_mean_v, host_sinks;
    std::vector<uint8_t> host_pages;
    tkv_attend_plan plan;
    void *workspace;
    void *counters;
    size_t workspace_bytes;
};

static float uniform(uint32_t i)
{
    return (float)(mix(i) >> 8) / 16777216.0f - 0.5f;
}

static float gauss(uint32_t i)
{
    float sum = 0.0f;
    for (uint32_t k = 0; k < 12; k++) {
        sum += uniform(12 * i + k);
    }
    return sum;
}

static float *upload(const std::vector<float> &x)
{
    float *to;
    CHECK(cudaMalloc(&to, x.size() * 4));
    CHECK(cudaMemcpy(to, x.data(), x.size() * 4, cudaMemcpyHostToDevice));
    return to;
}

static int start_of(const shape &s, int block)
{
    const int sinks = (s.n_sinks + 63) / 64;
    return block < sinks ? 64 * block : s.n_sinks + 64 * (block - sinks);
}

static bool is_exact(const shape &s, int block)
{
    return s.exact_every && block % s.exact_every == s.exact_every - 1;
}

static void make(problem &p, const shape &s, size_t rotate_bytes, int n_sm)
{
    p.s = s;
    const int d = s.head_dim;
    p.key_bytes = tkv_page_bytes(s.type_k, d);
    p.value_bytes = tkv_page_bytes(s.type_v, d);
    p.block_bytes = s.n_kv_heads * (p.key_bytes + p.value_bytes);
    p.n_blocks = 0;
    while (start_of(s, p.n_blocks) < s.n_tokens) {
        p.n_blocks++;
    }
    p.set_bytes = p.block_bytes * p.n_blocks * s.n_sequences;
    p.n_sets = (int)std::max<size_t>(1, std::min<size_t>(64, rotate_bytes / p.set_bytes + 1));
    CHECK(cudaMalloc(&p.pages, p.set_bytes * p.n_sets));
    const auto side_words = [](tkv_type t) {
        return (int)(tkv_page_bytes(t, 64) - tkv_type_get_info(t)->code_bits * 64 * 64 / 8) / 4;
    };
    const pair_words pair = {(int)p.key_bytes / 4,
                             side_words(s.type_k),
                             (int)p.value_bytes / 4,
                             side_words(s.type_v),
                             {(int)s.type_k, (int)s.type_v}};
    fill_pairs<<<1024, 256>>>((uint32_t *)p.pages,
                              p.set_bytes * p.n_sets / 4 / (pair.key_words + pair.value_words),
                              pair, 7u);
    p.exact_bytes = (size_t)s.n_kv_heads * 2 * 2 * d * PAGE;
    if (s.exact_every) {
        const int page_words = d * PAGE / 2;
        const size_t bytes = p.exact_bytes * p.n_blocks * s.n_sequences;
        CHECK(cudaMalloc(&p.exact_pages, bytes));
        fill_pairs<<<1024, 256>>>((uint32_t *)p.exact_pages, bytes / 8 / page_words,
                                  {page_words, 0, page_words, 0, {0, 0}}, 99u);
    }
    CHECK(cudaDeviceSynchronize());
    std::vector<tkv_device_block> host_blocks(p.n_blocks);
    for (int set = 0; set < p.n_sets; set++) {
        std::vector<tkv_device_sequence> host_sequences(s.n_sequences);
        for (int i = 0; i < s.n_sequences; i++) {
            const int length = s.n_sequences > 1 && set < 0 ? s.n_tokens - i : s.n_tokens;
            for (int b = 0; b < p.n_blocks; b++) {
                /* Blocks in no order. */
                const size_t place = ((size_t)b * 7919 + i) % p.n_blocks;
                host_blocks[b].pages = (uint64_t)(p.pages + set * p.set_bytes +
                                                  ((size_t)i * p.n_blocks + place) * p.block_bytes);
                host_blocks[b].is_exact = is_exact(s, b);
                if (is_exact(s, b)) {
                    host_blocks[b].pages =
                        (uint64_t)(p.exact_pages + ((size_t)i * p.n_blocks + b) * p.exact_bytes);
                }
                host_blocks[b].n_slots = PAGE;
            }
            tkv_device_block *to;
            CHECK(cudaMalloc(&to, host_blocks.size() * sizeof *to));
            CHECK(cudaMemcpy(to, host_blocks.data(), host_blocks.size() * sizeof *to,
                             cudaMemcpyHostToDevice));
            p.blocks.push_back(to);
            host_sequences[i].blocks = (uint64_t)to;
            host_sequences[i].n_tokens = length;
            host_sequences[i].n_blocks = p.n_blocks;
        }
        if (set == 0 && s.means) {
            p.host_mean_k.resize(s.n_kv_heads * d);
            p.host_mean_v.resize(s.n_kv_heads * d);
            for (int j = 0; j < s.n_kv_heads * d; j++) {
                p.host_mean_k[j] = gauss(900000 + j);
                p.host_mean_v[j] = gauss(950000 + j);
            }
            p.mean_k = upload(p.host_mean_k);
            p.mean_v = upload(p.host_mean_v);
        }
        for (int i = 0; i < s.n_sequences; i++) {
            host_sequences[i].mean_k = s.means ? (uint64_t)p.mean_k : 0;
            host_sequences[i].mean_v = s.means ? (uint64_t)p.mean_v : 0;
        }
        tkv_device_sequence *to;
        CHECK(cudaMalloc(&to, host_sequences.size() * sizeof *to));
        CHECK(cudaMemcpy(to, host_sequences.data(), host_sequences.size() * sizeof *to,
                         cudaMemcpyHostToDevice));
        p.sequences.push_back(to);
    }
    const int n_heads = s.n_kv_heads * s.group;
    p.host_q.resize((size_t)s.n_sequences * s.n_queries * n_heads * d);
    for (size_t i = 0; i < p.host_q.size(); i++) {
        p.host_q[i] = gauss((uint32_t)i + 17);
    }
    p.q = upload(p.host_q);
    p.out = upload(std::vector<float>(p.host_q.size(), NAN));
    if (s.sinks) {
        for (int h = 0; h < n_heads; h++) {
            p.host_sinks.push_back(gauss(77000 + h) + 5.0f);
        }
        p.sinks = upload(p.host_sinks);
    }
    p.plan = {};
    tkv_device_attend &params = p.plan.params;
    params.layer = {(int32_t)s.type_k, (int32_t)s.type_v, s.n_kv_heads, d, d, s.n_sinks, 0};
    params.n_sequences = s.n_sequences;
    params.max_tokens = s.n_tokens;
    params.n_queries = s.n_queries;
    params.n_heads = n_heads;
    params.first_position = -1;
    params.window = s.window;
    params.scale = 1.0f / sqrtf((float)d) / 1.0f;
    params.logit_softcap = s.softcap;
    params.sparse_v = s.sparse;
    params.sequences = (uint64_t)p.sequences[0];
    params.q = (uint64_t)p.q;
    params.out = (uint64_t)p.out;
    params.sinks = s.sinks ? (uint64_t)p.sinks : 0;
    tkv_cuda_plan_decode(&p.plan, n_sm);
    p.workspace_bytes = p.plan.workspace_bytes;
    CHECK(cudaMalloc(&p.workspace, p.workspace_bytes));
    CHECK(cudaMemset(p.workspace, 0xff, p.workspace_bytes));
    CHECK(cudaMalloc(&p.counters, TKV_CUDA_ATTEND_COUNTER_BYTES));
    CHECK(cudaMemset(p.counters, 0, TKV_CUDA_ATTEND_COUNTER_BYTES));
}

static void drop(problem &p)
{
    for (auto *b : p.blocks) {
        cudaFree(b);
    }
    for (auto *s : p.sequences) {
        cudaFree(s);
    }
    cudaFree(p.pages);
    cudaFree(p.exact_pages);
    cudaFree(p.q);
    cudaFree(p.out);
    cudaFree(p.workspace);
    cudaFree(p.counters);
}

/* Row `slot` of a page; returns whether it is in the rotated domain. */
static bool decode_row(tkv_type type, tkv_page_order order, int d, int slot, const uint8_t *page,
                       float *y)
{
    if (type == TKV_TYPE_F16) {
        for (int j = 0; j < d; j++) {
            y[j] = tkv_half_to_float(((const uint16_t *)page)[slot * d + j]);
        }
        return false;
    }
    tkv_row_codes row;
    tkv_unpack_slot(type, order, d, slot, page, &row);
    tkv_dequantise_row(type, d, &row, y);
    return true;
}

/* Relative error of all rows of one KV head of the first and the last sequence. */
static double compare(problem &p)
{
    const shape &s = p.s;
    const int d = s.head_dim;
    const int n_heads = s.n_kv_heads * s.group;
    std::vector<uint8_t> pages(p.set_bytes);
    std::vector<uint8_t> exact(p.exact_pages ? p.exact_bytes * p.n_blocks * s.n_sequences : 0);
    std::vector<float> out(p.host_q.size());
    CHECK(cudaMemcpy(pages.data(), p.pages, p.set_bytes, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(exact.data(), p.exact_pages, exact.size(), cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(out.data(), p.out, out.size() * 4, cudaMemcpyDeviceToHost));
    double error = 0.0, norm = 0.0;
    for (int i = 0; i < s.n_sequences; i += std::max(1, s.n_sequences - 1)) {
        const int head = s.n_kv_heads - 1;
        std::vector<float> k((size_t)s.n_tokens * d), v((size_t)s.n_tokens * d);
        std::vector<bool> rotated_k(s.n_tokens), rotated_v(s.n_tokens);
        for (int b = 0; b < p.n_blocks; b++) {
            const size_t place = ((size_t)b * 7919 + i) % p.n_blocks;
            const uint8_t *key = pages.data() + ((size_t)i * p.n_blocks + place) * p.block_bytes +
                                 head * (p.key_bytes + p.value_bytes);
            const uint8_t *value = key + p.key_bytes;
            if (is_exact(s, b)) {
                key = exact.data() + ((size_t)i * p.n_blocks + b) * p.exact_bytes +
                      (size_t)head * 4 * d * PAGE;
                value = key + 2 * d * PAGE;
            }
            for (int t = start_of(s, b); t < std::min(start_of(s, b + 1), s.n_tokens); t++) {
                const int slot = t - start_of(s, b);
                rotated_k[t] = decode_row(is_exact(s, b) ? TKV_TYPE_F16 : s.type_k, TKV_ORDER_KEY,
                                          d, slot, key, &k[(size_t)t * d]);
                rotated_v[t] = decode_row(is_exact(s, b) ? TKV_TYPE_F16 : s.type_v, TKV_ORDER_VALUE,
                                          d, slot, value, &v[(size_t)t * d]);
            }
        }
        for (int r = 0; r < s.n_queries * s.group; r++) {
            const int query = r / s.group;
            const int h = head * s.group + r % s.group;
            const size_t at = (((size_t)i * s.n_queries + query) * n_heads + h) * d;
            std::vector<float> q(p.host_q.begin() + at, p.host_q.begin() + at + d), rotated = q;
            double bias = 0.0;
            for (int j = 0; s.means && j < d; j++) {
                bias += (double)q[j] * p.host_mean_k[head * d + j];
            }
            tkv_rotate_row(d, rotated.data());
            const int end = s.n_tokens - s.n_queries + query + 1;
            const int first = s.window ? std::max(0, end - s.window) : 0;
            std::vector<double> logit(end);
            double maximum = s.sinks ? p.host_sinks[h] : -1e300;
            for (int t = first; t < end; t++) {
                double sum = rotated_k[t] ? bias : 0.0;
                const std::vector<float> &x = rotated_k[t] ? rotated : q;
                for (int j = 0; j < d; j++) {
                    sum += (double)x[j] * k[(size_t)t * d + j];
                }
                sum *= p.plan.params.scale;
                logit[t] = s.softcap > 0 ? s.softcap * tanh(sum / s.softcap) : sum;
                maximum = std::max(maximum, logit[t]);
            }
            double total = s.sinks ? exp(p.host_sinks[h] - maximum) : 0.0, coded = 0.0;
            std::vector<double> sums(d, 0.0), plain(d, 0.0);
            for (int t = first; t < end; t++) {
                const double w = exp(logit[t] - maximum);
                total += w;
                coded += rotated_v[t] ? w : 0.0;
                for (int j = 0; j < d; j++) {
                    (rotated_v[t] ? sums : plain)[j] += w * v[(size_t)t * d + j];
                }
            }
            std::vector<float> expected(sums.begin(), sums.end());
            tkv_unrotate_row(d, expected.data());
            for (int j = 0; j < d; j++) {
                const double mean = s.means ? p.host_mean_v[head * d + j] * coded : 0.0;
                const double x = (expected[j] + plain[j] + mean) / total;
                const double e = x - out[at + j];
                error += e * e;
                norm += x * x;
            }
        }
    }
    return sqrt(error / norm);
}

static double median_us(problem &p)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    const int inner = std::max(20, p.n_sets);
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < inner; i++) {
        tkv_attend_plan plan = p.plan;
        plan.params.sequences = (uint64_t)p.sequences[i % p.n_sets];
        CHECK(tkv_cuda_attend_decode(&plan, (uint64_t)p.workspace, p.counters, stream));
    }
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t a, b;
    cudaEventCreate(&a);
    cudaEventCreate(&b);
    std::vector<float> times;
    for (int i = 0; i < 25; i++) {
        cudaEventRecord(a, stream);
        CHECK(cudaGraphLaunch(exec, stream));
        cudaEventRecord(b, stream);
        CHECK(cudaEventSynchronize(b));
        float ms;
        cudaEventElapsedTime(&ms, a, b);
        if (i >= 5) {
            times.push_back(ms * 1000.0f / inner);
        }
    }
    std::sort(times.begin(), times.end());
    CHECK(cudaGetLastError());
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    return times[times.size() / 2];
}

static double copy_bandwidth()
{
    const size_t bytes = (size_t)1 << 30;
    uint8_t *a, *b;
    CHECK(cudaMalloc(&a, bytes));
    CHECK(cudaMalloc(&b, bytes));
    fill_pairs<<<1024, 256>>>((uint32_t *)a, bytes / 512, {64, 0, 64, 0, {1, 1}}, 3u);
    cudaEvent_t start, end;
    cudaEventCreate(&start);
    cudaEventCreate(&end);
    float best = 1e9f;
    for (int i = 0; i < 10; i++) {
        cudaEventRecord(start);
        cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice);
        cudaEventRecord(end);
        cudaEventSynchronize(end);
        float ms;
        cudaEventElapsedTime(&ms, start, end);
        best = std::min(best, ms);
    }
    cudaFree(a);
    cudaFree(b);
    return 2.0 * bytes / best / 1e6;
}

int main(int argc, char **argv)
{
    cudaDeviceProp properties;
    CHECK(cudaGetDeviceProperties(&properties, 0));
    const int n_sm = properties.multiProcessorCount;
    const double copy = copy_bandwidth();
    printf("%s, %d multiprocessors, copy %.0f GB/s\n", properties.name, n_sm, copy);
    if (argc > 3 && !strcmp(argv[1], "profile")) {
        tkv_type t;
        problem p = {};
        if (tkv_type_from_name(argv[2], &t, NULL) != TKV_OK) {
            return 1;
        }
        make(p, {t, t, 128, 8, 4, 1, atoi(argv[3]), 1, 0, 0, 0, false, false, 0}, (size_t)400 << 20,
             n_sm);
        for (int i = 0; i < 3; i++) {
            CHECK(tkv_cuda_attend_decode(&p.plan, (uint64_t)p.workspace, p.counters, 0));
        }
        CHECK(cudaDeviceSynchronize());
        return 0;
    }
    const bool is_quick = argc > 1 && !strcmp(argv[1], "quick");
    const tkv_type types[] = {TKV_TYPE_TURBO3,   TKV_TYPE_TURBO4,   TKV_TYPE_TURBO2,
                              TKV_TYPE_TRELLIS3, TKV_TYPE_TRELLIS2, TKV_TYPE_TURBO8};
    std::vector<shape> checks;
    for (tkv_type t : types) {
        checks.push_back({t, t, 128, 2, 4, 1, 1000, 1, 0, 0, 0, false, false, 0});
        checks.push_back({t, t, 128, 2, 4, 1, 9000, 1, 0, 0, 0, false, false, 0});
        checks.push_back({t, t, 64, 2, 4, 1, 1000, 1, 0, 0, 0, false, false, 0});
        checks.push_back({t, t, 256, 2, 4, 1, 1000, 1, 0, 0, 0, false, false, 0});
        checks.push_back({t, t, 128, 2, 7, 2, 777, 2, 0, 0, 0, false, false, 0});
        checks.push_back({t, t, 128, 2, 3, 1, 777, 2, 100, 0, 0, false, false, 4});
        checks.push_back({t, t, 64, 2, 8, 1, 777, 1, 0, 20.0f, 0, true, true, 70});
        checks.push_back({t, t, 128, 2, 4, 1, 1500, 1, 0, 0, 0, false, true, 4, 5});
        checks.push_back({t, t, 64, 2, 5, 1, 777, 3, 200, 0, 0, true, false, 0, 2});
    }
    for (tkv_type t : {TKV_TYPE_F16, TKV_TYPE_TURBO4Q, TKV_TYPE_TURBO3Q, TKV_TYPE_TURBO3,
                       TKV_TYPE_TRELLIS3, TKV_TYPE_TURBO8}) {
        checks.push_back({t, t, 128, 2, 4, 1, 1000, 1, 0, 0, 0, false, true, 0, 3});
        checks.push_back({t, t, 80, 2, 4, 1, 500, 2, 0, 0, 0, false, false, 4, 0});
        checks.push_back({t, t, 256, 2, 2, 1, 500, 1, 0, 20.0f, 0, true, false, 0, 4});
        checks.push_back({t, t, 576, 1, 16, 2, 300, 1, 0, 0, 0, false, false, 0, 4});
        checks.push_back({t, TKV_TYPE_TURBO2, 128, 2, 4, 1, 500, 1, 0, 0, 0, false, true, 0, 4});
        checks.push_back({TKV_TYPE_TURBO4, t, 112, 2, 4, 1, 500, 1, 64, 0, 0, false, true, 0, 4});
    }
    for (tkv_type t : {TKV_TYPE_TURBO4, TKV_TYPE_TURBO3, TKV_TYPE_TURBO2, TKV_TYPE_TRELLIS3,
                       TKV_TYPE_TRELLIS2}) {
        for (tkv_type k : {TKV_TYPE_TURBO8, TKV_TYPE_TURBO4, TKV_TYPE_TRELLIS3}) {
            checks.push_back({k, t, 128, 2, 4, 1, 700, 2, 0, 0, 0, false, true, 4, 5});
        }
    }
    for (const shape &s : checks) {
        problem p = {};
        make(p, s, 0, n_sm);
        double errors[2];
        for (double &found : errors) {
            CHECK(cudaMemset(p.out, 0xff, p.host_q.size() * 4));
            CHECK(tkv_cuda_attend_decode(&p.plan, (uint64_t)p.workspace, p.counters, 0));
            CHECK(cudaDeviceSynchronize());
            found = compare(p);
        }
        printf("%s %s D=%d G=%d S=%d Q=%d N=%d window %d cap %g sinks %d means %d exact %d: error "
               "%.2e %.2e%s\n",
               tkv_type_get_info(s.type_k)->name, tkv_type_get_info(s.type_v)->name, s.head_dim,
               s.group, s.n_sequences, s.n_queries, s.n_tokens, s.window, s.softcap, s.sinks,
               s.means, s.exact_every, errors[0], errors[1],
               errors[0] < 1e-3 && errors[1] < 1e-3 ? "" : "  WRONG");
        drop(p);
    }
    if (is_quick) {
        return 0;
    }
    printf("\nD=128, 8 KV heads, G=4: us (share of the copy bound)\n%-9s", "");
    const int lengths[] = {1024, 8192, 32768, 131072};
    for (int n : lengths) {
        printf("%16d", n);
    }
    printf("\n");
    std::vector<tkv_type> timed(types, types + 6);
    timed.push_back(TKV_TYPE_F16);
    timed.push_back(TKV_TYPE_TURBO4Q);
    for (tkv_type t : timed) {
        printf("%-9s", tkv_type_get_info(t)->name);
        for (int n : lengths) {
            problem p = {};
            make(p, {t, t, 128, 8, 4, 1, n, 1, 0, 0, 0, false, false, 0}, (size_t)400 << 20, n_sm);
            const double us = median_us(p);
            printf("%9.1f (%3.0f%%)", us, 100.0 * p.set_bytes / us / 1e3 / copy);
            drop(p);
        }
        printf("\n");
        fflush(stdout);
    }
    for (tkv_type t : {TKV_TYPE_TURBO3, TKV_TYPE_TRELLIS3}) {
        problem p = {};
        make(p, {t, t, 128, 8, 4, 16, 32768, 1, 0, 0, 0, false, false, 0}, (size_t)400 << 20, n_sm);
        double us = median_us(p);
        printf("%s batch 16 x 32768: %.1f us, %.0f%% of copy\n", tkv_type_get_info(t)->name, us,
               100.0 * p.set_bytes / us / 1e3 / copy);
        drop(p);
        p = {};
        make(p, {t, t, 256, 4, 4, 1, 32768, 1, 0, 0, 0, false, false, 0}, (size_t)400 << 20, n_sm);
        us = median_us(p);
        printf("%s D=256 4 KV heads 32768: %.1f us, %.0f%% of copy\n", tkv_type_get_info(t)->name,
               us, 100.0 * p.set_bytes / us / 1e3 / copy);
        drop(p);
        p = {};
        make(p, {t, t, 128, 8, 8, 1, 32768, 1, 0, 0, 0, false, false, 0}, (size_t)400 << 20, n_sm);
        us = median_us(p);
        printf("%s G=8 32768: %.1f us, %.0f%% of copy\n", tkv_type_get_info(t)->name, us,
               100.0 * p.set_bytes / us / 1e3 / copy);
        drop(p);
    }
    return 0;
}
