// SPDX-License-Identifier: Apache-2.0
// See ublk_device.hpp.
#include "engine/frontend/ublk_device.hpp"

#include <syslog.h>

#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "engine/base/text.hpp"

namespace replica {
namespace {

// The driver looks this often whether its server is gone when the dead one held every tag; else it
// is told. The default is 30 s.
constexpr unsigned dead_server_ms = 200;
// Long enough to be quick, short enough to leave room for others in between.
constexpr std::uint32_t discard_bytes_max = 64U << 20;

ublk::Params params_for(const VolumeInfo& info) {
    ublk::Params params;
    params.types = ublk::params_basic | ublk::params_discard;
    // Each member flushes its own disk, whatever that has for a cache: so there is one to flush.
    params.basic.attrs = ublk::attr_volatile_cache | ublk::attr_fua;
    if (!info.writable) params.basic.attrs |= ublk::attr_read_only;
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

std::string node_of(std::uint32_t dev_id) { return text_of("ublkb%u", dev_id); }

}  // namespace

UblkDevice::UblkDevice(const UblkDeviceOptions& options, std::unique_ptr<UblkControl> control,
                       const ublk::DeviceInfo& info, const DeviceRecord& record)
    : KernelDevice(DeviceKind::ublk, options, record),
      patience_(options.patience),
      control_(std::move(control)),
      info_(info) {
    set_node(node_of(info.dev_id));
}

DeviceMaker UblkDevice::maker(const UblkDeviceOptions& options) {
    return {DeviceKind::ublk,
            [options](const VolumeInfo& info, std::uint64_t generation) {
                return create(options, info, generation);
            },
            [options] { return find(options); }};
}

// On record first: whenever this process dies, the next one finds what there is.
Result<std::unique_ptr<KernelDevice>> UblkDevice::create(const UblkDeviceOptions& options,
                                                         const VolumeInfo& info,
                                                         std::uint64_t generation) {
    TRY(auto control, options.control());
    const DeviceRecordFile file(options.state_dir, DeviceKind::ublk, options.resource);
    const DeviceRecord record{new_device_token(), generation, !info.writable};
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
    if (ready) return std::unique_ptr<KernelDevice>(std::move(self));
    static_cast<void>(self->remove());
    return ready.error();
}

Result<std::unique_ptr<KernelDevice>> UblkDevice::find(const UblkDeviceOptions& options) {
    std::unique_ptr<KernelDevice> found;
    const DeviceRecordFile file(options.state_dir, DeviceKind::ublk, options.resource);
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
            remove_device_name(options, "/dev/" + node_of(id));
            TRY_STATUS(control.value()->remove(id));
            continue;
        }
        std::unique_ptr<UblkDevice> self(
            new UblkDevice(options, std::move(control).value(), info.value(), *record));
        self->found_ = true;
        found = std::move(self);
        return found;
    }
    TRY_STATUS(file.remove());
    return found;
}

// ---- going live ---------------------------------------------------------------------------------

Result<std::unique_ptr<KernelChannel>> UblkDevice::open_channel(const VolumeInfo& info) {
    if (found_) TRY_STATUS(check_sizes(info));
    if (!channel_) {
        TRY(channel_, UblkChannel::create(info_.queue_depth, info_.io_bytes_max));
    }
    if (found_) {
        TRY_STATUS(take_over());
        TRY_STATUS(open_taken());
    } else {
        TRY_STATUS(channel_->open(*control_, info_.dev_id));
    }
    return std::unique_ptr<KernelChannel>(std::make_unique<UblkService>(std::move(channel_)));
}

// Serving it in other sizes than it was made with would hang it, or worse.
Status UblkDevice::check_sizes(const VolumeInfo& info) {
    TRY(const ublk::Params params, control_->params(info_.dev_id));
    TRY_STATUS(check_fit(params.basic.dev_sectors * sector_bytes, info));
    if (info_.queues != 1 || info_.queue_depth == 0 || info_.queue_depth > ublk_depth_max ||
        info_.io_bytes_max > io_bytes_max || params.basic.max_sectors == 0 ||
        params.basic.max_sectors > info_.io_bytes_max / sector_bytes) {
        return misfit(
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
                             path().c_str(), info_.server_pid)};
    }
    if (!taken && !interrupted_) return taken;
    taken_ = true;
    deadline_ = std::chrono::steady_clock::now() + patience_;
    return ok_status();
}

Status UblkDevice::open_taken() {
    const Status opened = channel_->open(*control_, info_.dev_id);
    if (opened || !interrupted_) return opened;
    if (opened.error().os_errno == EINVAL) return lost();  // the kernel waits for the dead process
    if (opened.error().code != Errc::busy) return opened;
    if (std::chrono::steady_clock::now() < deadline_) return opened;
    return lost();
}

Error UblkDevice::lost() const {
    return {Errc::corrupt, 0,
            path() +
                " can not be taken over: a process was killed while it did that, and this "
                "kernel does not let the next one"};
}

Status UblkDevice::begin() {
    TRY_STATUS(found_ ? control_->end_recovery(info_.dev_id) : control_->start(info_.dev_id));
    found_ = taken_ = false;
    return ok_status();
}

Status UblkDevice::grow(std::uint64_t size_bytes) {
    const Status grown = control_->update_size(info_.dev_id, size_bytes);
    if (grown || grown.error().code != Errc::unsupported) return grown;
    return Error{Errc::unsupported, 0,
                 path() + " stays as large as it was, as " + grown.error().message +
                     ": unexport it and export it again"};
}

unsigned UblkDevice::io_timeout_ms() const { return dead_server_ms; }

Status UblkDevice::end() {
    const Status stopped = control_->stop(info_.dev_id);
    if (!stopped && stopped.error().code == Errc::not_found) return ok_status();
    return stopped;
}

Status UblkDevice::erase() {
    const Status removed = control_->remove(info_.dev_id);
    if (!removed && removed.error().code == Errc::not_found) return ok_status();
    return removed;
}

}  // namespace replica
