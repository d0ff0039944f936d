// SPDX-License-Identifier: Apache-2.0
// The replication protocol's bytes: a 64-byte header that is the same for every message, and fixed
// payload structures for the handshake. Little-endian. No IO. docs/protocol.md is the text of it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/base/result.hpp"
#include "engine/base/units.hpp"
#include "engine/format/superblock.hpp"

namespace replica {

inline constexpr std::uint32_t wire_magic = 0x4d4c5052;  // "RPLM"
inline constexpr std::uint16_t wire_version_min = 2;
inline constexpr std::uint16_t wire_version_max = 2;
inline constexpr std::size_t wire_header_bytes = 64;
inline constexpr std::size_t wire_name_max = 64;
inline constexpr std::size_t wire_text_max = 256;
inline constexpr std::size_t wire_bitmap_page_bytes = 4096;
inline constexpr std::uint64_t wire_bits_per_page = wire_bitmap_page_bytes * 8;

// Two TCP connections a peer: acknowledgements and pings never wait behind data.
enum class Stream : std::uint8_t { bulk = 0, control = 1 };

// The fields that a type uses are named behind it; all others are zero and are checked to be.
enum class MessageType : std::uint16_t {
    // First on each stream, both ways. Payload: HelloPayload.
    hello = 1,
    // Instead of a hello: why not. Payload: text. The sender closes afterwards.
    reject = 2,

    // bulk: state of the sender, opens or answers a handshake round. Payload: StatePayload.
    state = 16,
    // bulk: role or disk state changed outside a handshake. id: role | disk << 8, flags: 0.
    state_update = 17,
    // bulk: a primary opened a generation. seq: mark every journalled write above it toward
    // `nodes`, the lost ones. Payload: GenerationPayload. Answered by generation_ack (control).
    generation = 18,
    generation_ack = 19,        // control. offset: the generation's id, set: what is recorded
    generation_committed = 20,  // bulk. offset: the generation's id
    // bulk. flags 1, from a Primary: its set of this generation is `nodes`; members record it and
    // answer with generation_ack; length: the nodes toward which nobody needs marks. flags 0, from
    // a Secondary: `nodes` hold what the sender holds, and offset is its name; with offset 0
    // `nodes` is the sender's set.
    in_sync = 21,
    promote = 22,        // bulk. id: attempt, answered by promote_reply; flags 1: given up, 2: by
                         // force
    promote_reply = 23,  // bulk. id: attempt, flags: 0 agreed, 1 refused, 2 refused: there is newer
                         // data; agreed, offset: the answering node's generation, nodes: its
                         // members
    goodbye = 24,        // bulk. flags: 1 = you are outdated now, 2 = stay away until asked

    adopt_generation =
        26,           // bulk: first generation of disks proven equal. Payload: GenerationPayload
    invalidate = 25,  // bulk: take everything from the sender again

    // bulk: write. seq, offset, length, trim_seq, nodes: data nodes that do not get it, flags:
    // write_flag. Payload: length bytes.
    write = 32,
    write_zeroes = 33,    // bulk: as write, without payload
    write_received = 34,  // control. seq: received (protocol B)
    write_ack = 35,       // control. seq, flags: 1 = failed
    flush = 36,           // bulk. id, seq: what it covers, trim_seq
    flush_ack = 37,       // control. id, flags: 1 = failed
    trim = 38,            // control. trim_seq
    want_trim = 39,       // control: the activity log of the sender is starving

    read = 40,        // bulk. id, offset, length
    read_reply = 41,  // bulk. id, length, flags: 1 = failed. Payload: length bytes unless failed

    bitmap_page = 48,    // bulk. offset: page number. Payload: 4096 bytes of one slot, linear
    bitmap_ones = 49,    // bulk. offset: first page, length: pages, all bits set
    bitmap_done = 50,    // bulk
    resync_data = 51,    // bulk. id, offset, length. Payload: length bytes
    resync_zeroes = 52,  // bulk. id, offset, length
    resync_ack =
        53,  // control. id, flags: 0 stable, 1 failed, 2 skipped (a newer write is under way)
    // bulk. id: names this end of a resync. Payload: GenerationPayload. Answered by sync_done_ack,
    // or by a state that names the generation.
    sync_done = 54,
    sync_done_ack = 55,  // control. id, offset: the generation's id
    sync_pause = 56,     // bulk. flags: 1 paused by the sender's operator, 0 not any more

    ping = 64,  // control. id
    pong = 65,  // control. id
};

namespace write_flag {
inline constexpr std::uint16_t fua = 1;
inline constexpr std::uint16_t discard = 2;        // write_zeroes that may free the space
inline constexpr std::uint16_t want_received = 4;  // protocol B
}  // namespace write_flag

// The header's body, the same for every type.
struct Message {
    MessageType type = MessageType::ping;
    std::uint16_t flags = 0;
    std::uint32_t payload_bytes = 0;
    std::uint64_t seq = 0;
    std::uint64_t offset = 0;
    std::uint64_t trim_seq = 0;
    std::uint32_t length = 0;
    std::uint32_t nodes = 0;
    std::uint32_t id = 0;
    // The number of the sender's in-sync set (docs/membership.md), the low 32 bits of each part. A
    // receiver compares it with the last one that the sender told it on this link.
    std::uint32_t set_generation = 0, set_change = 0;
};

struct HelloPayload {
    std::uint16_t version_min = wire_version_min;
    std::uint16_t version_max = wire_version_max;
    Stream stream = Stream::bulk;
    NodeId from = 0;
    NodeId to = 0;
    std::uint64_t features = 0;         // none defined: sent as 0, not looked at
    std::uint64_t session = 0;          // names the pair of connections, drawn by the dialling side
    std::uint64_t incarnation = 0;      // drawn by the sender at its start
    std::uint32_t journal_entries = 0;  // how many unconfirmed writes the sender can remember
    std::uint32_t io_bytes_max = 0;
    std::array<std::uint8_t, 16> volume_id{};  // zero: not known yet
    std::array<char, wire_name_max> resource{};
    std::uint8_t protocol = 'C';  // replication protocol: 'A', 'B' or 'C'
};
inline constexpr std::size_t hello_payload_bytes = 128;

namespace state_flag {
inline constexpr std::uint16_t crashed = 1;        // went down with writes possibly in flight
inline constexpr std::uint16_t crashed_power = 2;  // and the drive's cache may be lost
inline constexpr std::uint16_t was_primary = 4;    // was the primary of current_uuid
inline constexpr std::uint16_t sees_primary = 8;   // is connected to a primary
inline constexpr std::uint16_t discard_my_data =
    16;                                            // its operator offers it as split-brain victim
inline constexpr std::uint16_t all_zero = 32;      // just created, and known to read as zeroes
inline constexpr std::uint16_t full_sync = 64;     // all bits toward the receiver count as set
inline constexpr std::uint16_t always_sync = 128;  // weaker protocol than C configured
inline constexpr std::uint16_t growing = 256;      // size_bytes is what it will be, if all follow
}  // namespace state_flag

struct StatePayload {
    std::uint8_t role = 0;             // Role
    std::uint8_t disk = 0;             // DiskState
    std::uint16_t flags = 0;           // state_flag
    std::uint32_t in_sync = 0;         // the in-sync set of current_uuid
    std::uint64_t size_bytes = 0;      // of the volume, 0: no disk
    std::uint64_t size_max_bytes = 0;  // how large it could become on this disk
    Uuid current_uuid = uuid_none;
    Uuid bitmap_uuid = uuid_none;     // toward the receiver
    Uuid admitting_uuid = uuid_none;  // toward the receiver
    std::uint64_t bits = 0;           // set in the slot toward the receiver
    std::uint64_t generation_seq = 0;
    std::uint64_t last_seq = 0;     // last write received from or sent by a primary of current_uuid
    std::uint64_t promoted_at = 0;  // wall-clock seconds of the last promotion, for the sb policies
    std::array<std::uint8_t, 4> after_sb{};  // the sender's policies for 0, 1, 2 primaries; leader
    std::uint32_t cache_losses = 0;          // as in the superblock's extension
    std::array<std::uint8_t, 16> volume_id{};
    std::array<Uuid, history_uuids_max> history{};
    // The name of what the disk holds at rest; two with one name hold the same bytes. 0: no name.
    std::uint64_t content = 0;
    std::uint64_t set_change = 0;  // with generation_seq the number of in_sync
};
inline constexpr std::size_t state_payload_bytes = 376;

struct GenerationPayload {
    Uuid current_uuid = uuid_none;
    Uuid parent_uuid = uuid_none;
    std::uint64_t generation_seq = 0;
    std::uint32_t in_sync = 0;
    std::int32_t primary_node = -1;
    std::uint8_t disk = 0;  // sync_done: the disk state that the target takes
    std::array<std::uint8_t, 16> volume_id{};
    std::array<Uuid, history_uuids_max> history{};
    std::uint64_t set_change = 0;  // with generation_seq the number of in_sync
    friend bool operator==(const GenerationPayload&, const GenerationPayload&) = default;
};
inline constexpr std::size_t generation_payload_bytes = 320;

using HeaderBytes = std::span<std::byte, wire_header_bytes>;
using ConstHeaderBytes = std::span<const std::byte, wire_header_bytes>;

// `payload_crc` is crc32c over the payload, 0 without one.
void encode_header(const Message& message, std::uint32_t payload_crc, HeaderBytes out);

// Checks magic, header checksum, type, the payload's length against the type, and that unused
// fields are zero. Errors: corrupt (close the connection, never guess), unsupported (unknown type).
Result<Message> decode_header(ConstHeaderBytes bytes);
// The payload checksum that a decoded header carries.
std::uint32_t header_payload_crc(ConstHeaderBytes bytes);

void encode_hello(const HelloPayload& hello, std::span<std::byte, hello_payload_bytes> out);
Result<HelloPayload> decode_hello(std::span<const std::byte> bytes);
void encode_state(const StatePayload& state, std::span<std::byte, state_payload_bytes> out);
Result<StatePayload> decode_state(std::span<const std::byte> bytes);
void encode_generation(const GenerationPayload& generation,
                       std::span<std::byte, generation_payload_bytes> out);
Result<GenerationPayload> decode_generation(std::span<const std::byte> bytes);

}  // namespace replica
