// SPDX-License-Identifier: Apache-2.0
// Standard input, output and error of the programs. Whoever starts one may have closed them, filled
// the disk below them or stopped reading: none of that may reach a disk, hide that something went
// wrong, or end the program in the middle.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

namespace replica::tools {

// To be called first. A disk or socket that is opened where a standard stream was closed would get
// its number, and then what is printed.
inline void hold_standard_streams() {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
        if (::fcntl(fd, F_GETFD) < 0) (void)!::open("/dev/null", O_RDWR);  // takes the lowest: fd
    }
}

// Writes all of `text`. Returns 0 or the errno that stopped it; EPIPE when nobody reads any more,
// if SIGPIPE is ignored.
inline int write_all(int fd, std::string_view text) {
    while (!text.empty()) {
        const ssize_t put = ::write(fd, text.data(), text.size());
        if (put >= 0) {
            text.remove_prefix(static_cast<std::size_t>(put));
        } else if (errno == EAGAIN) {
            pollfd writable{fd, POLLOUT, 0};
            ::poll(&writable, 1, -1);
        } else if (errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

// There is nobody to tell that an error can not be told; the exit code still says it.
inline void complain(std::string_view text) { (void)write_all(STDERR_FILENO, text); }

// True once the reader of standard output has gone: a pipe that nobody will ever read.
inline bool output_is_unread() {
    pollfd out{STDOUT_FILENO, 0, 0};
    return ::poll(&out, 1, 0) > 0 && (out.revents & POLLERR) != 0;
}

}  // namespace replica::tools
