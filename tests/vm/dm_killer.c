/* SPDX-License-Identifier: Apache-2.0
 * A library to be preloaded into replicad, which kills it (SIGKILL) at one call of device-mapper:
 * DM_KILL=CALL:before or CALL:after, with CALL one of create, load, suspend, resume, remove. A
 * resume is a suspend without its flag.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/dm-ioctl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static const char* name_of(unsigned long request, const struct dm_ioctl* call) {
    switch (request) {
        case DM_DEV_CREATE:
            return "create";
        case DM_TABLE_LOAD:
            return "load";
        case DM_DEV_SUSPEND:
            return (call->flags & DM_SUSPEND_FLAG) != 0 ? "suspend" : "resume";
        case DM_DEV_REMOVE:
            return "remove";
        default:
            return "";
    }
}

static int wanted(const char* what, const char* when) {
    const char* const point = getenv("DM_KILL");
    const char* const colon = point == NULL ? NULL : strchr(point, ':');
    if (colon == NULL || strcmp(colon + 1, when) != 0) return 0;
    return (size_t)(colon - point) == strlen(what) && strncmp(point, what, strlen(what)) == 0;
}

int ioctl(int fd, unsigned long request, ...) {
    static int (*real)(int, unsigned long, void*);
    if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "ioctl");
    va_list arguments;
    va_start(arguments, request);
    void* const argument = va_arg(arguments, void*);
    va_end(arguments);
    if (_IOC_TYPE(request) != DM_IOCTL) return real(fd, request, argument);
    const char* const name = name_of(request, argument);
    if (wanted(name, "before")) die();
    const int result = real(fd, request, argument);
    if (wanted(name, "after")) die();
    return result;
}
