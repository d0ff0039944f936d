// SPDX-License-Identifier: Apache-2.0
// What the core asks of its shell. Effects for one target keep their order; effects for different
// targets have none. Every durable write is its own effect and its own completion.
#pragma once

#include <cstdint>

#include "engine/base/result.hpp"
#include "engine/base/units.hpp"
#include "engine/format/wire.hpp"

namespace replica {

// Names one I/O; comes back in Core::on_io(). A tag is not used again before its completion.
enum class IoOrigin : std::uint8_t {
    request,       // index: request slot
    peer_request,  // index: peer request slot
    resync,        // index: chunk
    peer_read,     // index: peer read slot
    epoch_flush,   // the core's own flush of a primary
    local_flush,   // of this disk alone: what it holds must be stable before others count on it
    superblock,    // copy in the state directory first, then the disk; both durable
    al,            // one activity-log block, durable
    al_init,       // all activity-log blocks as initialised, durable
    bitmap_page,   // index: page; durable
};
struct IoTag {
    IoOrigin origin = IoOrigin::request;
    std::uint32_t index = 0;
};

// Where the bytes of a read or write are: the shell owns the memory, the core names it.
enum class BufferKind : std::uint8_t {
    none,
    request,  // index: request slot; the door's buffer
    receive,  // index: given with the message that brought the payload
    resync,   // index: chunk
    serve,    // index: peer read slot
};
struct BufferRef {
    BufferKind kind = BufferKind::none;
    std::uint32_t index = 0;
};

enum class EffectKind : std::uint8_t {
    complete,    // request `index` with `error` (0 or a positive errno)
    disk_read,   // tag, buffer, offset, length
    disk_write,  // tag, buffer, offset, length, durable: completes when on stable storage
    disk_zero,   // tag, offset, length, durable, discard: reads as zeroes afterwards
    disk_flush,  // tag
    metadata,    // tag: superblock, al, al_init or bitmap_page; bytes by Core::encode_metadata()
    send,        // peer, stream, message; payload: buffer, or Core::encode_payload()
    release,     // receive buffer `index` is free again (after its sends and I/O are done)
    dial,        // peer: open two connections, then Core::on_dialled()
    knock,       // peer: open one, send `message` (a hello; Core::encode_payload()), close it
    adopt,       // peer: the two accepted connections `handle`, `handle2` are its streams now
    refuse,      // accepted connection `handle`: send reject with `text`, close; peer: it is the
                 // reason why that peer is not connected (or -1)
    close_link,  // peer: close both streams; graceful: after what was sent is out
    reply,       // command `index` ended: errc, text
    notice,      // for the event stream and the log: peer (or -1), level, text
};

struct Effect {
    EffectKind kind = EffectKind::notice;
    IoTag tag;
    BufferRef buffer;
    std::uint64_t offset = 0;
    std::uint32_t length = 0;
    bool durable = false;
    bool discard = false;
    bool graceful = false;
    std::uint32_t index = 0;  // of a send: which generation its payload is
    int error = 0;
    int peer = -1;
    Stream stream = Stream::bulk;
    Message message;
    std::uint64_t handle = 0;
    std::uint64_t handle2 = 0;
    Errc errc = Errc::ok;
    int level = 6;          // notice: syslog level
    const char* text = "";  // static
};

}  // namespace replica
