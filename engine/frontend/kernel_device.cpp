// SPDX-License-Identifier: Apache-2.0
// See kernel_device.hpp.
#include "engine/frontend/kernel_device.hpp"

#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "engine/base/text.hpp"

namespace replica {
namespace {

// Who looks at every new device (udev) has it open for a moment.
constexpr int use_attempts = 5;
constexpr std::chrono::milliseconds use_pause{100};

Status make_directory(const std::string& path) {
    if (::mkdir(path.c_str(), 0755) == 0 || errno == EEXIST) return ok_status();
    return Error{Errc::io, errno,
                 text_of("%s can not be made: %s", path.c_str(), std::strerror(errno))};
}

bool is_none(int error) { return error == ENOENT || error == ENXIO || error == ENODEV; }

}  // namespace

void remove_device_name(const KernelDeviceOptions& options, const std::string& path) {
    const std::string name = options.names + "/" + options.resource;
    char target[64] = {};
    const ssize_t length = ::readlink(name.c_str(), target, sizeof target - 1);
    const bool any = path.ends_with('*');
    const std::string begin = any ? path.substr(0, path.size() - 1) : path;
    if (length > 0 && (any ? begin == std::string(target).substr(0, begin.size()) : target == path))
        ::unlink(name.c_str());
}

Status KernelDevice::note_generation(std::uint64_t generation) {
    if (generation == record_.generation) return ok_status();
    const DeviceRecord next{record_.token, generation, record_.read_only};
    TRY_STATUS(file_.save(next));
    record_ = next;
    return ok_status();
}

Error KernelDevice::misfit(const std::string& why) const {
    return {Errc::state, 0, path() + " does not fit: " + why};
}

// The device is as another program made it: perhaps an older one, perhaps before the disk was
// replaced. One that is smaller than the volume has missed that it grew, and is served as it is; so
// is one that has smaller blocks than the disk of today.
Status KernelDevice::check_fit(std::uint64_t size_bytes, const VolumeInfo& info) const {
    if (size_bytes > info.size_bytes) {
        return misfit(text_of("it has %llu bytes, and the volume %llu",
                              static_cast<unsigned long long>(size_bytes),
                              static_cast<unsigned long long>(info.size_bytes)));
    }
    return ok_status();
}

Status KernelDevice::start() {
    TRY_STATUS(begin());
    served_ = true;
    // What follows is of use, but no reason to fail: there are users from now on.
    const int set = options_.nodes->set_io_timeout(node_, io_timeout_ms());
    if (set != 0) {
        options_.log(LOG_WARNING, text_of("the io_timeout of %s can not be set, so a restart may "
                                          "take 30 s: %s",
                                          path().c_str(), std::strerror(-set)));
    }
    const Status linked = link();
    if (!linked) options_.log(LOG_WARNING, linked.error().message);
    return ok_status();
}

// By ourselves and not by a rule of udev: there may be none, in a container or an initramfs. The
// rule (packaging/) tells systemd of the name when the device is announced.
Status KernelDevice::link() {
    for (std::size_t at = options_.names.find('/', 1); at != std::string::npos;
         at = options_.names.find('/', at + 1)) {
        TRY_STATUS(make_directory(options_.names.substr(0, at)));
    }
    TRY_STATUS(make_directory(options_.names));
    const std::string name = options_.names + "/" + options_.resource;
    const std::string next = options_.names + "/." + options_.resource + ".new";  // nobody's name
    ::unlink(next.c_str());
    if (::symlink(path().c_str(), next.c_str()) != 0 || ::rename(next.c_str(), name.c_str()) != 0) {
        return Error{Errc::io, errno,
                     text_of("%s can not be made: %s", name.c_str(), std::strerror(errno))};
    }
    options_.nodes->announce(node_);
    return ok_status();
}

// ---- the end ------------------------------------------------------------------------------------

// An exclusive descriptor: nobody can mount the device meanwhile. -1: there is no such device.
Result<int> KernelDevice::claim() {
    if (node_.empty()) return -1;
    const int fd = options_.nodes->claim(node_);
    if (fd >= 0) return fd;
    if (is_none(-fd)) return -1;
    if (fd == -EBUSY) {
        return Error{Errc::busy, EBUSY,
                     text_of("%s is in use (mounted, or part of another device): unmount it first",
                             path().c_str())};
    }
    if (fd == -ETIMEDOUT) {
        return Error{Errc::busy, ETIMEDOUT,
                     text_of("%s does not open, as something in it waits to be served; so it is "
                             "not known whether it is in use",
                             path().c_str())};
    }
    return Error{Errc::io, -fd,
                 text_of("%s can not be opened, so it is not known whether it is in use: %s",
                         path().c_str(), std::strerror(-fd))};
}

// The same; and nobody has it open in /proc, either.
Result<int> KernelDevice::claim_unused() {
    TRY(const int fd, claim());
    if (fd < 0) return fd;
    for (int attempt = 0;; ++attempt) {
        const std::string user = options_.nodes->user_of(node_);
        if (user.empty()) return fd;
        if (attempt == use_attempts) {
            ::close(fd);
            return Error{Errc::busy, EBUSY,
                         path() + " is open in " + user + ": let that close it first"};
        }
        std::this_thread::sleep_for(use_pause);
    }
}

Status KernelDevice::check_unused() {
    TRY(const int fd, claim_unused());
    if (fd >= 0) ::close(fd);
    return ok_status();
}

// The driver fails what comes after the command, also what the page cache has yet to write.
Status KernelDevice::stop(bool force) {
    int held = -1;
    if (!force) {
        TRY(held, claim_unused());
    }
    if (held >= 0 && served_ && ::fsync(held) != 0) {
        const int error = errno;
        ::close(held);
        return Error{
            Errc::io, error,
            text_of("%s can not be written out: %s", path().c_str(), std::strerror(error))};
    }
    const Status ended = end();
    if (held >= 0) ::close(held);
    return ended;
}

Status KernelDevice::remove() {
    remove_device_name(options_, path());
    TRY_STATUS(erase());
    return file_.remove();
}

}  // namespace replica
