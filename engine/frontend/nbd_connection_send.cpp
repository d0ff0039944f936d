// SPDX-License-Identifier: Apache-2.0
// Replies out of an NbdConnection. One sendmsg is under way at a time, made of all that was
// complete when it was composed: headers and short replies from the staging buffer, data from where
// the engine has read it to. Replies go in any order, but for the data of a simple reply, which
// follows its header in one piece.
#include <syslog.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/base/assert.hpp"
#include "engine/frontend/nbd_connection.hpp"

namespace replica {

using nbd::Command;

void NbdConnection::maybe_queue(Slot& slot) {
    schedule();
    if (slot.queued || slot.replied || &slot == streaming_ || !sendable(slot)) return;
    slot.queued = true;
    slot.next = nullptr;
    *replies_tail_ = &slot;
    replies_tail_ = &slot.next;
}

bool NbdConnection::sendable(const Slot& slot) const {
    if (slot.split_done) return true;
    if (slot.ready == nullptr || slot.command.has(nbd::command_df)) return false;
    if (session_.structured()) return true;
    // A simple reply has no place for an error after its header. So all of it is collected first,
    // if that many pieces can be out at once; what is longer has to start with its first piece.
    return !slot.streaming && slot.split.error == 0 && !slot.split.all_issued &&
           slot.ready->io.offset == slot.command.offset;
}

void NbdConnection::flush() {
    if (send_op_.in_flight) return;
    if (iov_count_ == 0) compose();
    if (iov_count_ > 0) send();
}

bool NbdConnection::batch_has_room() const {
    return staging_.size() - staged_ >= nbd_reply_bytes_max && iov_.size() - iov_count_ >= 4;
}

void NbdConnection::compose() {
    ASSERT(batch_pieces_ == nullptr && staged_ == 0 && iov_sent_ == 0);
    if (!handshake_out_.empty()) {
        handshake_in_batch_ = true;
        iov_[iov_count_++] = {handshake_out_.data(), handshake_out_.size()};
        return;
    }
    while (batch_has_room() && state_ != State::closing) {
        if (streaming_ != nullptr) {
            Slot& slot = *streaming_;
            compose_ordered_read(slot);
            if (streaming_ == &slot) return;  // the rest of it comes first
            continue;
        }
        if (replies_ == nullptr) return;
        Slot& slot = *replies_;
        replies_ = slot.next;
        if (replies_ == nullptr) replies_tail_ = &replies_;
        slot.next = nullptr;
        slot.queued = false;
        compose_slot(slot);
    }
}

void NbdConnection::compose_slot(Slot& slot) {
    const NbdCommand& command = slot.command;
    if (slot.refusal != NbdRefusal::none) {
        compose_error(slot);
    } else if (command.type == Command::block_status) {
        add_staged(session_.encode_block_status(staging(), command, context_.volume));
        slot.replied = true;
    } else if (slot.hole) {
        add_staged(session_.encode_hole(staging(), command));
        slot.replied = true;
    } else if (command.type == Command::read) {
        const bool ordered = !session_.structured() || command.has(nbd::command_df);
        return ordered ? compose_ordered_read(slot) : compose_read(slot);
    } else if (slot.error != 0) {
        compose_error(slot);
    } else {
        add_staged(session_.encode_ok(staging(), command));
        slot.replied = true;
    }
    maybe_free(slot);
}

// A chunk for each piece, in the order of completion.
void NbdConnection::compose_read(Slot& slot) {
    while (slot.ready != nullptr && batch_has_room()) {
        SplitPiece& piece = *slot.ready;
        slot.ready = piece.next;
        const bool last = slot.split_done && slot.error == 0 && slot.ready == nullptr;
        add_staged(
            session_.encode_data(staging(), slot.command, piece.io.offset, piece.io.length, last));
        add_piece(piece);
        slot.replied = last;
    }
    if (slot.split_done && slot.ready == nullptr && !slot.replied && batch_has_room()) {
        ASSERT(slot.error != 0);
        compose_error(slot);
    }
    if (slot.replied) return maybe_free(slot);
    if (slot.ready != nullptr || slot.split_done) maybe_queue(slot);
}

// One header and then all the data, by offset: a simple reply, or one chunk for a client that asked
// for no more. The header promises success, so it waits for all that can be waited for.
void NbdConnection::compose_ordered_read(Slot& slot) {
    if (slot.error != 0 || slot.split.error != 0) {
        if (slot.streaming) return drop("a read failed after its reply had begun");
        if (!slot.split_done) return;  // queued again when it is
        while (slot.ready != nullptr) {
            SplitPiece& piece = *slot.ready;
            slot.ready = piece.next;
            release(slot, piece.io.buffer);
            splitter_.release(piece);
        }
        compose_error(slot);
        return maybe_free(slot);
    }
    if (!slot.streaming) {
        add_staged(session_.encode_data(staging(), slot.command, slot.command.offset,
                                        slot.command.length, true));
        slot.streaming = true;
        streaming_ = &slot;
    }
    while (slot.ready != nullptr && iov_count_ < iov_.size() &&
           slot.ready->io.offset == slot.command.offset + slot.sent_bytes) {
        SplitPiece& piece = *slot.ready;
        slot.ready = piece.next;
        slot.sent_bytes += piece.io.length;
        add_piece(piece);
    }
    if (slot.sent_bytes < slot.command.length) return;
    streaming_ = nullptr;
    slot.replied = true;
    maybe_free(slot);
}

void NbdConnection::compose_error(Slot& slot) {
    std::array<char, 200> room;
    const bool refused = slot.refusal != NbdRefusal::none;
    const auto error = refused ? nbd_errno(slot.refusal, slot.command.type) : nbd_errno(slot.error);
    const std::string_view text =
        refused ? nbd_refusal_text(slot.refusal, slot.command, context_.volume.info(), room)
                : nbd_error_text(slot.error);
    add_staged(session_.encode_error(staging(), slot.command, error, text));
    slot.replied = true;
}

std::span<std::byte> NbdConnection::staging() { return std::span(staging_).subspan(staged_); }

void NbdConnection::add_staged(std::size_t bytes) {
    std::byte* const begin = staging_.data() + staged_;
    staged_ += bytes;
    if (iov_count_ > 0) {
        iovec& last = iov_[iov_count_ - 1];
        if (static_cast<std::byte*>(last.iov_base) + last.iov_len == begin) {
            last.iov_len += bytes;
            return;
        }
    }
    ASSERT(iov_count_ < iov_.size());
    iov_[iov_count_++] = {begin, bytes};
}

void NbdConnection::add_piece(SplitPiece& piece) {
    ASSERT(iov_count_ < iov_.size());
    iov_[iov_count_++] = {piece.io.buffer, piece.io.length};
    piece.next = batch_pieces_;
    batch_pieces_ = &piece;
}

void NbdConnection::send() {
    message_.msg_iov = iov_.data() + iov_sent_;
    message_.msg_iovlen = iov_count_ - iov_sent_;
    context_.reactor.sendmsg(send_op_, fd_, &message_, MSG_NOSIGNAL);
}

void NbdConnection::on_sent(std::int32_t result) {
    schedule();
    if (state_ == State::closing) return batch_sent();
    if (result == -EINTR || result == -EAGAIN) return;
    if (result <= 0) {
        drop(result == 0 ? "the socket takes no more" : std::strerror(-result));
        return;
    }
    progress_ = context_.reactor.now();
    std::size_t left = static_cast<std::size_t>(result);
    while (left > 0) {
        ASSERT(iov_sent_ < iov_count_);
        iovec& part = iov_[iov_sent_];
        const std::size_t n = std::min(left, part.iov_len);
        part.iov_base = static_cast<std::byte*>(part.iov_base) + n;
        part.iov_len -= n;
        left -= n;
        if (part.iov_len == 0) ++iov_sent_;
    }
    if (iov_sent_ == iov_count_) return batch_sent();
    send();
}

// The batch is sent, or will never be: its buffers are free, or go on to the next bytes of their
// read.
void NbdConnection::batch_sent() {
    ASSERT(!send_op_.in_flight);
    const bool answers = iov_count_ > 0 && iov_sent_ == iov_count_ && !handshake_in_batch_;
    if (answers && !std::exchange(answered_, true) && context_.options.answered) {
        context_.options.answered();
    }
    iov_count_ = iov_sent_ = staged_ = 0;
    if (handshake_in_batch_) handshake_out_.clear();
    handshake_in_batch_ = false;
    while (batch_pieces_ != nullptr) {
        SplitPiece& piece = *batch_pieces_;
        batch_pieces_ = piece.next;
        Slot& slot = slot_of(*piece.parent);
        if (splitter_.reuse(piece)) continue;
        release(slot, piece.io.buffer);
        splitter_.release(piece);
        maybe_free(slot);
    }
}

}  // namespace replica
