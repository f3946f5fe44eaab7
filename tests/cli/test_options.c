/* The option tables: what is accepted, what is said of the rest, and what the help tells. */
#include "process.h"

#include <unistd.h>

#include "cli/commands.h"
#include "cli/llama_options.h"

/* Calls a function for the table of every command. */
static void for_each_table(void (*check)(const option_table *table))
{
    const command *root = command_root();
    int n_tables = 0;
    for (int i = 0; i < root->n_members; i++) {
        const command *c = &root->members[i];
        for (int k = 0; k < (c->options ? 1 : c->n_members); k++) {
            check(c->options ? c->options : c->members[k].options);
            n_tables++;
        }
    }
    assert_true(n_tables >= 9);
}

/* Parses a command's name and words after it in this process. The caller frees the options;
 * *message is what went to stderr. */
static option_result parse_words(const option_table *table, const char *const *words, int n_words,
                                 void **options, char *message, size_t size)
{
    char path[] = "/tmp/tkv_test_options_XXXXXX";
    const int file = mkstemp(path);
    assert_true(file >= 0);
    fflush(stderr);
    const int before = dup(STDERR_FILENO);
    dup2(file, STDERR_FILENO);
    *options = allocate(table->size);
    const option_result result = options_parse(table, n_words, (char **)(uintptr_t)words, *options);
    fflush(stderr);
    dup2(before, STDERR_FILENO);
    close(before);
    const ssize_t length = pread(file, message, size - 1, 0);
    message[length > 0 ? length : 0] = '\0';
    close(file);
    unlink(path);
    return result;
}

static option_result parse(const option_table *table, const char *name, const char *value,
                           void **options, char *message, size_t size)
{
    const char *const words[] = {table->command, name, value};
    return parse_words(table, words, value ? 3 : 2, options, message, size);
}

static void check_names(const option_table *table)
{
    for (int i = 0; i < table->n_entries; i++) {
        const option_entry *e = &table->entries[i];
        char name[64];
        snprintf(name, sizeof name, "--%s", e->name);
        assert_ptr_equal(option_find(table, name), e);
        /* No shorter one means it, unless it is a name of its own; nor do fewer dashes. */
        assert_true(option_find(table, name + 1) != e);
        for (size_t length = strlen(name) - 1; length > 2; length--) {
            name[length] = '\0';
            assert_true(option_find(table, name) != e);
        }
    }
}

static void names_count_in_full_and_once(void **state)
{
    (void)state;
    for_each_table(check_names);
    assert_outcome(run("run", "--pred", "5"), 2, "", "no option '--pred': did you mean --predict?");
    assert_outcome(run("run", "-ctx-size", "5"), 2, "", "did you mean --ctx-size?");
    assert_outcome(run("run", "--ignore"), 2, "", "no option '--ignore'");
    assert_outcome(run("run", "--c", "5"), 2, "", "no option '--c'");
    assert_outcome(run("run", "--colour", "red"), 2, "", "--cache-type-v");
    assert_outcome(run("run", "-x"), 2, "", "no option '-x'");
    assert_outcome(run("run", "--json=yes", "-p", "x"), 2, "",
                   "--json is 'yes': expected no value");
    assert_outcome(run("run", "-c3", "-p", "a b c d e f g h"), 1, "", "context 3");
    assert_outcome(run("run", "--ctx-size=3", "-p", "a b c d e f g h"), 1, "", "context 3");
    assert_outcome(run("types", "--", "--json"), 2, "", "unexpected argument '--json'");
}

/* What is said of words that are wrong; the caller frees it. */
static char *refusal(const option_table *table, const char *const *words, int n_words)
{
    char *message = allocate(1024);
    void *options;
    assert_int_equal(parse_words(table, words, n_words, &options, message, 1024), OPTIONS_WRONG);
    free(options);
    return message;
}

/* Every option with a value, given by any two of its names; a value that is valid is its default or
 * the first of its words. */
static void check_twice(const option_table *table)
{
    assert_true(table->n_entries <= OPTION_MAX_ENTRIES);
    for (int i = 0; i < table->n_entries; i++) {
        const option_entry *e = &table->entries[i];
        char name[64];
        char letter[3] = {'-', e->letter, '\0'};
        char text[512];
        char word[32] = "64";
        snprintf(name, sizeof name, "--%s", e->name);
        if (!e->argument || e->kind == OPTION_POLICY_FILE || e->kind == OPTION_POLICY_LIST) {
            continue;
        }
        if (strcmp(e->name, "boundary") == 0) {
            snprintf(text, sizeof text, "2:turbo8");
        } else if (!option_default(table, e, text, sizeof text)) {
            (void)option_word(e, 0, word);
            snprintf(text, sizeof text, "%s", word);
        }
        const char *const words[] = {table->command, e->letter ? letter : name, text, name, text};
        char *message = refusal(table, words, 5);
        char expected[160];
        snprintf(expected, sizeof expected, "turbokv: %s is given twice: expected one %s\n", name,
                 e->argument);
        assert_string_equal(message, expected);
        free(message);
    }
}

static void a_value_is_given_once(void **state)
{
    (void)state;
    for_each_table(check_twice);
    assert_outcome(run("eval", "-f", "x", "-P", "turbo4", "-P", "turbo3"), 2, "",
                   "-P is given twice: expected one LIST");
    assert_outcome(run("run", "-p", "x", "-c3", "--ctx-size=4"), 2, "",
                   "--ctx-size is given twice: expected one N");
    assert_outcome(run("plan", "a.gguf", "-m", "b.gguf"), 2, "", "-m is given twice");
    assert_outcome(run("plan", "-m", "a.gguf", "b.gguf"), 2, "", "unexpected argument 'b.gguf'");
    assert_outcome(run("types", "--json", "--json"), 0, "\"types\"", "");
    cJSON *json =
        run_json((const char *const[]){"run", "-p", "Once", "-n", "1", "--layers", "1-2:turbo8",
                                       "--layers", "4-4:turbo4", "--json", NULL});
    assert_non_null(strstr(text_of(json, "policy"), "layers=1-2:turbo8"));
    assert_non_null(strstr(text_of(json, "policy"), "layers=4-4:turbo4"));
    cJSON_Delete(json);
}

/* A preset or a file takes the place of a whole policy: nothing that was said before is lost to it.
 */
static void no_policy_undoes_another(void **state)
{
    (void)state;
    const char *const before[][2] = {{"-ctk", "turbo4"},     {"-ctv", "turbo4"},
                                     {"--sinks", "4"},       {"--recent", "4"},
                                     {"--centre", "0"},      {"--boundary", "2:turbo8"},
                                     {"--sparse-v", "auto"}, {"--layers", "0-1:turbo8"}};
    char path[] = "/tmp/tkv_test_policy_XXXXXX";
    const int file = mkstemp(path);
    assert_int_equal(write(file, "kv 3bit\n", 8), 8);
    close(file);
    const char *const whole[][2] = {{"--kv", "4bit"}, {"--policy", path}};
    for (size_t i = 0; i < sizeof before / sizeof *before; i++) {
        for (size_t k = 0; k < 2; k++) {
            const char *const late[] = {"run", before[i][0], before[i][1], whole[k][0],
                                        whole[k][1]};
            char *message = refusal(&command_run_options, late, 5);
            assert_non_null(strstr(message, "and would undo it: expected "));
            assert_non_null(strstr(message, whole[k][0]));
            free(message);
            const char *const early[] = {"run", whole[k][0], whole[k][1], before[i][0],
                                         before[i][1]};
            char none[1024];
            void *options;
            assert_int_equal(
                parse_words(&command_run_options, early, 5, &options, none, sizeof none),
                OPTIONS_OK);
            free(options);
        }
    }
    assert_outcome(run("run", "-p", "x", "--policy", path, "--kv", "4bit"), 2, "",
                   "--kv comes after --policy and would undo it: expected --kv first");
    unlink(path);
}

/* What option_default tells is what parsing it gives. */
static void check_defaults(const option_table *table)
{
    for (int i = 0; i < table->n_entries; i++) {
        const option_entry *e = &table->entries[i];
        char name[64];
        char text[512];
        char again[512];
        char message[1024];
        void *options;
        snprintf(name, sizeof name, "--%s", e->name);
        if (!option_default(table, e, text, sizeof text)) {
            continue;
        }
        const option_result result = parse(table, name, text, &options, message, sizeof message);
        if (result != OPTIONS_OK) {
            fail_msg("%s %s %s: %s", table->command, name, text, message);
        }
        option_table parsed = *table;
        parsed.defaults = options;
        assert_true(option_default(&parsed, e, again, sizeof again));
        assert_string_equal(again, text);
        free(options);
    }
}

static bool has_range(option_kind kind)
{
    return kind == OPTION_INT || kind == OPTION_REAL || kind == OPTION_SEED || kind == OPTION_SIZE;
}

static void check_ranges(const option_table *table)
{
    const char *const wrong_values[] = {"x", "", "1x", "99999999999999999999999", "nan"};
    for (int i = 0; i < table->n_entries; i++) {
        const option_entry *e = &table->entries[i];
        for (size_t k = 0; k < sizeof wrong_values / sizeof *wrong_values && has_range(e->kind);
             k++) {
            char name[64];
            char message[1024];
            void *options;
            snprintf(name, sizeof name, "--%s", e->name);
            assert_int_equal(parse(table, name, wrong_values[k], &options, message, sizeof message),
                             OPTIONS_WRONG);
            free(options);
            if (!strstr(message, name) || !strstr(message, "from ") || !strstr(message, " to ")) {
                fail_msg("%s %s %s: '%s'", table->command, name, wrong_values[k], message);
            }
        }
    }
}

static void help_and_errors_tell_values_in_force(void **state)
{
    (void)state;
    for_each_table(check_defaults);
    for_each_table(check_ranges);
    assert_outcome(run("run", "--help"), 0, "-n, --predict, --n-predict N", "");
    assert_outcome(run("run", "--effort", "most", "-p", "x"), 2, "",
                   "--effort is 'most': expected fast, default or best");
    assert_outcome(run("run", "-n"), 2, "", "-n needs a value: N");
}

/* Coded keys are centred without being asked to; the help says so. */
static void coded_keys_are_centred(void **state)
{
    (void)state;
    char value[32];
    assert_true(option_default(&command_run_options, option_find(&command_run_options, "--centre"),
                               value, sizeof value));
    assert_string_equal(value, "64");
    cJSON *json = run_json((const char *const[]){"run", "-p", "Once", "-n", "2", "-ctk", "turbo4",
                                                 "-ctv", "turbo4", "--json", NULL});
    assert_string_equal(text_of(json, "policy"), "k=turbo4 v=turbo4 centre=64");
    cJSON_Delete(json);
    json = run_json((const char *const[]){"run", "-p", "Once", "-n", "2", "-ctk", "turbo4",
                                          "--centre", "0", "--json", NULL});
    assert_string_equal(text_of(json, "policy"), "k=turbo4 v=f16");
    cJSON_Delete(json);
    json = run_json((const char *const[]){"eval", "-f", TKV_SOURCE_DIR "/README.md", "-c", "64",
                                          "--chunks", "1", "-P", "turbo4/turbo3", "--json", NULL});
    const cJSON *row = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "policies"), 0);
    assert_string_equal(text_of(row, "policy_text"), "k=turbo4 v=turbo3 centre=64");
    cJSON_Delete(json);
}

typedef struct foreign {
    const char *words[3];
    const char *message; /* NULL: accepted, with a note */
} foreign;

/* Options of llama.cpp after a command that ends soon. */
static void options_of_llama_cpp_are_named(void **state)
{
    (void)state;
    const foreign options[] = {
        {{"-ngl", "99"}, "-ngl: layers stay where --device says"},
        {{"--n-gpu-layers=99"}, "--n-gpu-layers: layers stay where --device says"},
        {{"-ngl", "0"}, NULL},
        {{"-hf", "someone/model"}, "-hf: models are not downloaded: give a file with -m"},
        {{"-i"}, "-i: one prompt is read, one text is written"},
        {{"-cnv"}, "-cnv: one prompt"},
        {{"-no-cnv"}, NULL},
        {{"-fa"}, NULL},
        {{"-fa", "on"}, NULL},
        {{"--flash-attn", "auto"}, NULL},
        {{"-b", "512"}, NULL},
        {{"-ub", "512"}, NULL},
        {{"-np", "4"}, "-np: there is one sequence at a time"},
        {{"-np", "1"}, NULL},
        {{"-e"}, "-e: a prompt is taken as it is"},
        {{"-mg", "1"}, "-mg: give the GPU's number with --device"},
        {{"-sm", "row"}, "-sm: a model is on one device"},
        {{"-nkvo"}, "-nkvo: the KV cache is where --device says"},
        {{"-dt", "0.1"}, NULL},
        {{"-tb", "4"}, NULL},
        {{"--no-mmap"}, NULL},
        {{"--repeat-penalty", "1.0"}, NULL},
        {{"--repeat-penalty", "1.3"}, "--repeat-penalty: sampling is by --temp"},
        {{"--color"}, NULL},
        {{"--spec-draft-n-max", "5"}, "--spec-draft-n-max: there are no draft models"},
        {{"-md", "draft.gguf"}, "-md: there are no draft models"},
        {{"-r", "User:"}, "-r: a text ends with"},
        {{"--jinja"}, NULL},
        {{"--host", "0.0.0.0"}, "--host: there is no server"},
        {{"--rope-freq-base", "1e6"}, "--rope-freq-base: positions are turned"},
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        const foreign *f = &options[i];
        outcome o = run("types", f->words[0], f->words[1] ? f->words[1] : "--json", "--json");
        if (f->message) {
            assert_outcome(o, 2, "", f->message);
        } else {
            assert_outcome(o, 0, "\"types\"", "has no effect");
        }
    }
    /* No word of llama.cpp means an option of another name. */
    assert_outcome(run("run", "-p", "x", "-i"), 2, "", "an option of llama.cpp that turbokv lacks");
    assert_outcome(run("run", "-p", "x", "-hf", "y"), 2, "", "not downloaded");
}

static const char *last_line(const char *text)
{
    static const char nothing[] = "";
    const size_t length = strlen(text);
    const char *line = length ? text + length - 1 : nothing;
    while (line > text && line[-1] != '\n') {
        line--;
    }
    return line;
}

static void assert_last(outcome o, int status, const char *message)
{
    if (!strstr(last_line(o.err), message)) {
        fail_msg("the last line is not '%s': '%s'", message, o.err);
    }
    assert_outcome(o, status, "", message);
}

static void the_message_comes_last(void **state)
{
    (void)state;
    assert_last(run("run", "hello"), 2,
                "unexpected argument 'hello': a prompt is given with -p TEXT");
    assert_last(run("run"), 2, "-f - reads standard input");
    assert_last(run_script("echo hello | \"$TURBOKV\" run"), 2, "-f - reads standard input");
    assert_last(run("run", "--colour"), 2, "no option '--colour'");
    assert_last(run("fly"), 2, "no command 'fly': expected run, ");
    assert_last(run("bench", "fly"), 2,
                "no benchmark 'fly': expected attention, codec, kernels or model");
    assert_last(run("bench"), 2, "expected a benchmark");
    assert_last(run_with((const char *const[]){NULL}), 2, "expected a command");
    assert_last(run("help", "fly"), 2, "no command 'fly'");
    assert_last(run("eval"), 2, "-f FILE");
    outcome o = run_script("printf 'The old house stood' | \"$TURBOKV\" run -f - -n 3 --temp 0");
    outcome same = run("run", "-p", "The old house stood", "-n", "3", "--temp", "0");
    assert_int_equal(o.status, 0);
    assert_string_equal(o.out, same.out);
    done(&same);
    done(&o);
}

static void help_is_of_the_command(void **state)
{
    (void)state;
    const char *const words[][3] = {{"run", "--help"},    {"run", "-h"},
                                    {"help", "run"},      {"-h", "run"},
                                    {"--help", "run"},    {"help", "run", "--help"},
                                    {"help", "run", "-h"}};
    outcome first = run("run", "--help");
    assert_non_null(strstr(first.out, "usage: turbokv run [options]"));
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        outcome o = run(words[i][0], words[i][1], words[i][2]);
        assert_int_equal(o.status, 0);
        assert_string_equal(o.out, first.out);
        done(&o);
    }
    done(&first);
    assert_outcome(run("help", "bench", "model"), 0, "usage: turbokv bench model [options]", "");
    assert_outcome(run("help", "bench"), 0, "benchmarks:", "");
    assert_outcome(run("help"), 0, "commands:", "");
    assert_outcome(run("-h"), 0, "commands:", "");
}

/* What man pages and completions are made from. */
static void tables_are_dumped(void **state)
{
    (void)state;
    cJSON *json = run_json((const char *const[]){"help", "--dump", NULL});
    assert_string_equal(text_of(json, "version"), tkv_version());
    const cJSON *commands = cJSON_GetObjectItem(json, "commands");
    assert_int_equal(cJSON_GetArraySize(commands), command_root()->n_members);
    const cJSON *run_command = cJSON_GetArrayItem(commands, 0);
    assert_string_equal(text_of(run_command, "name"), "run");
    const cJSON *entry;
    bool has_type = false;
    cJSON_ArrayForEach(entry, cJSON_GetObjectItem(run_command, "options"))
    {
        if (strcmp(text_of(entry, "name"), "cache-type-k") == 0) {
            has_type = true;
            assert_string_equal(text_of(entry, "kind"), "type");
            assert_string_equal(text_of(entry, "default"), "f16");
            assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(entry, "words")),
                             TKV_TYPE_COUNT);
        }
    }
    assert_true(has_type);
    cJSON_Delete(json);
}

/* What a short context does to a policy, and what the model's layers say to it. */
static void policies_fit_the_context_and_the_model(void **state)
{
    (void)state;
    const char *const presets[] = {"8bit", "4bit", "3bit", "2bit"};
    for (int i = 0; i < 4; i++) {
        assert_outcome(run("run", "-p", "One two", "-c", "20", "-n", "30", "--kv", presets[i]), 0,
                       "", "KV cache of");
    }
    assert_outcome(run("run", "-p", "One", "-c", "3", "-n", "30", "--kv", "3bit"), 0, "",
                   "KV cache of");
    assert_outcome(run("run", "-p", "One two", "-c", "20", "--sinks", "21"), 1, "", "21 sinks");
    assert_outcome(run("run", "-p", "One", "--boundary", "9:turbo8"), 1, "",
                   "first and last 9 layers: 6 keep keys");
    assert_outcome(run("run", "-p", "One", "-n", "2", "--boundary", "6:turbo8"), 0, "", "");
    assert_outcome(run("run", "-p", "One", "--layers", "3-9:turbo8"), 1, "", "layers 3-9");
}

static void an_endless_text_is_announced(void **state)
{
    (void)state;
    assert_outcome(run("run", "-p", "One two three", "-c", "24", "--context-shift", "--keep", "23"),
                   1, "", "expected a smaller --keep");
    /* Before the first word. */
    assert_outcome(run("run", "-p", "One two three", "-c", "32", "-n", "60", "--context-shift",
                       "--keep", "31"),
                   1, "", "a context of 32 tokens of which 31 are kept cannot be shifted");
    outcome o = run_script("\"$TURBOKV\" run -p 'One two' -c 32 --context-shift | head -c 40");
    assert_non_null(strstr(o.err, "with --context-shift and without -n"));
    assert_non_null(strstr(o.err, "-n N sets a bound, Ctrl-C stops"));
    done(&o);
    o = run("run", "-p", "One two", "-c", "32", "--context-shift", "-n", "3");
    assert_null(strstr(o.err, "note"));
    done(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(names_count_in_full_and_once),
                                       cmocka_unit_test(a_value_is_given_once),
                                       cmocka_unit_test(no_policy_undoes_another),
                                       cmocka_unit_test(help_and_errors_tell_values_in_force),
                                       cmocka_unit_test(coded_keys_are_centred),
                                       cmocka_unit_test(options_of_llama_cpp_are_named),
                                       cmocka_unit_test(the_message_comes_last),
                                       cmocka_unit_test(help_is_of_the_command),
                                       cmocka_unit_test(tables_are_dumped),
                                       cmocka_unit_test(policies_fit_the_context_and_the_model),
                                       cmocka_unit_test(an_endless_text_is_announced)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
