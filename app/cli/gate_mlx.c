/* The pre-flight check of MLX, printed. */
#include "cli/gate.h"
#include "gate/mlx.h"

#include <stdio.h>
#include <string.h>

/* To import MLX on a slow disk, and to compile a kernel. */
static const int TIMEOUT_SECONDS = 90;

static cJSON *to_json(const tkv_mlx_gate *gate)
{
    cJSON *json = cJSON_CreateObject();
    command_add_text(json, "python", gate->python, strlen(gate->python));
    cJSON *steps = cJSON_AddArrayToObject(json, "steps");
    for (int i = 0; i < gate->n_steps; i++) {
        const tkv_mlx_step *step = &gate->steps[i];
        cJSON *item = cJSON_CreateObject();
        command_add_text(item, "step", step->name, strlen(step->name));
        cJSON_AddBoolToObject(item, "passed", step->has_passed);
        command_add_text(item, "detail", step->detail, strlen(step->detail));
        cJSON_AddItemToArray(steps, item);
    }
    cJSON_AddStringToObject(json, "verdict", tkv_mlx_verdict_name(gate->verdict));
    command_add_text(json, "reason", gate->reason, strlen(gate->reason));
    return json;
}

int gate_mlx(const gate_options *o)
{
    tkv_mlx_gate gate;
    tkv_error error;
    if (tkv_mlx_gate_run(o->python, TIMEOUT_SECONDS, &gate, &error) != TKV_OK) {
        command_fail(&error);
        return EXIT_GATE_ERROR;
    }
    if (o->wants_json) {
        return command_print_json(to_json(&gate)) == EXIT_OK ? (int)gate.verdict : EXIT_GATE_ERROR;
    }
    printf("%s\n", gate.python);
    for (int i = 0; i < gate.n_steps; i++) {
        printf("  %-5s %-24s %s\n", gate.steps[i].has_passed ? "ok" : "FAIL", gate.steps[i].name,
               gate.steps[i].detail);
    }
    printf("\nMLX: %s\n  %s\n", tkv_mlx_verdict_name(gate.verdict), gate.reason);
    return (int)gate.verdict;
}
