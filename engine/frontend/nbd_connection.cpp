// SPDX-License-Identifier: Apache-2.0
// Commands in: see nbd_connection.hpp. Replies out are in nbd_connection_send.cpp.
#include "engine/frontend/nbd_connection.hpp"

#include <sys/socket.h>
#include <syslog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "engine/base/assert.hpp"

namespace replica {

using nbd::Command;

namespace {

constexpr std::size_t rx_bytes = 64U << 10;
constexpr std::size_t staging_bytes = 16U << 10;
constexpr std::uint32_t pieces_per_command = 4;
// A rest of a payload from this on is received in its place; less comes with what follows it.
constexpr std::uint32_t direct_bytes_min = 8U << 10;
// A read from this on is worth asking whether there is anything to read.
constexpr std::uint32_t hole_bytes_min = 64U << 10;
static_assert(rx_bytes >= NbdSession::input_bytes_max);
static_assert(staging_bytes >= nbd_reply_bytes_max);
// A read in one chunk is composed from pieces that are all there at once.
static_assert(pieces_per_command >= 2);

}  // namespace

const SplitHooks NbdConnection::hooks_ = {
    .buffer =
        [](SplitRequest& request, std::uint64_t offset, std::uint32_t length) {
            Slot& slot = slot_of(request);
            return slot.connection->on_buffer(slot, offset, length);
        },
    .piece_done =
        [](SplitRequest& request, SplitPiece& piece, int error) {
            Slot& slot = slot_of(request);
            return slot.connection->on_piece_done(slot, piece, error);
        },
    .done =
        [](SplitRequest& request, int error) {
            Slot& slot = slot_of(request);
            slot.connection->on_split_done(slot, error);
        },
};

NbdConnection::NbdConnection(Context& context)
    : context_(context),
      session_(context.export_name),
      splitter_(context.volume, context.options.commands_max, pieces_per_command),
      slots_(context.options.commands_max),
      rx_(rx_bytes),
      staging_(staging_bytes) {
    for (Slot& slot : slots_) {
        slot.connection = this;
        slot.next = free_;
        free_ = &slot;
    }
    turn_.context = timer_.context = recv_op_.context = send_op_.context = this;
    turn_.callback = [](Deferred& task) { static_cast<NbdConnection*>(task.context)->on_turn(); };
    timer_.callback = [](Timer& timer) { static_cast<NbdConnection*>(timer.context)->on_timer(); };
    recv_op_.callback = [](Op& op, std::int32_t result) {
        static_cast<NbdConnection*>(op.context)->on_received(result);
    };
    send_op_.callback = [](Op& op, std::int32_t result) {
        static_cast<NbdConnection*>(op.context)->on_sent(result);
    };
    handshake_out_.reserve(1024);
}

NbdConnection::~NbdConnection() { ASSERT(state_ == State::idle && !turn_.queued); }

void NbdConnection::open(int fd, std::uint64_t client_number, bool shaken_hands) {
    ASSERT(state_ == State::idle && busy_slots_ == 0 && held_bytes_ == 0);
    state_ = State::open;
    fd_ = fd;
    client_number_ = client_number;
    session_ = NbdSession(context_.export_name);
    rx_begin_ = rx_end_ = 0;
    need_input_ = true;
    holding_ = answered_ = false;
    progress_ = context_.reactor.now();
    if (shaken_hands) {
        session_.skip_handshake();
    } else {
        session_.greet(handshake_out_);
        context_.reactor.set_timer(timer_, progress_ + context_.options.handshake_timeout_ns);
    }
    schedule();
}

// --- commands -----------------------------------------------------------------------------------

// Everything that changes something ends in schedule(), and this looks at all of it once a turn.
void NbdConnection::on_turn() {
    if (state_ == State::idle) return maybe_held();
    if (state_ != State::closing) {
        set_starved(false);
        splitter_.pump();
        process();
        flush();
    }
    const bool nothing_left = busy_slots_ == 0 && iov_count_ == 0 && handshake_out_.empty();
    if (state_ == State::draining && nothing_left) drop("");
    if (state_ == State::open) receive();
    maybe_held();
    maybe_end();
}

void NbdConnection::retry() {
    if (starved_) schedule();
}

void NbdConnection::process() {
    need_input_ = false;
    while (state_ == State::open) {
        if (payload_ != nullptr ? !take_payload() : !process_step()) break;
    }
}

// Takes one thing from rx_. False: it takes more input, or something else to happen first.
bool NbdConnection::process_step() {
    // The answer to an option comes before the next one is looked at, and so bounds handshake_out_.
    if (!handshake_out_.empty()) return false;
    if (session_.in_transmission() && free_ == nullptr) return false;
    if (payload_abandoned_ > 0) return false;
    const std::span<const std::byte> in(rx_.data() + rx_begin_, rx_end_ - rx_begin_);
    const bool was_in_transmission = session_.in_transmission();
    const NbdStep step = session_.step(in, context_.volume.info(), handshake_out_);
    rx_begin_ += step.consumed;
    switch (step.event) {
        case NbdEvent::none:
            need_input_ = step.consumed == 0 || rx_begin_ == rx_end_;
            return !need_input_;
        case NbdEvent::replied:
            if (!was_in_transmission && session_.in_transmission()) {
                timer_.clear();
                log(LOG_DEBUG, "connected");
            }
            return true;
        case NbdEvent::command:
        case NbdEvent::refused:
            begin_command(step.command, step.refusal);
            return true;
        case NbdEvent::disconnect:
            drain();
            return false;
        case NbdEvent::close:
            log(LOG_NOTICE, session_.close_reason());
            drain();
            return false;
    }
    return false;
}

NbdConnection::Slot& NbdConnection::take_slot() {
    ASSERT(free_ != nullptr);
    Slot& slot = *free_;
    free_ = slot.next;
    slot = Slot{};
    slot.connection = this;
    slot.busy = true;
    ++busy_slots_;
    return slot;
}

void NbdConnection::maybe_free(Slot& slot) {
    ASSERT(slot.busy);
    if (!slot.replied || !slot.split_done || slot.split.out > 0) return;
    ASSERT(!slot.queued && slot.ready == nullptr && payload_ != &slot && streaming_ != &slot);
    slot.busy = false;
    slot.next = free_;
    free_ = &slot;
    --busy_slots_;
    schedule();
}

void NbdConnection::begin_command(const NbdCommand& command, NbdRefusal refusal) {
    Slot& slot = take_slot();
    slot.command = command;
    slot.refusal = refusal;
    if (refusal != NbdRefusal::none) return maybe_queue(slot);
    switch (command.type) {
        case Command::read: {
            const bool may_skip = session_.structured() && command.length >= hole_bytes_min &&
                                  !command.has(nbd::command_df);
            bool hole = false;
            slot.hole = may_skip &&
                        context_.volume.extent_status(command.offset, command.length, hole) ==
                            command.length &&
                        hole;
            if (slot.hole) return maybe_queue(slot);
            return begin_split(slot, IoKind::read);
        }
        case Command::write:
            payload_ = &slot;
            payload_taken_ = 0;
            return begin_split(slot, IoKind::write);
        case Command::flush:
            return begin_split(slot, IoKind::flush);
        case Command::trim:
            return begin_split(slot, IoKind::discard);
        case Command::write_zeroes:
            slot.zeroes = command.has(nbd::command_no_hole);
            return begin_split(slot, slot.zeroes ? IoKind::write : IoKind::write_zeroes);
        case Command::block_status:
        case Command::cache:  // there is no cache below that could be warmed
            return maybe_queue(slot);
        case Command::disconnect:
            break;
    }
    ASSERT(false);
}

void NbdConnection::begin_split(Slot& slot, IoKind kind) {
    slot.split_done = false;
    slot.split.kind = kind;
    slot.split.fua = slot.command.has(nbd::command_fua) && kind != IoKind::read;
    slot.split.offset = slot.command.offset;
    slot.split.length = slot.command.length;
    slot.split.hooks = &hooks_;
    slot.split.context = &slot;
    splitter_.start(slot.split);
}

// Moves what is in rx_ into the buffers of the write that is next. False: more input is needed
// (need_input_), or a buffer, or the splitter has to take the full one first.
bool NbdConnection::take_payload() {
    Slot& slot = *payload_;
    if (payload_ready_) return false;
    if (payload_buffer_ == nullptr) {
        payload_buffer_ = acquire(slot);
        if (payload_buffer_ == nullptr) return false;
        payload_buffer_bytes_ = std::min(io_bytes_max, slot.command.length);
        payload_length_ = split_length(IoKind::write, slot.command.offset + payload_taken_,
                                       slot.command.length - payload_taken_);
        payload_filled_ = 0;
    }
    if (!recv_op_.in_flight || !recv_direct_) {
        const std::size_t n =
            std::min<std::size_t>(rx_end_ - rx_begin_, payload_length_ - payload_filled_);
        std::memcpy(payload_buffer_ + payload_filled_, rx_.data() + rx_begin_, n);
        rx_begin_ += n;
        payload_filled_ += static_cast<std::uint32_t>(n);
    }
    if (payload_filled_ < payload_length_) {
        need_input_ = true;
        return false;
    }
    payload_ready_ = true;
    splitter_.pump();
    return !payload_ready_;
}

// The write has failed, or its client is gone: the rest of its payload is of no use.
void NbdConnection::abandon_payload() {
    ASSERT(payload_ != nullptr);
    const std::uint64_t rest = payload_->command.length - payload_taken_ -
                               (payload_buffer_ == nullptr ? 0 : payload_filled_);
    payload_ = nullptr;
    payload_ready_ = false;
    if (payload_buffer_ != nullptr && recv_op_.in_flight && recv_direct_) {
        payload_abandoned_ = rest;  // the buffer is the kernel's until the operation is over
        return;
    }
    session_.skip(rest);
    release_payload_buffer();
}

void NbdConnection::release_payload_buffer() {
    if (payload_buffer_ == nullptr) return;
    context_.volume.release_buffer(payload_buffer_);
    held_bytes_ -= payload_buffer_bytes_;
    payload_buffer_ = nullptr;
    context_.on_released(context_.server);
}

// Buffers of one command are all of one size, so that a piece can be sent out again with the same.
std::byte* NbdConnection::acquire(const Slot& slot) {
    const std::uint32_t bytes = std::min(io_bytes_max, slot.command.length);
    // One buffer is always allowed, or a command could wait for itself; while others get none, that
    // is all.
    const bool others_starve = context_.starved > (starved_ ? 1U : 0U);
    const std::uint64_t limit = others_starve ? 0 : context_.options.buffer_bytes_max;
    if (held_bytes_ > 0 && held_bytes_ + bytes > limit) return nullptr;
    std::byte* const buffer = context_.volume.acquire_buffer_for(bytes);
    if (buffer == nullptr) {
        set_starved(true);
    } else {
        held_bytes_ += bytes;
    }
    return buffer;
}

void NbdConnection::set_starved(bool starved) {
    if (starved_ == starved) return;
    starved_ = starved;
    if (starved) {
        ++context_.starved;
        context_.on_starved(context_.server);
    } else {
        --context_.starved;
    }
}

void NbdConnection::release(const Slot& slot, std::byte* buffer) {
    const std::uint32_t bytes = std::min(io_bytes_max, slot.command.length);
    ASSERT(buffer != nullptr && held_bytes_ >= bytes);
    held_bytes_ -= bytes;
    context_.volume.release_buffer(buffer);
    context_.on_released(context_.server);
    schedule();
}

std::byte* NbdConnection::on_buffer(Slot& slot, std::uint64_t offset, std::uint32_t length) {
    if (slot.split.kind == IoKind::read) return acquire(slot);
    if (slot.zeroes) {
        std::byte* const buffer = acquire(slot);
        if (buffer != nullptr) std::memset(buffer, 0, length);
        return buffer;
    }
    if (payload_ != &slot || !payload_ready_) return nullptr;
    ASSERT(offset == slot.command.offset + payload_taken_ && length == payload_length_);
    std::byte* const buffer = payload_buffer_;
    payload_buffer_ = nullptr;
    payload_ready_ = false;
    payload_taken_ += length;
    if (payload_taken_ == slot.command.length) payload_ = nullptr;
    schedule();
    return buffer;
}

bool NbdConnection::on_piece_done(Slot& slot, SplitPiece& piece, int error) {
    if (slot.split.kind == IoKind::read && error == 0 && state_ != State::closing) {
        SplitPiece** link = &slot.ready;
        while (*link != nullptr && (*link)->io.offset < piece.io.offset)
            link = &(*link)->next;
        piece.next = *link;
        *link = &piece;
        maybe_queue(slot);
        return false;
    }
    if (piece.io.buffer != nullptr) release(slot, piece.io.buffer);
    return true;
}

void NbdConnection::on_split_done(Slot& slot, int error) {
    slot.split_done = true;
    slot.error = error;
    if (payload_ == &slot) abandon_payload();
    if (state_ == State::closing) {
        slot.replied = true;
        maybe_free(slot);
        schedule();
        return;
    }
    maybe_queue(slot);
}

// --- the socket ---------------------------------------------------------------------------------

void NbdConnection::receive() {
    if (recv_op_.in_flight || !need_input_) return;
    const std::uint32_t missing =
        payload_buffer_ == nullptr ? 0 : payload_length_ - payload_filled_;
    recv_direct_ = payload_ != nullptr && rx_begin_ == rx_end_ && missing >= direct_bytes_min;
    if (recv_direct_) {
        context_.reactor.recv(recv_op_, fd_, {payload_buffer_ + payload_filled_, missing}, 0);
        return;
    }
    if (rx_begin_ > 0) {
        std::memmove(rx_.data(), rx_.data() + rx_begin_, rx_end_ - rx_begin_);
        rx_end_ -= rx_begin_;
        rx_begin_ = 0;
    }
    auto room = std::span(rx_).subspan(rx_end_);
    ASSERT(!room.empty());
    if (holding_) room = room.first(std::min(room.size(), rest_of_request()));
    if (room.empty()) return;
    if (payload_ != nullptr) {
        context_.reactor.recv(recv_op_, fd_, room, 0);
    } else {
        context_.reactor.recv_later(recv_op_, fd_, room, 0);
    }
}

// What the stream still holds of the request that has begun; 0: none has, or it has to wait.
std::size_t NbdConnection::rest_of_request() const {
    const std::size_t have = rx_end_ - rx_begin_;
    if (session_.skipping() > 0) return static_cast<std::size_t>(session_.skipping());
    if (payload_ != nullptr) return payload_length_ - payload_filled_;
    return have > 0 && have < nbd::request_bytes ? nbd::request_bytes - have : 0;
}

void NbdConnection::hold(std::function<void()> held) {
    holding_ = true;
    held_ = std::move(held);
    if (state_ == State::open && !recv_direct_) context_.reactor.cancel(recv_op_);
    context_.reactor.defer(turn_);
}

void NbdConnection::resume() {
    holding_ = false;
    held_ = nullptr;
    need_input_ = true;
    schedule();
}

void NbdConnection::maybe_held() {
    if (!held_) return;
    const bool reading = recv_op_.in_flight || rx_begin_ < rx_end_ || payload_ != nullptr ||
                         payload_abandoned_ > 0 || session_.skipping() > 0;
    const bool busy = reading || busy_slots_ > 0 || iov_count_ > 0 || send_op_.in_flight;
    if (state_ == State::idle || (state_ == State::open && !busy)) std::exchange(held_, nullptr)();
}

int NbdConnection::give() {
    ASSERT(holding_ && !held_);
    if (state_ != State::open) return -1;
    ASSERT(!recv_op_.in_flight && !send_op_.in_flight && busy_slots_ == 0 && held_bytes_ == 0);
    state_ = State::idle;
    return std::exchange(fd_, -1);
}

void NbdConnection::on_received(std::int32_t result) {
    const std::uint32_t n = result > 0 ? static_cast<std::uint32_t>(result) : 0;
    if (payload_abandoned_ > 0) {
        session_.skip(payload_abandoned_ - n);
        payload_abandoned_ = 0;
        release_payload_buffer();
    } else if (recv_direct_) {
        payload_filled_ += n;
    } else {
        rx_end_ += n;
    }
    schedule();
    if (state_ != State::open) return;
    if (n > 0) {
        progress_ = context_.reactor.now();
        return;
    }
    if (result == -EINTR || result == -EAGAIN) return;
    if (result == -ECANCELED && holding_) return;
    if (result < 0) return drop(std::strerror(-result));
    // The client has closed its side. It may still want the answers to what it has asked, but not
    // to half a write.
    if (!session_.in_transmission()) return drop("the client left during the handshake");
    if (payload_ != nullptr || rx_begin_ < rx_end_) {
        return drop("the client left in the middle of a request");
    }
    drain();
}

void NbdConnection::finish() {
    if (state_ != State::open) return;
    if (session_.in_transmission() && payload_ == nullptr) {
        drain();
    } else {
        drop("the export is closed");
    }
}

void NbdConnection::drain() {
    ASSERT(state_ == State::open);
    state_ = State::draining;
    need_input_ = false;
    context_.reactor.cancel(recv_op_);
    context_.reactor.set_timer(timer_, context_.reactor.now() + context_.options.close_timeout_ns);
    schedule();
}

// Lets go of the client at once; the slots follow as the engine completes them. "": not worth a
// word.
void NbdConnection::drop(const char* reason) {
    if (state_ == State::closing || state_ == State::idle) return;
    if (*reason != '\0') log(LOG_NOTICE, reason);
    state_ = State::closing;
    need_input_ = false;
    set_starved(false);
    timer_.clear();
    static_cast<void>(shutdown(fd_, SHUT_RDWR));
    context_.reactor.cancel(recv_op_);
    context_.reactor.cancel(send_op_);
    drop_commands();
    schedule();
}

void NbdConnection::drop_commands() {
    handshake_out_.clear();
    replies_ = nullptr;
    replies_tail_ = &replies_;
    streaming_ = nullptr;
    for (Slot& slot : slots_) {
        if (!slot.busy) continue;
        slot.queued = false;
        while (slot.ready != nullptr) {
            SplitPiece& piece = *slot.ready;
            slot.ready = piece.next;
            release(slot, piece.io.buffer);
            splitter_.release(piece);
        }
        slot.replied = slot.split_done;
        if (slot.split_done) {
            maybe_free(slot);
        } else {
            splitter_.abort(slot.split, ESHUTDOWN);
        }
    }
    if (payload_ != nullptr) abandon_payload();
    if (!send_op_.in_flight) batch_sent();
}

void NbdConnection::maybe_end() {
    if (state_ != State::closing || recv_op_.in_flight || send_op_.in_flight) return;
    if (busy_slots_ > 0 || turn_.queued) return;
    ASSERT(held_bytes_ == 0 && batch_pieces_ == nullptr);
    ::close(fd_);
    fd_ = -1;
    state_ = State::idle;
    log(LOG_DEBUG, "gone");
    maybe_held();
    context_.on_ended(context_.server);
}

void NbdConnection::on_timer() {
    if (state_ == State::open) return drop("the client did not finish the handshake in time");
    if (state_ != State::draining) return;
    if (send_op_.in_flight) return drop("the client did not collect its last replies");
    // It is the engine that we wait for.
    context_.reactor.set_timer(timer_, context_.reactor.now() + context_.options.close_timeout_ns);
}

void NbdConnection::maybe_drop_stalled() {
    const bool holds = held_bytes_ > 0 && (send_op_.in_flight || payload_buffer_ != nullptr);
    if (state_ != State::open || !holds) return;
    if (context_.reactor.now() < progress_ + context_.options.stall_timeout_ns) return;
    drop("the client does not move and keeps others waiting for its buffers");
}

void NbdConnection::log(int level, const char* text) const {
    if (!context_.options.log) return;
    char line[256];
    std::snprintf(line, sizeof line, "nbd %s: client %llu: %s", context_.export_name.c_str(),
                  static_cast<unsigned long long>(client_number_), text);
    context_.options.log(level, line);
}

}  // namespace replica
