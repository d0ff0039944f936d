// SPDX-License-Identifier: Apache-2.0
// See replicad_upgrade.hpp.
#include "tools/replicad_upgrade.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>

namespace replica::tools {
namespace {

// A line each: ID, version, devices, error, and any number of remarks.
constexpr const char* variable = "REPLICA_HANDOVER";
constexpr const char* own_program = "/proc/self/exe";
constexpr std::chrono::milliseconds answer_limit = std::chrono::seconds(10);

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
    return Error{Errc::invalid, error,
                 fmt::format("{} can not be run: {}", program, std::strerror(error))};
}

Status check_program(const std::string& program) {
    std::error_code error;
    const auto found = std::filesystem::status(program, error);
    if (found.type() == std::filesystem::file_type::not_found) {
        return Error{Errc::not_found, ENOENT, program + " does not exist"};
    }
    if (std::filesystem::is_directory(found)) {
        return Error{Errc::invalid, EISDIR, program + " is a directory, not a program"};
    }
    if (::access(program.c_str(), X_OK) == 0) return ok_status();
    return Error{
        Errc::permission, errno,
        fmt::format("{} may not be executed: {}; chmod +x", program, std::strerror(errno))};
}

std::string how_it_ended(int status) {
    if (WIFSIGNALED(status)) return fmt::format("is killed by {}", strsignal(WTERMSIG(status)));
    return fmt::format("ends with exit status {}", WEXITSTATUS(status));
}

// All that it prints. Errors: timeout, invalid (it ends with an error), and why it does not start.
Result<std::string> output_of(const std::string& program, std::chrono::milliseconds limit) {
    TRY_STATUS(check_program(program));
    Child child;
    TRY_STATUS(start(child, program));
    const auto deadline = std::chrono::steady_clock::now() + limit;
    std::string text;
    for (;;) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
            deadline - std::chrono::steady_clock::now());
        pollfd polled{child.output, POLLIN, 0};
        if (left.count() <= 0 || ::poll(&polled, 1, static_cast<int>(left.count())) == 0) {
            return Error{Errc::timeout, 0,
                         fmt::format("{} --version does not end in {} s", program,
                                     static_cast<double>(limit.count()) / 1000)};
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
        return Error{Errc::invalid, 0,
                     fmt::format("{} --version {}", program, how_it_ended(status))};
    }
    return text;
}

}  // namespace

Upgrader::Upgrader(char** arguments) : arguments_(arguments) {
    std::error_code error;
    own_ = std::filesystem::read_symlink(own_program, error).string();
    // So the kernel calls a file that was replaced before this program was started from it again.
    const std::string gone = " (deleted)";
    if (own_.ends_with(gone)) own_.resize(own_.size() - gone.size());
    const char* const left = std::getenv(variable);
    if (left == nullptr) return;
    std::string text = left;
    ::unsetenv(variable);
    upgraded_.id = next_line(text);
    upgraded_.from = next_line(text);
    handed_ = next_line(text);
    upgraded_.error = next_line(text);
    while (!text.empty())
        upgraded_.remarks.push_back(next_line(text));
}

Result<std::string> Upgrader::choose(const control::UpgradeRequest& request) {
    control::UpgradeRequest whole = request;
    if (whole.program.empty()) whole.program = own_;
    {
        const std::lock_guard lock(mutex_);
        if (state_ != State::idle) return Error{Errc::busy, 0, "an upgrade is under way"};
        state_ = State::looking;
    }
    auto version = look_at(whole);
    const std::lock_guard lock(mutex_);
    state_ = version ? State::chosen : State::idle;
    request_ = std::move(whole);
    return version;
}

Result<std::string> Upgrader::look_at(const control::UpgradeRequest& request) {
    const std::chrono::milliseconds asked(request.timeout_ms);
    const auto limit = asked.count() > 0 ? std::min(asked, answer_limit) : answer_limit;
    auto said = output_of(request.program, limit);
    if (!said && said.error().code == Errc::not_found && request.program == own_) {
        return Error{Errc::not_found, ENOENT,
                     own_ +
                         ", from which this daemon was started, is gone: name the program that "
                         "is to follow (--binary)"};
    }
    TRY(std::string text, std::move(said));
    const std::string line = next_line(text);
    const std::string name = "replicad ";
    if (line.starts_with(name)) return line.substr(name.size());
    return Error{Errc::invalid, 0, request.program + " is not replicad"};
}

std::optional<control::UpgradeRequest> Upgrader::chosen() {
    const std::lock_guard lock(mutex_);
    if (state_ != State::chosen) return {};
    return request_;
}

void Upgrader::dismiss() {
    const std::lock_guard lock(mutex_);
    state_ = State::idle;
}

void Upgrader::leave(const HandOver& left, const std::string& error) {
    std::string text =
        fmt::format("{}\n{}\n{}\n{}", request_.id, REPLICA_VERSION_TEXT, left.devices, error);
    for (const std::string& remark : left.remarks)
        text += "\n" + remark;
    ::setenv(variable, text.c_str(), 1);
}

void Upgrader::become(const HandOver& left) {
    leave(left, "");
    ::execv(request_.program.c_str(), arguments_);
    leave(left, fmt::format("{} can not be run: {}; version {} goes on", request_.program,
                            std::strerror(errno), REPLICA_VERSION_TEXT));
    ::execv(own_program, arguments_);
}

}  // namespace replica::tools
