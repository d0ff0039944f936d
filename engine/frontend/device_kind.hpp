// SPDX-License-Identifier: Apache-2.0
// The drivers of the kernel that make a block device of a volume and leave its requests to us.
#pragma once

#include <cstddef>
#include <cstdint>

namespace replica {

enum class DeviceKind : std::uint8_t {
    ublk,  // /dev/ublkbN, by io_uring
    nbd,   // /dev/nbdN, by a socket
};
inline constexpr std::size_t device_kinds = 2;
inline constexpr DeviceKind all_device_kinds[device_kinds] = {DeviceKind::ublk, DeviceKind::nbd};

// As doors, records and commands name it.
constexpr const char* name_of(DeviceKind kind) { return kind == DeviceKind::ublk ? "ublk" : "nbd"; }

}  // namespace replica
