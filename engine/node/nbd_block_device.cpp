// SPDX-License-Identifier: Apache-2.0
// See nbd_block_device.hpp.
#include "engine/node/nbd_block_device.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/base/text.hpp"

namespace replica {
namespace {

// What was sent to a dead server is sent again when the driver looks, which is so often.
constexpr unsigned look_ms = 1000;
// As good as for ever, and far from what overflows in the kernel.
constexpr std::uint32_t dead_connection_s = 10U * 365 * 24 * 3600;
// Of the socket, in each direction: the requests of some dozen milliseconds.
constexpr int socket_bytes = 4 << 20;

std::string backend_for(const KernelDeviceOptions& options, const DeviceRecord& record) {
    return text_of("replica:%s:%016llx", options.resource.c_str(),
                   static_cast<unsigned long long>(record.token));
}

struct SocketPair {
    int ours = -1, kernels = -1;
    SocketPair() = default;
    SocketPair(const SocketPair&) = delete;
    SocketPair& operator=(const SocketPair&) = delete;
    ~SocketPair() {
        if (ours >= 0) ::close(ours);
        close_kernels();
    }
    void close_kernels() {
        if (kernels >= 0) ::close(std::exchange(kernels, -1));
    }
    Status open() {
        int ends[2];
        if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
            return Error{Errc::limit, errno, text_of("no socket pair: %s", std::strerror(errno))};
        }
        ours = ends[0];
        kernels = ends[1];
        for (const int end : ends) {
            ::setsockopt(end, SOL_SOCKET, SO_SNDBUFFORCE, &socket_bytes, sizeof socket_bytes);
        }
        return ok_status();
    }
};

}  // namespace

NbdBlockDevice::NbdBlockDevice(const NbdBlockDeviceOptions& options,
                               std::unique_ptr<NbdControl> control, const DeviceRecord& record)
    : KernelDevice(DeviceKind::nbd, options, record),
      control_(std::move(control)),
      handed_(options.handed),
      backend_(backend_for(options, record)) {}

DeviceMaker NbdBlockDevice::maker(const NbdBlockDeviceOptions& options) {
    return {DeviceKind::nbd,
            [options](const VolumeInfo& info, std::uint64_t generation) {
                return create(options, info, generation);
            },
            [options] { return find(options); }};
}

void NbdBlockDevice::set_index(int index) {
    index_ = index;
    set_node("nbd" + std::to_string(index));
}

// On record first: whenever this process dies, the next one finds what there is.
Result<std::unique_ptr<KernelDevice>> NbdBlockDevice::create(const NbdBlockDeviceOptions& options,
                                                             const VolumeInfo& info,
                                                             std::uint64_t generation) {
    TRY(auto control, open_patient_nbd(options.control, options.call_limit));
    const DeviceRecord record{new_device_token(), generation, !info.writable};
    TRY_STATUS(DeviceRecordFile(options.state_dir, DeviceKind::nbd, options.resource).save(record));
    return std::unique_ptr<KernelDevice>(new NbdBlockDevice(options, std::move(control), record));
}

Result<std::unique_ptr<KernelDevice>> NbdBlockDevice::find(const NbdBlockDeviceOptions& options) {
    std::unique_ptr<KernelDevice> found;
    const DeviceRecordFile file(options.state_dir, DeviceKind::nbd, options.resource);
    TRY(const auto record, file.load());
    if (!record) return found;
    auto control = open_patient_nbd(options.control, options.call_limit);
    if (!control) {
        if (control.error().code != Errc::unsupported) return control.error();
        TRY(const int there, nbd_device_of(backend_for(options, *record)));
        if (there >= 0) return control.error();
        TRY_STATUS(file.remove());
        return found;
    }
    std::unique_ptr<NbdBlockDevice> self(
        new NbdBlockDevice(options, std::move(control).value(), *record));
    TRY(const int there, self->number());
    if (there >= 0) {
        self->set_index(there);
        self->found_ = true;
        found = std::move(self);
        return found;
    }
    remove_device_name(options, "/dev/nbd*");
    TRY_STATUS(file.remove());
    return found;
}

// As the kernel has it; -1: it has none.
Result<int> NbdBlockDevice::number() const {
    TRY(const auto states, control_->status());
    for (const NbdDeviceState& state : states) {
        if (!state.connected) continue;
        TRY(const std::string backend, control_->backend_of(state.index));
        if (backend == backend_) return state.index;
    }
    return -1;
}

Result<std::unique_ptr<KernelChannel>> NbdBlockDevice::open_channel(const VolumeInfo& info) {
    if (found_) {
        TRY(const BlockFacts facts, this->facts());
        TRY_STATUS(check_fit(facts.size_bytes, info));
    }
    if (found_ && handed_ && *handed_) {
        std::unique_ptr<NbdChannel> channel = std::move(*handed_);
        if (!channel->hung_up()) {
            found_ = false;
            return std::unique_ptr<KernelChannel>(std::move(channel));
        }
    }
    SocketPair pair;
    TRY_STATUS(pair.open());
    TRY_STATUS(index_ < 0 ? connect(pair.kernels, info) : reconnect(pair.kernels));
    pair.close_kernels();
    auto channel = std::make_unique<NbdChannel>(std::exchange(pair.ours, -1));
    if (channel->hung_up()) {
        return Error{Errc::busy, EBUSY,
                     path() + " has another server, or the kernel has not yet seen its end"};
    }
    found_ = false;
    return std::unique_ptr<KernelChannel>(std::move(channel));
}

Status NbdBlockDevice::connect(int socket, const VolumeInfo& info) {
    NbdDeviceConfig config;
    config.size_bytes = info.size_bytes;
    config.block_bytes = info.logical_block_bytes;
    config.transmission_flags = nbd_device_flags(info);
    config.backend = backend_;
    config.dead_connection_s = dead_connection_s;
    const auto index = control_->connect(config, {&socket, 1});
    asked_ = !index && index.error().code == Errc::timeout;
    if (!index) return index.error();
    set_index(index.value());
    return ok_status();
}

Status NbdBlockDevice::reconnect(int socket) {
    NbdDeviceChange change;
    change.backend = backend_;
    const Status changed = control_->reconfigure(index_, change, {&socket, 1});
    const bool refused = !changed && (changed.error().code == Errc::invalid ||
                                      changed.error().code == Errc::not_found);
    if (!refused) return changed;
    return Error{Errc::corrupt, 0, path() + " can not be taken over: somebody has disconnected it"};
}

Status NbdBlockDevice::grow(std::uint64_t size_bytes) {
    NbdDeviceChange change;
    change.backend = backend_;
    change.size_bytes = size_bytes;
    return control_->reconfigure(index_, change, {});
}

unsigned NbdBlockDevice::io_timeout_ms() const { return look_ms; }

Status NbdBlockDevice::end() {
    if (handed_) handed_->reset();  // nobody will read it: the kernel must not wait for that
    if (index_ < 0 && asked_) {     // it may have been made after all
        TRY(const int late, number());
        if (late >= 0) set_index(late);
        asked_ = false;
    }
    if (index_ < 0) return ok_status();
    TRY(const std::string backend, control_->backend_of(index_));
    if (backend != backend_) return ok_status();  // it is gone, and its number another's
    const Status ended = control_->disconnect(index_);
    if (!ended && ended.error().code == Errc::invalid) return ok_status();
    return ended;
}

}  // namespace replica
