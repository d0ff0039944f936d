// SPDX-License-Identifier: Apache-2.0
// A library to be preloaded into replicad, which kills it (SIGKILL) at one step of a ublk device's
// life: UBLK_KILL=NUMBER:before, :during or :after, where NUMBER is that of a control command (hex,
// as in ublk_abi.hpp), or UBLK_KILL=map:after, when the requests of a device were mapped. `during`
// is with the command handed to the kernel, and its answer not waited for.
// Before both there is a pause, so that all requests of a device were asked for when it goes on.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <liburing.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static int wanted(const char* what, const char* when) {
    const char* const point = getenv("UBLK_KILL");
    const char* const colon = point == NULL ? NULL : strchr(point, ':');
    if (colon == NULL || strcmp(colon + 1, when) != 0) return 0;
    return (size_t)(colon - point) == strlen(what) && strncmp(point, what, strlen(what)) == 0;
}

// The number of the ublk control command that is about to be submitted, as text; "": none is.
static void command_of(const struct io_uring* ring, char text[8]) {
    static const char digits[] = "0123456789abcdef";
    text[0] = '\0';
    if ((ring->flags & IORING_SETUP_SQE128) == 0 || ring->sq.sqe_head == ring->sq.sqe_tail) return;
    const struct io_uring_sqe* const sqe =
        &ring->sq.sqes[(size_t)(ring->sq.sqe_head & *ring->sq.kring_mask) << 1];
    if (sqe->opcode != IORING_OP_URING_CMD || (sqe->cmd_op >> 8 & 0xff) != 'u') return;
    text[0] = digits[sqe->cmd_op >> 4 & 15];
    text[1] = digits[sqe->cmd_op & 15];
    text[2] = '\0';
}

int io_uring_submit_and_wait_timeout(struct io_uring* ring, struct io_uring_cqe** cqe,
                                     unsigned wait, struct __kernel_timespec* timeout,
                                     sigset_t* mask) {
    static int (*real)(struct io_uring*, struct io_uring_cqe**, unsigned, struct __kernel_timespec*,
                       sigset_t*);
    if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "io_uring_submit_and_wait_timeout");
    char command[8];
    command_of(ring, command);
    const int before = wanted(command, "before"), during = wanted(command, "during");
    if (before || during) usleep(500000);  // what other threads were asked to do is done
    if (before) die();
    if (during) {
        io_uring_submit(ring);
        die();
    }
    const int result = real(ring, cqe, wait, timeout, mask);
    if (wanted(command, "after")) die();
    return result;
}

void* mmap(void* address, size_t bytes, int access, int flags, int fd, off_t offset) {
    static void* (*real)(void*, size_t, int, int, int, off_t);
    if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "mmap");
    void* const memory = real(address, bytes, access, flags, fd, offset);
    if (access == PROT_READ && flags == (MAP_SHARED | MAP_POPULATE) && wanted("map", "after")) {
        die();
    }
    return memory;
}
