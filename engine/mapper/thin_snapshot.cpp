// SPDX-License-Identifier: Apache-2.0
// See thin_snapshot.hpp.
#include "engine/mapper/thin_snapshot.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <utility>
#include <vector>

#include "engine/base/text.hpp"

namespace replica {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds program_limit{60};

struct Ended {
    int status = -1;     // exit status, -1: killed
    std::string output;  // of both streams
};

// What the program writes until it ends. One that takes too long is asked to end, which LVM hears
// where it leaves nothing half done; to kill it could leave a volume suspended for ever.
void read_all(int fd, pid_t child, std::string& output) {
    const Clock::time_point end = Clock::now() + program_limit;
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

// It has to hear signals, whatever the thread that starts it does not.
int spawn(pid_t& child, int output, char* const* arguments, char* const* environment) {
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
    int error = ENOENT;
    for (const char* program : {"/sbin/lvm", "/usr/sbin/lvm"}) {
        if (error == 0) break;
        error = ::posix_spawn(&child, program, &actions, &attributes, arguments, environment);
    }
    ::posix_spawnattr_destroy(&attributes);
    ::posix_spawn_file_actions_destroy(&actions);
    return error;
}

// lvm(8) is all of LVM's programs in one.
Result<Ended> run_lvm(std::vector<std::string> words) {
    words.insert(words.begin(), "lvm");
    std::vector<char*> arguments;
    for (std::string& word : words)
        arguments.push_back(word.data());
    arguments.push_back(nullptr);
    char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin", locale[] = "LC_ALL=C";
    char quiet[] = "LVM_SUPPRESS_FD_WARNINGS=1";
    std::vector<char*> environment = {path, locale, quiet};
    // Where there is no udev its owner has told us, and LVM has to know.
    std::string udev = "DM_DISABLE_UDEV=";
    if (const char* const disabled = ::getenv("DM_DISABLE_UDEV"); disabled != nullptr) {
        udev += disabled;
        environment.push_back(udev.data());
    }
    environment.push_back(nullptr);

    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return Error{Errc::limit, errno, "no pipe for lvm"};
    pid_t child = 0;
    const int error = spawn(child, ends[1], arguments.data(), environment.data());
    ::close(ends[1]);
    Ended ended;
    if (error != 0) {
        ::close(ends[0]);
        return Error{
            error == ENOENT ? Errc::unsupported : Errc::io, error,
            text_of("LVM's programs can not be run: %s (package lvm2)", std::strerror(error))};
    }
    read_all(ends[0], child, ended.output);
    ::close(ends[0]);
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    if (WIFSIGNALED(status)) {
        return Error{Errc::timeout, 0, text_of("lvm %s does not end", words[1].c_str())};
    }
    if (WIFEXITED(status)) ended.status = WEXITSTATUS(status);
    return ended;
}

std::string trimmed(const std::string& text) {
    const std::size_t begin = text.find_first_not_of(" \n\t");
    if (begin == std::string::npos) return "";
    return text.substr(begin, text.find_last_not_of(" \n\t") - begin + 1);
}

// LVM knows a volume by its own names only, not by those below /dev/disk.
std::string name_for_lvm(const std::string& disk) {
    char* const real = ::realpath(disk.c_str(), nullptr);
    if (real == nullptr) return disk;
    std::string path(real);
    std::free(real);
    if (!path.starts_with("/dev/dm-")) return path;
    std::ifstream file("/sys/class/block" + path.substr(4) + "/dm/name");
    std::string name;
    return std::getline(file, name) ? "/dev/mapper/" + name : path;
}

Status demand_lvm(const std::vector<std::string>& words, const char* what) {
    TRY(const Ended ended, run_lvm(words));
    if (ended.status == 0) return ok_status();
    const bool full = ended.output.find("free space") != std::string::npos ||
                      ended.output.find("out of") != std::string::npos;
    const bool busy = ended.output.find("in use") != std::string::npos ||
                      ended.output.find("is used") != std::string::npos;
    return Error{full   ? Errc::no_space
                 : busy ? Errc::busy
                        : Errc::io,
                 0, text_of("%s: %s", what, trimmed(ended.output).c_str())};
}

}  // namespace

Result<ThinSnapshot> ThinSnapshot::of(const std::string& path, const std::string& resource) {
    const std::string disk = name_for_lvm(path);
    TRY(const Ended ended, run_lvm({"lvs", "--noheadings", "--separator", " ", "-o",
                                    "vg_name,lv_name,segtype", disk}));
    const std::string said = trimmed(ended.output);
    const std::size_t first = said.find(' '), second = said.find(' ', first + 1);
    const bool thin = ended.status == 0 && second != std::string::npos &&
                      said.substr(second + 1) == "thin" && said.find('\n') == std::string::npos;
    if (!thin) {
        return Error{Errc::unsupported, 0,
                     path + " is no thin volume of LVM, of which alone a snapshot can be taken"};
    }
    return ThinSnapshot(said.substr(0, first) + "/" + said.substr(first + 1, second - first - 1),
                        "replica_" + resource);
}

Result<bool> ThinSnapshot::exists() const {
    const std::size_t slash = name_.find('/');
    TRY(const Ended ended,
        run_lvm({"lvs", "-a", "--noheadings", "-o", "lv_tags", "--select",
                 "vg_name=" + name_.substr(0, slash) + " && lv_name=" + name_.substr(slash + 1)}));
    if (ended.status != 0) return Error{Errc::io, 0, "lvs: " + trimmed(ended.output)};
    if (ended.output.find('\n') == std::string::npos) return false;
    if (trimmed(ended.output) == tag_) return true;
    return Error{Errc::exists, 0, name_ + " is there, and not ours: it lacks the tag " + tag_};
}

Status ThinSnapshot::take() const {
    TRY_STATUS(remove());
    return demand_lvm({"lvcreate", "--yes", "--snapshot", "--setactivationskip", "y", "--addtag",
                       tag_, "--name", name_.substr(name_.find('/') + 1), volume_},
                      "no snapshot");
}

Status ThinSnapshot::remove() const {
    TRY(const bool there, exists());
    if (!there) return ok_status();
    return demand_lvm({"lvremove", "--yes", name_}, "the snapshot stays");
}

Status ThinSnapshot::check_unused() const {
    TRY(const Ended ended,
        run_lvm({"lvs", "--noheadings", "--binary", "-o", "lv_device_open", volume_}));
    if (ended.status != 0) return Error{Errc::io, 0, "lvs: " + trimmed(ended.output)};
    if (trimmed(ended.output) != "1") return ok_status();
    return Error{Errc::busy, 0,
                 volume_ + " is in use, so that its snapshot can not be put back: end its users"};
}

Error ThinSnapshot::still_waits() const {
    return {Errc::busy, 0,
            volume_ +
                " is in use, so that its snapshot is put back when it is activated the next "
                "time: end its users, then lvchange -an and -ay"};
}

Status ThinSnapshot::restore() const {
    TRY(const bool there, exists());
    if (!there) {
        return Error{Errc::not_found, 0, "there is no snapshot " + name_ + " to put back"};
    }
    TRY_STATUS(
        demand_lvm({"lvconvert", "--yes", "--merge", name_}, "the snapshot is not put back"));
    TRY(const bool waits, exists());
    if (!waits) return ok_status();
    return still_waits();
}

}  // namespace replica
