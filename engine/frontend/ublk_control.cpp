// SPDX-License-Identifier: Apache-2.0
// See ublk_control.hpp. The commands are io_uring ones with entries of 128 bytes, on rings of their
// own; the kernel runs them in a worker thread.
#include "engine/frontend/ublk_control.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <liburing.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "engine/base/text.hpp"
#include "engine/base/units.hpp"
#include "engine/frontend/patient_ring.hpp"
#include "engine/io/process.hpp"

namespace replica {
namespace {

constexpr const char* control_path = "/dev/ublk-control";
// Longer than anything that a command waits for but a request that never ends; and how long one
// that was given up may take to notice.
constexpr std::chrono::seconds command_limit{60}, cancel_limit{5};

Error open_error(int os_errno) {
    if (os_errno == EACCES || os_errno == EPERM) {
        return {Errc::permission, os_errno,
                "/dev/ublk-control may not be opened: a ublk device needs root"};
    }
    if (os_errno == ENOENT || os_errno == ENODEV || os_errno == ENXIO) {
        return {Errc::unsupported, os_errno,
                "the kernel has no ublk: there is no /dev/ublk-control, and the module ublk_drv "
                "does not load (Linux 6.5 or later with CONFIG_BLK_DEV_UBLK, and root, are "
                "needed)"};
    }
    return {Errc::io, os_errno,
            text_of("/dev/ublk-control can not be opened: %s", std::strerror(os_errno))};
}

// What can not be read says nothing: not that there are no devices.
Error unread(const std::string& path, int os_errno) {
    return {Errc::io, os_errno,
            text_of("%s can not be read, so it is not known which ublk devices there are: %s",
                    path.c_str(), std::strerror(os_errno))};
}

// ---- the machine's ------------------------------------------------------------------------------

class KernelControl final : public UblkControl {
  public:
    KernelControl() = default;
    ~KernelControl() override;
    Status open_device();

    Result<std::vector<std::uint32_t>> devices() override { return ublk_devices(); }
    int open_channel(std::uint32_t dev_id) override;
    int map_channel(int fd, std::size_t bytes, const ublk::IoDescriptor*& shown) override;

  private:
    int run(std::uint32_t command, const ublk::ControlCommand& arguments,
            std::span<std::byte> memory) override;

    std::unique_ptr<PatientRing> ring_;
    int fd_ = -1;
};

Status KernelControl::open_device() {
    fd_ = ::open(control_path, O_RDWR | O_CLOEXEC);
    if (fd_ < 0 && errno == ENOENT) {
        load_module("ublk_drv");
        fd_ = ::open(control_path, O_RDWR | O_CLOEXEC);
    }
    if (fd_ < 0) return open_error(errno);
    TRY(ring_, PatientRing::create(command_limit, cancel_limit));
    std::uint64_t features = 0;
    ublk::ControlCommand arguments;
    const int got = run(ublk::cmd_get_features, arguments,
                        std::as_writable_bytes(std::span<std::uint64_t, 1>(&features, 1)));
    constexpr std::uint64_t needed =
        ublk::flag_user_recovery | ublk::flag_user_recovery_reissue | ublk::flag_ioctl_encode;
    if (got == -EPERM || got == -EACCES) return open_error(-got);
    if (got < 0 || (features & needed) != needed) {
        return Error{Errc::unsupported, got < 0 ? -got : 0,
                     text_of("the kernel's ublk is too old: it lacks what a device needs to "
                             "outlive its daemon (features %#llx; Linux 6.5 or later has them)",
                             static_cast<unsigned long long>(features))};
    }
    features_ = features;
    return ok_status();
}

KernelControl::~KernelControl() {
    if (fd_ >= 0) ::close(fd_);
}

int KernelControl::run(std::uint32_t command, const ublk::ControlCommand& arguments,
                       std::span<std::byte> memory) {
    // A start waits where it can be interrupted; what stops a device goes on until it is done.
    const bool waits = command == ublk::cmd_start_dev || command == ublk::cmd_end_recovery;
    const std::uint64_t key = std::uint64_t{command} << 32 | arguments.dev_id;
    const std::size_t bytes = memory.size();
    return ring_->run(
        {key, waits},
        [&](io_uring_sqe& entry, PatientRing::Memory& kept) {
            ublk::ControlCommand complete = arguments;
            complete.bytes = static_cast<std::uint16_t>(bytes);
            if (bytes > 0) complete.address = reinterpret_cast<std::uintptr_t>(kept.data());
            entry.opcode = IORING_OP_URING_CMD;
            entry.fd = fd_;
            entry.cmd_op = command;
            std::memcpy(reinterpret_cast<std::byte*>(&entry) + 48, &complete, sizeof complete);
        },
        memory);
}

int KernelControl::open_channel(std::uint32_t dev_id) {
    const int fd = ::open(text_of("/dev/ublkc%u", dev_id).c_str(), O_RDWR | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int KernelControl::map_channel(int fd, std::size_t bytes, const ublk::IoDescriptor*& shown) {
    void* const memory = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory == MAP_FAILED) return -errno;
    shown = static_cast<const ublk::IoDescriptor*>(memory);
    return 0;
}

}  // namespace

Result<std::unique_ptr<UblkControl>> UblkControl::open() {
    auto self = std::make_unique<KernelControl>();
    TRY_STATUS(self->open_device());
    return std::unique_ptr<UblkControl>(std::move(self));
}

Result<std::vector<std::uint32_t>> ublk_devices(const std::string& classes) {
    const std::string path = classes + "/ublk-char";
    std::vector<std::uint32_t> ids;
    DIR* const directory = ::opendir(path.c_str());
    if (directory == nullptr) {
        // Without the module there is no such class; but /sys has to be there to say so.
        if (errno == ENOENT && ::access(classes.c_str(), F_OK) == 0) return ids;
        return unread(path, errno);
    }
    for (errno = 0; const dirent* entry = ::readdir(directory); errno = 0) {
        if (std::strncmp(entry->d_name, "ublkc", 5) != 0) continue;
        ids.push_back(static_cast<std::uint32_t>(std::strtoul(entry->d_name + 5, nullptr, 10)));
    }
    const int error = errno;
    ::closedir(directory);
    if (error != 0) return unread(path, error);
    std::sort(ids.begin(), ids.end());
    return ids;
}

// ---- commands -----------------------------------------------------------------------------------

Status UblkControl::demand(std::uint32_t command, ublk::ControlCommand arguments, const char* what,
                           std::span<std::byte> memory) {
    const int result = run(command, arguments, memory);
    if (result >= 0) return ok_status();
    const Errc code = result == -ETIME                        ? Errc::timeout
                      : result == -EBUSY                      ? Errc::busy
                      : result == -ENODEV                     ? Errc::not_found
                      : result == -EPERM || result == -EACCES ? Errc::permission
                                                              : Errc::io;
    return Error{code, -result,
                 text_of("ublk device %d: %s failed: %s", static_cast<int>(arguments.dev_id), what,
                         std::strerror(-result))};
}

namespace {

ublk::ControlCommand about(std::uint32_t dev_id) {
    ublk::ControlCommand arguments;
    arguments.dev_id = dev_id;
    return arguments;
}

ublk::ControlCommand served_by_us(std::uint32_t dev_id) {
    ublk::ControlCommand arguments = about(dev_id);
    arguments.data = static_cast<std::uint64_t>(::getpid());
    return arguments;
}

template <class T>
std::span<std::byte> bytes_of(T& value) {
    return std::as_writable_bytes(std::span<T, 1>(&value, 1));
}

}  // namespace

Result<ublk::DeviceInfo> UblkControl::add(const ublk::DeviceInfo& wanted) {
    ublk::DeviceInfo info = wanted;
    TRY_STATUS(demand(ublk::cmd_add_dev, about(wanted.dev_id), "adding it", bytes_of(info)));
    return info;
}

Result<ublk::DeviceInfo> UblkControl::info(std::uint32_t dev_id) {
    ublk::DeviceInfo info;
    TRY_STATUS(
        demand(ublk::cmd_get_dev_info, about(dev_id), "asking for its state", bytes_of(info)));
    return info;
}

Result<ublk::Params> UblkControl::params(std::uint32_t dev_id) {
    ublk::Params params;
    params.bytes = sizeof params;
    TRY_STATUS(
        demand(ublk::cmd_get_params, about(dev_id), "asking for its parameters", bytes_of(params)));
    return params;
}

Status UblkControl::set_params(std::uint32_t dev_id, ublk::Params params) {
    params.bytes = sizeof params;
    return demand(ublk::cmd_set_params, about(dev_id), "setting its parameters", bytes_of(params));
}

Status UblkControl::start(std::uint32_t dev_id) {
    return demand(ublk::cmd_start_dev, served_by_us(dev_id), "starting it");
}

Status UblkControl::stop(std::uint32_t dev_id) {
    return demand(ublk::cmd_stop_dev, about(dev_id), "stopping it");
}

Status UblkControl::remove(std::uint32_t dev_id) {
    const Status removed = demand(ublk::cmd_del_dev_async, about(dev_id), "deleting it");
    if (removed || removed.error().os_errno != EOPNOTSUPP) return removed;
    return demand(ublk::cmd_del_dev, about(dev_id), "deleting it");
}

Status UblkControl::start_recovery(std::uint32_t dev_id) {
    return demand(ublk::cmd_start_recovery, about(dev_id), "taking it over");
}

Status UblkControl::update_size(std::uint32_t dev_id, std::uint64_t bytes) {
    if ((features_ & ublk::flag_update_size) == 0) {
        return Error{Errc::unsupported, 0,
                     "this kernel's ublk can not change the size of a device (Linux 6.16 can)"};
    }
    ublk::ControlCommand arguments = about(dev_id);
    arguments.data = bytes / sector_bytes;
    return demand(ublk::cmd_update_size, arguments, "changing its size");
}

Status UblkControl::end_recovery(std::uint32_t dev_id) {
    return demand(ublk::cmd_end_recovery, served_by_us(dev_id), "going on with it");
}

}  // namespace replica
