// SPDX-License-Identifier: Apache-2.0
// See handover.hpp.
#include "engine/node/handover.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <ctime>

#include "engine/base/text.hpp"

namespace replica {

std::string to_text(const std::vector<HandedDevice>& devices) {
    std::string text;
    for (const HandedDevice& device : devices) {
        text += text_of("%s%s/%s@%" PRIu64 "=%d", text.empty() ? "" : " ", device.resource.c_str(),
                        name_of(device.kind), device.held_ns, device.socket);
    }
    return text;
}

std::vector<HandedDevice> handed_devices(std::string_view text) {
    std::vector<HandedDevice> devices;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find(' '), text.size());
        const std::string part(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
        char resource[65] = {}, kind[8] = {};
        HandedDevice device;
        if (std::sscanf(part.c_str(), "%64[^/]/%7[^@]@%" SCNu64 "=%d", resource, kind,
                        &device.held_ns, &device.socket) != 4) {
            continue;
        }
        device.resource = resource;
        device.kind =
            std::string_view(kind) == name_of(DeviceKind::nbd) ? DeviceKind::nbd : DeviceKind::ublk;
        struct stat at {};
        const bool socket = ::fstat(device.socket, &at) == 0 && S_ISSOCK(at.st_mode);
        if (!socket) device.socket = -1;
        // Who is started by this program, or instead of it, must not keep it open unknown: the
        // kernel would wait for what nobody reads.
        if (socket) ::fcntl(device.socket, F_SETFD, FD_CLOEXEC);
        devices.push_back(device);
    }
    return devices;
}

std::uint64_t monotonic_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
           static_cast<std::uint64_t>(now.tv_nsec);
}

}  // namespace replica
