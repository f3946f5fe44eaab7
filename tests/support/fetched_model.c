#include "support/fetched_model.h"

#include "support/support.h"

#include <sys/wait.h>

#define UNAVAILABLE 3 /* fetch-models' exit status */

bool fetched_model(const char *name, char *path, size_t size)
{
    char command[1024];
    snprintf(command, sizeof command, "'%s/scripts/fetch-models' --offline %s", TKV_SOURCE_DIR,
             name);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    path[0] = '\0';
    const bool is_read = fgets(path, (int)size, pipe) != NULL;
    path[strcspn(path, "\n")] = '\0';
    const int status = pclose(pipe);
    if (WIFEXITED(status) && WEXITSTATUS(status) == UNAVAILABLE) {
        print_message("skipped: %s is not here; scripts/fetch-models %s brings it\n", name, name);
        return false;
    }
    assert_true(is_read);
    assert_int_equal(status, 0);
    return true;
}
