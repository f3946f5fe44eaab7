/* The architectures of the NVIDIA GPUs that this machine's driver shows, "80;90", each once. Needs
 * no CUDA to compile: the driver's library is loaded, as in a container that has nothing else. */
#include <dlfcn.h>
#include <stdio.h>

#define ARCHITECTURES 1000

enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 }; /* CUdevice_attribute in cuda.h */

typedef int (*init_function)(unsigned flags);
typedef int (*count_function)(int *count);
typedef int (*attribute_function)(int *value, int attribute, int device);

int main(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (!driver) {
        return 1;
    }
    const init_function init = (init_function)dlsym(driver, "cuInit");
    const count_function get_count = (count_function)dlsym(driver, "cuDeviceGetCount");
    const attribute_function get = (attribute_function)dlsym(driver, "cuDeviceGetAttribute");
    char is_known[ARCHITECTURES] = {0};
    int count = 0;
    if (!init || !get_count || !get || init(0) != 0 || get_count(&count) != 0) {
        return 1;
    }
    for (int i = 0, n_known = 0; i < count; i++) {
        int major = 0;
        int minor = 0;
        if (get(&major, CAPABILITY_MAJOR, i) != 0 || get(&minor, CAPABILITY_MINOR, i) != 0) {
            return 1;
        }
        const int architecture = 10 * major + minor;
        if (architecture > 0 && architecture < ARCHITECTURES && !is_known[architecture]) {
            printf("%s%d", n_known++ ? ";" : "", architecture);
            is_known[architecture] = 1;
        }
    }
    return count > 0 ? 0 : 1;
}
