// SPDX-License-Identifier: Apache-2.0
// See uevents.hpp. Messages are text without a netlink header, so this does without libnl.
#include "netlink/uevents.hpp"

#include <linux/netlink.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/base/text.hpp"

namespace replica {
namespace {

constexpr int messages_per_read = 256;
constexpr int receive_buffer_bytes = 1 << 20;
constexpr std::size_t message_bytes_max = 8192;
constexpr unsigned from_kernel = 1;  // the group of what the kernel says, and not udev

unsigned number_of(std::string_view text) {
    unsigned number = 0;
    std::from_chars(text.data(), text.data() + text.size(), number);
    return number;
}

class UeventMonitor final : public DiskMonitor {
  public:
    ~UeventMonitor() override;
    Status begin();

    void start(DiskWatch& watch, std::uint64_t device) override;
    void stop(DiskWatch& watch) override;
    int fd() const override { return fd_; }
    Status read_messages() override;

  private:
    bool receive(BlockUevent& event, bool& relevant);
    void tell(const BlockUevent& event);
    void look_for_removed();

    int fd_ = -1;
    std::vector<DiskWatch*> watches_;  // nullptr: stopped while callbacks run
    bool telling_ = false;
};

UeventMonitor::~UeventMonitor() {
    ASSERT(watches_.empty());
    if (fd_ >= 0) ::close(fd_);
}

Status UeventMonitor::begin() {
    fd_ = ::socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
    sockaddr_nl address{};
    address.nl_family = AF_NETLINK;
    address.nl_groups = from_kernel;
    if (fd_ < 0 || ::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
        const bool unknown = errno == EAFNOSUPPORT || errno == EPROTONOSUPPORT;
        const bool forbidden = errno == EACCES || errno == EPERM;
        return Error{unknown     ? Errc::unsupported
                     : forbidden ? Errc::permission
                                 : Errc::io,
                     errno, text_of("hearing of disks that come and go: %s", std::strerror(errno))};
    }
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof receive_buffer_bytes);
    return ok_status();
}

void UeventMonitor::start(DiskWatch& watch, std::uint64_t device) {
    stop(watch);
    watch.monitor = this;
    watch.device = device;
    watches_.push_back(&watch);
}

void UeventMonitor::stop(DiskWatch& watch) {
    if (watch.monitor == nullptr) return;
    ASSERT(watch.monitor == this);
    watch.monitor = nullptr;
    std::replace(watches_.begin(), watches_.end(), &watch, static_cast<DiskWatch*>(nullptr));
    if (!telling_) std::erase(watches_, nullptr);
}

// A callback may start watches, which are appended, and stop any.
void UeventMonitor::tell(const BlockUevent& event) {
    telling_ = true;
    for (std::size_t i = 0; i < watches_.size(); ++i) {
        DiskWatch* const watch = watches_[i];
        if (watch == nullptr || watch->device != event.device) continue;
        if (event.change == DiskChange::removed) stop(*watch);
        watch->callback(*watch, event.change);
    }
    telling_ = false;
    std::erase(watches_, nullptr);
}

void UeventMonitor::look_for_removed() {
    std::vector<std::uint64_t> devices;
    for (const DiskWatch* const watch : watches_)
        devices.push_back(watch->device);
    for (const std::uint64_t device : devices) {
        const std::string path =
            text_of("/sys/dev/block/%u:%u", gnu_dev_major(device), gnu_dev_minor(device));
        const bool gone = ::access(path.c_str(), F_OK) != 0 && errno == ENOENT;
        if (gone) tell({device, DiskChange::removed});
    }
}

// False: errno says why there is no message.
bool UeventMonitor::receive(BlockUevent& event, bool& relevant) {
    std::array<char, message_bytes_max> text;
    sockaddr_nl sender{};
    iovec into{text.data(), text.size()};
    msghdr message{};
    message.msg_name = &sender;
    message.msg_namelen = sizeof sender;
    message.msg_iov = &into;
    message.msg_iovlen = 1;
    const ssize_t bytes = ::recvmsg(fd_, &message, 0);
    if (bytes < 0) return false;
    relevant = false;
    // Any process with the privilege may write to the group: the kernel alone has no port.
    if (sender.nl_pid != 0 || (message.msg_flags & MSG_TRUNC) != 0) return true;
    const auto parsed = parse_uevent({text.data(), static_cast<std::size_t>(bytes)});
    if (parsed) event = *parsed;
    relevant = parsed.has_value();
    return true;
}

Status UeventMonitor::read_messages() {
    for (int i = 0; i < messages_per_read; ++i) {
        BlockUevent event;
        bool relevant = false;
        if (receive(event, relevant)) {
            if (relevant) tell(event);
        } else if (errno == ENOBUFS) {
            look_for_removed();
        } else if (errno == EAGAIN) {
            break;
        } else if (errno != EINTR) {
            return Error{Errc::io, errno,
                         text_of("hearing of disks that come and go: %s", std::strerror(errno))};
        }
    }
    return ok_status();
}

}  // namespace

DiskWatch::~DiskWatch() {
    if (monitor != nullptr) monitor->stop(*this);
}

Result<std::unique_ptr<DiskMonitor>> DiskMonitor::open() {
    auto monitor = std::make_unique<UeventMonitor>();
    TRY_STATUS(monitor->begin());
    return std::unique_ptr<DiskMonitor>(std::move(monitor));
}

// ACTION@PATH, and then KEY=VALUE, each with a NUL at its end.
std::optional<BlockUevent> parse_uevent(std::string_view message) {
    std::string_view action, subsystem, major, minor, resize, read_only;
    const std::pair<std::string_view, std::string_view*> keys[] = {
        {"ACTION", &action}, {"SUBSYSTEM", &subsystem}, {"MAJOR", &major},
        {"MINOR", &minor},   {"RESIZE", &resize},       {"DISK_RO", &read_only},
    };
    while (!message.empty()) {
        const std::string_view line = message.substr(0, message.find('\0'));
        message.remove_prefix(std::min(line.size() + 1, message.size()));
        const std::size_t equals = line.find('=');
        if (equals == line.npos) continue;
        for (const auto& [key, value] : keys) {
            if (line.substr(0, equals) == key) *value = line.substr(equals + 1);
        }
    }
    if (subsystem != "block" || major.empty() || minor.empty()) return std::nullopt;
    BlockUevent event;
    event.device = gnu_dev_makedev(number_of(major), number_of(minor));
    if (action == "remove") return event;
    if (action != "change" || (resize != "1" && read_only != "1")) return std::nullopt;
    event.change = resize == "1" ? DiskChange::resized : DiskChange::read_only;
    return event;
}

}  // namespace replica
