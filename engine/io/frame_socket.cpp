// SPDX-License-Identifier: Apache-2.0
// Both directions have at most one operation in the kernel. Whatever ends the connection goes
// through begin_closing(), and on_closed() is called from a deferred task when neither is in
// flight, so an owner may destroy the socket there: nothing of it is on the stack.
#include "engine/io/frame_socket.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

namespace replica {

namespace {

// The rest of a payload that is at least this long is received straight into its place; a shorter
// one is copied, since the same recv may then bring the next frames.
constexpr std::size_t direct_bytes_min = 16U << 10;

// Of one sendmsg: more does not make it faster, and payloads are released earlier with less.
constexpr std::size_t gather_bytes_max = 4U << 20;

}  // namespace

FrameSocket::FrameSocket(Reactor& reactor, int fd, const FrameSocketOptions& options,
                         FrameOwner& owner)
    : reactor_(reactor),
      owner_(owner),
      options_(options),
      fd_(fd),
      slots_(options.send_slots),
      mask_(options.send_slots - 1),
      headers_(std::make_unique<std::byte[]>(options.send_slots * frame_header_bytes)),
      slot_(std::make_unique<Slot[]>(options.send_slots)),
      buffer_(std::make_unique<std::byte[]>(options.receive_bytes)) {
    ASSERT(fd >= 0 && std::has_single_bit(slots_) && options.receive_bytes >= 4096);
    send_op_.context = receive_op_.context = this;
    flush_task_.context = resume_task_.context = closed_task_.context = finish_timer_.context =
        this;
    send_op_.callback = [](Op& op, std::int32_t result) {
        static_cast<FrameSocket*>(op.context)->sent(result);
    };
    receive_op_.callback = [](Op& op, std::int32_t result) {
        static_cast<FrameSocket*>(op.context)->received(result);
    };
    flush_task_.callback = [](Deferred& task) { static_cast<FrameSocket*>(task.context)->flush(); };
    resume_task_.callback = [](Deferred& task) {
        static_cast<FrameSocket*>(task.context)->parse_and_receive();
    };
    closed_task_.callback = [](Deferred& task) {
        static_cast<FrameSocket*>(task.context)->finish_close();
    };
    finish_timer_.callback = [](Timer& timer) {
        auto* self = static_cast<FrameSocket*>(timer.context);
        self->begin_closing(self->error_);
    };
}

FrameSocket::~FrameSocket() {
    ASSERT(!send_op_.in_flight && !receive_op_.in_flight);
    ASSERT(!flush_task_.queued && !resume_task_.queued && !closed_task_.queued);
    if (fd_ >= 0) ::close(fd_);
}

void FrameSocket::start() {
    if (state_ == State::open) receive();
}

// ---- sending ------------------------------------------------------------------------------------

bool FrameSocket::send(FrameHeader header, std::span<const std::byte> payload, SendDone done) {
    if (free_slots() == 0) return false;
    std::memcpy(header_at(tail_), header.data(), frame_header_bytes);
    slot_[tail_ & mask_] = {payload.data(), payload.size(), done};
    tail_ += 1;
    queued_bytes_ += frame_header_bytes + payload.size();
    if (!send_op_.in_flight) reactor_.defer(flush_task_);
    return true;
}

void FrameSocket::add_iovec(const std::byte* data, std::size_t bytes) {
    if (bytes == 0) return;
    // Headers lie side by side, so that frames without a payload need one entry for all of them.
    if (iovec_count_ > 0) {
        iovec& last = iovecs_[iovec_count_ - 1];
        if (static_cast<const std::byte*>(last.iov_base) + last.iov_len == data) {
            last.iov_len += bytes;
            return;
        }
    }
    iovecs_[iovec_count_++] = {const_cast<std::byte*>(data), bytes};
}

void FrameSocket::flush() {
    if (send_op_.in_flight || (state_ != State::open && state_ != State::finishing)) return;
    iovec_count_ = 0;
    std::size_t total = 0;
    std::size_t skip = head_offset_;
    for (std::uint32_t i = head_; i != tail_; ++i) {
        if (iovec_count_ + 2 > iovecs_max || total >= gather_bytes_max) break;
        const Slot& slot = slot_[i & mask_];
        const std::size_t header_skip = std::min(skip, frame_header_bytes);
        add_iovec(header_at(i) + header_skip, frame_header_bytes - header_skip);
        const std::size_t payload_skip = skip - header_skip;
        add_iovec(slot.payload + payload_skip, slot.bytes - payload_skip);
        total += frame_header_bytes + slot.bytes - skip;
        skip = 0;
    }
    if (iovec_count_ == 0) {
        if (state_ == State::finishing)
            shutdown(fd_, SHUT_WR);  // the peer sees the end after it all
        return;
    }
    message_.msg_iov = iovecs_.data();
    message_.msg_iovlen = iovec_count_;
    reactor_.sendmsg(send_op_, fd_, &message_, 0);
}

void FrameSocket::sent(std::int32_t result) {
    if (result > 0) {
        sent_bytes_ += static_cast<std::uint64_t>(result);
        complete_sent(static_cast<std::size_t>(result));
    } else if (result != -EINTR && result != -EAGAIN) {
        // Zero can not be: there was something to send.
        begin_closing(result == 0 ? EPIPE : -result);
    }
    if (state_ == State::closing) return maybe_closed();
    // At the end of the turn, together with what other callbacks of it send.
    reactor_.defer(flush_task_);
}

void FrameSocket::complete_sent(std::size_t bytes) {
    queued_bytes_ -= bytes;
    head_offset_ += bytes;
    while (head_ != tail_) {
        const Slot slot = slot_[head_ & mask_];
        if (head_offset_ < frame_header_bytes + slot.bytes) return;
        head_offset_ -= frame_header_bytes + slot.bytes;
        head_ += 1;
        if (slot.done.call != nullptr) slot.done.call(slot.done.context, 0);
    }
    ASSERT(head_offset_ == 0);
}

// ---- receiving ----------------------------------------------------------------------------------

void FrameSocket::receive() {
    if (receive_op_.in_flight || paused_ || state_ == State::closing || state_ == State::closed)
        return;
    const std::size_t missing = payload_bytes_ - payload_have_;
    into_payload_ = state_ == State::open && payload_ != nullptr && begin_ == end_ &&
                    missing >= direct_bytes_min;
    if (into_payload_) {
        return reactor_.recv(receive_op_, fd_, {payload_ + payload_have_, missing}, MSG_WAITALL);
    }
    // Only part of a header can be left over here: parse_one() takes all there is of a payload.
    ASSERT(end_ - begin_ < frame_header_bytes);
    std::memmove(buffer_.get(), buffer_.get() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
    const std::span<std::byte> into(buffer_.get() + end_, options_.receive_bytes - end_);
    if (missing == 0) {
        reactor_.recv_later(receive_op_, fd_, into, 0);
    } else {
        reactor_.recv(receive_op_, fd_, into, 0);  // the middle of a frame: more is on its way
    }
}

void FrameSocket::received(std::int32_t result) {
    if (state_ == State::closing) return maybe_closed();
    if (result == -EINTR || result == -EAGAIN) return receive();
    if (result < 0) return begin_closing(-result);
    if (result == 0) return begin_closing(begin_ == end_ && !in_payload_ ? 0 : ECONNRESET);
    const auto bytes = static_cast<std::size_t>(result);
    received_bytes_ += bytes;
    if (state_ == State::finishing) {
        begin_ = end_ = 0;
        return receive();
    }
    if (into_payload_) {
        payload_have_ += bytes;
    } else {
        end_ += bytes;
    }
    parse_and_receive();
}

void FrameSocket::parse_and_receive() {
    while (state_ == State::open && !paused_ && parse_one()) {
    }
    if (state_ == State::open || state_ == State::finishing) receive();
}

// Takes one step through the buffered bytes. False: they are used up, or no buffer for the payload.
bool FrameSocket::parse_one() {
    if (!in_payload_) {
        if (end_ - begin_ < frame_header_bytes) return false;
        std::memcpy(header_.data(), buffer_.get() + begin_, frame_header_bytes);
        begin_ += frame_header_bytes;
        const std::int64_t bytes = owner_.payload_bytes(FrameHeader(header_));
        if (state_ != State::open) return false;
        if (bytes < 0) {
            begin_closing(EPROTO);
            return false;
        }
        in_payload_ = true;
        payload_bytes_ = static_cast<std::size_t>(bytes);
        payload_have_ = 0;
    }
    if (payload_bytes_ > 0 && payload_ == nullptr) {
        payload_ = owner_.payload_buffer(FrameHeader(header_), payload_bytes_);
        if (payload_ == nullptr) paused_ = state_ == State::open;
        if (paused_ || state_ != State::open) return false;
    }
    const std::size_t copy = std::min(payload_bytes_ - payload_have_, end_ - begin_);
    if (copy > 0) std::memcpy(payload_ + payload_have_, buffer_.get() + begin_, copy);
    begin_ += copy;
    payload_have_ += copy;
    if (payload_have_ < payload_bytes_) return false;
    const std::span<std::byte> payload(std::exchange(payload_, nullptr), payload_bytes_);
    in_payload_ = false;
    payload_bytes_ = payload_have_ = 0;
    owner_.on_frame(FrameHeader(header_), payload);
    return true;
}

void FrameSocket::resume_receive() {
    if (!paused_ || state_ != State::open) return;
    paused_ = false;
    reactor_.defer(resume_task_);
}

// ---- the end ------------------------------------------------------------------------------------

void FrameSocket::close(int error) {
    ASSERT(error > 0);
    begin_closing(error);
}

void FrameSocket::finish(int error) {
    ASSERT(error > 0);
    if (state_ != State::open) return;
    state_ = State::finishing;
    error_ = error;
    paused_ = false;
    begin_ = end_ = 0;
    reactor_.set_timer(finish_timer_, reactor_.now() + options_.finish_timeout_ns);
    if (!send_op_.in_flight) reactor_.defer(flush_task_);
    receive();
}

void FrameSocket::begin_closing(int error) {
    if (state_ == State::closing || state_ == State::closed) return;
    if (state_ == State::open) error_ = error;  // else finish() has given it
    state_ = State::closing;
    finish_timer_.clear();
    // The cancel request alone can miss an operation that is just being retried.
    shutdown(fd_, SHUT_RDWR);
    reactor_.cancel(send_op_);
    reactor_.cancel(receive_op_);
    maybe_closed();
}

void FrameSocket::maybe_closed() {
    if (state_ != State::closing || send_op_.in_flight || receive_op_.in_flight) return;
    // Behind flush_task_ and resume_task_, which can not be queued after this.
    reactor_.defer(closed_task_);
}

void FrameSocket::finish_close() {
    ASSERT(!flush_task_.queued && !resume_task_.queued);
    ::close(std::exchange(fd_, -1));
    state_ = State::closed;
    const int send_error = error_ == 0 ? ECONNRESET : error_;
    while (head_ != tail_) {
        const Slot slot = slot_[head_++ & mask_];
        if (slot.done.call != nullptr) slot.done.call(slot.done.context, send_error);
    }
    queued_bytes_ = 0;
    if (payload_ != nullptr) owner_.on_payload_dropped(std::exchange(payload_, nullptr));
    owner_.on_closed(error_);
}

}  // namespace replica
