// SPDX-License-Identifier: Apache-2.0
// The numbers of the NBD protocol (doc/proto.md of the NetworkBlockDevice project): fixed newstyle
// handshake, structured replies, meta contexts. Every integer on the wire is big-endian.
#pragma once

#include <cstddef>
#include <cstdint>

namespace replica::nbd {

inline constexpr std::uint64_t greeting_magic = 0x4e42444d41474943U;  // "NBDMAGIC"
inline constexpr std::uint64_t option_magic = 0x49484156454f5054U;    // "IHAVEOPT"
inline constexpr std::uint64_t option_reply_magic = 0x0003e889045565a9U;
inline constexpr std::uint32_t request_magic = 0x25609513U;
inline constexpr std::uint32_t simple_reply_magic = 0x67446698U;
inline constexpr std::uint32_t structured_reply_magic = 0x668e33efU;

inline constexpr std::size_t greeting_bytes = 18;
inline constexpr std::size_t client_flags_bytes = 4;
inline constexpr std::size_t option_header_bytes = 16;
inline constexpr std::size_t option_reply_header_bytes = 20;
inline constexpr std::size_t request_bytes = 28;
inline constexpr std::size_t simple_reply_bytes = 16;
inline constexpr std::size_t chunk_header_bytes = 20;

// Handshake flags, of the server and, with the same values, of the client.
inline constexpr std::uint16_t flag_fixed_newstyle = 1U << 0;
inline constexpr std::uint16_t flag_no_zeroes = 1U << 1;

// Transmission flags.
inline constexpr std::uint16_t flag_has_flags = 1U << 0;
inline constexpr std::uint16_t flag_read_only = 1U << 1;
inline constexpr std::uint16_t flag_send_flush = 1U << 2;
inline constexpr std::uint16_t flag_send_fua = 1U << 3;
inline constexpr std::uint16_t flag_send_trim = 1U << 5;
inline constexpr std::uint16_t flag_send_write_zeroes = 1U << 6;
inline constexpr std::uint16_t flag_send_df = 1U << 7;
inline constexpr std::uint16_t flag_can_multi_conn = 1U << 8;
inline constexpr std::uint16_t flag_send_cache = 1U << 10;
inline constexpr std::uint16_t flag_send_fast_zero = 1U << 11;

enum class Option : std::uint32_t {
    export_name = 1,
    abort = 2,
    list = 3,
    starttls = 5,
    info = 6,
    go = 7,
    structured_reply = 8,
    list_meta_context = 9,
    set_meta_context = 10,
};

enum class OptionReply : std::uint32_t {
    ack = 1,
    server = 2,
    info = 3,
    meta_context = 4,
    error_unsupported = 0x80000001U,
    error_policy = 0x80000002U,
    error_invalid = 0x80000003U,
    error_unknown = 0x80000006U,
    error_too_big = 0x80000009U,
};

enum class Info : std::uint16_t { export_ = 0, name = 1, description = 2, block_size = 3 };

enum class Command : std::uint16_t {
    read = 0,
    write = 1,
    disconnect = 2,
    flush = 3,
    trim = 4,
    cache = 5,
    write_zeroes = 6,
    block_status = 7,
};

// Command flags.
inline constexpr std::uint16_t command_fua = 1U << 0;
inline constexpr std::uint16_t command_no_hole = 1U << 1;
inline constexpr std::uint16_t command_df = 1U << 2;
inline constexpr std::uint16_t command_req_one = 1U << 3;
inline constexpr std::uint16_t command_fast_zero = 1U << 4;

enum class Chunk : std::uint16_t {
    none = 0,
    offset_data = 1,
    offset_hole = 2,
    block_status = 5,
    error = 0x8001,
    error_offset = 0x8002,
};
inline constexpr std::uint16_t chunk_done = 1U << 0;

// base:allocation
inline constexpr std::uint32_t status_hole = 1U << 0;
inline constexpr std::uint32_t status_zero = 1U << 1;
// x-replica:dirty
inline constexpr std::uint32_t status_dirty = 1U << 0;

enum class Errno : std::uint32_t {
    none = 0,
    perm = 1,
    io = 5,
    no_memory = 12,
    invalid = 22,
    no_space = 28,
    overflow = 75,
    not_supported = 95,
    shutdown = 108,
};

}  // namespace replica::nbd
