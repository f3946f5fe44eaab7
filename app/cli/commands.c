#include "cli/commands.h"

#include "turbokv.h"

#include <string.h>

#define N(array) ((int)(sizeof(array) / sizeof *(array)))

static const command benchmarks[] = {
    {"attention", NULL, NULL, &bench_attention_options, bench_attention, NULL, 0},
    {"codec", NULL, NULL, &bench_codec_options, bench_codec, NULL, 0},
    {"kernels", NULL, NULL, &bench_kernels_options, bench_kernels, NULL, 0},
    {"model", NULL, NULL, &bench_model_options, bench_model, NULL, 0},
};

static const command commands[] = {
    {"run", NULL, NULL, &command_run_options, command_run, NULL, 0},
    {"demo", NULL, NULL, &command_demo_options, command_demo, NULL, 0},
    {"eval", NULL, NULL, &command_eval_options, command_eval, NULL, 0},
    {"bench", "benchmark", "measure errors and speeds beside their bounds", NULL, NULL, benchmarks,
     N(benchmarks)},
    {"gate", NULL, NULL, &command_gate_options, command_gate, NULL, 0},
    {"plan", NULL, NULL, &command_plan_options, command_plan, NULL, 0},
    {"types", NULL, NULL, &command_types_options, command_types, NULL, 0},
};

static const command root = {"", "command", "", NULL, NULL, commands, N(commands)};

const command *command_root(void)
{
    return &root;
}

const char *command_summary(const command *c)
{
    return c->options ? c->options->summary : c->summary;
}

const command *command_find(const command *parent, const char *name)
{
    for (int i = 0; i < parent->n_members; i++) {
        if (strcmp(parent->members[i].name, name) == 0) {
            return &parent->members[i];
        }
    }
    return NULL;
}

void command_print_members(FILE *file, const command *c)
{
    const char *space = c->name[0] ? " " : "";
    fprintf(file, "usage: turbokv %s%sNAME [options]\n\n%ss:\n", c->name, space, c->noun);
    for (int i = 0; i < c->n_members; i++) {
        fprintf(file, "  %-10s %s\n", c->members[i].name, command_summary(&c->members[i]));
    }
    fprintf(file, "\n'turbokv %s%sNAME --help' lists the options of a %s.\n", c->name, space,
            c->noun);
}

static cJSON *members_to_json(const command *parent);

static cJSON *command_to_json(const command *c)
{
    cJSON *json = c->options ? options_to_json(c->options) : cJSON_CreateObject();
    cJSON_AddStringToObject(json, "name", c->name);
    if (!c->options) {
        cJSON_AddStringToObject(json, "command", c->name);
        cJSON_AddStringToObject(json, "summary", c->summary);
    }
    cJSON_AddItemToObject(json, "commands", members_to_json(c));
    return json;
}

static cJSON *members_to_json(const command *parent)
{
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; i < parent->n_members; i++) {
        cJSON_AddItemToArray(list, command_to_json(&parent->members[i]));
    }
    return list;
}

cJSON *command_dump(void)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "program", "turbokv");
    cJSON_AddStringToObject(json, "version", tkv_version());
    cJSON_AddItemToObject(json, "commands", members_to_json(&root));
    return json;
}
