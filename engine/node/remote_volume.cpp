// SPDX-License-Identifier: Apache-2.0
// See remote_volume.hpp.
#include "engine/node/remote_volume.hpp"

#include <poll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <span>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/frontend/nbd_dial.hpp"

namespace replica {
namespace {

constexpr std::chrono::milliseconds dial_limit{5000};
// How long what is asked waits for a connection.
constexpr std::uint32_t dead_connection_s = 600;

Result<BlockTarget> target_of(int index) {
    BlockTarget target;
    unsigned major_number = 0, minor_number = 0;
    const std::string directory = text_of("/sys/block/nbd%d/", index);
    unsigned long long sectors = 0;
    std::FILE* const number = std::fopen((directory + "dev").c_str(), "re");
    const bool known =
        number != nullptr && std::fscanf(number, "%u:%u", &major_number, &minor_number) == 2;
    if (number != nullptr) std::fclose(number);
    std::FILE* const size = std::fopen((directory + "size").c_str(), "re");
    const bool sized = size != nullptr && std::fscanf(size, "%llu", &sectors) == 1;
    if (size != nullptr) std::fclose(size);
    if (!known || !sized) return Error{Errc::io, 0, directory + " tells nothing of the device"};
    target.device = makedev(major_number, minor_number);
    target.size_bytes = sectors * 512;
    return target;
}

}  // namespace

RemoteVolume::~RemoteVolume() { watch(-1); }

void RemoteVolume::watch(int fd) {
    const int before = std::exchange(watched_, fd);
    if (before >= 0) ::close(before);
}

Result<NbdControl*> RemoteVolume::control() {
    if (!control_) {
        TRY(control_, NbdControl::open());
    }
    return control_.get();
}

Result<int> RemoteVolume::index_of(const std::string& owner) {
    TRY(NbdControl* const kernel, control());
    TRY(const auto devices, kernel->status());
    for (const NbdDeviceState& device : devices) {
        if (!device.connected) continue;
        TRY(const std::string backend, kernel->backend_of(device.index));
        if (backend == owner) return device.index;
    }
    return -1;
}

Result<BlockTarget> RemoteVolume::connect(const std::string& door, const std::string& export_name,
                                          const std::string& owner, std::uint32_t block_bytes) {
    TRY(const int known, index_of(owner));
    if (known >= 0) return Error{Errc::exists, 0, "there is a connection to " + door + " already"};
    TRY(const DialledExport dialled, dial_nbd(door, export_name, dial_limit));
    watch(dialled.fd);
    NbdDeviceConfig config;
    config.size_bytes = dialled.size_bytes;
    config.block_bytes = block_bytes;
    config.transmission_flags = dialled.transmission_flags;
    config.backend = owner;
    config.dead_connection_s = dead_connection_s;
    TRY(const int index, control_->connect(config, std::span(&dialled.fd, 1)));
    return target_of(index);
}

Result<std::optional<BlockTarget>> RemoteVolume::find(const std::string& owner) {
    TRY(const int index, index_of(owner));
    if (index < 0) return std::optional<BlockTarget>();
    TRY(const BlockTarget target, target_of(index));
    return std::optional<BlockTarget>(target);
}

Status RemoteVolume::disconnect(const std::string& owner) {
    TRY(const int index, index_of(owner));
    watch(-1);
    if (index < 0) return ok_status();
    return control_->disconnect(index);
}

bool RemoteVolume::broken() const {
    if (watched_ < 0) return false;
    pollfd socket{watched_, POLLRDHUP, 0};
    return ::poll(&socket, 1, 0) > 0 && (socket.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

// The size is no part of it: the kernel takes no new one together with a socket.
Status RemoteVolume::reconnect(const std::string& door, const std::string& export_name,
                               const std::string& owner) {
    TRY(const int index, index_of(owner));
    if (index < 0) return Error{Errc::not_found, 0, "there is no connection to " + door};
    TRY(const BlockTarget target, target_of(index));
    TRY(const DialledExport dialled, dial_nbd(door, export_name, dial_limit));
    watch(dialled.fd);
    if (dialled.size_bytes != target.size_bytes) {
        return Error{Errc::invalid, 0, export_name + " at " + door + " has another size now"};
    }
    NbdDeviceChange change;
    change.backend = owner;
    return control_->reconfigure(index, change, std::span(&dialled.fd, 1));
}

}  // namespace replica
