// SPDX-License-Identifier: Apache-2.0
// See kernel_device.hpp.
#include "engine/frontend/kernel_device.hpp"

#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "engine/base/text.hpp"

namespace replica {
namespace {

// Who looks at every new device (udev) has it open for a moment, or for longer on a busy machine.
constexpr int use_attempts = 5, look_attempts = 100;
constexpr std::chrono::milliseconds use_pause{100}, interrupt_grace{5000};

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
    const Status set = patiently([nodes = options_.nodes, node = node_, ms = io_timeout_ms()] {
        const int error = -nodes->set_io_timeout(node, ms);
        return error == 0 ? ok_status() : Error{Errc::io, error, std::strerror(error)};
    });
    if (!set) {
        const bool waits = set.error().code == Errc::timeout;
        options_.log(
            LOG_WARNING,
            text_of("the io_timeout of %s can not be set, so a restart may take 30 s: %s",
                    path().c_str(), waits ? "requests do not end" : set.error().message.c_str()));
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

class KernelDevice::Claim {
  public:
    Claim(std::shared_ptr<BlockNodes> nodes, int fd) : nodes_(std::move(nodes)), fd_(fd) {}
    ~Claim() { nodes_->release(fd_); }
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;
    Status write_out() {
        const int error = -nodes_->write_out(fd_);
        return error == 0 ? ok_status() : Error{Errc::io, error, std::strerror(error)};
    }

  private:
    const std::shared_ptr<BlockNodes> nodes_;
    const int fd_;
};

// What is done here may wait for requests, and those for a disk that never answers.
Status KernelDevice::patiently(std::function<Status()> job) {
    if (!patient_) {
        const auto grace = std::min(options_.write_out_limit, interrupt_grace);
        TRY(patient_, PatientThread::start(path(), grace));
    }
    Status done = patient_->run(std::move(job), options_.write_out_limit);
    if (done || done.error().code != Errc::timeout) return done;
    return Error{
        Errc::timeout, ETIMEDOUT,
        text_of("%s is not written out in %lld s: see the status for a disk or a peer that "
                "does not answer; if all goes on, say it again, else use --force, which "
                "gives up what is not written",
                path().c_str(), static_cast<long long>(options_.write_out_limit.count() / 1000))};
}

Result<KernelDevice::ClaimPtr> KernelDevice::claim() {
    if (node_.empty()) return ClaimPtr();
    // One from before, which still writes, would be in the way of this one.
    if (patient_) TRY_STATUS(patiently([] { return ok_status(); }));
    const int fd = options_.nodes->claim(node_);
    if (fd >= 0) return std::make_shared<Claim>(options_.nodes, fd);
    if (is_none(-fd)) return ClaimPtr();
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
Result<KernelDevice::ClaimPtr> KernelDevice::claim_unused() {
    TRY(ClaimPtr claimed, claim());
    if (!claimed) return claimed;
    for (int attempt = 0;; ++attempt) {
        const std::string user = options_.nodes->user_of(node_);
        if (user.empty()) return claimed;
        const bool looks = user.find("udev") != std::string::npos;  // "(udev-worker) (pid 7)"
        if (attempt >= (looks ? look_attempts : use_attempts)) {
            TRY_STATUS(let_go(std::move(claimed)));
            return Error{Errc::busy, EBUSY,
                         path() + " is open in " + user + ": let that close it first"};
        }
        std::this_thread::sleep_for(use_pause);
    }
}

Status KernelDevice::write_out(const ClaimPtr& claim) {
    Status written = patiently([claim] { return claim->write_out(); });
    if (written || written.error().code == Errc::timeout) return written;
    return Error{
        Errc::io, written.error().os_errno,
        text_of("%s can not be written out: %s", path().c_str(), written.error().message.c_str())};
}

// Who closes a device last writes it out.
Status KernelDevice::let_go(ClaimPtr claim) {
    if (!claim) return ok_status();
    return patiently([claim = std::move(claim)]() mutable {
        claim.reset();
        return ok_status();
    });
}

Status KernelDevice::check_unused() {
    TRY(ClaimPtr claimed, claim_unused());
    return let_go(std::move(claimed));
}

// The driver fails what comes after the command, also what the page cache has yet to write.
Status KernelDevice::stop(bool force) {
    ClaimPtr claimed;
    if (!force) {
        TRY(claimed, claim_unused());
    }
    const Status written = claimed && served_ ? write_out(claimed) : ok_status();
    if (!written) {
        const bool still_writes = written.error().code == Errc::timeout;
        if (!still_writes) static_cast<void>(let_go(std::move(claimed)));
        return written;
    }
    const Status ended = end();
    ending_ = !ended && ended.error().code == Errc::timeout;
    const Status closed = let_go(std::move(claimed));
    if (!closed) options_.log(LOG_WARNING, closed.error().message);
    return ended;
}

Status KernelDevice::remove() {
    remove_device_name(options_, path());
    TRY_STATUS(erase());
    return file_.remove();
}

}  // namespace replica
