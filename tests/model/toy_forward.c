#include "model/toy_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double *new_doubles(size_t n)
{
    double *x = calloc(n, sizeof *x);
    if (!x) {
        abort();
    }
    return x;
}

static const toy_tensor *layer_tensor(const toy_model *model, int layer, const char *name)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    return toy_model_find(model, full);
}

/* y [n_out] = W x, and + b if there is one. */
static void linear(const toy_model *model, int layer, const char *name, const double *x, double *y)
{
    char part[48];
    snprintf(part, sizeof part, "%s.weight", name);
    const toy_tensor *weight = layer_tensor(model, layer, part);
    snprintf(part, sizeof part, "%s.bias", name);
    const toy_tensor *bias = layer_tensor(model, layer, part);
    for (size_t o = 0; o < weight->dims[1]; o++) {
        y[o] = bias ? bias->values[o] : 0.0;
        for (size_t i = 0; i < weight->dims[0]; i++) {
            y[o] += (double)weight->values[o * weight->dims[0] + i] * x[i];
        }
    }
}

static void rms_norm(const toy_tensor *weight, const double *x, double *y)
{
    const size_t n = weight->dims[0];
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += x[i] * x[i];
    }
    const double scale = 1.0 / sqrt(sum / (double)n + TOY_RMS_EPSILON);
    for (size_t i = 0; i < n; i++) {
        y[i] = x[i] * scale * weight->values[i];
    }
}

static int window_of(const toy_shape *shape, int layer)
{
    const int period = shape->window_period;
    return period > 0 && layer % period == period - 1 ? 0 : shape->sliding_window;
}

static void rope(const toy_model *model, int layer, int position, double *head)
{
    const toy_shape *shape = &model->shape;
    const bool is_local = shape->rope_local_freq_base > 0.0f && window_of(shape, layer) > 0;
    const double base = is_local ? shape->rope_local_freq_base : shape->rope_freq_base;
    const toy_tensor *factors = toy_model_find(model, "rope_freqs.weight");
    const bool interleaved = strcmp(shape->architecture, "llama") == 0;
    const double linear_factor =
        shape->rope_linear_factor > 0 && !is_local ? shape->rope_linear_factor : 1.0;
    const double size = shape->rope_attention_factor > 0 ? shape->rope_attention_factor : 1.0;
    const int n_pairs = shape->rope_dim / 2;
    for (int pair = 0; pair < n_pairs; pair++) {
        const int a = interleaved ? 2 * pair : pair;
        const int b = interleaved ? 2 * pair + 1 : pair + n_pairs;
        const double factor = factors ? factors->values[pair] : 1.0;
        const double angle =
            position / linear_factor / factor * pow(base, -2.0 * pair / shape->rope_dim);
        const double x = head[a], y = head[b];
        head[a] = size * (x * cos(angle) - y * sin(angle));
        head[b] = size * (x * sin(angle) + y * cos(angle));
    }
}

/* Projects x to heads [n_heads][head_dim], normalised and turned. */
static void turned_heads(const toy_model *model, int layer, char kind, int n_heads, int position,
                         const double *x, double *heads)
{
    char name[16];
    snprintf(name, sizeof name, "attn_%c", kind);
    linear(model, layer, name, x, heads);
    snprintf(name, sizeof name, "attn_%c_norm", kind);
    char weight[32];
    snprintf(weight, sizeof weight, "%s.weight", name);
    const toy_tensor *norm = layer_tensor(model, layer, weight);
    for (int h = 0; h < n_heads; h++) {
        double *head = heads + (size_t)h * (size_t)model->shape.head_dim_k;
        if (norm) {
            rms_norm(norm, head, head);
        }
        rope(model, layer, position, head);
    }
}

/* One query head over keys k and values v, rows of `k_stride` and `v_stride` doubles. */
static void attend_head(const toy_shape *shape, int layer, int position, const double *q,
                        const double *k, size_t k_stride, const double *v, size_t v_stride,
                        double *out)
{
    const int window = window_of(shape, layer);
    const int first = window > 0 && position >= window ? position - window + 1 : 0;
    double sum = 0.0;
    memset(out, 0, (size_t)shape->head_dim_v * sizeof *out);
    for (int t = first; t <= position; t++) {
        double score = 0.0;
        for (int i = 0; i < shape->head_dim_k; i++) {
            score += q[i] * k[(size_t)t * k_stride + (size_t)i];
        }
        const double weight = exp(score / sqrt(shape->head_dim_k));
        sum += weight;
        for (int i = 0; i < shape->head_dim_v; i++) {
            out[i] += weight * v[(size_t)t * v_stride + (size_t)i];
        }
    }
    for (int i = 0; i < shape->head_dim_v; i++) {
        out[i] /= sum;
    }
}

/* What a block gives, x, to the residual. */
static void add_block(const toy_model *model, int layer, const char *post_norm, double *x,
                      double *row)
{
    if (model->shape.is_gemma) {
        rms_norm(layer_tensor(model, layer, post_norm), x, x);
    }
    for (int i = 0; i < model->shape.embedding_length; i++) {
        row[i] += x[i];
    }
}

static double activate(const toy_shape *shape, double z)
{
    const double pi = 3.14159265358979323846;
    return shape->is_gemma ? 0.5 * z * (1.0 + tanh(sqrt(2.0 / pi) * (z + 0.044715 * z * z * z)))
                           : z / (1.0 + exp(-z));
}

static void attention(const toy_model *model, int layer, int n_tokens, double *residual)
{
    const toy_shape *s = &model->shape;
    const size_t width = (size_t)s->embedding_length;
    const size_t k_row = (size_t)s->n_kv_heads * (size_t)s->head_dim_k;
    const size_t v_row = (size_t)s->n_kv_heads * (size_t)s->head_dim_v;
    double *k = new_doubles((size_t)n_tokens * k_row);
    double *v = new_doubles((size_t)n_tokens * v_row);
    double *q = new_doubles((size_t)s->n_heads * (size_t)s->head_dim_k);
    double *out = new_doubles((size_t)s->n_heads * (size_t)s->head_dim_v);
    double *x = new_doubles(width);
    for (int t = 0; t < n_tokens; t++) {
        double *row = residual + (size_t)t * width;
        rms_norm(layer_tensor(model, layer, "attn_norm.weight"), row, x);
        turned_heads(model, layer, 'k', s->n_kv_heads, t, x, k + (size_t)t * k_row);
        linear(model, layer, "attn_v", x, v + (size_t)t * v_row);
        turned_heads(model, layer, 'q', s->n_heads, t, x, q);
        for (int h = 0; h < s->n_heads; h++) {
            const size_t kv_head = (size_t)(h / (s->n_heads / s->n_kv_heads));
            attend_head(s, layer, t, q + (size_t)h * (size_t)s->head_dim_k,
                        k + kv_head * (size_t)s->head_dim_k, k_row,
                        v + kv_head * (size_t)s->head_dim_v, v_row,
                        out + (size_t)h * (size_t)s->head_dim_v);
        }
        linear(model, layer, "attn_output", out, x);
        add_block(model, layer, "post_attention_norm.weight", x, row);
    }
    free(k);
    free(v);
    free(q);
    free(out);
    free(x);
}

static void feed_forward(const toy_model *model, int layer, int n_tokens, double *residual)
{
    const size_t width = (size_t)model->shape.embedding_length;
    const size_t inner = (size_t)model->shape.feed_forward_length;
    double *x = new_doubles(width);
    double *gate = new_doubles(inner);
    double *up = new_doubles(inner);
    for (int t = 0; t < n_tokens; t++) {
        double *row = residual + (size_t)t * width;
        rms_norm(layer_tensor(model, layer, "ffn_norm.weight"), row, x);
        linear(model, layer, "ffn_gate", x, gate);
        linear(model, layer, "ffn_up", x, up);
        for (size_t i = 0; i < inner; i++) {
            gate[i] = activate(&model->shape, gate[i]) * up[i];
        }
        linear(model, layer, "ffn_down", gate, x);
        add_block(model, layer, "post_ffw_norm.weight", x, row);
    }
    free(x);
    free(gate);
    free(up);
}

void toy_model_forward(const toy_model *model, const int32_t *tokens, int n_tokens, double *logits)
{
    const size_t width = (size_t)model->shape.embedding_length;
    const size_t vocabulary = (size_t)model->shape.vocabulary_size;
    const toy_tensor *embedding = toy_model_find(model, "token_embd.weight");
    const toy_tensor *output = toy_model_find(model, "output.weight");
    const float *head = output ? output->values : embedding->values;
    double *residual = new_doubles((size_t)n_tokens * width);
    double *x = new_doubles(width);
    const double scale = model->shape.is_gemma ? sqrt((double)width) : 1.0;
    for (int t = 0; t < n_tokens; t++) {
        for (size_t i = 0; i < width; i++) {
            residual[(size_t)t * width + i] =
                scale * embedding->values[(size_t)tokens[t] * width + i];
        }
    }
    for (int layer = 0; layer < model->shape.n_layers; layer++) {
        attention(model, layer, n_tokens, residual);
        feed_forward(model, layer, n_tokens, residual);
    }
    for (int t = 0; t < n_tokens; t++) {
        rms_norm(toy_model_find(model, "output_norm.weight"), residual + (size_t)t * width, x);
        for (size_t o = 0; o < vocabulary; o++) {
            double *logit = &logits[(size_t)t * vocabulary + o];
            *logit = 0.0;
            for (size_t i = 0; i < width; i++) {
                *logit += (double)head[o * width + i] * x[i];
            }
        }
    }
    free(residual);
    free(x);
}
