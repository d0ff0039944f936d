// SPDX-License-Identifier: Apache-2.0
// See ublk_device.hpp.
#include "engine/frontend/ublk_device.hpp"

#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "engine/base/text.hpp"

namespace replica {
namespace {

// The driver looks this often whether its server is gone when the dead one held every tag; else it
// is told. The default is 30 s.
constexpr unsigned io_timeout_ms = 2000;
// Long enough to be quick, short enough to leave room for others in between.
constexpr std::uint32_t discard_bytes_max = 64U << 20;
// Who looks at every new device (udev) has it open for a moment.
constexpr int use_attempts = 5;
constexpr std::chrono::milliseconds use_pause{100};

Status make_directory(const std::string& path) {
    if (::mkdir(path.c_str(), 0755) == 0 || errno == EEXIST) return ok_status();
    return Error{Errc::io, errno,
                 text_of("%s can not be made: %s", path.c_str(), std::strerror(errno))};
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

std::string path_of(std::uint32_t dev_id) { return text_of("/dev/ublkb%u", dev_id); }

// The stable name, if it is this device's.
void remove_name(const UblkDeviceOptions& options, const std::string& path) {
    const std::string name = options.names + "/" + options.resource;
    char target[64] = {};
    const ssize_t length = ::readlink(name.c_str(), target, sizeof target - 1);
    if (length > 0 && target == path) ::unlink(name.c_str());
}

bool is_none(int error) { return error == ENOENT || error == ENXIO || error == ENODEV; }

}  // namespace

UblkDevice::UblkDevice(const UblkDeviceOptions& options, std::unique_ptr<UblkControl> control,
                       const ublk::DeviceInfo& info, const UblkRecord& record)
    : options_(options),
      file_(options.state_dir, options.resource),
      record_(record),
      control_(std::move(control)),
      info_(info),
      path_(path_of(info.dev_id)) {}

// On record first: whenever this process dies, the next one finds what there is.
Result<std::unique_ptr<UblkDevice>> UblkDevice::create(const UblkDeviceOptions& options,
                                                       const VolumeInfo& info,
                                                       std::uint64_t generation) {
    TRY(auto control, options.control());
    const UblkRecordFile file(options.state_dir, options.resource);
    const UblkRecord record{new_ublk_token(), generation};
    TRY_STATUS(file.save(record));
    ublk::DeviceInfo wanted;
    wanted.queue_depth = ublk_queue_depth;
    wanted.io_bytes_max = ublk_io_bytes_max;
    wanted.flags =
        ublk::flag_user_recovery | ublk::flag_user_recovery_reissue | ublk::flag_ioctl_encode;
    wanted.server_flags = record.token;
    const auto added = control->add(wanted);
    if (!added) {
        // If the kernel has not said what became of it, the record stays for who looks next.
        if (added.error().code != Errc::timeout) static_cast<void>(file.remove());
        return added.error();
    }
    const ublk::DeviceInfo& granted = added.value();
    std::unique_ptr<UblkDevice> self(new UblkDevice(options, std::move(control), granted, record));
    Status ready = ok_status();
    if ((granted.flags & wanted.flags) != wanted.flags) {
        ready = Error{Errc::unsupported, 0,
                      "the kernel does not grant a ublk device that outlives its daemon"};
    } else if (granted.queue_depth != ublk_queue_depth ||
               granted.io_bytes_max != ublk_io_bytes_max) {
        ready = Error{Errc::unsupported, 0, "the kernel grants other sizes of a ublk queue"};
    }
    if (ready) ready = self->control_->set_params(granted.dev_id, params_for(info));
    if (ready) return self;
    static_cast<void>(self->remove());
    return ready.error();
}

Result<std::unique_ptr<UblkDevice>> UblkDevice::find(const UblkDeviceOptions& options) {
    std::unique_ptr<UblkDevice> found;
    const UblkRecordFile file(options.state_dir, options.resource);
    TRY(const auto record, file.load());
    if (!record) return found;
    auto control = options.control();
    if (!control) {
        if (control.error().code != Errc::unsupported) return control.error();
        // No driver, no devices; but it may be only /dev that does not show it.
        TRY(const auto seen, ublk_devices());
        if (!seen.empty()) return control.error();
        TRY_STATUS(file.remove());
        return found;
    }
    TRY(const auto ids, control.value()->devices());
    for (const std::uint32_t id : ids) {
        auto info = control.value()->info(id);
        if (!info) {
            // Gone meanwhile; or of an unprivileged user, whom the driver wants named otherwise.
            const int error = info.error().os_errno;
            if (error == ENODEV || error == EINVAL) continue;
            return info.error();
        }
        if (info.value().server_flags != record->token) continue;
        if (info.value().state == ublk::DeviceState::dead) {
            options.log(LOG_NOTICE,
                        text_of("/dev/ublkc%u of %s was never started, or is stopped: removed", id,
                                options.resource.c_str()));
            remove_name(options, path_of(id));
            TRY_STATUS(control.value()->remove(id));
            continue;
        }
        found.reset(new UblkDevice(options, std::move(control).value(), info.value(), *record));
        found->found_ = true;
        return found;
    }
    TRY_STATUS(file.remove());
    return found;
}

Status UblkDevice::note_generation(std::uint64_t generation) {
    if (generation == record_.generation) return ok_status();
    const UblkRecord next{record_.token, generation};
    TRY_STATUS(file_.save(next));
    record_ = next;
    return ok_status();
}

// ---- going live ---------------------------------------------------------------------------------

Result<std::unique_ptr<UblkChannel>> UblkDevice::open_channel(const VolumeInfo& info) {
    if (found_) TRY_STATUS(check_fit(info));
    if (!channel_) {
        TRY(channel_, UblkChannel::create(info_.queue_depth, info_.io_bytes_max));
    }
    if (found_) {
        TRY_STATUS(take_over());
        TRY_STATUS(open_taken());
    } else {
        TRY_STATUS(channel_->open(*control_, info_.dev_id));
    }
    return std::move(channel_);
}

// The device is as another program made it: perhaps an older one, perhaps before the disk was
// replaced. Serving it in other sizes would hang it, or worse.
Status UblkDevice::check_fit(const VolumeInfo& info) {
    TRY(const ublk::Params params, control_->params(info_.dev_id));
    const auto refuse = [this](const std::string& why) {
        return Error{Errc::state, 0, path_ + " does not fit: " + why};
    };
    if (params.basic.dev_sectors != info.size_bytes / sector_bytes) {
        return refuse(text_of("it has %llu sectors, and the volume has %llu",
                              static_cast<unsigned long long>(params.basic.dev_sectors),
                              static_cast<unsigned long long>(info.size_bytes / sector_bytes)));
    }
    if (1U << params.basic.logical_shift < info.logical_block_bytes) {
        return refuse(text_of("its blocks have %u bytes, and those of the disk %u",
                              1U << params.basic.logical_shift, info.logical_block_bytes));
    }
    if (info_.queues != 1 || info_.queue_depth == 0 || info_.queue_depth > ublk_depth_max ||
        info_.io_bytes_max > io_bytes_max || params.basic.max_sectors == 0 ||
        params.basic.max_sectors > info_.io_bytes_max / sector_bytes) {
        return refuse(
            text_of("%u queue(s) of %u requests of %u bytes are more than this program "
                    "serves",
                    info_.queues, info_.queue_depth, info_.io_bytes_max));
    }
    return ok_status();
}

// From here until start() the kernel can not take the death of this process, too: Linux 6.12 then
// refuses to hand the device on. So all that takes time comes before.
Status UblkDevice::take_over() {
    if (taken_) return ok_status();
    const Status taken = control_->start_recovery(info_.dev_id);
    interrupted_ = !taken && taken.error().os_errno == EINVAL;
    if (!taken && taken.error().code == Errc::busy) {
        return Error{Errc::busy, EBUSY,
                     text_of("%s is still served by process %d, or that is not gone yet",
                             path_.c_str(), info_.server_pid)};
    }
    if (!taken && !interrupted_) return taken;
    taken_ = true;
    patience_ = std::chrono::steady_clock::now() + options_.patience;
    return ok_status();
}

Status UblkDevice::open_taken() {
    const Status opened = channel_->open(*control_, info_.dev_id);
    if (opened || !interrupted_) return opened;
    if (opened.error().os_errno == EINVAL) return lost();  // the kernel waits for the dead process
    if (opened.error().code != Errc::busy) return opened;
    if (std::chrono::steady_clock::now() < patience_) return opened;
    return lost();
}

Error UblkDevice::lost() const {
    return {Errc::corrupt, 0,
            path_ +
                " can not be taken over: a process was killed while it did that, and this "
                "kernel does not let the next one"};
}

Status UblkDevice::start() {
    TRY_STATUS(found_ ? control_->end_recovery(info_.dev_id) : control_->start(info_.dev_id));
    found_ = taken_ = false;
    served_ = true;
    // What follows is of use, but no reason to fail: there are users from now on.
    const int set = control_->set_io_timeout(info_.dev_id, io_timeout_ms);
    if (set != 0) {
        options_.log(LOG_WARNING, text_of("the io_timeout of %s can not be set, so a restart may "
                                          "take 30 s: %s",
                                          path_.c_str(), std::strerror(-set)));
    }
    const Status linked = link();
    if (!linked) options_.log(LOG_WARNING, linked.error().message);
    return ok_status();
}

// By ourselves and not by a rule of udev: there may be none, in a container or an initramfs.
Status UblkDevice::link() {
    for (std::size_t at = options_.names.find('/', 1); at != std::string::npos;
         at = options_.names.find('/', at + 1)) {
        TRY_STATUS(make_directory(options_.names.substr(0, at)));
    }
    TRY_STATUS(make_directory(options_.names));
    const std::string name = options_.names + "/" + options_.resource, next = name + ".new";
    ::unlink(next.c_str());
    if (::symlink(path_.c_str(), next.c_str()) != 0 || ::rename(next.c_str(), name.c_str()) != 0) {
        return Error{Errc::io, errno,
                     text_of("%s can not be made: %s", name.c_str(), std::strerror(errno))};
    }
    return ok_status();
}

// ---- the end ------------------------------------------------------------------------------------

// An exclusive descriptor: nobody can mount the device meanwhile. -1: there is no such device.
Result<int> UblkDevice::claim() {
    const int fd = control_->claim(info_.dev_id);
    if (fd >= 0) return fd;
    if (is_none(-fd)) return -1;
    if (fd == -EBUSY) {
        return Error{Errc::busy, EBUSY,
                     text_of("%s is in use (mounted, or part of another device): unmount it first",
                             path_.c_str())};
    }
    return Error{Errc::io, -fd,
                 text_of("%s can not be opened, so it is not known whether it is in use: %s",
                         path_.c_str(), std::strerror(-fd))};
}

// The same; and nobody has it open in /proc, either.
Result<int> UblkDevice::claim_unused() {
    TRY(const int fd, claim());
    if (fd < 0) return fd;
    for (int attempt = 0;; ++attempt) {
        const std::string user = control_->user_of(info_.dev_id);
        if (user.empty()) return fd;
        if (attempt == use_attempts) {
            ::close(fd);
            return Error{Errc::busy, EBUSY,
                         path_ + " is open in " + user + ": let that close it first"};
        }
        std::this_thread::sleep_for(use_pause);
    }
}

Status UblkDevice::check_unused() {
    TRY(const int fd, claim_unused());
    if (fd >= 0) ::close(fd);
    return ok_status();
}

// The driver fails what comes after the command, also what the page cache has yet to write.
Status UblkDevice::stop(bool force) {
    int held = -1;
    if (!force) {
        TRY(held, claim_unused());
    }
    if (held >= 0 && served_ && ::fsync(held) != 0) {
        const int error = errno;
        ::close(held);
        return Error{Errc::io, error,
                     text_of("%s can not be written out: %s", path_.c_str(), std::strerror(error))};
    }
    const Status stopped = control_->stop(info_.dev_id);
    if (held >= 0) ::close(held);
    return stopped;
}

Status UblkDevice::remove() {
    remove_name(options_, path_);
    const Status removed = control_->remove(info_.dev_id);
    if (!removed && removed.error().code != Errc::not_found) return removed;
    return file_.remove();
}

}  // namespace replica
