/* Files of a stranger's llama.cpp, as sources and as libraries: evidence within its bounds, and a
 * decision that follows from it. */
#include "fuzz/fuzz.h"

#include "gate/llama_tree.h"

#include <math.h>
#include <string.h>

const int fuzz_runs = 50000;

static const char source[] =
    "constant float turbo_wht_signs1[128] = {1.0f, -1.0f, 1, -1};\n"
    "constant float turbo_centroids_2bit[4] = {-0.133503f, -0.040020f, 0.040020f, 0.133503f};\n"
    "constant float turbo_mid_2bit[3] = {-0.0867615f, 0.0f, 0x1p-3};\n"
    "// turbo /* \"\n#define KERNEL(n) kernel_##n /* turbo */\n"
    "static void turbo_fwht_128(thread float *x) const { x[0] = '\\''; }\n"
    "kernel void kernel_turbo_wht(device float *x [[buffer(0)]]) { turbo_fwht_128(x); }\n"
    "template [[host_name(\"kernel_set_rows_turbo2_i32\")]] kernel t kernel_set_rows_turbo2<int>;\n"
    "template [[host_name(\"kernel_flash_attn_ext_vec_kturbo2_vturbo2_dk128_dv96\")]] kernel t f;\n"
    "enum ggml_type { GGML_TYPE_Q8_0 = 8, GGML_TYPE_TURBO2_0 = 43 };\n"
    "__global__ void k_set_rows_turbo4(const float *x) noexcept { getenv(\"TURBO_FORCE\"); }\n";
static const char library[] =
    "\177ELF\0\1\2kernel_set_rows_turbo2_i32\0kernel_turbo_wht\0kernel_turbo2_dequant_f16\0"
    "kernel_flash_attn_ext_kturbo2_vturbo2_dk64_dv64\0TURBO_SPARSE_V\0\3"
    "\0_Z17k_set_rows_turbo2IiEvPKf\0_ZN4ggml11k_turbo_whtEv\0"
    "#include <metal_stdlib>\nkernel void kernel_turbo3_dequant_f16(device half *y) { y[0] = 0; "
    "}\n";

/* The first byte says what the rest is taken for. */
size_t fuzz_seed(int index, uint8_t data[FUZZ_MAX_INPUT])
{
    if (index > 1) {
        return 0;
    }
    const size_t size = index ? sizeof library - 1 : sizeof source - 1;
    data[0] = (uint8_t)index;
    memcpy(data + 1, index ? library : source, size);
    return size + 1;
}

static void check_item(const tkv_evidence *item, int n_lines)
{
    if ((unsigned)item->kind >= TKV_EVIDENCE_KINDS || (unsigned)item->role > TKV_LLAMA_NO_ROLE ||
        !memchr(item->name, '\0', sizeof item->name) || item->line < 0 || item->line > n_lines ||
        !memchr(item->type_k, '\0', sizeof item->type_k) ||
        !memchr(item->type_v, '\0', sizeof item->type_v)) {
        fuzz_fail("an item of kind %d on line %d of %d", (int)item->kind, item->line, n_lines);
    }
    if (item->dim_k < 0 || item->dim_k > TKV_MAX_NAMED_NUMBER || item->dim_v < 0 ||
        item->dim_v > TKV_MAX_NAMED_NUMBER) {
        fuzz_fail("%s has heads of %d and %d", item->name, item->dim_k, item->dim_v);
    }
    for (int i = 0; item->values && i < item->n_values; i++) {
        if (!isfinite(item->values[i])) {
            fuzz_fail("%s holds %g", item->name, (double)item->values[i]);
        }
    }
}

static void check_decision(const tkv_source_report *report)
{
    tkv_error error;
    tkv_llama_snapshot snapshot = {.n_files = 0};
    const tkv_status status =
        tkv_llama_snapshot_add(&snapshot, "ggml/src/ggml-metal/a.metal", report, &error);
    fuzz_check_error(status, &error);
    tkv_llama_decide(&snapshot);
    if (snapshot.proceeds != (snapshot.n_missing == 0)) {
        fuzz_fail("proceeds: %d, missing: %d", snapshot.proceeds, snapshot.n_missing);
    }
    tkv_llama_snapshot_free(&snapshot);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tkv_error error;
    tkv_source_report report = {0};
    if (size < 1) {
        return 0;
    }
    const tkv_words words = {.n = 2, .word = {"turbo", "tq"}};
    const bool is_binary = data[0] % 2;
    const char *text = (const char *)data + 1;
    const tkv_status status = is_binary ? tkv_binary_scan(text, size - 1, &words, &report, &error)
                                        : tkv_source_scan(text, size - 1, &words, &report, &error);
    fuzz_check_error(status, &error);
    if (report.n_mentions > report.n_lines && !is_binary) {
        fuzz_fail("%d of %d lines", report.n_mentions, report.n_lines);
    }
    for (int i = 0; i < report.n_items; i++) {
        check_item(&report.items[i], report.n_lines);
    }
    if (status == TKV_OK) {
        check_decision(&report);
    }
    tkv_source_report_free(&report);
    return 0;
}
