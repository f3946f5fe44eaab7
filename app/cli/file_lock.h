/* One process at a time on a file that is replaced as a whole: "PATH.lock" beside it is locked, and
 * goes when the lock is given up. A process that ends in any way gives its lock up. */
#ifndef TKV_CLI_FILE_LOCK_H
#define TKV_CLI_FILE_LOCK_H

#include "turbokv.h"

typedef struct file_lock {
    char *path; /* of the lock; NULL: not locked */
    int file;
} file_lock;

/* TKV_ERR_IO if the lock cannot be had; if another process has it the message says which, and what
 * to do. Give it up with file_lock_release, also after an error. */
tkv_status file_lock_take(file_lock *lock, const char *path, tkv_error *error);
void file_lock_release(file_lock *lock);

#endif
