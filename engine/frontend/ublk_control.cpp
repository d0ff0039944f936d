// SPDX-License-Identifier: Apache-2.0
// See ublk_control.hpp. The commands are io_uring ones with entries of 128 bytes, on a ring of
// their own; the kernel runs them in a worker thread.
#include "engine/frontend/ublk_control.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "engine/base/text.hpp"

namespace replica {
namespace {

constexpr const char* control_path = "/dev/ublk-control";
// Longer than anything that a command waits for but a request that never ends.
constexpr long long command_timeout_s = 60;
constexpr std::uint64_t command_mark = 1, cancel_mark = 2;

std::uint64_t address_of(const void* memory) { return reinterpret_cast<std::uintptr_t>(memory); }

// What loads a module is modprobe's business: aliases, options, dependencies.
void load_module() {
    char program[] = "modprobe", quiet[] = "-q", name[] = "ublk_drv";
    char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    char* const arguments[] = {program, quiet, name, nullptr};
    char* const environment[] = {path, nullptr};
    for (const char* file : {"/sbin/modprobe", "/usr/sbin/modprobe"}) {
        pid_t child = 0;
        if (::posix_spawn(&child, file, nullptr, nullptr, arguments, environment) != 0) continue;
        int status = 0;
        while (::waitpid(child, &status, 0) < 0 && errno == EINTR)
            continue;
        return;
    }
}

Error open_error(int os_errno) {
    if (os_errno == EACCES || os_errno == EPERM) {
        return {Errc::permission, os_errno,
                "/dev/ublk-control may not be opened: a ublk device needs root"};
    }
    return {Errc::unsupported, os_errno,
            "the kernel has no ublk: there is no /dev/ublk-control, and the module ublk_drv does "
            "not load (Linux 6.5 or later with CONFIG_BLK_DEV_UBLK, and root, are needed)"};
}

}  // namespace

Result<std::unique_ptr<UblkControl>> UblkControl::open() {
    std::unique_ptr<UblkControl> self(new UblkControl);
    self->fd_ = ::open(control_path, O_RDWR | O_CLOEXEC);
    if (self->fd_ < 0 && errno == ENOENT) {
        load_module();
        self->fd_ = ::open(control_path, O_RDWR | O_CLOEXEC);
    }
    if (self->fd_ < 0) return open_error(errno);
    TRY_STATUS(self->open_ring());
    std::uint64_t features = 0;
    ublk::ControlCommand arguments;
    arguments.address = address_of(&features);
    arguments.bytes = sizeof features;
    const int result = self->run(ublk::cmd_get_features, arguments);
    constexpr std::uint64_t needed =
        ublk::flag_user_recovery | ublk::flag_user_recovery_reissue | ublk::flag_ioctl_encode;
    if (result == -EPERM || result == -EACCES) return open_error(-result);
    if (result < 0 || (features & needed) != needed) {
        return Error{Errc::unsupported, result < 0 ? -result : 0,
                     text_of("the kernel's ublk is too old: it lacks what a device needs to "
                             "outlive its daemon (features %#llx; Linux 6.5 or later has them)",
                             static_cast<unsigned long long>(features))};
    }
    return self;
}

Status UblkControl::open_ring() {
    io_uring_params params{};
    params.flags = IORING_SETUP_SQE128;
    const int result = -io_uring_queue_init_params(4, &ring_, &params);
    if (result != 0) {
        return Error{Errc::unsupported, result,
                     text_of("no io_uring for commands to ublk: %s", std::strerror(result))};
    }
    ring_open_ = true;
    return ok_status();
}

UblkControl::~UblkControl() {
    if (ring_open_) io_uring_queue_exit(&ring_);
    if (fd_ >= 0) ::close(fd_);
}

// The result, or -errno; -ETIME: it was given up, and has ended.
int UblkControl::run(std::uint32_t command, const ublk::ControlCommand& arguments) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    ASSERT(sqe != nullptr);
    std::memset(sqe, 0, 2 * sizeof *sqe);
    sqe->opcode = IORING_OP_URING_CMD;
    sqe->fd = fd_;
    sqe->cmd_op = command;
    std::memcpy(reinterpret_cast<std::byte*>(sqe) + 48, &arguments, sizeof arguments);
    io_uring_sqe_set_data64(sqe, command_mark);
    bool given_up = false;
    for (;;) {
        __kernel_timespec limit{command_timeout_s, 0};
        io_uring_cqe* cqe = nullptr;
        const int waited =
            io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, given_up ? nullptr : &limit, nullptr);
        if (waited == -EINTR || waited == -EAGAIN) continue;
        if (waited == -ETIME) {
            given_up = true;
            sqe = io_uring_get_sqe(&ring_);
            ASSERT(sqe != nullptr);
            std::memset(sqe, 0, 2 * sizeof *sqe);
            io_uring_prep_cancel64(sqe, command_mark, 0);
            io_uring_sqe_set_data64(sqe, cancel_mark);
            continue;
        }
        if (waited < 0) return waited;
        if (cqe == nullptr && io_uring_peek_cqe(&ring_, &cqe) != 0) continue;
        const bool answer = io_uring_cqe_get_data64(cqe) == command_mark;
        const int result = cqe->res;
        io_uring_cqe_seen(&ring_, cqe);
        if (answer) return given_up && result < 0 ? -ETIME : result;
    }
}

Status UblkControl::demand(std::uint32_t command, const ublk::ControlCommand& arguments,
                           const char* what) {
    const int result = run(command, arguments);
    if (result >= 0) return ok_status();
    const Errc code = result == -ETIME                        ? Errc::timeout
                      : result == -EBUSY                      ? Errc::busy
                      : result == -EPERM || result == -EACCES ? Errc::permission
                                                              : Errc::io;
    return Error{code, -result,
                 text_of("ublk device %d: %s failed: %s", static_cast<int>(arguments.dev_id), what,
                         std::strerror(-result))};
}

Result<ublk::DeviceInfo> UblkControl::add(const ublk::DeviceInfo& wanted) {
    ublk::DeviceInfo info = wanted;
    ublk::ControlCommand arguments;
    arguments.dev_id = wanted.dev_id;
    arguments.address = address_of(&info);
    arguments.bytes = sizeof info;
    TRY_STATUS(demand(ublk::cmd_add_dev, arguments, "adding it"));
    return info;
}

Result<ublk::DeviceInfo> UblkControl::info(std::uint32_t dev_id) {
    ublk::DeviceInfo info;
    ublk::ControlCommand arguments;
    arguments.dev_id = dev_id;
    arguments.address = address_of(&info);
    arguments.bytes = sizeof info;
    TRY_STATUS(demand(ublk::cmd_get_dev_info, arguments, "asking for its state"));
    return info;
}

Result<ublk::Params> UblkControl::params(std::uint32_t dev_id) {
    ublk::Params params;
    params.bytes = sizeof params;
    ublk::ControlCommand arguments;
    arguments.dev_id = dev_id;
    arguments.address = address_of(&params);
    arguments.bytes = sizeof params;
    TRY_STATUS(demand(ublk::cmd_get_params, arguments, "asking for its parameters"));
    return params;
}

Status UblkControl::set_params(std::uint32_t dev_id, ublk::Params params) {
    params.bytes = sizeof params;
    ublk::ControlCommand arguments;
    arguments.dev_id = dev_id;
    arguments.address = address_of(&params);
    arguments.bytes = sizeof params;
    return demand(ublk::cmd_set_params, arguments, "setting its parameters");
}

Status UblkControl::start(std::uint32_t dev_id) {
    ublk::ControlCommand arguments;
    arguments.dev_id = dev_id;
    arguments.data = static_cast<std::uint64_t>(::getpid());
    return demand(ublk::cmd_start_dev, arguments, "starting it");
}

Status UblkControl::stop(std::uint32_t dev_id) {
    ublk::ControlCommand arguments;
    arguments.dev_id = dev_id;
    return demand(ublk::cmd_stop_dev, arguments, "stopping it");
}

Status UblkControl::remove(std::uint32_t dev_id) {
    ublk::ControlCommand arguments;
    arguments.dev_id = dev_id;
    const int result = run(ublk::cmd_del_dev_async, arguments);
    if (result >= 0) return ok_status();
    return demand(ublk::cmd_del_dev, arguments, "deleting it");
}

Status UblkControl::start_recovery(std::uint32_t dev_id) {
    ublk::ControlCommand arguments;
    arguments.dev_id = dev_id;
    return demand(ublk::cmd_start_recovery, arguments, "taking it over");
}

Status UblkControl::end_recovery(std::uint32_t dev_id) {
    ublk::ControlCommand arguments;
    arguments.dev_id = dev_id;
    arguments.data = static_cast<std::uint64_t>(::getpid());
    return demand(ublk::cmd_end_recovery, arguments, "going on with it");
}

std::vector<std::uint32_t> UblkControl::devices() {
    std::vector<std::uint32_t> ids;
    DIR* const directory = ::opendir("/sys/class/ublk-char");
    if (directory == nullptr) return ids;
    while (const dirent* entry = ::readdir(directory)) {
        if (std::strncmp(entry->d_name, "ublkc", 5) != 0) continue;
        ids.push_back(static_cast<std::uint32_t>(std::strtoul(entry->d_name + 5, nullptr, 10)));
    }
    ::closedir(directory);
    std::sort(ids.begin(), ids.end());
    return ids;
}

}  // namespace replica
