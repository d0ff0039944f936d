// SPDX-License-Identifier: Apache-2.0
// See replicad_upgrade.hpp.
#include "tools/replicad_upgrade.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>

namespace replica::tools {
namespace {

constexpr const char* variable = "REPLICA_HANDOVER";  // ID, version and devices, a line each
constexpr const char* own_program = "/proc/self/exe";
constexpr auto answer_limit = std::chrono::seconds(10);

// The part before the next newline, which is taken from `text`.
std::string next_line(std::string& text) {
    const auto end = std::min(text.find('\n'), text.size());
    std::string line = text.substr(0, end);
    text.erase(0, std::min(end + 1, text.size()));
    return line;
}

struct Child {
    pid_t pid = -1;
    int output = -1;
    ~Child() {
        if (output >= 0) ::close(output);
        if (pid < 0) return;
        ::kill(pid, SIGKILL);
        ::waitpid(pid, nullptr, 0);
    }
};

Status start(Child& child, const std::string& program) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return Error{Errc::limit, errno, "no pipe"};
    child.output = ends[0];
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    char version[] = "--version";
    std::string name = program;
    char* const arguments[] = {name.data(), version, nullptr};
    const int error =
        ::posix_spawn(&child.pid, program.c_str(), &actions, nullptr, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    if (error == 0) return ok_status();
    child.pid = -1;
    return Error{error == ENOENT ? Errc::not_found : Errc::invalid, error,
                 fmt::format("{} can not be run: {}", program, std::strerror(error))};
}

// All that it prints. Errors: timeout, invalid (it ends with an error).
Result<std::string> output_of(const std::string& program) {
    Child child;
    TRY_STATUS(start(child, program));
    const auto deadline = std::chrono::steady_clock::now() + answer_limit;
    std::string text;
    for (;;) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
            deadline - std::chrono::steady_clock::now());
        pollfd polled{child.output, POLLIN, 0};
        if (left.count() <= 0 || ::poll(&polled, 1, static_cast<int>(left.count())) == 0) {
            return Error{Errc::timeout, 0, fmt::format("{} --version does not end", program)};
        }
        char bytes[256];
        const ssize_t got = ::read(child.output, bytes, sizeof bytes);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0 || text.size() > 4096) break;
        text.append(bytes, static_cast<std::size_t>(got));
    }
    int status = 0;
    while (::waitpid(child.pid, &status, 0) < 0 && errno == EINTR)
        continue;
    child.pid = -1;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        return Error{Errc::invalid, 0, fmt::format("{} --version fails", program)};
    }
    return text;
}

}  // namespace

Upgrader::Upgrader(char** arguments) : arguments_(arguments) {
    std::error_code error;
    own_ = std::filesystem::read_symlink(own_program, error).string();
    const char* const left = std::getenv(variable);
    if (left == nullptr) return;
    std::string text = left;
    ::unsetenv(variable);
    upgraded_.id = next_line(text);
    upgraded_.from = next_line(text);
    handed_ = next_line(text);
}

Result<std::string> Upgrader::choose(const std::string& program, const std::string& id) {
    const std::string& file = program.empty() ? own_ : program;
    TRY(std::string said, output_of(file));
    const std::string line = next_line(said);
    const std::string name = "replicad ";
    if (!line.starts_with(name)) {
        return Error{Errc::invalid, 0, fmt::format("{} is not replicad", file)};
    }
    next_ = file;
    id_ = id;
    return line.substr(name.size());
}

void Upgrader::become(const std::string& handed) {
    ::setenv(variable, fmt::format("{}\n{}\n{}", id_, REPLICA_VERSION_TEXT, handed).c_str(), 1);
    ::execv(next_.c_str(), arguments_);
    ::execv(own_program, arguments_);
}

}  // namespace replica::tools
