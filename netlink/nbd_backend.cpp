// SPDX-License-Identifier: Apache-2.0
// Who has connected an nbd device, as sysfs shows it: also where netlink is not to be had. See
// nbd_device.hpp.
#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "engine/base/text.hpp"
#include "netlink/nbd_device.hpp"

namespace replica {

static Error untold(const std::string& path) {
    return {Errc::io, errno,
            text_of("%s can not be read, so it is not known whose nbd devices there are: %s",
                    path.c_str(), std::strerror(errno))};
}

// The kernel shows the attribute of a device that was given a name, and of no other. What can not
// be read for any other reason (no descriptor is left, /sys is not mounted) says nothing.
Result<std::string> nbd_backend_in(const std::string& directory, int index) {
    const std::string device = text_of("%s/nbd%d", directory.c_str(), index);
    const std::string path = device + "/backend";
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        if (errno == ENOENT && ::access(device.c_str(), F_OK) == 0) return std::string();
        return untold(path);
    }
    char text[256] = {};
    const ssize_t length = ::read(fd, text, sizeof text - 1);
    const int error = errno;
    ::close(fd);
    errno = error;
    if (length < 0 && errno == ENODEV) return std::string();  // it is just being removed
    if (length < 0) return untold(path);
    const std::string_view all(text, static_cast<std::size_t>(length));
    return std::string(all.substr(0, all.find('\n')));
}

Result<int> nbd_device_of(const std::string& backend) {
    DIR* const devices = ::opendir(block_devices_path);
    if (devices == nullptr) return untold(block_devices_path);
    Result<int> found = -1;
    for (errno = 0; const dirent* entry = ::readdir(devices); errno = 0) {
        int index = -1;
        if (std::sscanf(entry->d_name, "nbd%d", &index) != 1) continue;
        const auto name = nbd_backend_in(block_devices_path, index);
        if (!name) found = name.error();
        if (name && name.value() == backend) found = index;
        if (!found || found.value() >= 0) break;
    }
    if (found && found.value() < 0 && errno != 0) found = untold(block_devices_path);
    ::closedir(devices);
    return found;
}

}  // namespace replica
