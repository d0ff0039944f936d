// SPDX-License-Identifier: Apache-2.0
// The replies of an NBD session and the texts of its errors. See nbd_protocol.hpp.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "engine/base/assert.hpp"
#include "engine/base/endian.hpp"
#include "engine/frontend/nbd_contexts.hpp"
#include "engine/frontend/nbd_protocol.hpp"

namespace replica {

using nbd::Chunk;
using nbd::Command;
using nbd::Errno;

namespace {

constexpr std::size_t error_text_bytes_max = 256;
constexpr std::size_t extents_max = 128;  // of one context in one reply
static_assert(nbd_contexts.size() * (nbd::chunk_header_bytes + 4 + 8 * extents_max) <=
              nbd_reply_bytes_max);
static_assert(nbd::chunk_header_bytes + 6 + error_text_bytes_max + 8 <= nbd_reply_bytes_max);

void store_chunk(std::span<std::byte> out, Chunk type, bool last, std::uint64_t cookie,
                 std::size_t length) {
    ASSERT(out.size() >= nbd::chunk_header_bytes);
    store_be(out.data(), nbd::structured_reply_magic);
    store_be(out.data() + 4, last ? nbd::chunk_done : std::uint16_t{0});
    store_be(out.data() + 6, static_cast<std::uint16_t>(type));
    store_be(out.data() + 8, cookie);
    store_be(out.data() + 16, static_cast<std::uint32_t>(length));
}

std::size_t store_simple(std::span<std::byte> out, std::uint64_t cookie, Errno error) {
    ASSERT(out.size() >= nbd::simple_reply_bytes);
    store_be(out.data(), nbd::simple_reply_magic);
    store_be(out.data() + 4, static_cast<std::uint32_t>(error));
    store_be(out.data() + 8, cookie);
    return nbd::simple_reply_bytes;
}

// The leading run of [offset, offset + length) in one context, never empty.
struct Run {
    std::uint64_t length;
    std::uint32_t status;
};

Run find_run(Volume& volume, unsigned context, std::uint64_t offset, std::uint64_t length,
             std::uint32_t grain) {
    bool set = false;
    std::uint64_t run = context == nbd_context_dirty ? volume.dirty_status(offset, length, set)
                                                     : volume.extent_status(offset, length, set);
    run = std::min(run, length);
    run -= run % grain;
    // A block of which only the front is a hole has data; that some of it is dirty makes all dirty.
    const bool split_block = run == 0;
    if (split_block) run = std::min<std::uint64_t>(grain, length);
    if (context == nbd_context_dirty) return {run, set || split_block ? nbd::status_dirty : 0};
    return {run, set && !split_block ? nbd::status_hole | nbd::status_zero : 0};
}

// Writes the extents of one context to `out`, neighbours of one kind joined; returns how many.
std::size_t store_extents(std::span<std::byte> out, const NbdCommand& command, unsigned context,
                          Volume& volume) {
    const std::uint32_t grain = volume.info().logical_block_bytes;
    const std::size_t limit = command.has(nbd::command_req_one) ? 1 : extents_max;
    const std::uint64_t end = command.offset + command.length;
    std::size_t count = 0;
    Run last{0, 0};
    for (std::uint64_t at = command.offset; at < end;) {
        const Run run = find_run(volume, context, at, end - at, grain);
        at += run.length;
        if (count > 0 && run.status == last.status) {
            last.length += run.length;
        } else if (count == limit) {
            break;
        } else {
            last = run;
            ++count;
        }
        store_be(out.data() + 8 * (count - 1), static_cast<std::uint32_t>(last.length));
        store_be(out.data() + 8 * (count - 1) + 4, last.status);
    }
    return count;
}

const char* command_name(Command type) {
    switch (type) {
        case Command::read:
            return "read";
        case Command::write:
            return "write";
        case Command::disconnect:
            return "disconnect";
        case Command::flush:
            return "flush";
        case Command::trim:
            return "trim";
        case Command::cache:
            return "cache";
        case Command::write_zeroes:
            return "write-zeroes";
        case Command::block_status:
            return "block-status";
    }
    return "unknown";
}

}  // namespace

std::size_t NbdSession::encode_ok(std::span<std::byte> out, const NbdCommand& command) const {
    ASSERT(command.type != Command::read && command.type != Command::block_status);
    return store_simple(out, command.cookie, Errno::none);
}

std::size_t NbdSession::encode_error(std::span<std::byte> out, const NbdCommand& command,
                                     Errno error, std::string_view text) const {
    ASSERT(error != Errno::none);
    if (!structured_) return store_simple(out, command.cookie, error);
    text = text.substr(0, error_text_bytes_max);
    store_chunk(out, Chunk::error, true, command.cookie, 6 + text.size());
    std::byte* const payload = out.data() + nbd::chunk_header_bytes;
    ASSERT(out.size() >= nbd::chunk_header_bytes + 6 + text.size());
    store_be(payload, static_cast<std::uint32_t>(error));
    store_be(payload + 4, static_cast<std::uint16_t>(text.size()));
    std::memcpy(payload + 6, text.data(), text.size());
    return nbd::chunk_header_bytes + 6 + text.size();
}

std::size_t NbdSession::encode_data(std::span<std::byte> out, const NbdCommand& command,
                                    std::uint64_t offset, std::uint32_t length, bool last) const {
    ASSERT(command.type == Command::read && length > 0);
    ASSERT(offset >= command.offset && offset + length <= command.offset + command.length);
    if (!structured_) return store_simple(out, command.cookie, Errno::none);
    store_chunk(out, Chunk::offset_data, last, command.cookie, std::size_t{8} + length);
    ASSERT(out.size() >= nbd::chunk_header_bytes + 8);
    store_be(out.data() + nbd::chunk_header_bytes, offset);
    return nbd::chunk_header_bytes + 8;
}

std::size_t NbdSession::encode_hole(std::span<std::byte> out, const NbdCommand& command) const {
    ASSERT(structured_ && command.type == Command::read);
    store_chunk(out, Chunk::offset_hole, true, command.cookie, 12);
    ASSERT(out.size() >= nbd::chunk_header_bytes + 12);
    store_be(out.data() + nbd::chunk_header_bytes, command.offset);
    store_be(out.data() + nbd::chunk_header_bytes + 8, command.length);
    return nbd::chunk_header_bytes + 12;
}

std::size_t NbdSession::encode_block_status(std::span<std::byte> out, const NbdCommand& command,
                                            Volume& volume) const {
    ASSERT(structured_ && contexts_ != 0 && out.size() >= nbd_reply_bytes_max);
    std::size_t used = 0;
    for (unsigned i = 0; i < nbd_contexts.size(); ++i) {
        if ((contexts_ & (1U << i)) == 0) continue;
        const auto chunk = out.subspan(used);
        const auto extents = chunk.subspan(nbd::chunk_header_bytes + 4);
        const std::size_t length = 4 + 8 * store_extents(extents, command, i, volume);
        const bool last = (contexts_ >> (i + 1)) == 0;
        store_chunk(chunk, Chunk::block_status, last, command.cookie, length);
        store_be(chunk.data() + nbd::chunk_header_bytes, nbd_context_id(i));
        used += nbd::chunk_header_bytes + length;
    }
    return used;
}

Errno nbd_errno(int error) {
    switch (error) {
        case 0:
            return Errno::none;
        case EPERM:
        case EROFS:
        case EACCES:
            return Errno::perm;
        case ENOMEM:
            return Errno::no_memory;
        case EINVAL:
            return Errno::invalid;
        case ENOSPC:
        case EDQUOT:
            return Errno::no_space;
        case EOVERFLOW:
            return Errno::overflow;
        case EOPNOTSUPP:
            return Errno::not_supported;
        case ESHUTDOWN:
            return Errno::shutdown;
        default:
            return Errno::io;
    }
}

Errno nbd_errno(NbdRefusal refusal, Command type) {
    switch (refusal) {
        case NbdRefusal::none:
            return Errno::none;
        case NbdRefusal::read_only:
            return Errno::perm;
        case NbdRefusal::beyond_end: {
            const bool writes =
                type == Command::write || type == Command::write_zeroes || type == Command::trim;
            return writes ? Errno::no_space : Errno::invalid;
        }
        case NbdRefusal::not_one_chunk:
            return Errno::overflow;
        case NbdRefusal::not_fast:
            return Errno::not_supported;
        case NbdRefusal::unknown_command:
        case NbdRefusal::unknown_flags:
        case NbdRefusal::zero_length:
        case NbdRefusal::unaligned:
        case NbdRefusal::too_long:
        case NbdRefusal::no_context:
        case NbdRefusal::flush_range:
            break;
    }
    return Errno::invalid;
}

std::string_view nbd_refusal_text(NbdRefusal refusal, const NbdCommand& command,
                                  const VolumeInfo& volume, std::span<char> room) {
    const auto print = [&](const char* format, auto... values) -> std::string_view {
        const int length = std::snprintf(room.data(), room.size(), format, values...);
        return {room.data(), std::min(room.size() - 1, static_cast<std::size_t>(length))};
    };
    switch (refusal) {
        case NbdRefusal::none:
            break;
        case NbdRefusal::unknown_command:
            return print("command %u is not known here", static_cast<unsigned>(command.type));
        case NbdRefusal::unknown_flags:
            return print("flags 0x%x: not all of them are allowed in a %s",
                         static_cast<unsigned>(command.flags), command_name(command.type));
        case NbdRefusal::read_only:
            return "the export is read-only: this node is not primary";
        case NbdRefusal::zero_length:
            return "a length of 0 is not allowed";
        case NbdRefusal::unaligned:
            return print("offset and length must be multiples of %u",
                         static_cast<unsigned>(sector_bytes));
        case NbdRefusal::beyond_end:
            return print("%llu + %llu is beyond the end: the export has %llu bytes",
                         static_cast<unsigned long long>(command.offset),
                         static_cast<unsigned long long>(command.length),
                         static_cast<unsigned long long>(volume.size_bytes));
        case NbdRefusal::too_long:
            return print("a %s may have at most %u bytes", command_name(command.type),
                         static_cast<unsigned>(nbd_payload_bytes_max));
        case NbdRefusal::not_one_chunk:
            return print("a read in one chunk may have at most %u bytes",
                         static_cast<unsigned>(io_bytes_max));
        case NbdRefusal::not_fast:
            return "writing zeroes here is not faster than writing data";
        case NbdRefusal::no_context:
            return "no meta context was selected in the handshake";
        case NbdRefusal::flush_range:
            return "a flush has neither offset nor length";
    }
    return "";
}

std::string_view nbd_error_text(int error) {
    switch (error) {
        case EROFS:
        case EPERM:
            return "this node is not primary (any more): the export can not be written";
        case ENOSPC:
            return "no space is left on a disk below";
        case ESHUTDOWN:
            return "the resource is going down";
        case ENOLINK:
            return "no replica with good data can be reached: look at disk and peers in the status";
        case ENODATA:
            return "the disk can not read it (a medium error), and no other replica has it";
        case EILSEQ:
            return "a checksum below does not fit, and no other replica has the data";
        case ENOMEM:
            return "out of memory";
        case EINVAL:
            return "the engine refused the request as invalid";
        default:
            return "no disk could complete the request; the node's status and log say more";
    }
}

}  // namespace replica
