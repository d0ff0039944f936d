// SPDX-License-Identifier: Apache-2.0
// See remote_volume.hpp.
#include "engine/node/remote_volume.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <span>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/frontend/nbd_dial.hpp"
#include "engine/frontend/nbd_wire.hpp"
#include "engine/io/process.hpp"
#include "engine/node/patient_nbd.hpp"

namespace replica {
namespace {

constexpr std::chrono::milliseconds dial_limit{5000};
// How long what is asked waits for a connection.
constexpr std::uint32_t dead_connection_s = 600;
// What was sent by a connection that broke is sent again when the driver looks, which is so often.
constexpr unsigned look_ms = 1000;
// Without an answer for so long, it is looked whether there is a connection at all.
constexpr std::chrono::seconds answer_limit{3};

// A door that only reads is that of a Secondary, or of something else.
Result<DialledExport> dial(const std::string& door, const std::string& export_name) {
    TRY(const DialledExport dialled, dial_nbd(door, export_name, dial_limit));
    if ((dialled.transmission_flags & nbd::flag_read_only) == 0) return dialled;
    ::close(dialled.fd);
    return Error{Errc::state, 0,
                 door + " serves " + export_name +
                     " for reading only: a door of the node that is Primary is needed"};
}

void set_io_timeout(int index) {
    const std::string path = text_of("/sys/block/nbd%d/queue/io_timeout", index);
    std::FILE* const file = std::fopen(path.c_str(), "we");
    if (file == nullptr) return;  // then it takes 30 s
    std::fprintf(file, "%u", look_ms);
    std::fclose(file);
}

struct Progress {
    std::uint64_t under_way = 0, answered = 0;
};

Progress progress_of(int index) {
    Progress progress;
    const std::string path = text_of("/sys/block/nbd%d/stat", index);
    std::FILE* const file = std::fopen(path.c_str(), "re");
    if (file == nullptr) return progress;
    unsigned long long value = 0;
    for (int field = 0; field < 17 && std::fscanf(file, "%llu", &value) == 1; ++field) {
        if (field == 8) progress.under_way = value;
        // Reads, writes, discards, flushes.
        if (field == 0 || field == 4 || field == 11 || field == 15) progress.answered += value;
    }
    std::fclose(file);
    return progress;
}

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
        TRY(control_, open_patient_nbd());
    }
    return control_.get();
}

// A device that was disconnected keeps its name until nobody has it open; so each connection has
// one of its own, which begins with that of the owner.
Result<std::vector<int>> RemoteVolume::devices_of(const std::string& owner) {
    TRY(NbdControl* const kernel, control());
    TRY(const auto devices, kernel->status());
    std::vector<int> found;
    for (const NbdDeviceState& device : devices) {
        if (!device.connected) continue;
        TRY(const std::string backend, kernel->backend_of(device.index));
        if (backend.starts_with(owner + "#")) found.push_back(device.index);
    }
    return found;
}

Result<int> RemoteVolume::index_of(const std::string& owner) {
    TRY(const std::vector<int> devices, devices_of(owner));
    return devices.empty() ? -1 : devices.back();
}

Result<BlockTarget> RemoteVolume::connect(const std::string& door, const std::string& export_name,
                                          const std::string& owner, std::uint32_t block_bytes) {
    TRY_STATUS(disconnect(owner));
    TRY(const DialledExport dialled, dial(door, export_name));
    watch(dialled.fd);
    NbdDeviceConfig config;
    config.size_bytes = dialled.size_bytes;
    config.block_bytes = block_bytes;
    config.transmission_flags = dialled.transmission_flags;
    config.backend = text_of("%s#%08x", owner.c_str(), static_cast<unsigned>(random_u64()));
    config.dead_connection_s = dead_connection_s;
    TRY(const int index, control_->connect(config, std::span(&dialled.fd, 1)));
    set_io_timeout(index);
    return target_of(index);
}

Result<std::optional<BlockTarget>> RemoteVolume::find(const std::string& owner) {
    TRY(const int index, index_of(owner));
    if (index < 0) return std::optional<BlockTarget>();
    TRY(const BlockTarget target, target_of(index));
    return std::optional<BlockTarget>(target);
}

// The kernel says goodbye by the connection, and would wait for ever where a server does not read
// what was sent before; so then the connection goes first.
Status RemoteVolume::disconnect(const std::string& owner) {
    TRY(const std::vector<int> devices, devices_of(owner));
    const bool waits = std::any_of(devices.begin(), devices.end(),
                                   [](int index) { return progress_of(index).under_way > 0; });
    if (waits && watched_ >= 0) ::shutdown(watched_, SHUT_RDWR);
    watch(-1);
    Status all = ok_status();
    for (const int index : devices) {
        Status one = control_->disconnect(index);
        if (!one && one.error().code != Errc::invalid && all) all = std::move(one);
    }
    return all;
}

bool RemoteVolume::hung_up() const {
    pollfd socket{watched_, POLLRDHUP, 0};
    return ::poll(&socket, 1, 0) > 0 && (socket.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

RemoteVolume::Health RemoteVolume::health(const std::string& owner) {
    if (watched_ >= 0 && hung_up()) return Health::broken;
    const auto now = std::chrono::steady_clock::now();
    const auto index = index_of(owner);
    const bool known = index && index.value() >= 0;
    const Progress progress = known ? progress_of(index.value()) : Progress{};
    const bool answered = std::exchange(answered_, progress.answered) != progress.answered;
    if (answered || progress.under_way == 0) {
        answered_at_ = now;
        return answered || watched_ >= 0 ? Health::answers : Health::unknown;
    }
    if (now - answered_at_ < answer_limit) return Health::unknown;
    answered_at_ = now;  // asked again after as long
    return Health::broken;
}

// The size is no part of it: the kernel takes no new one together with a socket. It takes the
// socket only in place of one that broke, and does not say whether it did.
Status RemoteVolume::reconnect(const std::string& door, const std::string& export_name,
                               const std::string& owner) {
    TRY(const int index, index_of(owner));
    if (index < 0) return Error{Errc::not_found, 0, "there is no connection to " + door};
    TRY(const BlockTarget target, target_of(index));
    NbdDeviceChange change;
    TRY(change.backend, control_->backend_of(index));
    TRY(const DialledExport dialled, dial(door, export_name));
    const Status changed =
        dialled.size_bytes >= target.size_bytes
            ? control_->reconfigure(index, change, std::span(&dialled.fd, 1))
            : Error{Errc::invalid, 0, export_name + " at " + door + " is smaller now"};
    if (changed && watched_ >= 0 && hung_up()) {
        watch(dialled.fd);
    } else {
        ::close(dialled.fd);
    }
    return changed;
}

}  // namespace replica
