// SPDX-License-Identifier: Apache-2.0
// See program.hpp.
#include "engine/io/program.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "engine/base/text.hpp"

namespace replica {
namespace {

using Clock = std::chrono::steady_clock;

// What the program writes until it ends.
void read_all(int fd, pid_t child, std::chrono::milliseconds limit, std::string& output) {
    const Clock::time_point end = Clock::now() + limit;
    for (bool asked = false;;) {
        const auto left =
            std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
        pollfd wait{fd, POLLIN, 0};
        const int ready = ::poll(&wait, 1, asked ? -1 : static_cast<int>(std::max(left, 0L)));
        if (ready < 0) continue;  // EINTR
        if (ready == 0) {
            ::kill(child, SIGTERM);
            asked = true;
            continue;
        }
        char bytes[4096];
        const ssize_t got = ::read(fd, bytes, sizeof bytes);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return;
        output.append(bytes, static_cast<std::size_t>(got));
    }
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
    std::vector<char*> all;
    for (std::string& text : texts)
        all.push_back(text.data());
    all.push_back(nullptr);
    return all;
}

// It has to hear signals, whatever the thread that starts it does not. 0, or errno.
int spawn(pid_t& child, int output, Program program) {
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_adddup2(&actions, output, 1);
    ::posix_spawn_file_actions_adddup2(&actions, output, 2);
    posix_spawnattr_t attributes;
    ::posix_spawnattr_init(&attributes);
    sigset_t none;
    ::sigemptyset(&none);
    ::posix_spawnattr_setsigmask(&attributes, &none);
    ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    const std::vector<char*> words = pointers(program.words);
    const std::vector<char*> environment = pointers(program.environment);
    int error = ENOENT;
    for (const std::string& place : program.places) {
        if (error != ENOENT) break;
        error = ::posix_spawn(&child, place.c_str(), &actions, &attributes, words.data(),
                              environment.data());
    }
    ::posix_spawnattr_destroy(&attributes);
    ::posix_spawn_file_actions_destroy(&actions);
    return error;
}

}  // namespace

Result<ProgramEnd> run_program(const Program& program) {
    const char* const name = program.words.front().c_str();
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) {
        return Error{Errc::limit, errno, text_of("no pipe for %s", name)};
    }
    pid_t child = 0;
    const int error = spawn(child, ends[1], program);
    ::close(ends[1]);
    if (error != 0) {
        ::close(ends[0]);
        return Error{error == ENOENT ? Errc::unsupported : Errc::io, error,
                     text_of("%s can not be run: %s", name, std::strerror(error))};
    }
    ProgramEnd ended;
    read_all(ends[0], child, program.limit, ended.output);
    ::close(ends[0]);
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    if (WIFSIGNALED(status)) {
        return Error{Errc::timeout, 0,
                     text_of("%s was ended by signal %d", name, WTERMSIG(status))};
    }
    ended.status = WEXITSTATUS(status);
    return ended;
}

}  // namespace replica
