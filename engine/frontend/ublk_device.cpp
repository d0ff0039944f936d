// SPDX-License-Identifier: Apache-2.0
// See ublk_device.hpp.
#include "engine/frontend/ublk_device.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <span>
#include <thread>
#include <utility>

#include "engine/base/crc32c.hpp"
#include "engine/base/text.hpp"

namespace replica {
namespace {

constexpr std::uint64_t magic = 0x52706c63;  // "Rplc"
constexpr const char* names_directory = "/dev/replica/by-res";

// The driver looks this often whether its server is gone when the dead one held every tag; else it
// is told. The default is 30 s.
constexpr const char* io_timeout_ms = "2000";
constexpr auto recovery_pause = std::chrono::milliseconds(10);
constexpr auto recovery_patience = std::chrono::seconds(45);
// Long enough to be quick, short enough to leave room for others in between.
constexpr std::uint32_t discard_bytes_max = 64U << 20;

// What the kernel keeps for us with the device.
std::uint64_t identity_of(const UblkDeviceOptions& options) {
    const std::string text = options.state_dir + '\0' + options.resource;
    return magic << 32 | crc32c(std::as_bytes(std::span(text)));
}

Status make_directory(const std::string& path, mode_t mode) {
    if (::mkdir(path.c_str(), mode) == 0 || errno == EEXIST) return ok_status();
    return Error{Errc::io, errno,
                 text_of("%s can not be made: %s", path.c_str(), std::strerror(errno))};
}

// True if all of it is on stable storage.
bool write_file(const std::string& path, const std::string& text, bool stable) {
    const int flags = O_WRONLY | O_CLOEXEC | (stable ? O_CREAT | O_TRUNC : 0);
    const int fd = ::open(path.c_str(), flags, 0600);
    if (fd < 0) return false;
    const bool good = ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
                      (!stable || ::fsync(fd) == 0);
    const int error = errno;
    ::close(fd);
    errno = error;
    return good;
}

bool sync_directory(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return false;
    const bool good = ::fsync(fd) == 0;
    ::close(fd);
    return good;
}

ublk::Params params_for(const VolumeInfo& info) {
    ublk::Params params;
    params.types = ublk::params_basic | ublk::params_discard;
    // Each member flushes its own disk, whatever that has for a cache: so there is one to flush.
    params.basic.attrs = ublk::attr_volatile_cache | ublk::attr_fua;
    params.basic.logical_shift =
        static_cast<std::uint8_t>(std::countr_zero(info.logical_block_bytes));
    params.basic.max_sectors = ublk_io_bytes_max / sector_bytes;
    params.basic.chunk_sectors = extent_bytes / sector_bytes;
    params.basic.dev_sectors = info.size_bytes / sector_bytes;
    params.discard.granularity_bytes = block_bytes;
    params.discard.max_sectors = discard_bytes_max / sector_bytes;
    params.discard.max_zeroes_sectors = discard_bytes_max / sector_bytes;
    params.discard.max_segments = 1;
    return params;
}

}  // namespace

UblkDevice::UblkDevice(UblkDeviceOptions options, std::unique_ptr<UblkControl> control,
                       std::uint32_t dev_id)
    : options_(std::move(options)),
      control_(std::move(control)),
      dev_id_(dev_id),
      path_(text_of("/dev/ublkb%u", dev_id)) {}

Result<std::unique_ptr<UblkDevice>> UblkDevice::create(const UblkDeviceOptions& options,
                                                       const VolumeInfo& info) {
    TRY(auto control, UblkControl::open());
    ublk::DeviceInfo wanted;
    wanted.queue_depth = ublk_queue_depth;
    wanted.io_bytes_max = ublk_io_bytes_max;
    wanted.flags =
        ublk::flag_user_recovery | ublk::flag_user_recovery_reissue | ublk::flag_ioctl_encode;
    wanted.server_flags = identity_of(options);
    TRY(const ublk::DeviceInfo granted, control->add(wanted));
    std::unique_ptr<UblkDevice> self(new UblkDevice(options, std::move(control), granted.dev_id));
    Status ready = ok_status();
    if ((granted.flags & wanted.flags) != wanted.flags) {
        ready = Error{Errc::unsupported, 0,
                      "the kernel does not grant a ublk device that outlives its daemon"};
    }
    if (granted.queue_depth != ublk_queue_depth || granted.io_bytes_max != ublk_io_bytes_max) {
        ready = Error{Errc::unsupported, 0, "the kernel grants other sizes of a ublk queue"};
    }
    if (ready) ready = self->write_record();
    if (ready) ready = self->control_->set_params(granted.dev_id, params_for(info));
    if (ready) return self;
    static_cast<void>(self->remove());
    return ready.error();
}

// Whoever has no ublk has no devices that were left.
Result<std::unique_ptr<UblkDevice>> UblkDevice::find(const UblkDeviceOptions& options) {
    std::unique_ptr<UblkDevice> found;
    const auto ids = UblkControl::devices();
    if (ids.empty()) {
        ::unlink((options.state_dir + "/ublk/" + options.resource).c_str());
        return found;
    }
    for (const std::uint32_t id : ids) {
        TRY(auto control, UblkControl::open());
        const auto info = control->info(id);
        // Gone meanwhile, or not ours to ask about.
        if (!info || info.value().server_flags != identity_of(options)) continue;
        std::unique_ptr<UblkDevice> device(new UblkDevice(options, std::move(control), id));
        if (info.value().state == ublk::DeviceState::dead) {
            options.log(LOG_NOTICE, device->path_ + " was never started, or stopped: removed");
            TRY_STATUS(device->remove());
            continue;
        }
        device->found_ = true;
        device->read_record();
        found = std::move(device);
    }
    return found;
}

// ---- the record ---------------------------------------------------------------------------------

Status UblkDevice::write_record() {
    const std::string directory = options_.state_dir + "/ublk";
    TRY_STATUS(make_directory(directory, 0700));
    const std::string path = record_path(), next = path + ".new";
    const std::string text = text_of("device %u\ngeneration %s\n", dev_id_, generation_.c_str());
    if (!write_file(next, text, true) || ::rename(next.c_str(), path.c_str()) != 0 ||
        !sync_directory(directory)) {
        return Error{Errc::io, errno,
                     text_of("%s can not be written: %s", path.c_str(), std::strerror(errno))};
    }
    return ok_status();
}

// A record that is lost says no less than none: the device itself tells whose it is.
void UblkDevice::read_record() {
    std::FILE* const file = std::fopen(record_path().c_str(), "re");
    if (file == nullptr) return;
    unsigned id = 0;
    char generation[64] = {};
    if (std::fscanf(file, "device %u generation %63s", &id, generation) == 2 && id == dev_id_) {
        generation_ = generation;
    }
    std::fclose(file);
}

Status UblkDevice::note_generation(const std::string& generation) {
    generation_ = generation;
    return write_record();
}

// ---- going live ---------------------------------------------------------------------------------

Result<std::unique_ptr<UblkChannel>> UblkDevice::open_channel(const VolumeInfo& info) {
    TRY(auto channel, UblkChannel::create());
    if (found_) TRY_STATUS(take_over(info));
    TRY_STATUS(channel->open(dev_id_));
    return channel;
}

// From the command on until start() the kernel can not take the death of this process, too: Linux
// 6.12 then refuses to hand the device on. So all that takes time comes before.
Status UblkDevice::take_over(const VolumeInfo& info) {
    TRY(const ublk::Params params, control_->params(dev_id_));
    if (params.basic.dev_sectors != info.size_bytes / sector_bytes) {
        return Error{Errc::state, 0,
                     text_of("%s has %llu sectors, and the volume has %llu", path_.c_str(),
                             static_cast<unsigned long long>(params.basic.dev_sectors),
                             static_cast<unsigned long long>(info.size_bytes / sector_bytes))};
    }
    const auto deadline = std::chrono::steady_clock::now() + recovery_patience;
    for (;;) {
        const Status taken = control_->start_recovery(dev_id_);
        // EINVAL: a process before us was killed right after this very command.
        if (taken || taken.error().os_errno == EINVAL) return ok_status();
        if (taken.error().code != Errc::busy) return taken;
        if (std::chrono::steady_clock::now() > deadline) {
            return Error{Errc::timeout, 0,
                         path_ + " is still served by the process before this one: end that"};
        }
        std::this_thread::sleep_for(recovery_pause);
    }
}

Status UblkDevice::start() {
    TRY_STATUS(found_ ? control_->end_recovery(dev_id_) : control_->start(dev_id_));
    found_ = false;
    const std::string timeout = text_of("/sys/block/ublkb%u/queue/io_timeout", dev_id_);
    if (!write_file(timeout, io_timeout_ms, false)) {
        options_.log(LOG_WARNING, text_of("%s can not be set, so a restart may take 30 s: %s",
                                          timeout.c_str(), std::strerror(errno)));
    }
    const Status linked = link();
    if (!linked) options_.log(LOG_WARNING, linked.error().message);
    if (generation_.empty()) return ok_status();
    return note_generation("");
}

// By ourselves and not by a rule of udev: there may be none, in a container or an initramfs.
Status UblkDevice::link() {
    TRY_STATUS(make_directory("/dev/replica", 0755));
    TRY_STATUS(make_directory(names_directory, 0755));
    const std::string name = names_directory + ("/" + options_.resource), next = name + ".new";
    const std::string target = text_of("../../ublkb%u", dev_id_);
    ::unlink(next.c_str());
    if (::symlink(target.c_str(), next.c_str()) != 0 || ::rename(next.c_str(), name.c_str()) != 0) {
        return Error{Errc::io, errno,
                     text_of("%s can not be made: %s", name.c_str(), std::strerror(errno))};
    }
    return ok_status();
}

// ---- the end ------------------------------------------------------------------------------------

// An exclusive descriptor: nobody can mount the device meanwhile. -1: there is no such device.
Result<int> UblkDevice::claim() const {
    const int fd = ::open(path_.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC);
    if (fd >= 0 || errno != EBUSY) return fd;
    return Error{Errc::busy, EBUSY,
                 text_of("%s is in use (mounted, or part of another device): unmount it first",
                         path_.c_str())};
}

Status UblkDevice::check_unused() const {
    TRY(const int fd, claim());
    if (fd >= 0) ::close(fd);
    return ok_status();
}

Status UblkDevice::stop(bool force) {
    int held = -1;
    if (!force) {
        TRY(held, claim());
    }
    const Status stopped = control_->stop(dev_id_);
    if (held >= 0) ::close(held);
    return stopped;
}

Status UblkDevice::remove() {
    const std::string name = names_directory + ("/" + options_.resource);
    char target[64] = {};
    const ssize_t length = ::readlink(name.c_str(), target, sizeof target - 1);
    if (length > 0 && target == text_of("../../ublkb%u", dev_id_)) ::unlink(name.c_str());
    TRY_STATUS(control_->remove(dev_id_));
    ::unlink(record_path().c_str());
    return ok_status();
}

}  // namespace replica
