// SPDX-License-Identifier: Apache-2.0
// See ublk_queue.hpp. Each tag has one command in the kernel: FETCH, and from then on
// COMMIT_AND_FETCH, which answers a request and waits for the next one.
#include "engine/frontend/ublk_queue.hpp"

#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <syslog.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <span>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/io/process.hpp"

namespace replica {
namespace {

// Besides one for each tag: for the long discards, which are many extents.
constexpr std::uint32_t more_pieces = 64, pieces_per_request = 16;

static_assert(ublk_io_bytes_max <= io_bytes_max && ublk_queue_depth <= ublk_depth_max);

// Gives up the effective CAP_SYS_ADMIN of this thread, or takes it back.
//
// Who asks for requests with it makes Linux look for a partition table while it starts the device:
// with the driver's lock held, by a read that this process has to answer. If it is killed then, the
// lock is never let go again, and neither is the process, nor can the next one ask for anything.
void set_admin_right(bool wanted) {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3]{};
    constexpr std::uint32_t admin = 1U << CAP_SYS_ADMIN;
    static_assert(CAP_SYS_ADMIN < 32);
    if (::syscall(SYS_capget, &header, data) != 0) return;
    const std::uint32_t effective =
        wanted ? data[0].effective | (data[0].permitted & admin) : data[0].effective & ~admin;
    if (effective == data[0].effective) return;
    data[0].effective = effective;
    static_cast<void>(::syscall(SYS_capset, &header, data));
}

// Queues of this thread whose devices are being started.
thread_local unsigned starting = 0;

// The kind of a request, or false: it is of a kind that was not offered.
bool kind_of(std::uint32_t operation, IoKind& kind) {
    switch (operation) {
        case ublk::op_read:
            kind = IoKind::read;
            return true;
        case ublk::op_write:
            kind = IoKind::write;
            return true;
        case ublk::op_flush:
            kind = IoKind::flush;
            return true;
        case ublk::op_discard:
            kind = IoKind::discard;
            return true;
        case ublk::op_write_zeroes:
            kind = IoKind::write_zeroes;
            return true;
        default:
            return false;
    }
}

}  // namespace

int ublk_errno(int error) {
    switch (error) {
        case 0:
        case EIO:
        case ENOSPC:
        case ENODATA:  // the medium, and no other replica has it
        case EILSEQ:   // checksums, the same
        case ENOLINK:  // no path to good data: another path may have it
        case ETIMEDOUT:
            return error;
        case EROFS:
            return EBADE;  // "reservation conflict": not primary, so another node may write
        case ESHUTDOWN:
            return ENODEV;  // offline
        default:
            return EIO;
    }
}

// ---- the channel --------------------------------------------------------------------------------

// Whole pages: the kernel takes no other length.
std::size_t UblkChannel::descriptors_bytes() const {
    return (depth_ * sizeof(ublk::IoDescriptor) + 4095) / 4096 * 4096;
}

Result<std::unique_ptr<UblkChannel>> UblkChannel::create(std::uint16_t depth,
                                                         std::uint32_t io_bytes) {
    ASSERT(depth > 0 && depth <= ublk_depth_max && io_bytes > 0 && io_bytes <= io_bytes_max);
    std::unique_ptr<UblkChannel> self(new UblkChannel(depth, io_bytes));
    // Touched now: where memory is short, serving a write must not ask for more.
    self->buffers_ = map_touched(self->buffers_bytes());
    if (self->buffers_ == nullptr) {
        return Error{Errc::no_space, errno,
                     text_of("no memory for the %zu MiB of buffers of a ublk device: free some, or "
                             "raise the limit of locked memory",
                             self->buffers_bytes() >> 20)};
    }
    return self;
}

Status UblkChannel::open(UblkControl& control, std::uint32_t dev_id) {
    ASSERT(fd_ < 0);
    const auto failed = [dev_id](int error, const char* what) {
        return Error{error == EBUSY ? Errc::busy : Errc::io, error,
                     text_of("/dev/ublkc%u can not be %s: %s", dev_id, what, std::strerror(error))};
    };
    const int fd = control.open_channel(dev_id);
    if (fd < 0) return failed(-fd, "opened");
    const int mapped = control.map_channel(fd, descriptors_bytes(), descriptors_);
    if (mapped < 0) {
        ::close(fd);
        return failed(-mapped, "mapped");
    }
    fd_ = fd;
    return ok_status();
}

UblkChannel::~UblkChannel() {
    close();
    if (buffers_ != nullptr) ::munmap(buffers_, buffers_bytes());
}

void UblkChannel::close() {
    const ublk::IoDescriptor* const shown = std::exchange(descriptors_, nullptr);
    if (shown != nullptr) ::munmap(const_cast<ublk::IoDescriptor*>(shown), descriptors_bytes());
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

std::unique_ptr<KernelQueue> UblkService::serve(const Server& server) {
    return std::make_unique<UblkQueue>(server.reactor, server.volume, std::move(channel_),
                                       server.log, server.on_answer);
}

// ---- the queue ----------------------------------------------------------------------------------

const SplitHooks UblkQueue::hooks_ = {
    .buffer =
        [](SplitRequest& request, std::uint64_t offset, std::uint32_t) {
            Tag& tag = *static_cast<Tag*>(request.context);
            return tag.queue->channel_->buffer(tag.command.tag) + (offset - request.offset);
        },
    .piece_done = [](SplitRequest&, SplitPiece&, int) { return true; },
    .done =
        [](SplitRequest& request, int error) {
            Tag& tag = *static_cast<Tag*>(request.context);
            tag.queue->finish(tag, error);
        },
};

UblkQueue::UblkQueue(Reactor& reactor, Volume& volume, std::unique_ptr<UblkChannel> channel,
                     DeviceLog log, std::function<void()> on_answer)
    : reactor_(reactor),
      volume_(volume),
      channel_(std::move(channel)),
      log_(std::move(log)),
      splitter_(volume, channel_->depth() + more_pieces, pieces_per_request),
      tags_(channel_->depth()),
      on_answer_(std::move(on_answer)) {
    starting_ = true;
    if (starting++ == 0) set_admin_right(false);
    turn_.context = this;
    turn_.callback = [](Deferred& task) { static_cast<UblkQueue*>(task.context)->on_turn(); };
    armed_ = channel_->depth();
    for (std::uint16_t i = 0; i < channel_->depth(); ++i) {
        Tag& tag = tags_[i];
        tag.queue = this;
        tag.command.tag = i;
        tag.command.address = reinterpret_cast<std::uintptr_t>(channel_->buffer(i));
        tag.split.hooks = &hooks_;
        tag.split.context = tag.op.context = &tag;
        tag.op.callback = [](Op& op, std::int32_t result) {
            Tag& ready = *static_cast<Tag*>(op.context);
            ready.queue->on_request(ready, result);
        };
        fetch(tag, ublk::cmd_fetch);
    }
}

UblkQueue::~UblkQueue() {
    ASSERT(armed_ == 0 && !turn_.queued);
    started();
}

void UblkQueue::started() {
    if (!std::exchange(starting_, false)) return;
    if (--starting == 0) set_admin_right(true);
}

void UblkQueue::fetch(Tag& tag, std::uint32_t command) {
    tag.command_number = command;
    reactor_.command(tag.op, channel_->fd(), command,
                     std::as_bytes(std::span<const ublk::IoCommand, 1>(&tag.command, 1)));
}

// 0: there is a request.
void UblkQueue::on_request(Tag& tag, std::int32_t result) {
    if (abandoned_) return;
    if (result != 0) return on_refusal(tag, result);
    if (cut_) return answer(tag, -ublk_errno(ESHUTDOWN));
    if (holding_) {
        tag.kept = true;
        return;
    }
    const ublk::IoDescriptor& asked = channel_->descriptor(tag.command.tag);
    SplitRequest& request = tag.split;
    if (!kind_of(asked.op_flags & ublk::op_mask, request.kind)) return finish(tag, EIO);
    const bool changes = request.kind != IoKind::read && request.kind != IoKind::flush;
    const bool flush = request.kind == IoKind::flush;
    request.fua = changes && (asked.op_flags & ublk::io_fua) != 0;
    request.offset = flush ? 0 : asked.start_sector * sector_bytes;
    request.length = flush ? 0 : std::uint64_t{asked.sectors} * sector_bytes;
    const VolumeInfo info = volume_.info();
    int error = check_range(info, request.kind, request.offset, request.length);
    if (error == 0 && !flush && request.length == 0) error = EIO;
    if (error == 0 && changes && !info.writable) error = EROFS;
    const bool data = request.kind == IoKind::read || request.kind == IoKind::write;
    if (error == 0 && data && request.length > channel_->io_bytes()) error = EIO;
    if (error != 0) return finish(tag, error);
    tag.busy = true;
    splitter_.start(request);
}

// The kernel ends the tag, or has not taken what was given to it.
void UblkQueue::on_refusal(Tag& tag, std::int32_t result) {
    // Short of memory: the request is still ours to answer.
    if (result == -ENOMEM || result == -EAGAIN || result == -EINTR) {
        return fetch(tag, tag.command_number);
    }
    const bool ended = result == -ENODEV || result == -ECANCELED;
    const std::string text = text_of("the kernel refuses tag %u of the ublk queue: %s",
                                     tag.command.tag, std::strerror(-result));
    if (!ended) log_(LOG_CRIT, text);
    // A request whose answer is refused would hang for ever. The next process gets it again.
    if (!ended && tag.command_number == ublk::cmd_commit_and_fetch) {
        assert_failed(text.c_str(), __FILE__, __LINE__);
    }
    ASSERT(armed_ > 0);
    --armed_;
    if (armed_ == 0) reactor_.defer(turn_);
}

void UblkQueue::finish(Tag& tag, int error) {
    tag.busy = false;
    if (std::exchange(tag.orphaned, false)) return reactor_.defer(turn_);
    const bool data = tag.split.kind == IoKind::read || tag.split.kind == IoKind::write;
    answer(tag, error != 0 ? -ublk_errno(error)
                : data     ? static_cast<std::int32_t>(tag.split.length)
                           : 0);
}

void UblkQueue::answer(Tag& tag, std::int32_t result) {
    tag.command.result = result;
    fetch(tag, ublk::cmd_commit_and_fetch);
    if (on_answer_) std::exchange(on_answer_, nullptr)();
    if (held_) reactor_.defer(turn_);
}

// What the volume has may be read and written for long: its buffer is given to no other request.
void UblkQueue::cut_off() {
    if (std::exchange(cut_, true)) return;
    for (Tag& tag : tags_) {
        if (std::exchange(tag.kept, false)) {
            answer(tag, -ublk_errno(ESHUTDOWN));
        } else if (tag.busy) {
            splitter_.abort(tag.split, ESHUTDOWN);
            if (!tag.busy) continue;  // nothing of it was under way
            tag.orphaned = true;
            tag.command.address = reinterpret_cast<std::uintptr_t>(channel_->spare());
            answer(tag, -ublk_errno(ESHUTDOWN));
        }
    }
}

void UblkQueue::hold(std::function<void()> held) {
    holding_ = true;
    held_ = std::move(held);
    reactor_.defer(turn_);
}

void UblkQueue::resume() {
    holding_ = false;
    held_ = nullptr;
    for (Tag& tag : tags_) {
        if (std::exchange(tag.kept, false)) on_request(tag, 0);
    }
}

// The kernel takes what is armed back when this thread ends, and gives all to the next server.
int UblkQueue::abandon() {
    ASSERT(holding_ && splitter_.requests() == 0);
    abandoned_ = true;
    return -1;
}

void UblkQueue::when_ended(std::function<void()> done) {
    ended_.push_back(std::move(done));
    reactor_.defer(turn_);
}

void UblkQueue::when_idle(std::function<void()> done) {
    idle_ = std::move(done);
    reactor_.defer(turn_);
}

void UblkQueue::on_turn() {
    if (held_ && splitter_.requests() == 0) std::exchange(held_, nullptr)();
    if (armed_ > 0) return;
    if (!ended_.empty()) {
        channel_->close();  // the kernel may wait for that before the device is gone
        for (const std::function<void()>& ended : std::exchange(ended_, {}))
            ended();
        return;
    }
    if (idle_ && splitter_.requests() == 0) std::exchange(idle_, nullptr)();  // destroys this queue
}

}  // namespace replica
