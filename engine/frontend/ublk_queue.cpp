// SPDX-License-Identifier: Apache-2.0
// See ublk_queue.hpp. Each tag has one command in the kernel: FETCH, and from then on
// COMMIT_AND_FETCH, which answers a request and waits for the next one.
#include "engine/frontend/ublk_queue.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <syslog.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <span>
#include <utility>

#include "engine/base/text.hpp"

namespace replica {
namespace {

// Whole pages: the kernel takes no other length.
constexpr std::size_t descriptors_bytes =
    (ublk_queue_depth * sizeof(ublk::IoDescriptor) + 4095) / 4096 * 4096;
constexpr std::size_t buffers_bytes = std::size_t{ublk_queue_depth} * ublk_io_bytes_max;
// One for each tag, and more for the long discards, which are many extents.
constexpr std::uint32_t pieces = ublk_queue_depth + 64, pieces_per_request = 16;

static_assert(ublk_io_bytes_max <= io_bytes_max);

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
        case ENODATA:  // the medium, on every replica
        case EILSEQ:   // checksums, on every replica
        case ENOLINK:  // no quorum, no path: another path may have it
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

Result<std::unique_ptr<UblkChannel>> UblkChannel::create() {
    std::unique_ptr<UblkChannel> self(new UblkChannel);
    // Touched now: where memory is short, serving a write must not ask for more.
    void* const memory = ::mmap(nullptr, buffers_bytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) {
        return Error{Errc::no_space, errno,
                     text_of("no memory for the %zu MiB of buffers of a ublk device: free some, or "
                             "raise the limit of locked memory",
                             buffers_bytes >> 20)};
    }
    self->buffers_ = static_cast<std::byte*>(memory);
    return self;
}

Status UblkChannel::open(std::uint32_t dev_id) {
    ASSERT(fd_ < 0);
    const std::string path = text_of("/dev/ublkc%u", dev_id);
    fd_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd_ < 0) {
        return Error{errno == EBUSY ? Errc::busy : Errc::io, errno,
                     text_of("%s can not be opened: %s", path.c_str(), std::strerror(errno))};
    }
    void* const shown =
        ::mmap(nullptr, descriptors_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd_, 0);
    if (shown == MAP_FAILED) {
        return Error{Errc::io, errno,
                     text_of("%s can not be mapped: %s", path.c_str(), std::strerror(errno))};
    }
    descriptors_ = static_cast<const ublk::IoDescriptor*>(shown);
    return ok_status();
}

UblkChannel::~UblkChannel() {
    if (buffers_ != nullptr) ::munmap(buffers_, buffers_bytes);
    if (descriptors_ != nullptr) {
        ::munmap(const_cast<ublk::IoDescriptor*>(descriptors_), descriptors_bytes);
    }
    if (fd_ >= 0) ::close(fd_);
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
                     LogFunction log)
    : reactor_(reactor),
      volume_(volume),
      channel_(std::move(channel)),
      log_(std::move(log)),
      splitter_(volume, pieces, pieces_per_request),
      tags_(ublk_queue_depth) {
    turn_.context = this;
    turn_.callback = [](Deferred& task) { static_cast<UblkQueue*>(task.context)->on_turn(); };
    armed_ = ublk_queue_depth;
    for (std::uint16_t i = 0; i < ublk_queue_depth; ++i) {
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

UblkQueue::~UblkQueue() { ASSERT(armed_ == 0 && !turn_.queued); }

void UblkQueue::fetch(Tag& tag, std::uint32_t command) {
    reactor_.command(tag.op, channel_->fd(), command,
                     std::as_bytes(std::span<const ublk::IoCommand, 1>(&tag.command, 1)));
}

// 0: there is a request. -ENODEV: the device was stopped; anything else ends the tag too.
void UblkQueue::on_request(Tag& tag, std::int32_t result) {
    if (result != 0) {
        if (result != -ENODEV && result != -ECANCELED) {
            log_(LOG_ERR, text_of("the kernel ends tag %u of the ublk queue: %s", tag.command.tag,
                                  std::strerror(-result)));
        }
        ASSERT(armed_ > 0);
        --armed_;
        if (armed_ == 0) reactor_.defer(turn_);
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
    if (error == 0 && data && request.length > ublk_io_bytes_max) error = EIO;
    if (error != 0) return finish(tag, error);
    splitter_.start(request);
}

void UblkQueue::finish(Tag& tag, int error) {
    const bool data = tag.split.kind == IoKind::read || tag.split.kind == IoKind::write;
    tag.command.result = error != 0 ? -ublk_errno(error)
                         : data     ? static_cast<std::int32_t>(tag.split.length)
                                    : 0;
    fetch(tag, ublk::cmd_commit_and_fetch);
}

void UblkQueue::when_ended(std::function<void()> done) {
    ASSERT(done && !ended_);
    ended_ = std::move(done);
    reactor_.defer(turn_);
}

void UblkQueue::on_turn() {
    if (armed_ > 0 || !ended_) return;
    const std::function<void()> ended = std::exchange(ended_, nullptr);
    ended();
}

}  // namespace replica
