/* turbokv gate: may this machine, or a tree of sources, be trusted with the KV cache? */
#include "cli/gate.h"

#include "cli/commands.h"

#include <stdio.h>

static const gate_options defaults = {.python = "python3", .n_threads = 1};

static const option_entry entries[] = {
    {"cached", NULL, 0, OPTION_FLAG, OPTION_AT(gate_options, is_cached), 0, 0, NULL,
     "print this machine's last result instead of testing"},
    {"threads", NULL, 't', OPTION_INT, OPTION_AT(gate_options, n_threads), 1, 1024, "N",
     "threads of the speed probe: with one, what else runs disturbs least"},
    {"llama-cpp", NULL, 0, OPTION_DIRECTORY, OPTION_AT(gate_options, llama_cpp), 0, 0, "DIR",
     "look instead at llama.cpp's sources, git repository or installation for KV compression"},
    {"ref", NULL, 0, OPTION_TEXT, OPTION_AT(gate_options, ref), 0, 0, "REV",
     "of a git repository only this branch, tag or commit (every branch)"},
    {"mlx", NULL, 0, OPTION_FLAG, OPTION_AT(gate_options, is_mlx), 0, 0, NULL,
     "look instead at MLX, the fallback: versions, calls, known answers"},
    {"python", NULL, 0, OPTION_FILE, OPTION_AT(gate_options, python), 0, 0, "PROGRAM",
     "of --mlx: the Python to ask"},
    {"json", NULL, 0, OPTION_FLAG, OPTION_AT(gate_options, wants_json), 0, 0, NULL, "print JSON"},
    OPTION_HELP_ROW,
};

const option_table command_gate_options = {
    .command = "gate",
    .summary = "test this machine's back ends and decide which to use",
    .description = "Tests every back end of this machine against known answers, measures "
                   "their speed and\ndecides. Exit status: 0 go, 1 fallback, 2 no-go, 3 "
                   "the gate itself could not be run.",
    .entries = entries,
    .n_entries = sizeof entries / sizeof *entries,
    .defaults = &defaults,
    .size = sizeof defaults,
};

int command_gate(int argc, char **argv)
{
    gate_options o;
    const option_result result = options_parse(&command_gate_options, argc, argv, &o);
    if (result != OPTIONS_OK) {
        return result == OPTIONS_HELP ? EXIT_OK : EXIT_GATE_ERROR;
    }
    if (o.ref && !o.llama_cpp) {
        fprintf(stderr, "turbokv: --ref needs --llama-cpp\n");
        return EXIT_GATE_ERROR;
    }
    if (o.is_mlx && o.llama_cpp) {
        fprintf(stderr, "turbokv: expected one of --mlx and --llama-cpp\n");
        return EXIT_GATE_ERROR;
    }
    return o.is_mlx ? gate_mlx(&o) : o.llama_cpp ? gate_llama_cpp(&o) : gate_machine(&o);
}
