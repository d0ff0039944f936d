// SPDX-License-Identifier: Apache-2.0
// The server's side of one NBD connection as a value: bytes in, bytes and commands out. It knows no
// socket, clock or thread, and never sees the payload of a write, which the connection moves
// straight into the engine's buffers. docs/nbd.md says what a client may expect of the export.
//
// No length that a client sends is believed before it was checked, and an option has to fit
// nbd_option_bytes_max.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/frontend/nbd_wire.hpp"
#include "engine/frontend/volume.hpp"

namespace replica {

// The longest read or write of a client, told to it in the handshake.
inline constexpr std::uint32_t nbd_payload_bytes_max = 32U << 20;
// The longest option that is looked at; up to option_skip_bytes_max it is skipped and answered with
// an error, beyond that the connection ends.
inline constexpr std::uint32_t nbd_option_bytes_max = 16U << 10;
inline constexpr std::uint32_t nbd_option_skip_bytes_max = 1U << 20;
// The same for the payload of a write that is refused.
inline constexpr std::uint32_t nbd_write_skip_bytes_max = 64U << 20;
// Each of the encoders below writes at most this.
inline constexpr std::size_t nbd_reply_bytes_max = 2304;

struct NbdCommand {
    std::uint64_t cookie = 0;
    std::uint64_t offset = 0;  // bytes
    std::uint32_t length = 0;  // bytes
    std::uint16_t flags = 0;   // nbd::command_*
    nbd::Command type = nbd::Command::read;

    bool has(std::uint16_t flag) const { return (flags & flag) != 0; }
};

// Why a command was refused before it reached the engine.
enum class NbdRefusal : std::uint8_t {
    none,
    unknown_command,
    unknown_flags,
    read_only,
    zero_length,
    unaligned,
    beyond_end,
    too_long,       // more than nbd_payload_bytes_max
    not_one_chunk,  // a read with DF that is too long for one chunk
    not_fast,       // zeroes that had to be fast
    no_context,     // block status, and no meta context was selected
    flush_range,    // a flush with an offset or a length
};

enum class NbdEvent : std::uint8_t {
    none,        // go on if something was consumed, else more bytes are needed
    replied,     // an option was answered: `out` has grown
    command,     // `command` is to be done; of a write, its payload follows in the stream
    refused,     // `command` is to be answered with `refusal`
    disconnect,  // the client is leaving: finish what it has asked for, send `out`, then close
    close,       // send `out`, then close; close_reason() says why
};

struct NbdStep {
    NbdEvent event = NbdEvent::none;
    NbdRefusal refusal = NbdRefusal::none;
    std::size_t consumed = 0;
    NbdCommand command;
};

class NbdSession {
  public:
    // The export's name; a client may also ask for "", the default export.
    explicit NbdSession(std::string export_name) : name_(std::move(export_name)) {}

    // For a client that has learnt from elsewhere what a handshake tells: the kernel's. It gets
    // simple replies.
    void skip_handshake() { phase_ = Phase::transmission; }
    // What the server says first.
    void greet(std::vector<std::byte>& out);
    // Takes at most one thing from the front of `in`, which begins where the last step left off.
    // What is not consumed must be offered again, with more behind it; `in` need never be longer
    // than input_bytes_max. After a write command the caller takes the payload out of the stream
    // itself.
    NbdStep step(std::span<const std::byte> in, const VolumeInfo& volume,
                 std::vector<std::byte>& out);
    static constexpr std::size_t input_bytes_max = nbd::option_header_bytes + nbd_option_bytes_max;
    // Drops the next `bytes` of the stream: the rest of a payload whose write has failed.
    void skip(std::uint64_t bytes) { skip_bytes_ += bytes; }
    std::uint64_t skipping() const { return skip_bytes_; }

    bool in_transmission() const { return phase_ == Phase::transmission; }
    bool structured() const { return structured_; }
    const char* close_reason() const { return close_reason_; }

    // Replies; each returns the bytes written to the front of `out` (nbd_reply_bytes_max are
    // enough). The command succeeded and has no data to return.
    std::size_t encode_ok(std::span<std::byte> out, const NbdCommand& command) const;
    std::size_t encode_error(std::span<std::byte> out, const NbdCommand& command, nbd::Errno error,
                             std::string_view text) const;
    // `length` bytes of data at `offset` follow. Without structured replies: the whole answer's
    // data follows, whatever offset and length say.
    std::size_t encode_data(std::span<std::byte> out, const NbdCommand& command,
                            std::uint64_t offset, std::uint32_t length, bool last) const;
    // Structured replies only: the whole range of the read is a hole.
    std::size_t encode_hole(std::span<std::byte> out, const NbdCommand& command) const;
    // Structured replies only: all chunks of a block status.
    std::size_t encode_block_status(std::span<std::byte> out, const NbdCommand& command,
                                    Volume& volume) const;

  private:
    enum class Phase : std::uint8_t { client_flags, options, transmission, closed };
    using Bytes = std::span<const std::byte>;
    using Output = std::vector<std::byte>;

    NbdStep step_client_flags(Bytes in);
    NbdStep step_option(Bytes in, const VolumeInfo& volume, Output& out);
    NbdStep step_request(Bytes in, const VolumeInfo& volume);
    NbdRefusal check(const NbdCommand& command, const VolumeInfo& volume) const;
    NbdEvent handle(nbd::Option option, Bytes data, const VolumeInfo& volume, Output& out);
    NbdEvent on_export_name(Bytes data, const VolumeInfo& volume, Output& out);
    void on_list(Bytes data, Output& out);
    void on_info(nbd::Option option, Bytes data, const VolumeInfo& volume, Output& out);
    void on_meta_context(nbd::Option option, Bytes data, Output& out);
    void put_info(nbd::Option option, std::uint32_t asked, const VolumeInfo& volume, Output& out);
    // Whether the export is there; if not, says so.
    bool find_export(nbd::Option option, std::string_view name, Output& out);
    std::uint16_t transmission_flags(const VolumeInfo& volume) const;
    NbdStep close(const char* reason);

    std::string name_;
    Phase phase_ = Phase::client_flags;
    bool fixed_newstyle_ = false;
    bool no_zeroes_ = false;
    bool structured_ = false;
    std::uint32_t contexts_ = 0;  // bit i: context i of the table was selected...
    std::string contexts_for_;    // ...for this export name, and only for it
    std::uint64_t skip_bytes_ = 0;
    const char* close_reason_ = "";
};

// The wire's number for a positive errno of the engine; what it has no number for is EIO.
nbd::Errno nbd_errno(int error);
nbd::Errno nbd_errno(NbdRefusal refusal, nbd::Command type);
// For the client's log: what was refused and what would make it work. `room` holds the text if it
// has to be put together.
std::string_view nbd_refusal_text(NbdRefusal refusal, const NbdCommand& command,
                                  const VolumeInfo& volume, std::span<char> room);
std::string_view nbd_error_text(int error);

}  // namespace replica
