/* turbokv: the command. */
#include "cli/command.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

typedef struct subcommand {
    const char *name;
    const char *help;
    int (*run)(int argc, char **argv);
} subcommand;

static const subcommand subcommands[] = {
    {"run", "generate text with a model on a compressed KV cache", command_run},
    {"demo", "show the shipped model with exact and compressed caches side by side", command_demo},
    {"eval", "measure the quality of KV types and policies on a text", command_eval},
    {"bench", "measure errors and speeds beside their bounds", command_bench},
    {"gate", "test this machine's back ends and decide which to use", command_gate},
    {"plan", "show what a context costs in memory and the longest one that fits", command_plan},
    {"types", "list the KV types with their bits and errors", command_types},
};

enum { N_SUBCOMMANDS = sizeof subcommands / sizeof *subcommands };

static void print_usage(FILE *file)
{
    fprintf(file, "usage: turbokv COMMAND [options]\n\ncommands:\n");
    for (int i = 0; i < N_SUBCOMMANDS; i++) {
        fprintf(file, "  %-8s %s\n", subcommands[i].name, subcommands[i].help);
    }
    fprintf(file, "\n'turbokv COMMAND --help' lists the options of a command.\n");
}

int main(int argc, char **argv)
{
    /* A reader that goes away is an error of the write, not the end of this process. */
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        print_usage(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_usage(stdout);
        return EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("turbokv %s (format %d)\n", tkv_version(), TKV_FORMAT_VERSION);
        return EXIT_OK;
    }
    for (int i = 0; i < N_SUBCOMMANDS; i++) {
        if (strcmp(argv[1], subcommands[i].name) == 0) {
            return subcommands[i].run(argc - 1, argv + 1);
        }
    }
    fprintf(stderr, "turbokv: no command '%s'\n\n", argv[1]);
    print_usage(stderr);
    return EXIT_USAGE;
}
