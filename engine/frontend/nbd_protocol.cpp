// SPDX-License-Identifier: Apache-2.0
// See nbd_protocol.hpp. The handshake first, then requests; replies and texts are in
// nbd_replies.cpp.
#include "engine/frontend/nbd_protocol.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <iterator>

#include "engine/base/assert.hpp"
#include "engine/base/endian.hpp"
#include "engine/frontend/nbd_contexts.hpp"

namespace replica {

using nbd::Command;
using nbd::Info;
using nbd::Option;
using nbd::OptionReply;

namespace {

constexpr std::size_t name_bytes_max = 4096;  // what the protocol allows

template <std::unsigned_integral T>
void put(std::vector<std::byte>& out, T value) {
    const std::size_t at = out.size();
    out.resize(at + sizeof value);
    store_be(out.data() + at, value);
}

void put(std::vector<std::byte>& out, std::string_view text) {
    const auto bytes = std::as_bytes(std::span(text));
    out.insert(out.end(), bytes.begin(), bytes.end());
}

void put_reply(std::vector<std::byte>& out, Option option, OptionReply type, std::size_t length) {
    put(out, nbd::option_reply_magic);
    put(out, static_cast<std::uint32_t>(option));
    put(out, static_cast<std::uint32_t>(type));
    put(out, static_cast<std::uint32_t>(length));
}

void put_error(std::vector<std::byte>& out, Option option, OptionReply type,
               std::string_view text) {
    put_reply(out, option, type, text.size());
    put(out, text);
}

void put_ack(std::vector<std::byte>& out, Option option) {
    put_reply(out, option, OptionReply::ack, 0);
}

// Reads what a client sent. Once something is missing, `ok` is false and everything reads as zero.
class Reader {
  public:
    explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

    template <std::unsigned_integral T>
    T number() {
        const auto field = take(sizeof(T));
        return field.empty() ? T{0} : load_be<T>(field.data());
    }
    std::string_view text(std::size_t length) {
        const auto field = take(length);
        return {reinterpret_cast<const char*>(field.data()), field.size()};
    }
    bool ok() const { return ok_; }
    bool ok_and_empty() const { return ok_ && bytes_.empty(); }

  private:
    std::span<const std::byte> take(std::size_t length) {
        if (!ok_ || length > bytes_.size()) {
            ok_ = false;
            return {};
        }
        const auto field = bytes_.first(length);
        bytes_ = bytes_.subspan(length);
        return field;
    }

    std::span<const std::byte> bytes_;
    bool ok_ = true;
};

// What a client sent, fit to be shown.
std::string printable(std::string_view text) {
    std::string shown(text.substr(0, 64));
    for (char& c : shown) {
        if (c < ' ' || c > '~') c = '?';
    }
    return text.size() > shown.size() ? shown + "..." : shown;
}

}  // namespace

void NbdSession::greet(std::vector<std::byte>& out) {
    put(out, nbd::greeting_magic);
    put(out, nbd::option_magic);
    put(out, static_cast<std::uint16_t>(nbd::flag_fixed_newstyle | nbd::flag_no_zeroes));
}

NbdStep NbdSession::close(const char* reason) {
    phase_ = Phase::closed;
    close_reason_ = reason;
    NbdStep step;
    step.event = NbdEvent::close;
    return step;
}

NbdStep NbdSession::step(Bytes in, const VolumeInfo& volume, Output& out) {
    if (skip_bytes_ > 0) {
        NbdStep step;
        step.consumed = static_cast<std::size_t>(std::min<std::uint64_t>(skip_bytes_, in.size()));
        skip_bytes_ -= step.consumed;
        return step;
    }
    switch (phase_) {
        case Phase::client_flags:
            return step_client_flags(in);
        case Phase::options:
            return step_option(in, volume, out);
        case Phase::transmission:
            return step_request(in, volume);
        case Phase::closed:
            break;
    }
    return close(close_reason_);
}

NbdStep NbdSession::step_client_flags(Bytes in) {
    NbdStep step;
    if (in.size() < nbd::client_flags_bytes) return step;
    const auto flags = load_be<std::uint32_t>(in.data());
    const std::uint32_t known = nbd::flag_fixed_newstyle | nbd::flag_no_zeroes;
    if ((flags & ~known) != 0) return close("unknown client flags: not an NBD client?");
    fixed_newstyle_ = (flags & nbd::flag_fixed_newstyle) != 0;
    no_zeroes_ = (flags & nbd::flag_no_zeroes) != 0;
    phase_ = Phase::options;
    step.consumed = nbd::client_flags_bytes;
    return step;
}

NbdStep NbdSession::step_option(Bytes in, const VolumeInfo& volume, Output& out) {
    NbdStep step;
    if (in.size() < nbd::option_header_bytes) return step;
    if (load_be<std::uint64_t>(in.data()) != nbd::option_magic) {
        return close("bad option magic: not an NBD client, or out of step");
    }
    const auto option = static_cast<Option>(load_be<std::uint32_t>(in.data() + 8));
    const auto length = load_be<std::uint32_t>(in.data() + 12);
    if (!fixed_newstyle_ && option != Option::export_name) {
        return close("a client without fixed newstyle may only ask for an export by name");
    }
    if (length > nbd_option_bytes_max) {
        if (option == Option::export_name || length > nbd_option_skip_bytes_max) {
            return close("an option that is too long");
        }
        skip_bytes_ = length;
        put_error(out, option, OptionReply::error_too_big, "options may have 16 KiB of data");
        step.event = NbdEvent::replied;
        step.consumed = nbd::option_header_bytes;
        return step;
    }
    if (in.size() < nbd::option_header_bytes + length) return step;
    step.event = handle(option, in.subspan(nbd::option_header_bytes, length), volume, out);
    step.consumed = nbd::option_header_bytes + length;
    return step;
}

NbdEvent NbdSession::handle(Option option, Bytes data, const VolumeInfo& volume, Output& out) {
    switch (option) {
        case Option::export_name:
            return on_export_name(data, volume, out);
        case Option::abort:
            put_ack(out, option);
            phase_ = Phase::closed;
            return NbdEvent::disconnect;
        case Option::list:
            on_list(data, out);
            return NbdEvent::replied;
        case Option::starttls:
            put_error(out, option, OptionReply::error_policy,
                      "this server has no TLS configured: connect without it");
            return NbdEvent::replied;
        case Option::info:
        case Option::go:
            on_info(option, data, volume, out);
            return NbdEvent::replied;
        case Option::structured_reply:
            if (!data.empty()) {
                put_error(out, option, OptionReply::error_invalid, "this option has no data");
                return NbdEvent::replied;
            }
            structured_ = true;
            put_ack(out, option);
            return NbdEvent::replied;
        case Option::list_meta_context:
        case Option::set_meta_context:
            on_meta_context(option, data, out);
            return NbdEvent::replied;
    }
    // Clients probe for what is newer than this server; that is no reason to part.
    put_error(out, option, OptionReply::error_unsupported, "this server does not know this option");
    return NbdEvent::replied;
}

// The old way in: there is no way to answer with an error but to hang up.
NbdEvent NbdSession::on_export_name(Bytes data, const VolumeInfo& volume, Output& out) {
    Reader reader(data);
    const std::string_view name = reader.text(data.size());
    if (!name.empty() && name != name_)
        return close("the client asked for an unknown export").event;
    if (volume.size_bytes == 0) return close("the export has no size yet").event;
    if (contexts_for_ != name) contexts_ = 0;
    put(out, volume.size_bytes);
    put(out, transmission_flags(volume));
    if (!no_zeroes_) out.resize(out.size() + 124);
    phase_ = Phase::transmission;
    return NbdEvent::replied;
}

void NbdSession::on_list(Bytes data, Output& out) {
    if (!data.empty()) {
        put_error(out, Option::list, OptionReply::error_invalid, "this option has no data");
        return;
    }
    put_reply(out, Option::list, OptionReply::server, 4 + name_.size());
    put(out, static_cast<std::uint32_t>(name_.size()));
    put(out, name_);
    put_ack(out, Option::list);
}

bool NbdSession::find_export(Option option, std::string_view name, Output& out) {
    if (name.empty() || name == name_) return true;
    put_error(out, option, OptionReply::error_unknown,
              "there is no export \"" + printable(name) + "\" here, only \"" + name_ + "\"");
    return false;
}

void NbdSession::on_info(Option option, Bytes data, const VolumeInfo& volume, Output& out) {
    Reader reader(data);
    const std::string_view name = reader.text(reader.number<std::uint32_t>());
    const auto count = reader.number<std::uint16_t>();
    std::uint32_t asked = 0;
    for (unsigned i = 0; i < count && reader.ok(); ++i) {
        const auto type = reader.number<std::uint16_t>();
        if (type < 32) asked |= 1U << type;
    }
    if (!reader.ok_and_empty() || name.size() > name_bytes_max) {
        put_error(out, option, OptionReply::error_invalid,
                  "the lengths inside this option do not fit it");
        return;
    }
    if (!find_export(option, name, out)) return;
    if (volume.size_bytes == 0) {
        put_error(out, option, OptionReply::error_unknown,
                  "the export has no size yet: its resource is not attached");
        return;
    }
    if (option == Option::go && contexts_for_ != name) contexts_ = 0;
    put_info(option, asked, volume, out);
    put_ack(out, option);
    if (option == Option::go) phase_ = Phase::transmission;
}

void NbdSession::put_info(Option option, std::uint32_t asked, const VolumeInfo& volume,
                          Output& out) {
    const auto begin = [&](Info type, std::size_t length) {
        put_reply(out, option, OptionReply::info, 2 + length);
        put(out, static_cast<std::uint16_t>(type));
    };
    begin(Info::export_, 10);
    put(out, volume.size_bytes);
    put(out, transmission_flags(volume));
    begin(Info::block_size, 12);
    put(out, volume.logical_block_bytes);
    put(out, std::uint32_t{block_bytes});
    put(out, nbd_payload_bytes_max);
    if ((asked & (1U << static_cast<unsigned>(Info::name))) != 0) {
        begin(Info::name, name_.size());
        put(out, name_);
    }
    if ((asked & (1U << static_cast<unsigned>(Info::description))) != 0) {
        const std::string text = "Replica volume " + name_;
        begin(Info::description, text.size());
        put(out, text);
    }
}

void NbdSession::on_meta_context(Option option, Bytes data, Output& out) {
    const bool set = option == Option::set_meta_context;
    if (set) contexts_ = 0;
    if (set && !structured_) {
        put_error(out, option, OptionReply::error_invalid,
                  "meta contexts need structured replies: negotiate those first");
        return;
    }
    Reader reader(data);
    const std::string_view name = reader.text(reader.number<std::uint32_t>());
    const auto count = reader.number<std::uint32_t>();
    std::uint32_t found = !set && count == 0 ? nbd_contexts_all : 0;
    for (std::uint32_t i = 0; i < count && reader.ok(); ++i) {
        const std::string_view query = reader.text(reader.number<std::uint32_t>());
        if (reader.ok()) found |= nbd_find_contexts(query, !set);
    }
    if (!reader.ok_and_empty() || name.size() > name_bytes_max) {
        put_error(out, option, OptionReply::error_invalid,
                  "the lengths inside this option do not fit it");
        return;
    }
    if (!find_export(option, name, out)) return;
    for (unsigned i = 0; i < nbd_contexts.size(); ++i) {
        if ((found & (1U << i)) == 0) continue;
        put_reply(out, option, OptionReply::meta_context, 4 + nbd_contexts[i].size());
        put(out, set ? nbd_context_id(i) : std::uint32_t{0});
        put(out, nbd_contexts[i]);
    }
    put_ack(out, option);
    if (!set) return;
    contexts_ = found;
    contexts_for_ = name;
}

std::uint16_t NbdSession::transmission_flags(const VolumeInfo& volume) const {
    // All connections end in one volume, which is what CAN_MULTI_CONN promises: a flush on one
    // covers what was answered on any.
    unsigned flags = nbd::flag_has_flags | nbd::flag_send_flush | nbd::flag_send_fua |
                     nbd::flag_can_multi_conn | nbd::flag_send_cache;
    flags |= volume.writable
                 ? nbd::flag_send_trim | nbd::flag_send_write_zeroes | nbd::flag_send_fast_zero
                 : nbd::flag_read_only;
    if (structured_) flags |= nbd::flag_send_df;
    return static_cast<std::uint16_t>(flags);
}

NbdStep NbdSession::step_request(Bytes in, const VolumeInfo& volume) {
    NbdStep step;
    if (in.size() < nbd::request_bytes) return step;
    if (load_be<std::uint32_t>(in.data()) != nbd::request_magic) {
        return close("bad request magic: the stream is out of step");
    }
    step.consumed = nbd::request_bytes;
    NbdCommand& command = step.command;
    command.flags = load_be<std::uint16_t>(in.data() + 4);
    command.type = static_cast<Command>(load_be<std::uint16_t>(in.data() + 6));
    command.cookie = load_be<std::uint64_t>(in.data() + 8);
    command.offset = load_be<std::uint64_t>(in.data() + 16);
    command.length = load_be<std::uint32_t>(in.data() + 24);
    if (command.type == Command::disconnect) {
        step.event = NbdEvent::disconnect;
        return step;
    }
    step.refusal = check(command, volume);
    step.event = step.refusal == NbdRefusal::none ? NbdEvent::command : NbdEvent::refused;
    if (step.event == NbdEvent::refused && command.type == Command::write) {
        if (command.length > nbd_write_skip_bytes_max) return close("a write that is too long");
        skip_bytes_ = command.length;
    }
    return step;
}

NbdRefusal NbdSession::check(const NbdCommand& command, const VolumeInfo& volume) const {
    std::uint16_t known = nbd::command_fua;  // on every command, where it has nothing to say
    bool writes = false;
    bool payload = false;
    switch (command.type) {
        case Command::flush:
            if ((command.flags & ~known) != 0) return NbdRefusal::unknown_flags;
            return command.offset == 0 && command.length == 0 ? NbdRefusal::none
                                                              : NbdRefusal::flush_range;
        case Command::read:
            if (structured_) known |= nbd::command_df;
            payload = true;
            break;
        case Command::write:
            writes = payload = true;
            break;
        case Command::write_zeroes:
            known |= nbd::command_no_hole | nbd::command_fast_zero;
            writes = true;
            break;
        case Command::trim:
            writes = true;
            break;
        case Command::block_status:
            known |= nbd::command_req_one;
            break;
        case Command::cache:
            break;
        case Command::disconnect:
        default:
            return NbdRefusal::unknown_command;
    }
    if ((command.flags & ~known) != 0) return NbdRefusal::unknown_flags;
    if (writes && !volume.writable) return NbdRefusal::read_only;
    if (command.length == 0) return NbdRefusal::zero_length;
    if (payload && command.length > nbd_payload_bytes_max) return NbdRefusal::too_long;
    if (command.offset > volume.size_bytes || command.length > volume.size_bytes - command.offset) {
        return NbdRefusal::beyond_end;
    }
    if ((command.offset | command.length) % sector_bytes != 0) return NbdRefusal::unaligned;
    if (command.type == Command::read && command.has(nbd::command_df) &&
        command.length > io_bytes_max) {
        return NbdRefusal::not_one_chunk;
    }
    if (command.type == Command::block_status && contexts_ == 0) return NbdRefusal::no_context;
    // Zeroes that must take up space are written one by one.
    if (command.type == Command::write_zeroes && command.has(nbd::command_fast_zero) &&
        (command.has(nbd::command_no_hole) || !volume.fast_zeroes)) {
        return NbdRefusal::not_fast;
    }
    return NbdRefusal::none;
}

}  // namespace replica
