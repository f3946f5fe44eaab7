/* What the demo found, as text and as JSON. */
#include "cli/demo.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* An answer on one line: what is blank becomes one space, what is at the ends goes. */
static void print_line(const char *text, const char *before)
{
    fputs(before, stdout);
    bool is_waiting = false;
    bool is_begun = false;
    for (; *text; text++) {
        if (isspace((unsigned char)*text)) {
            is_waiting = is_begun;
            continue;
        }
        if (is_waiting) {
            putchar(' ');
        }
        putchar(*text);
        is_begun = true;
        is_waiting = false;
    }
    putchar('\n');
}

static double speed(int n, double seconds)
{
    return seconds > 0.0 ? n / seconds : 0.0;
}

/* How often the cache fits into f16's memory; both are measured in the same way. */
static double times_smaller(const demo_result *results, int i)
{
    return (double)results[0].kv_bytes / (double)results[i].kv_bytes;
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void print_question(const loaded_model *loaded, const demo_prompt *prompt)
{
    const tkv_model_config *c = tkv_model_get_config(loaded->model);
    printf("%s: %s, %d layers, %d KV heads of %d; kernels %s, %d threads\n\n"
           "The text: %d tokens from the beginning of Alice's Adventures in Wonderland.\n"
           "After %d of them this line was put in: %s\n"
           "The question at the end: %s\n",
           file_name(tkv_gguf_path(loaded->gguf)), c->architecture, c->n_layers, c->n_kv_heads,
           c->head_dim_k, tkv_context_kernels(loaded->context),
           tkv_context_threads(loaded->context), prompt->n_before + prompt->n_after,
           prompt->n_before, prompt->fact, prompt->question);
    if (prompt->begun[0]) {
        printf("The answer is begun for the model: %s ...\n", prompt->begun);
    }
}

static void print_figures(demo_result *results)
{
    printf("\n%-5s %12s %8s %11s %8s %8s %10s %9s\n", "KV", "bytes", "smaller", "bits/value",
           "read/s", "write/s", "agreement", "mean KLD");
    size_t n_scored = 0;
    for (int i = 0; i < DEMO_SETTINGS; i++) {
        const demo_result *r = &results[i];
        const tkv_divergence_summary s = tkv_divergence_summarise(&results[i].divergence);
        n_scored = s.n;
        printf("%-5s %12zu %7.2fx %11.3f %8.0f %8.0f %6zu/%-3zu %9.4f\n", r->preset, r->kv_bytes,
               times_smaller(results, i), r->bits_per_value, speed(r->n_read, r->read_seconds),
               speed(r->n_written, r->write_seconds), r->divergence.n_same_top, s.n, s.mean_kl);
    }
    printf(
        "\nread/s, write/s: tokens a second in batches and one by one. agreement: at how many of "
        "the last\n%zu positions the most likely next token is f16's. KLD: divergence from "
        "f16's next-token\ndistribution there, in nats.\n",
        n_scored);
}

void demo_print(const loaded_model *loaded, const demo_prompt *prompt, demo_result *results)
{
    print_question(loaded, prompt);
    printf("\n%-5s %-6s answer\n", "KV", "");
    for (int i = 0; i < DEMO_SETTINGS; i++) {
        printf("%-5s %-6s ", results[i].preset, results[i].is_right ? "right" : "wrong");
        print_line(results[i].text, prompt->begun[0] ? "... " : "");
    }
    print_figures(results);
}

static cJSON *result_to_json(demo_result *results, int i)
{
    const demo_result *r = &results[i];
    const tkv_divergence_summary s = tkv_divergence_summarise(&results[i].divergence);
    cJSON *row = cJSON_CreateObject();
    cJSON_AddStringToObject(row, "kv", r->preset);
    command_add_text(row, "answer", r->text, r->text_length);
    cJSON_AddBoolToObject(row, "right", r->is_right);
    cJSON_AddNumberToObject(row, "kv_bytes", (double)r->kv_bytes);
    cJSON_AddNumberToObject(row, "times_smaller", times_smaller(results, i));
    cJSON_AddNumberToObject(row, "bits_per_value", r->bits_per_value);
    cJSON_AddNumberToObject(row, "read_tokens_per_second", speed(r->n_read, r->read_seconds));
    cJSON_AddNumberToObject(row, "write_tokens_per_second", speed(r->n_written, r->write_seconds));
    cJSON_AddNumberToObject(row, "positions", (double)s.n);
    cJSON_AddNumberToObject(row, "same_top", (double)r->divergence.n_same_top);
    cJSON_AddNumberToObject(row, "mean_kl", s.mean_kl);
    return row;
}

cJSON *demo_to_json(const loaded_model *loaded, const demo_prompt *prompt, demo_result *results)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "model", tkv_gguf_path(loaded->gguf));
    cJSON_AddStringToObject(json, "kernels", tkv_context_kernels(loaded->context));
    cJSON_AddNumberToObject(json, "threads", tkv_context_threads(loaded->context));
    cJSON_AddNumberToObject(json, "text_tokens", prompt->n_before + prompt->n_after);
    cJSON_AddNumberToObject(json, "tokens_before_fact", prompt->n_before);
    cJSON_AddNumberToObject(json, "prompt_tokens", (double)prompt->tokens.n);
    cJSON_AddStringToObject(json, "fact", prompt->fact);
    cJSON_AddStringToObject(json, "question", prompt->question);
    cJSON_AddStringToObject(json, "answer_begins", prompt->begun);
    cJSON_AddStringToObject(json, "expected", prompt->answer);
    cJSON *rows = cJSON_AddArrayToObject(json, "results");
    for (int i = 0; i < DEMO_SETTINGS; i++) {
        cJSON_AddItemToArray(rows, result_to_json(results, i));
    }
    return json;
}
