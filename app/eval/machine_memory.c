/* Memory that is to be had on this machine, or in the container that the process runs in. */
#include "eval/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#ifdef __APPLE__
#include <mach/mach.h>
#include <unistd.h>
#endif

#define MAX_PATH 4096

/* Where a version of control groups has its files. */
typedef struct group_files {
    const char *controller; /* in /proc/self/cgroup; "" is version 2 */
    const char *base;
    const char *limit;
    const char *usage;
    const char *active_cache; /* in memory.stat: files in memory, which can be dropped */
    const char *inactive_cache;
} group_files;

static const group_files versions[] = {
    {"", "/sys/fs/cgroup", "memory.max", "memory.current", "active_file", "inactive_file"},
    {"memory", "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
     "total_active_file", "total_inactive_file"},
};

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Opens a file of a group, or with path "" of the base; NULL if it is not there. */
static FILE *open_file(const char *root, const char *base, const char *path, const char *name)
{
    char full[MAX_PATH];
    const int length = snprintf(full, sizeof full, "%s%s%s/%s", root, base, path, name);
    return length > 0 && (size_t)length < sizeof full ? fopen(full, "r") : NULL;
}

/* The number behind a word at the start of a line, "word: 12 kB" or "word 12"; fallback if there is
 * no such line. Closes the file, which may be NULL. */
static uint64_t field_of(FILE *file, const char *word, uint64_t fallback)
{
    const size_t length = strlen(word);
    char line[256];
    uint64_t value = fallback;
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, word, length) == 0 && (line[length] == ' ' || line[length] == ':')) {
            sscanf(line + length + 1, "%" SCNu64, &value);
            break;
        }
    }
    if (file) {
        fclose(file);
    }
    return value;
}

/* The number that a file consists of; fallback if it is none ("max"). Closes the file. */
static uint64_t number_of(FILE *file, uint64_t fallback)
{
    uint64_t value = fallback;
    if (file) {
        if (fscanf(file, "%" SCNu64, &value) != 1) {
            value = fallback;
        }
        fclose(file);
    }
    return value;
}

/* What one group may still take; UINT64_MAX if it has no limit. A full one has a byte: 0 is unknown
 * to callers. */
static uint64_t room_of(const char *root, const group_files *v, const char *path)
{
    const uint64_t limit = number_of(open_file(root, v->base, path, v->limit), UINT64_MAX);
    if (limit == UINT64_MAX) {
        return UINT64_MAX;
    }
    const uint64_t usage = number_of(open_file(root, v->base, path, v->usage), 0);
    const uint64_t cache =
        field_of(open_file(root, v->base, path, "memory.stat"), v->active_cache, 0) +
        field_of(open_file(root, v->base, path, "memory.stat"), v->inactive_cache, 0);
    const uint64_t used = usage - smaller(usage, cache);
    return used < limit ? limit - used : 1;
}

/* The least of a group and of those that hold it. A path from outside the container leads nowhere
 * in it; its own limit is then at the base. */
static uint64_t room_up_from(const char *root, const group_files *v, char *path)
{
    uint64_t room = UINT64_MAX;
    if (strstr(path, "/..")) {
        *path = '\0';
    }
    for (char *end = path + strlen(path); end; end = strrchr(path, '/')) {
        *end = '\0';
        room = smaller(room, room_of(root, v, path));
    }
    return room;
}

static bool names_controller(const char *list, const char *controller)
{
    const size_t length = strlen(controller);
    const char *at = list;
    while (strncmp(at, controller, length) != 0 || (at[length] != ',' && at[length] != '\0')) {
        at = strchr(at, ',');
        if (!at) {
            return false;
        }
        at++;
    }
    return true;
}

/* The least room of the groups that the process is in: lines "number:controllers:path". */
static uint64_t group_room(const char *root)
{
    uint64_t room = UINT64_MAX;
    char line[MAX_PATH];
    FILE *file = open_file(root, "/proc/self", "", "cgroup");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        char *list = strchr(line, ':');
        char *path = list ? strchr(list + 1, ':') : NULL;
        if (!path) {
            continue;
        }
        *path++ = '\0';
        for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
            if (names_controller(list + 1, versions[i].controller)) {
                room = smaller(room, room_up_from(root, &versions[i], path));
            }
        }
    }
    if (file) {
        fclose(file);
    }
    return room;
}

uint64_t tkv_available_memory(const char *root)
{
    const uint64_t free_kib = field_of(open_file(root, "/proc", "", "meminfo"), "MemFree", 0);
    const uint64_t kib =
        field_of(open_file(root, "/proc", "", "meminfo"), "MemAvailable", free_kib);
    const uint64_t room = group_room(root);
    return kib > 0 ? smaller(kib * 1024, room) : room < UINT64_MAX ? room : 0;
}

uint64_t tkv_machine_memory(void)
{
#ifdef __APPLE__
    vm_statistics64_data_t pages;
    mach_msg_type_number_t n = HOST_VM_INFO64_COUNT;
    const mach_port_t host = mach_host_self();
    const bool is_known =
        host_statistics64(host, HOST_VM_INFO64, (host_info64_t)&pages, &n) == KERN_SUCCESS;
    mach_port_deallocate(mach_task_self(), host);
    return is_known ? ((uint64_t)pages.free_count + pages.inactive_count) *
                          (uint64_t)sysconf(_SC_PAGE_SIZE)
                    : 0;
#else
    return tkv_available_memory("");
#endif
}
