#include "gguf_file.h"

#include "support/support.h"

#include <unistd.h>

tkv_status gguf_file_read(const gguf_file *file, tkv_geometry *geometry, tkv_error *error)
{
    char path[] = "/tmp/tkv-geometry-XXXXXX";
    gguf_file_write(file, path);
    tkv_gguf *gguf = NULL;
    *error = (tkv_error){TKV_OK, ""};
    const tkv_status opened = tkv_gguf_open(path, &gguf, error);
    if (opened != TKV_OK) {
        fail_msg("cannot open the file: %s", error->message);
    }
    const tkv_status status = tkv_geometry_read(gguf, geometry, error);
    tkv_gguf_close(gguf);
    unlink(path);
    return status;
}
