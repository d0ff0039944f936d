// SPDX-License-Identifier: Apache-2.0
// The kernel's NBD client, /dev/nbdN, by generic netlink: gives it connected sockets whose other
// ends we serve, new ones after a restart, and takes the device down. It speaks no NBD: handshake
// and service are the server's. docs/netlink.md has what a restart has to mind.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.hpp"

namespace replica {

struct NbdDeviceConfig {
    int index = -1;  // N of /dev/nbdN; -1: one that is not in use, or a new one
    std::uint64_t size_bytes = 0;
    std::uint32_t block_bytes = 512;       // logical and physical; a power of two, 512 to 4096
    std::uint16_t transmission_flags = 0;  // NBD's, as a server tells them in the handshake
    std::string backend;                   // names the owner; reconfigure() must name it, too
    std::uint32_t request_timeout_s = 0;   // 0: a request may take for ever
    std::uint32_t dead_connection_s = 0;   // so long requests wait for a new socket; 0: they fail
    bool disconnect_on_close = false;      // when the last user closes the device
    bool destroy_on_disconnect = false;    // the device itself goes away then
};

// What reconfigure() changes. The sockets replace dead ones: a socket for which there is no dead
// one is silently closed by the kernel. Not the size together with sockets: the kernel would wait
// for requests that only the new socket can end.
struct NbdDeviceChange {
    std::string backend;  // as it was connected
    std::optional<std::uint64_t> size_bytes;
    std::optional<std::uint32_t> dead_connection_s;
};

struct NbdDeviceState {
    int index = 0;
    bool connected = false;
};

// One thread at a time. Every call blocks for as long as the kernel takes; it may wait for requests
// on the device, so whoever serves them does it in another thread, and who can not wait for ever
// uses engine/node/patient_nbd.hpp. All but status() and backend_of() need CAP_SYS_ADMIN.
class NbdControl {
  public:
    // Loads the driver's module where that is allowed. Errors: unsupported (no driver; or built
    // without libnl), io.
    static Result<std::unique_ptr<NbdControl>> open();
    virtual ~NbdControl() = default;

    // The sockets are connected streams (Unix or TCP) in the transmission phase; more than one only
    // if the flags say that the server can (CAN_MULTI_CONN). The kernel takes its own references,
    // so the caller closes them. Returns the index. Errors: busy (that index is in use), invalid,
    // permission, io.
    virtual Result<int> connect(const NbdDeviceConfig& config, std::span<const int> sockets) = 0;
    // Errors: invalid (no such device, another owner's, or not connected), permission, io.
    virtual Status reconfigure(int index, const NbdDeviceChange& change,
                               std::span<const int> sockets) = 0;
    // Whoever has it open gets errors from then on. Errors: invalid (no such device),
    // permission, io.
    virtual Status disconnect(int index) = 0;

    // All devices that there are. Errors: io.
    virtual Result<std::vector<NbdDeviceState>> status() = 0;
    // Who connected it; empty: nobody, or without a name. Errors: io (it can not be told).
    virtual Result<std::string> backend_of(int index) = 0;
};

inline constexpr const char* block_devices_path = "/sys/block";

// For those who do not want the module loaded: the device that has this backend's name, -1: none.
// Errors: io (it can not be told).
Result<int> nbd_device_of(const std::string& backend);
// As NbdControl::backend_of(), as `directory` (block_devices_path) tells it.
Result<std::string> nbd_backend_in(const std::string& directory, int index);

}  // namespace replica
