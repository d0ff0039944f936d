// SPDX-License-Identifier: Apache-2.0
// The replication protocol's bytes: every type and payload round, every bit flip refused, every
// field that a type does not have refused, truncated and random payloads survived.
#include <array>
#include <cstring>
#include <vector>

#include "engine/base/crc32c.hpp"
#include "engine/base/endian.hpp"
#include "engine/base/prng.hpp"
#include "engine/format/wire.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

using Header = std::array<std::byte, wire_header_bytes>;
using T = MessageType;

// Where each field lies in the header and how wide it is; from docs/protocol.md, not from the code.
enum Field { flags, seq, offset, trim, length, nodes, id, set_generation, set_change, fields };
struct Place {
    std::size_t at, bytes;
};
constexpr Place places[fields] = {{6, 2},  {24, 8}, {32, 8}, {40, 8}, {48, 4},
                                  {52, 4}, {56, 4}, {20, 4}, {60, 4}};

constexpr unsigned bit(std::initializer_list<Field> list) {
    unsigned mask = 0;
    for (const Field f : list)
        mask |= 1U << f;
    return mask;
}
struct Rule {
    T type;
    unsigned used;
    std::uint32_t payload;  // ~0: as long as `length` says
};
constexpr std::uint32_t as_length = ~0U;
constexpr Rule rules[] = {
    {T::hello, 0, hello_payload_bytes},
    {T::reject, 0, 17},
    {T::state, 0, state_payload_bytes},
    {T::state_update, bit({flags, id}), 0},
    {T::generation, bit({seq, nodes}), generation_payload_bytes},
    {T::generation_ack, bit({offset, set_generation, set_change}), 0},
    {T::generation_committed, bit({offset}), 0},
    {T::in_sync, bit({flags, offset, length, nodes, set_generation, set_change}), 0},
    {T::promote, bit({flags, id, set_generation, set_change}), 0},
    {T::promote_reply, bit({flags, id, offset, nodes, set_generation, set_change}), 0},
    {T::goodbye, bit({flags}), 0},
    {T::adopt_generation, 0, generation_payload_bytes},
    {T::invalidate, bit({flags}), 0},
    {T::write, bit({flags, seq, offset, trim, length, nodes, set_generation, set_change}),
     as_length},
    {T::write_zeroes, bit({flags, seq, offset, trim, length, nodes, set_generation, set_change}),
     0},
    {T::write_received, bit({seq}), 0},
    {T::write_ack, bit({flags, seq}), 0},
    {T::flush, bit({seq, id, trim, set_generation, set_change}), 0},
    {T::flush_ack, bit({flags, id}), 0},
    {T::trim, bit({trim}), 0},
    {T::want_trim, 0, 0},
    {T::read, bit({id, offset, length}), 0},
    {T::read_reply, bit({id, length}), as_length},  // with flags: no payload, tested apart
    {T::bitmap_page, bit({offset}), wire_bitmap_page_bytes},
    {T::bitmap_ones, bit({offset, length}), 0},
    {T::bitmap_done, 0, 0},
    {T::resync_data, bit({id, offset, length}), as_length},
    {T::resync_zeroes, bit({id, offset, length}), 0},
    {T::resync_ack, bit({flags, id}), 0},
    {T::sync_done, bit({id}), generation_payload_bytes},
    {T::sync_done_ack, bit({id, offset}), 0},
    {T::sync_pause, bit({flags}), 0},
    {T::ping, bit({id}), 0},
    {T::pong, bit({id}), 0},
};

Message random_message(const Rule& rule, Prng& random) {
    Message m;
    m.type = rule.type;
    const auto has = [&](Field f) { return (rule.used >> f & 1U) != 0; };
    if (has(flags)) m.flags = static_cast<std::uint16_t>(random.next());
    if (has(seq)) m.seq = random.next();
    if (has(offset)) m.offset = random.next();
    if (has(trim)) m.trim_seq = random.next();
    if (has(nodes)) m.nodes = static_cast<std::uint32_t>(random.next());
    if (has(id)) m.id = static_cast<std::uint32_t>(random.next());
    if (has(set_generation)) m.set_generation = static_cast<std::uint32_t>(random.next());
    if (has(set_change)) m.set_change = static_cast<std::uint32_t>(random.next());
    if (has(length)) {
        m.length = static_cast<std::uint32_t>(1 + random.below(io_bytes_max / sector_bytes)) *
                   sector_bytes;
    }
    m.payload_bytes = rule.payload == as_length ? m.length : rule.payload;
    return m;
}

Header encode(const Message& m, std::uint32_t crc = 0) {
    Header bytes;
    bytes.fill(std::byte{0xee});
    encode_header(m, crc, bytes);
    return bytes;
}

void seal(Header& bytes) {
    store_le<std::uint32_t>(&bytes[16], 0);
    store_le<std::uint32_t>(&bytes[16], crc32c(bytes));
}

bool equal(const Message& a, const Message& b) {
    return a.type == b.type && a.flags == b.flags && a.payload_bytes == b.payload_bytes &&
           a.seq == b.seq && a.offset == b.offset && a.trim_seq == b.trim_seq &&
           a.length == b.length && a.nodes == b.nodes && a.id == b.id &&
           a.set_generation == b.set_generation && a.set_change == b.set_change;
}

void set_payload_bytes(Header& bytes, std::uint32_t value) {
    store_le<std::uint32_t>(&bytes[8], value);
    seal(bytes);
}
void set_length(Header& bytes, std::uint32_t value) { store_le<std::uint32_t>(&bytes[48], value); }

template <std::size_t n>
std::array<std::byte, n> random_bytes(Prng& random) {
    std::array<std::byte, n> bytes;
    for (std::byte& b : bytes)
        b = static_cast<std::byte>(random.next());
    return bytes;
}

// decode() takes exactly n bytes: every other length is refused.
template <std::size_t n, class Decode>
void check_lengths(const std::array<std::byte, n>& good, Decode&& decode) {
    std::vector<std::byte> bytes(good.begin(), good.end());
    REQUIRE(decode(std::span<const std::byte>(bytes)));
    for (std::size_t size = 0; size < n; ++size) {
        // A copy of its own, so that a sanitizer sees a read past the end.
        const std::vector<std::byte> cut(bytes.begin(), bytes.begin() + static_cast<long>(size));
        REQUIRE_FALSE(decode(std::span<const std::byte>(cut)));
    }
    bytes.push_back(std::byte{0});
    REQUIRE_FALSE(decode(std::span<const std::byte>(bytes)));
}

}  // namespace

TEST_CASE("every message type comes back as it was sent") {
    Prng random(1);
    for (const Rule& rule : rules) {
        for (int i = 0; i < 200; ++i) {
            const Message m = random_message(rule, random);
            const auto crc = static_cast<std::uint32_t>(random.next());
            const Header bytes = encode(m, crc);
            const auto back = decode_header(bytes);
            INFO("type " << static_cast<unsigned>(rule.type));
            REQUIRE(back);
            REQUIRE(equal(back.value(), m));
            REQUIRE(header_payload_crc(bytes) == crc);
        }
    }
}

TEST_CASE("every flip of one or two bits of a header is refused") {
    Prng random(2);
    for (const Rule& rule : rules) {
        const Header good = encode(random_message(rule, random), 0x12345678);
        for (std::size_t i = 0; i < wire_header_bytes * 8; ++i) {
            Header bytes = good;
            bytes[i / 8] ^= static_cast<std::byte>(1U << (i % 8));
            const auto refused = decode_header(bytes);
            REQUIRE_FALSE(refused);
            REQUIRE(refused.error().code == Errc::corrupt);
            const std::size_t j = random.below(wire_header_bytes * 8);
            bytes[j / 8] ^= static_cast<std::byte>(1U << (j % 8));
            REQUIRE(static_cast<bool>(decode_header(bytes)) == (i == j));
        }
    }
}

TEST_CASE("a field that the type does not have must be zero") {
    Prng random(3);
    for (const Rule& rule : rules) {
        const Message m = random_message(rule, random);
        for (unsigned f = 0; f < fields; ++f) {
            for (std::size_t b = 0; b < places[f].bytes * 8; ++b) {
                Header bytes = encode(m);
                bytes[places[f].at + b / 8] ^= static_cast<std::byte>(1U << (b % 8));
                seal(bytes);
                const bool used = (rule.used >> f & 1U) != 0;
                INFO("type " << static_cast<unsigned>(rule.type) << " field " << f << " bit " << b);
                if (f == length && rule.payload == as_length) {
                    REQUIRE_FALSE(decode_header(bytes));  // the payload is not that long
                } else {
                    REQUIRE(static_cast<bool>(decode_header(bytes)) == used);
                }
            }
        }
    }
}

TEST_CASE("the payload's length belongs to the type") {
    Prng random(4);
    for (const Rule& rule : rules) {
        const Header good = encode(random_message(rule, random));
        const std::uint32_t right = load_le<std::uint32_t>(&good[8]);
        for (const std::uint32_t wrong :
             {right + 1, right - 1, right + 512, 0U, 1U, 4096U, io_bytes_max + 512, ~0U}) {
            if (wrong == right) continue;
            Header bytes = good;
            set_payload_bytes(bytes, wrong);
            INFO("type " << static_cast<unsigned>(rule.type) << " payload " << wrong);
            const bool text = rule.type == T::reject && wrong <= wire_text_max;
            REQUIRE(static_cast<bool>(decode_header(bytes)) == text);
        }
        if (rule.payload != as_length) continue;
        for (const std::uint32_t bad : {0U, 1U, 511U, 513U, io_bytes_max + 512}) {
            Header bytes = good;
            set_length(bytes, bad);
            set_payload_bytes(bytes, bad);
            INFO("type " << static_cast<unsigned>(rule.type) << " length " << bad);
            REQUIRE_FALSE(decode_header(bytes));
        }
    }
    Message failed;
    failed.type = T::read_reply;
    failed.flags = 1;
    failed.id = 7;
    Header bytes = encode(failed);
    CHECK(equal(decode_header(bytes).value(), failed));
    set_payload_bytes(bytes, 512);
    CHECK_FALSE(decode_header(bytes));
}

TEST_CASE("unknown types are unsupported, whatever else they carry") {
    const Header ping = encode(Message{});
    unsigned known = 0;
    for (unsigned type = 0; type < 0x10000; ++type) {
        Header bytes = ping;
        store_le<std::uint16_t>(&bytes[4], static_cast<std::uint16_t>(type));
        seal(bytes);
        const auto got = decode_header(bytes);
        bool listed = false;
        for (const Rule& rule : rules)
            listed = listed || static_cast<unsigned>(rule.type) == type;
        known += listed ? 1 : 0;
        if (!listed) {
            REQUIRE_FALSE(got);
            REQUIRE(got.error().code == Errc::unsupported);
        }
    }
    CHECK(known == std::size(rules));
}

TEST_CASE("a hello") {
    Prng random(5);
    HelloPayload h;
    h.version_min = 1;
    h.version_max = 0xfffe;
    h.stream = Stream::control;
    h.from = 31;
    h.to = 3;
    h.features = random.next();
    h.session = random.next();
    h.incarnation = random.next();
    h.journal_entries = 8192;
    h.io_bytes_max = io_bytes_max;
    h.volume_id.fill(0xa5);
    std::memset(h.resource.data(), 'x', wire_name_max - 1);
    h.protocol = 'B';
    std::array<std::byte, hello_payload_bytes> bytes{};
    encode_hello(h, bytes);
    const auto back = decode_hello(bytes);
    REQUIRE(back);
    const HelloPayload& b = back.value();
    CHECK((b.version_min == 1 && b.version_max == 0xfffe && b.stream == Stream::control));
    CHECK((b.from == 31 && b.to == 3 && b.features == h.features && b.session == h.session));
    CHECK((b.incarnation == h.incarnation && b.journal_entries == 8192));
    CHECK((b.io_bytes_max == io_bytes_max && b.volume_id == h.volume_id));
    CHECK((b.resource == h.resource && b.protocol == 'B'));
    check_lengths(bytes, [](auto span) { return static_cast<bool>(decode_hello(span)); });

    HelloPayload bad = h;
    bad.from = 32;
    encode_hello(bad, bytes);
    CHECK_FALSE(decode_hello(bytes));
    bad = h;
    bad.to = 255;
    encode_hello(bad, bytes);
    CHECK_FALSE(decode_hello(bytes));
    bad = h;
    bad.resource.back() = 'x';
    encode_hello(bad, bytes);
    CHECK_FALSE(decode_hello(bytes));
    encode_hello(h, bytes);
    bytes[0] = std::byte{2};
    CHECK_FALSE(decode_hello(bytes));
    for (int i = 0; i < 20'000; ++i)
        (void)decode_hello(random_bytes<hello_payload_bytes>(random));
}

TEST_CASE("a state") {
    Prng random(6);
    for (int i = 0; i < 2000; ++i) {
        // Every byte pattern is a state; what it decodes to encodes to the same bytes, but for the
        // unused tail.
        const auto raw = random_bytes<state_payload_bytes>(random);
        const auto s = decode_state(raw);
        REQUIRE(s);
        std::array<std::byte, state_payload_bytes> out{};
        encode_state(s.value(), out);
        const auto again = decode_state(out);
        REQUIRE(again);
        const StatePayload &a = s.value(), &b = again.value();
        REQUIRE((a.role == b.role && a.disk == b.disk && a.flags == b.flags));
        REQUIRE((a.in_sync == b.in_sync && a.size_bytes == b.size_bytes));
        REQUIRE((a.size_max_bytes == b.size_max_bytes && a.current_uuid == b.current_uuid));
        REQUIRE((a.bitmap_uuid == b.bitmap_uuid && a.admitting_uuid == b.admitting_uuid));
        REQUIRE((a.bits == b.bits && a.generation_seq == b.generation_seq));
        REQUIRE((a.last_seq == b.last_seq && a.promoted_at == b.promoted_at));
        REQUIRE((a.after_sb == b.after_sb && a.cache_losses == b.cache_losses));
        REQUIRE((a.volume_id == b.volume_id && a.history == b.history));
        REQUIRE((a.content == b.content && a.set_change == b.set_change));
        REQUIRE(std::equal(raw.begin(), raw.begin() + state_payload_bytes, out.begin()));
    }
    check_lengths(random_bytes<state_payload_bytes>(random),
                  [](auto span) { return static_cast<bool>(decode_state(span)); });
}

TEST_CASE("a generation") {
    Prng random(7);
    GenerationPayload g;
    g.current_uuid = random.next();
    g.parent_uuid = random.next();
    g.generation_seq = random.next();
    g.in_sync = 0x80000001;
    g.primary_node = -1;
    g.disk = 8;
    g.set_change = random.next();
    g.volume_id.fill(0x5a);
    for (Uuid& uuid : g.history)
        uuid = random.next();
    std::array<std::byte, generation_payload_bytes> bytes{};
    for (int node = -1; node < 32; ++node) {
        g.primary_node = node;
        encode_generation(g, bytes);
        const auto back = decode_generation(bytes);
        REQUIRE(back);
        const GenerationPayload& b = back.value();
        CHECK((b.current_uuid == g.current_uuid && b.parent_uuid == g.parent_uuid));
        CHECK((b.generation_seq == g.generation_seq && b.in_sync == g.in_sync));
        CHECK((b.primary_node == node && b.disk == 8));
        CHECK((b.volume_id == g.volume_id && b.history == g.history));
        CHECK(b.set_change == g.set_change);
    }
    check_lengths(bytes, [](auto span) { return static_cast<bool>(decode_generation(span)); });
    for (const int node : {-2, 32, 1 << 30}) {
        g.primary_node = node;
        encode_generation(g, bytes);
        CHECK_FALSE(decode_generation(bytes));
    }
    for (int i = 0; i < 20'000; ++i)
        (void)decode_generation(random_bytes<generation_payload_bytes>(random));
}

namespace {

// Where docs/protocol.md says that a field of a payload lies; `set` changes it and nothing else.
template <class P>
struct PayloadField {
    const char* name;
    std::size_t at, bytes;
    void (*set)(P&);
};

// Changing one field changes its bytes, little-endian, and no others. Together the fields cover
// everything up to `end`; what follows is zero.
template <class P, std::size_t size, class Encode, std::size_t n>
void check_places(const PayloadField<P> (&list)[n], std::size_t end, Encode encode) {
    std::array<std::byte, size> before;
    encode(P{}, before);
    std::size_t covered = 0;
    for (const PayloadField<P>& field : list) {
        INFO(field.name);
        P value{};
        field.set(value);
        std::array<std::byte, size> after;
        encode(value, after);
        for (std::size_t i = 0; i < size; ++i) {
            const bool inside = i >= field.at && i < field.at + field.bytes;
            if (!inside) CHECK(before[i] == after[i]);
            // Each `set` gives byte k of its field the value k + 1, modulo 256.
            if (inside) CHECK(after[i] == static_cast<std::byte>(i - field.at + 1));
        }
        covered += field.bytes;
    }
    CHECK(covered == end);
    for (std::size_t i = end; i < size; ++i)
        CHECK(before[i] == std::byte{0});
}

constexpr std::uint64_t count8 = 0x0807060504030201;
constexpr std::uint32_t count4 = 0x04030201;
constexpr std::uint16_t count2 = 0x0201;

template <std::size_t n>
std::array<std::uint8_t, n> counting() {
    std::array<std::uint8_t, n> bytes;
    for (std::size_t i = 0; i < n; ++i)
        bytes[i] = static_cast<std::uint8_t>(i + 1);
    return bytes;
}
std::array<Uuid, history_uuids_max> counting_history() {
    const auto bytes = counting<history_uuids_max * 8>();
    std::array<Uuid, history_uuids_max> history;
    for (std::size_t i = 0; i < history.size(); ++i)
        history[i] = load_le<std::uint64_t>(reinterpret_cast<const std::byte*>(&bytes[i * 8]));
    return history;
}

constexpr PayloadField<HelloPayload> hello_fields[] = {
    {"stream", 0, 1, [](HelloPayload& p) { p.stream = Stream::control; }},
    {"version_min", 1, 2, [](HelloPayload& p) { p.version_min = count2; }},
    {"version_max", 3, 2, [](HelloPayload& p) { p.version_max = count2; }},
    {"from", 5, 1, [](HelloPayload& p) { p.from = 1; }},
    {"to", 6, 1, [](HelloPayload& p) { p.to = 1; }},
    {"features", 7, 8, [](HelloPayload& p) { p.features = count8; }},
    {"session", 15, 8, [](HelloPayload& p) { p.session = count8; }},
    {"incarnation", 23, 8, [](HelloPayload& p) { p.incarnation = count8; }},
    {"journal_entries", 31, 4, [](HelloPayload& p) { p.journal_entries = count4; }},
    {"io_bytes_max", 35, 4, [](HelloPayload& p) { p.io_bytes_max = count4; }},
    {"volume_id", 39, 16, [](HelloPayload& p) { p.volume_id = counting<16>(); }},
    {"resource", 55, 64,
     [](HelloPayload& p) {
         const auto text = counting<64>();
         std::memcpy(p.resource.data(), text.data(), text.size());
     }},
    {"protocol", 119, 1, [](HelloPayload& p) { p.protocol = 1; }},
};
constexpr PayloadField<StatePayload> state_fields[] = {
    {"role", 0, 1, [](StatePayload& p) { p.role = 1; }},
    {"disk", 1, 1, [](StatePayload& p) { p.disk = 1; }},
    {"flags", 2, 2, [](StatePayload& p) { p.flags = count2; }},
    {"in_sync", 4, 4, [](StatePayload& p) { p.in_sync = count4; }},
    {"size_bytes", 8, 8, [](StatePayload& p) { p.size_bytes = count8; }},
    {"size_max_bytes", 16, 8, [](StatePayload& p) { p.size_max_bytes = count8; }},
    {"current_uuid", 24, 8, [](StatePayload& p) { p.current_uuid = count8; }},
    {"bitmap_uuid", 32, 8, [](StatePayload& p) { p.bitmap_uuid = count8; }},
    {"admitting_uuid", 40, 8, [](StatePayload& p) { p.admitting_uuid = count8; }},
    {"bits", 48, 8, [](StatePayload& p) { p.bits = count8; }},
    {"generation_seq", 56, 8, [](StatePayload& p) { p.generation_seq = count8; }},
    {"last_seq", 64, 8, [](StatePayload& p) { p.last_seq = count8; }},
    {"promoted_at", 72, 8, [](StatePayload& p) { p.promoted_at = count8; }},
    {"after_sb, leader", 80, 4, [](StatePayload& p) { p.after_sb = counting<4>(); }},
    {"cache_losses", 84, 4, [](StatePayload& p) { p.cache_losses = count4; }},
    {"volume_id", 88, 16, [](StatePayload& p) { p.volume_id = counting<16>(); }},
    {"history", 104, 256, [](StatePayload& p) { p.history = counting_history(); }},
    {"content", 360, 8, [](StatePayload& p) { p.content = count8; }},
    {"set_change", 368, 8, [](StatePayload& p) { p.set_change = count8; }},
};
constexpr PayloadField<GenerationPayload> generation_fields[] = {
    {"primary_node", 0, 4, [](GenerationPayload& p) { p.primary_node = count4; }},
    {"current_uuid", 4, 8, [](GenerationPayload& p) { p.current_uuid = count8; }},
    {"parent_uuid", 12, 8, [](GenerationPayload& p) { p.parent_uuid = count8; }},
    {"generation_seq", 20, 8, [](GenerationPayload& p) { p.generation_seq = count8; }},
    {"in_sync", 28, 4, [](GenerationPayload& p) { p.in_sync = count4; }},
    {"disk", 32, 1, [](GenerationPayload& p) { p.disk = 1; }},
    {"volume_id", 33, 16, [](GenerationPayload& p) { p.volume_id = counting<16>(); }},
    {"history", 49, 256, [](GenerationPayload& p) { p.history = counting_history(); }},
    {"set_change", 305, 8, [](GenerationPayload& p) { p.set_change = count8; }},
};

std::vector<std::byte> from_hex(const char* text) {
    std::vector<std::byte> bytes;
    unsigned high = 16;
    for (; *text != '\0'; ++text) {
        if (*text == ' ') continue;
        const unsigned digit = static_cast<unsigned>(*text <= '9' ? *text - '0' : *text - 'a' + 10);
        if (high < 16) bytes.push_back(static_cast<std::byte>(high << 4 | digit));
        high = high < 16 ? 16 : digit;
    }
    return bytes;
}

}  // namespace

TEST_CASE("the fields of a payload lie where the protocol's document says") {
    check_places<HelloPayload, hello_payload_bytes>(hello_fields, 120, encode_hello);
    check_places<StatePayload, state_payload_bytes>(state_fields, 376, encode_state);
    check_places<GenerationPayload, generation_payload_bytes>(generation_fields, 313,
                                                              encode_generation);
}

TEST_CASE("the worked example of the protocol's document") {
    const std::vector<std::byte> data(4096, std::byte{'a'});
    Message write;
    write.type = T::write;
    write.flags = write_flag::fua;
    write.payload_bytes = write.length = 4096;
    write.seq = 7;
    write.offset = 1 << 20;
    write.trim_seq = 4;
    write.nodes = 4;
    Message ack;
    ack.type = T::write_ack;
    ack.seq = 7;
    Message trim;
    trim.type = T::trim;
    trim.trim_seq = 7;
    const struct {
        Message message;
        std::uint32_t crc;
        const char* bytes;
    } examples[] = {
        {write, crc32c(data),
         "52504c4d 2000 0100 00100000 a24cc726 5e55ae30 00000000 0700000000000000"
         "0000100000000000 0400000000000000 00100000 04000000 00000000 00000000"},
        {ack, 0,
         "52504c4d 2300 0000 00000000 00000000 2028ad35 00000000 0700000000000000"
         "0000000000000000 0000000000000000 00000000 00000000 00000000 00000000"},
        {trim, 0,
         "52504c4d 2600 0000 00000000 00000000 6c3b57a0 00000000 0000000000000000"
         "0000000000000000 0700000000000000 00000000 00000000 00000000 00000000"},
    };
    for (const auto& example : examples) {
        Header header;
        encode_header(example.message, example.crc, header);
        CHECK(std::vector<std::byte>(header.begin(), header.end()) == from_hex(example.bytes));
    }
}
