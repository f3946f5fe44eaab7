/* turbokv: the command. */
#include "cli/command.h"
#include "cli/commands.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_help(const char *word)
{
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0;
}

static int no_such_command(const command *parent, const char *name)
{
    fprintf(stderr, "turbokv: no %s '%s': expected ", parent->noun, name);
    for (int i = 0; i < parent->n_members; i++) {
        fprintf(stderr, "%s%s", parent->members[i].name,
                i < parent->n_members - 2    ? ", "
                : i == parent->n_members - 2 ? " or "
                                             : "\n");
    }
    return EXIT_USAGE;
}

/* "turbokv help", "turbokv help run", "turbokv help bench model". */
static int help(int argc, char **argv)
{
    const command *c = command_root();
    if (argc == 1 && strcmp(argv[0], "--dump") == 0) {
        return command_print_json(command_dump());
    }
    for (int i = 0; i < argc && !is_help(argv[i]); i++) {
        const command *member = command_find(c, argv[i]);
        if (!member) {
            return no_such_command(c, argv[i]);
        }
        c = member;
    }
    if (c->options) {
        options_print_help(stdout, c->options);
    } else {
        command_print_members(stdout, c);
    }
    return EXIT_OK;
}

/* argv[0] is the name of `parent`, argv[1] that of a member. */
static int dispatch(const command *parent, int argc, char **argv)
{
    if (argc < 2) {
        command_print_members(stderr, parent);
        fprintf(stderr, "turbokv: expected a %s\n", parent->noun);
        return EXIT_USAGE;
    }
    if (is_help(argv[1])) {
        return parent == command_root() ? help(argc - 2, argv + 2)
                                        : (command_print_members(stdout, parent), EXIT_OK);
    }
    const command *member = command_find(parent, argv[1]);
    if (!member) {
        return no_such_command(parent, argv[1]);
    }
    return member->run ? member->run(argc - 1, argv + 1) : dispatch(member, argc - 1, argv + 1);
}

static int start(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        printf("turbokv %s (format %d)\n", tkv_version(), TKV_FORMAT_VERSION);
        return EXIT_OK;
    }
    return dispatch(command_root(), argc, argv);
}

int main(int argc, char **argv)
{
    /* A reader that goes away is an error of the write, not the end of this process. */
    signal(SIGPIPE, SIG_IGN);
    /* Threads are those of a context. OpenBLAS, once it is loaded, would start its own beside them,
     * and never end where the system has no room for these. */
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    return command_end(start(argc, argv));
}
