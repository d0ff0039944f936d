// SPDX-License-Identifier: Apache-2.0
// What one program of a process leaves to the next (execve): which block devices were held since
// when, and the sockets of those that go on with theirs. It travels as one line of text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/frontend/device_kind.hpp"

namespace replica {

struct HandedDevice {
    std::string resource;
    DeviceKind kind = DeviceKind::ublk;
    std::uint64_t held_ns = 0;  // CLOCK_MONOTONIC: no request was passed on from then on
    int socket = -1;            // -1: the device has to be taken over

    friend bool operator==(const HandedDevice&, const HandedDevice&) = default;
};

// "r0/nbd@123456789=7 r1/ublk@123456790=-1"
std::string to_text(const std::vector<HandedDevice>& devices);
// What is not of that form is left out. Takes no descriptor that is no socket, and those that it
// takes are closed at the next execve.
std::vector<HandedDevice> handed_devices(std::string_view text);

// CLOCK_MONOTONIC
std::uint64_t monotonic_ns();

}  // namespace replica
