// SPDX-License-Identifier: Apache-2.0
#include "engine/format/wire.hpp"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "engine/base/crc32c.hpp"
#include "engine/base/endian.hpp"

namespace replica {
namespace {

// Header layout: magic 0, type 4, flags 6, payload_bytes 8, payload_crc 12, header_crc 16, then the
// body.
constexpr std::size_t at_type = 4, at_flags = 6, at_payload_bytes = 8, at_payload_crc = 12;
constexpr std::size_t at_header_crc = 16, at_set_generation = 20, at_seq = 24, at_offset = 32,
                      at_trim = 40;
constexpr std::size_t at_length = 48, at_nodes = 52, at_id = 56, at_set_change = 60;
static_assert(at_set_change + 4 == wire_header_bytes);

// Which fields a type uses, and what its payload may be.
enum Field : unsigned {
    f_flags = 1,
    f_seq = 2,
    f_offset = 4,
    f_trim = 8,
    f_length = 16,
    f_nodes = 32,
    f_id = 64,
    f_set = 128,  // set_generation and set_change
};
enum class Payload : std::uint8_t { none, exact, length, length_unless_flags, text };
struct TypeRule {
    MessageType type;
    unsigned fields;
    Payload payload;
    std::uint32_t bytes;
};
constexpr TypeRule rules[] = {
    {MessageType::hello, 0, Payload::exact, hello_payload_bytes},
    {MessageType::reject, 0, Payload::text, wire_text_max},
    {MessageType::state, 0, Payload::exact, state_payload_bytes},
    {MessageType::state_update, f_flags | f_id, Payload::none, 0},
    {MessageType::generation, f_seq | f_nodes, Payload::exact, generation_payload_bytes},
    {MessageType::generation_ack, f_offset | f_set, Payload::none, 0},
    {MessageType::generation_committed, f_offset, Payload::none, 0},
    {MessageType::in_sync, f_flags | f_nodes | f_offset | f_length | f_set, Payload::none, 0},
    {MessageType::promote, f_id | f_flags | f_set, Payload::none, 0},
    {MessageType::promote_reply, f_flags | f_id | f_offset | f_nodes | f_set, Payload::none, 0},
    {MessageType::goodbye, f_flags, Payload::none, 0},
    {MessageType::adopt_generation, 0, Payload::exact, generation_payload_bytes},
    {MessageType::invalidate, f_flags, Payload::none, 0},
    {MessageType::write, f_flags | f_seq | f_offset | f_trim | f_length | f_nodes | f_set,
     Payload::length, 0},
    {MessageType::write_zeroes, f_flags | f_seq | f_offset | f_trim | f_length | f_nodes | f_set,
     Payload::none, 0},
    {MessageType::write_received, f_seq, Payload::none, 0},
    {MessageType::write_ack, f_seq | f_flags, Payload::none, 0},
    {MessageType::flush, f_id | f_seq | f_trim | f_set, Payload::none, 0},
    {MessageType::flush_ack, f_id | f_flags, Payload::none, 0},
    {MessageType::trim, f_trim, Payload::none, 0},
    {MessageType::want_trim, 0, Payload::none, 0},
    {MessageType::read, f_id | f_offset | f_length, Payload::none, 0},
    {MessageType::read_reply, f_id | f_length | f_flags, Payload::length_unless_flags, 0},
    {MessageType::bitmap_page, f_offset, Payload::exact, wire_bitmap_page_bytes},
    {MessageType::bitmap_ones, f_offset | f_length, Payload::none, 0},
    {MessageType::bitmap_done, 0, Payload::none, 0},
    {MessageType::resync_data, f_id | f_offset | f_length, Payload::length, 0},
    {MessageType::resync_zeroes, f_id | f_offset | f_length, Payload::none, 0},
    {MessageType::resync_ack, f_id | f_flags, Payload::none, 0},
    {MessageType::sync_done, f_id, Payload::exact, generation_payload_bytes},
    {MessageType::sync_done_ack, f_offset | f_id, Payload::none, 0},
    {MessageType::sync_pause, f_flags, Payload::none, 0},
    {MessageType::ping, f_id, Payload::none, 0},
    {MessageType::pong, f_id, Payload::none, 0},
};

const TypeRule* find_rule(MessageType type) {
    for (const TypeRule& rule : rules) {
        if (rule.type == type) return &rule;
    }
    return nullptr;
}

Error corrupt(const char* what) { return Error{Errc::corrupt, 0, what}; }

bool unused_fields_are_zero(const Message& m, unsigned used) {
    return ((used & f_flags) != 0 || m.flags == 0) && ((used & f_seq) != 0 || m.seq == 0) &&
           ((used & f_offset) != 0 || m.offset == 0) && ((used & f_trim) != 0 || m.trim_seq == 0) &&
           ((used & f_length) != 0 || m.length == 0) && ((used & f_nodes) != 0 || m.nodes == 0) &&
           ((used & f_id) != 0 || m.id == 0) &&
           ((used & f_set) != 0 || (m.set_generation == 0 && m.set_change == 0));
}

bool payload_fits(const Message& m, const TypeRule& rule) {
    const bool length_ok = m.length > 0 && m.length <= io_bytes_max && m.length % sector_bytes == 0;
    switch (rule.payload) {
        case Payload::none:
            return m.payload_bytes == 0;
        case Payload::exact:
            return m.payload_bytes == rule.bytes;
        case Payload::length:
            return length_ok && m.payload_bytes == m.length;
        case Payload::length_unless_flags:
            return m.flags == 0 ? length_ok && m.payload_bytes == m.length : m.payload_bytes == 0;
        case Payload::text:
            return m.payload_bytes <= rule.bytes;
    }
    return false;
}

// Writes or reads the members of a payload structure one after the other.
struct Writer {
    std::byte* at;
    template <class T>
    void operator()(const T& value) {
        store_le<T>(at, value);
        at += sizeof(T);
    }
    template <class T, std::size_t n>
    void operator()(const std::array<T, n>& values) {
        for (const T& value : values)
            (*this)(static_cast<std::make_unsigned_t<T>>(value));
    }
};
struct Reader {
    const std::byte* at;
    template <class T>
    void operator()(T& value) {
        value = static_cast<T>(load_le<std::make_unsigned_t<T>>(at));
        at += sizeof(T);
    }
    template <class T, std::size_t n>
    void operator()(std::array<T, n>& values) {
        for (T& value : values)
            (*this)(value);
    }
};

template <class Visitor, class P>
void visit_state(Visitor& v, P& p) {
    v(p.role), v(p.disk), v(p.flags), v(p.in_sync), v(p.size_bytes), v(p.size_max_bytes);
    v(p.current_uuid), v(p.bitmap_uuid), v(p.admitting_uuid), v(p.bits), v(p.generation_seq);
    v(p.last_seq), v(p.promoted_at), v(p.after_sb), v(p.cache_losses), v(p.volume_id), v(p.history);
    v(p.content), v(p.set_change);
}
template <class Visitor, class P>
void visit_hello(Visitor& v, P& p) {
    v(p.version_min), v(p.version_max), v(p.from), v(p.to), v(p.features), v(p.session);
    v(p.incarnation), v(p.journal_entries), v(p.io_bytes_max), v(p.volume_id), v(p.resource);
    v(p.protocol);
}
template <class Visitor, class P>
void visit_generation(Visitor& v, P& p) {
    v(p.current_uuid), v(p.parent_uuid), v(p.generation_seq), v(p.in_sync), v(p.disk);
    v(p.volume_id), v(p.history), v(p.set_change);
}

}  // namespace

void encode_header(const Message& m, std::uint32_t payload_crc, HeaderBytes out) {
    const TypeRule* rule = find_rule(m.type);
    ASSERT(rule != nullptr && unused_fields_are_zero(m, rule->fields) && payload_fits(m, *rule));
    std::byte* p = out.data();
    std::memset(p, 0, wire_header_bytes);
    store_le<std::uint32_t>(p, wire_magic);
    store_le<std::uint16_t>(p + at_type, static_cast<std::uint16_t>(m.type));
    store_le<std::uint16_t>(p + at_flags, m.flags);
    store_le<std::uint32_t>(p + at_payload_bytes, m.payload_bytes);
    store_le<std::uint32_t>(p + at_payload_crc, payload_crc);
    store_le<std::uint64_t>(p + at_seq, m.seq);
    store_le<std::uint64_t>(p + at_offset, m.offset);
    store_le<std::uint64_t>(p + at_trim, m.trim_seq);
    store_le<std::uint32_t>(p + at_length, m.length);
    store_le<std::uint32_t>(p + at_nodes, m.nodes);
    store_le<std::uint32_t>(p + at_id, m.id);
    store_le<std::uint32_t>(p + at_set_generation, m.set_generation);
    store_le<std::uint32_t>(p + at_set_change, m.set_change);
    store_le<std::uint32_t>(p + at_header_crc, crc32c(out));
}

Result<Message> decode_header(ConstHeaderBytes bytes) {
    const std::byte* p = bytes.data();
    if (load_le<std::uint32_t>(p) != wire_magic) return corrupt("not a Replica message");
    std::array<std::byte, wire_header_bytes> copy;
    std::copy(bytes.begin(), bytes.end(), copy.begin());
    store_le<std::uint32_t>(copy.data() + at_header_crc, 0);
    if (load_le<std::uint32_t>(p + at_header_crc) != crc32c(copy)) {
        return corrupt("a message header fails its checksum");
    }
    Message m;
    m.type = static_cast<MessageType>(load_le<std::uint16_t>(p + at_type));
    m.flags = load_le<std::uint16_t>(p + at_flags);
    m.payload_bytes = load_le<std::uint32_t>(p + at_payload_bytes);
    m.seq = load_le<std::uint64_t>(p + at_seq);
    m.offset = load_le<std::uint64_t>(p + at_offset);
    m.trim_seq = load_le<std::uint64_t>(p + at_trim);
    m.length = load_le<std::uint32_t>(p + at_length);
    m.nodes = load_le<std::uint32_t>(p + at_nodes);
    m.id = load_le<std::uint32_t>(p + at_id);
    m.set_generation = load_le<std::uint32_t>(p + at_set_generation);
    m.set_change = load_le<std::uint32_t>(p + at_set_change);
    const TypeRule* rule = find_rule(m.type);
    if (rule == nullptr) return Error{Errc::unsupported, 0, "a message of an unknown type"};
    if (!unused_fields_are_zero(m, rule->fields)) {
        return corrupt("a message uses fields that its type does not have");
    }
    if (!payload_fits(m, *rule)) return corrupt("a message's payload length does not fit its type");
    return m;
}

std::uint32_t header_payload_crc(ConstHeaderBytes bytes) {
    return load_le<std::uint32_t>(bytes.data() + at_payload_crc);
}

void encode_hello(const HelloPayload& hello, std::span<std::byte, hello_payload_bytes> out) {
    std::memset(out.data(), 0, out.size());
    Writer writer{out.data() + 1};
    store_le<std::uint8_t>(out.data(), static_cast<std::uint8_t>(hello.stream));
    visit_hello(writer, hello);
    ASSERT(writer.at <= out.data() + out.size());
}

Result<HelloPayload> decode_hello(std::span<const std::byte> bytes) {
    if (bytes.size() != hello_payload_bytes) return corrupt("a hello of the wrong length");
    HelloPayload hello;
    const auto stream = load_le<std::uint8_t>(bytes.data());
    if (stream > 1) return corrupt("a hello for an unknown stream");
    hello.stream = static_cast<Stream>(stream);
    Reader reader{bytes.data() + 1};
    visit_hello(reader, hello);
    if (hello.from >= nodes_max || hello.to >= nodes_max) return corrupt("a node id above 31");
    if (hello.resource.back() != '\0') return corrupt("a resource name that does not end");
    return hello;
}

void encode_state(const StatePayload& state, std::span<std::byte, state_payload_bytes> out) {
    std::memset(out.data(), 0, out.size());
    Writer writer{out.data()};
    visit_state(writer, state);
    ASSERT(writer.at <= out.data() + out.size());
}

Result<StatePayload> decode_state(std::span<const std::byte> bytes) {
    if (bytes.size() != state_payload_bytes) return corrupt("a state of the wrong length");
    StatePayload state;
    Reader reader{bytes.data()};
    visit_state(reader, state);
    return state;
}

void encode_generation(const GenerationPayload& generation,
                       std::span<std::byte, generation_payload_bytes> out) {
    std::memset(out.data(), 0, out.size());
    store_le<std::uint32_t>(out.data(), static_cast<std::uint32_t>(generation.primary_node));
    Writer writer{out.data() + 4};
    visit_generation(writer, generation);
    ASSERT(writer.at <= out.data() + out.size());
}

Result<GenerationPayload> decode_generation(std::span<const std::byte> bytes) {
    if (bytes.size() != generation_payload_bytes)
        return corrupt("a generation of the wrong length");
    GenerationPayload generation;
    generation.primary_node = static_cast<std::int32_t>(load_le<std::uint32_t>(bytes.data()));
    if (generation.primary_node < -1 || generation.primary_node >= static_cast<int>(nodes_max)) {
        return corrupt("a generation made by an impossible node");
    }
    Reader reader{bytes.data() + 4};
    visit_generation(reader, generation);
    return generation;
}

}  // namespace replica
