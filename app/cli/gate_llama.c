/* The gate of a llama.cpp tree, printed. */
#include "cli/gate.h"
#include "cli/progress.h"
#include "gate/llama_tree.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILES 24
#define MAX_NAMES 12
#define MAX_BRANCHES 60
#define LINE_WIDTH 100

static void show_progress(void *user, int n_done, int n_steps)
{
    progress_update(user, n_done, n_steps);
}

static int by_mentions(const void *a, const void *b)
{
    const tkv_llama_file *x = a;
    const tkv_llama_file *y = b;
    return x->n_mentions != y->n_mentions
               ? (x->n_mentions < y->n_mentions) - (x->n_mentions > y->n_mentions)
               : strcmp(x->path, y->path);
}

static void print_files(const tkv_words *words, const tkv_llama_snapshot *s)
{
    printf("%d files read, %d mention ", s->n_files, s->n_found);
    for (int i = 0; i < words->n; i++) {
        printf("%s%s", i ? ", " : "", words->word[i]);
    }
    printf("%s on %d lines\n", words->n ? "" : "a compressed type", s->n_mentions);
    if (s->n_unreadable + s->n_skipped > 0) {
        printf("%d could not be read and %d were skipped: %s\n", s->n_unreadable, s->n_skipped,
               s->trouble);
    }
    if (s->n_found > 0) {
        printf("\n%11s %9s  file\n", "lines", "of lines");
    }
    for (int i = 0; i < s->n_found && i < MAX_FILES; i++) {
        printf("%11d %9d  %s\n", s->found[i].n_mentions, s->found[i].n_lines, s->found[i].path);
    }
    if (s->n_found > MAX_FILES) {
        printf("%11s            and %d more files (--json has all)\n", "", s->n_found - MAX_FILES);
    }
}

/* Words on lines that do not grow too long. */
typedef struct paragraph {
    const char *label;
    int n_words;
    int column;
} paragraph;

static void print_word(paragraph *p, const char *word)
{
    if (p->n_words == 0) {
        p->column = printf("  %-16s ", p->label);
    } else if (p->column + 2 + (int)strlen(word) > LINE_WIDTH) {
        p->column = printf(",\n%19s", "") - 2;
    } else {
        p->column += printf(", ");
    }
    p->column += printf("%s", word);
    p->n_words++;
}

static void end_paragraph(const paragraph *p)
{
    if (p->n_words > 0) {
        putchar('\n');
    }
}

static void print_names(const tkv_llama_backend *b, const char *label, tkv_llama_role role,
                        tkv_evidence_kind kind)
{
    paragraph p = {.label = label};
    int n = 0;
    for (int i = 0; i < b->evidence.n_items; i++) {
        const tkv_evidence *item = &b->evidence.items[i];
        if (item->kind == kind && item->role == role && n++ < MAX_NAMES) {
            print_word(&p, item->name);
        }
    }
    if (n > MAX_NAMES) {
        char more[32];
        snprintf(more, sizeof more, "and %d more", n - MAX_NAMES);
        print_word(&p, more);
    }
    end_paragraph(&p);
}

static bool is_attention(const tkv_evidence *item)
{
    return item->kind == TKV_EVIDENCE_KERNEL && item->role == TKV_LLAMA_ATTENTION &&
           item->type_k[0];
}

static bool is_same_pair(const tkv_evidence *a, const tkv_evidence *b)
{
    return strcmp(a->type_k, b->type_k) == 0 && strcmp(a->type_v, b->type_v) == 0;
}

/* Head sizes of a pair of types, "64 128 192/128"; the text starts at the pair's first kernel. */
static void list_head_sizes(const tkv_llama_backend *b, int first, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = first; i < b->evidence.n_items && used + 24 < size; i++) {
        const tkv_evidence *item = &b->evidence.items[i];
        char dims[24];
        snprintf(dims, sizeof dims, item->dim_k == item->dim_v ? " %d" : " %d/%d", item->dim_k,
                 item->dim_v);
        const char *known = strstr(text, dims);
        const char after = known ? known[strlen(dims)] : 'x';
        if (is_attention(item) && is_same_pair(item, &b->evidence.items[first]) && item->dim_k &&
            !(after == ' ' || after == '\0')) {
            used += (size_t)snprintf(text + used, size - used, "%s", dims);
        }
    }
}

static bool is_first_of_pair(const tkv_llama_backend *b, int i)
{
    const tkv_evidence *item = &b->evidence.items[i];
    for (int j = 0; j < i; j++) {
        if (is_attention(&b->evidence.items[j]) && is_same_pair(item, &b->evidence.items[j])) {
            return false;
        }
    }
    return is_attention(item);
}

/* Pairs of key and value types, those with the same head sizes together. */
static void print_attention(const tkv_llama_backend *b)
{
    bool *is_done = calloc((size_t)b->evidence.n_items + 1, sizeof *is_done);
    for (int i = 0; is_done && i < b->evidence.n_items; i++) {
        if (is_done[i] || !is_first_of_pair(b, i)) {
            continue;
        }
        char sizes[256];
        char others[256];
        char label[sizeof sizes + 32];
        paragraph p = {.label = "flash attention"};
        list_head_sizes(b, i, sizes, sizeof sizes);
        for (int j = i; j < b->evidence.n_items; j++) {
            const tkv_evidence *item = &b->evidence.items[j];
            if (is_first_of_pair(b, j)) {
                list_head_sizes(b, j, others, sizeof others);
                is_done[j] = is_done[j] || strcmp(sizes, others) == 0;
                if (strcmp(sizes, others) == 0) {
                    snprintf(label, sizeof label, "%s/%s", item->type_k, item->type_v);
                    print_word(&p, label);
                }
            }
        }
        end_paragraph(&p);
        printf("%19son heads of%s\n", "", sizes[0] ? sizes : " sizes not named here");
    }
    free(is_done);
}

static void print_codebooks(const tkv_llama_backend *b)
{
    paragraph p = {.label = "codebooks"};
    for (int i = 0; i < b->evidence.n_items; i++) {
        const tkv_evidence *item = &b->evidence.items[i];
        char word[192];
        double best = 0.0;
        if (item->kind == TKV_EVIDENCE_CODEBOOK) {
            const double error = tkv_llama_codebook_error(b, item, &best);
            snprintf(word, sizeof word, best > 0.0 ? "%s[%d] (error %.4f, best %.4f)" : "%s[%d]",
                     item->name, item->n_values, error, best);
            print_word(&p, word);
        }
    }
    end_paragraph(&p);
}

static void print_backend(const tkv_llama_backend *b)
{
    if (b->evidence.n_items == 0) {
        return;
    }
    printf("\n%s:%s%s\n", b->name,
           strcmp(b->name, "shared") == 0 ? ""
           : b->is_complete               ? " complete, types "
                                          : " not complete",
           b->is_complete ? b->types : "");
    for (int role = 0; role < TKV_LLAMA_ATTENTION; role++) {
        print_names(b, tkv_llama_role_name((tkv_llama_role)role), (tkv_llama_role)role,
                    TKV_EVIDENCE_KERNEL);
        print_names(b, role == TKV_LLAMA_ROTATE ? "  functions" : "  parts", (tkv_llama_role)role,
                    TKV_EVIDENCE_FUNCTION);
    }
    print_attention(b);
    print_names(b, "inner products", TKV_LLAMA_ATTENTION, TKV_EVIDENCE_FUNCTION);
    print_names(b, "other kernels", TKV_LLAMA_NO_ROLE, TKV_EVIDENCE_KERNEL);
    print_codebooks(b);
    print_names(b, "midpoints", TKV_LLAMA_NO_ROLE, TKV_EVIDENCE_MIDPOINTS);
    print_names(b, "signs", TKV_LLAMA_NO_ROLE, TKV_EVIDENCE_SIGNS);
    print_names(b, "types", TKV_LLAMA_NO_ROLE, TKV_EVIDENCE_TYPE);
    print_names(b, "switches", TKV_LLAMA_NO_ROLE, TKV_EVIDENCE_SWITCH);
}

/* Of branches that were not looked at only the names. */
static void print_other_branches(const tkv_llama_tree *tree)
{
    paragraph p = {.label = "experiments"};
    for (int i = 0; i < tree->n_snapshots; i++) {
        if (tree->snapshots[i].n_files == 0 && tree->snapshots[i].is_experiment) {
            print_word(&p, tree->snapshots[i].name);
        }
    }
    if (p.n_words > 0) {
        printf("\n%19s(branches, not looked at with --ref)\n", "");
    }
}

static void print_branches(const gate_options *o, const tkv_llama_tree *tree)
{
    int n_experiments = 0;
    for (int i = 0; i < tree->n_snapshots; i++) {
        n_experiments += tree->snapshots[i].is_experiment;
    }
    if (tree->n_snapshots < 2) {
        return;
    }
    if (o->ref) {
        putchar('\n');
        print_other_branches(tree);
        return;
    }
    printf("\n%d states, %d experiment branches (lines that mention the types: all, Metal's)\n",
           tree->n_snapshots, n_experiments);
    for (int i = 0; i < tree->n_snapshots && i < MAX_BRANCHES; i++) {
        const tkv_llama_snapshot *s = &tree->snapshots[i];
        printf("  %-44.60s %.9s %6d %5d  %s\n", s->name, s->commit, s->n_mentions,
               s->n_metal_mentions, s->proceeds ? "proceed" : "fall back");
    }
    if (tree->n_snapshots > MAX_BRANCHES) {
        printf("  and %d more (--json has all)\n", tree->n_snapshots - MAX_BRANCHES);
    }
}

static void print_verdict(const tkv_llama_tree *tree)
{
    const tkv_llama_snapshot *s = &tree->snapshots[tree->chosen];
    for (int i = 0; i < s->n_warnings; i++) {
        printf("%swarning: %s\n", i ? "" : "\n", s->warnings[i]);
    }
    if (s->proceeds) {
        const tkv_llama_backend *metal = s->backends;
        while (strcmp(metal->name, "metal") != 0) {
            metal++;
        }
        printf("\nverdict: PROCEED with the llama.cpp path: Metal has %s, in '%s'\n", metal->types,
               s->name);
        if (tree->chosen > 0) {
            printf("  which is not what is checked out: git switch --detach %.12s\n", s->commit);
        }
        return;
    }
    printf("\nverdict: FALL BACK to MLX (turbokv gate --mlx); '%s' lacks:\n", s->name);
    for (int i = 0; i < s->n_missing; i++) {
        printf("  %s\n", s->missing[i]);
    }
}

static void print_tree(const gate_options *o, const tkv_llama_tree *tree)
{
    const tkv_llama_snapshot *s = &tree->snapshots[tree->chosen];
    printf("%s: %s\nevidence from '%s'%s%.12s: ", o->llama_cpp, tkv_llama_kind_name(tree->kind),
           s->name, s->commit[0] ? ", commit " : "", s->commit);
    print_files(&tree->words, s);
    for (int i = 0; i < s->n_backends; i++) {
        print_backend(&s->backends[i]);
    }
    print_branches(o, tree);
    print_verdict(tree);
}

int gate_llama_cpp(const gate_options *o)
{
    tkv_llama_tree tree;
    tkv_error error;
    progress bar;
    progress_begin(&bar, "branches");
    const tkv_llama_params params = {
        .path = o->llama_cpp, .ref = o->ref, .progress = show_progress, .progress_user = &bar};
    const tkv_status status = tkv_llama_tree_read(&params, &tree, &error);
    progress_end(&bar);
    if (status != TKV_OK) {
        tkv_llama_tree_free(&tree);
        command_fail(&error);
        return EXIT_GATE_ERROR;
    }
    tkv_llama_snapshot *chosen = &tree.snapshots[tree.chosen];
    int code = chosen->proceeds ? EXIT_GATE_GO : EXIT_GATE_FALLBACK;
    if (chosen->n_found > 0) {
        qsort(chosen->found, (size_t)chosen->n_found, sizeof *chosen->found, by_mentions);
    }
    if (o->wants_json) {
        code = command_print_json(gate_llama_to_json(o, &tree)) == EXIT_OK ? code : EXIT_GATE_ERROR;
    } else {
        print_tree(o, &tree);
    }
    tkv_llama_tree_free(&tree);
    return code;
}
