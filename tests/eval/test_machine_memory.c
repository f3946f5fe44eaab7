/* Memory that is available, on machines of which only the files are there. */
#include "eval/plan.h"

#include "support/support.h"

#include <sys/stat.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)
#define V1 "/sys/fs/cgroup/memory"
#define V2 "/sys/fs/cgroup"

static int make_root(void **state)
{
    static char root[32];
    snprintf(root, sizeof root, "/tmp/tkv-memory-XXXXXX");
    *state = mkdtemp(root);
    return *state ? 0 : 1;
}

static int remove_root(void **state)
{
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", (const char *)*state);
    return system(command);
}

static void put(const char *root, const char *path, const char *text)
{
    char full[256];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *slash = strchr(full + strlen(root) + 1, '/'); slash;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(full, 0777);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void put_number(const char *root, const char *path, uint64_t number)
{
    char text[32];
    snprintf(text, sizeof text, "%llu\n", (unsigned long long)number);
    put(root, path, text);
}

static void assert_mib(const char *root, uint64_t expected)
{
    const uint64_t found = tkv_available_memory(root);
    if (found != expected * MIB) {
        fail_msg("found %.3f MiB, expected %llu", (double)found / (double)MIB,
                 (unsigned long long)expected);
    }
}

static void put_machine(const char *root)
{
    put(root, "/proc/meminfo",
        "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n");
}

static void available_is_not_installed(void **state)
{
    const char *root = *state;
    assert_true(tkv_available_memory(root) == 0);
    put(root, "/proc/meminfo", "MemTotal:  16777216 kB\nMemFree:  1048576 kB\n");
    assert_mib(root, 1024);
    put_machine(root);
    assert_mib(root, 8192);
    put(root, "/proc/self/cgroup", "0::/user.slice\n");
    put(root, V2 "/user.slice/memory.max", "max\n");
    assert_mib(root, 8192);
}

static void the_least_limit_on_the_way_up_counts(void **state)
{
    const char *root = *state;
    put_machine(root);
    put(root, "/proc/self/cgroup", "0::/machine/pod/box\n");
    put(root, V2 "/machine/pod/box/memory.max", "max\n");
    put_number(root, V2 "/machine/pod/memory.max", 2048 * MIB);
    put_number(root, V2 "/machine/memory.max", 4096 * MIB);
    assert_mib(root, 2048);
    /* Used memory is not to be had, but the part of it that caches files is. */
    put_number(root, V2 "/machine/pod/memory.current", 512 * MIB);
    assert_mib(root, 1536);
    put(root, V2 "/machine/pod/memory.stat",
        "anon 1\ninactive_file 104857600\nactive_file_else 7\nactive_file 52428800\n");
    assert_mib(root, 2048 - 512 + 150);
    /* A group above that has less room than its limit says. */
    put_number(root, V2 "/machine/memory.current", 3584 * MIB);
    assert_mib(root, 512);
    put_number(root, V2 "/machine/memory.current", 5000 * MIB);
    assert_true(tkv_available_memory(root) == 1);
    put_number(root, V2 "/machine/pod/box/memory.max", 100 * MIB);
    put_number(root, V2 "/machine/memory.current", 0);
    assert_mib(root, 100);
}

static void limits_above_the_machine_do_not_count(void **state)
{
    const char *root = *state;
    put_machine(root);
    put(root, "/proc/self/cgroup", "0::/\n");
    put_number(root, V2 "/memory.max", 65536 * MIB);
    assert_mib(root, 8192);
    /* In a container with groups of its own, the limit is at the root that it sees. */
    put_number(root, V2 "/memory.max", 3072 * MIB);
    assert_mib(root, 3072);
    put(root, "/proc/self/cgroup", "0::/../../elsewhere\n");
    assert_mib(root, 3072);
}

static void version_1_counts_too(void **state)
{
    const char *root = *state;
    put_machine(root);
    put(root, "/proc/self/cgroup",
        "12:cpu,cpuacct:/other\n5:hugetlb,memory:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n");
    put_number(root, V1 "/memory.limit_in_bytes", UINT64_C(9223372036854771712));
    put_number(root, V1 "/docker/memory.limit_in_bytes", 1024 * MIB);
    put_number(root, V1 "/docker/abc/memory.limit_in_bytes", 2048 * MIB);
    put_number(root, V1 "/other/memory.limit_in_bytes", 1 * MIB);
    assert_mib(root, 1024);
    put_number(root, V1 "/docker/memory.usage_in_bytes", 600 * MIB);
    put(root, V1 "/docker/memory.stat",
        "cache 1\ninactive_file 1\ntotal_inactive_file 73400320\ntotal_active_file 31457280\n");
    assert_mib(root, 1024 - 600 + 100);
    /* The path as the host has it, which is not there in a container. */
    put(root, "/proc/self/cgroup", "5:memory:/kubepods/pod1/box\n");
    put_number(root, V1 "/memory.limit_in_bytes", 256 * MIB);
    assert_mib(root, 256);
}

static void this_machine_has_some(void **state)
{
    (void)state;
    assert_true(tkv_machine_memory() > MIB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(available_is_not_installed, make_root, remove_root),
        cmocka_unit_test_setup_teardown(the_least_limit_on_the_way_up_counts, make_root,
                                        remove_root),
        cmocka_unit_test_setup_teardown(limits_above_the_machine_do_not_count, make_root,
                                        remove_root),
        cmocka_unit_test_setup_teardown(version_1_counts_too, make_root, remove_root),
        cmocka_unit_test(this_machine_has_some)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
