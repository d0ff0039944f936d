// SPDX-License-Identifier: Apache-2.0
// The server's side of the NBD protocol as a value: what it answers, what it refuses, and that it
// does not matter where the stream is cut.
#include <string>

#include "engine/base/prng.hpp"
#include "engine/frontend/nbd_contexts.hpp"
#include "tests/core/nbd_support.hpp"

namespace replica {
namespace {

using nbd::Command;
using nbd::Option;
using nbd::OptionReply;

constexpr std::uint64_t size_bytes = 64U << 20;

VolumeInfo info() {
    VolumeInfo volume;
    volume.size_bytes = size_bytes;
    volume.writable = true;
    volume.fast_zeroes = true;
    return volume;
}

// All that a session made of a client's bytes, in a form that can be compared.
struct Heard {
    Bytes out;
    std::string events;  // one line each
    Bytes payload;       // of writes
    std::string closed;
};

// Plays the connection: offers what was not consumed again with more behind it.
class Player {
  public:
    explicit Player(VolumeInfo volume = info()) : session("r0"), volume_(volume) {
        session.greet(heard.out);
        heard.out.clear();
    }

    void feed(std::span<const std::byte> bytes) {
        pending_.insert(pending_.end(), bytes.begin(), bytes.end());
        while (!over_) {
            if (payload_left_ > 0) {
                const std::size_t n = std::min(payload_left_, pending_.size());
                heard.payload.insert(heard.payload.end(), pending_.begin(), begin(n));
                pending_.erase(pending_.begin(), begin(n));
                payload_left_ -= n;
                if (payload_left_ > 0) return;
            }
            const NbdStep step = session.step(pending_, volume_, heard.out);
            REQUIRE(step.consumed <= pending_.size());
            pending_.erase(pending_.begin(), begin(step.consumed));
            note(step);
            if (step.event == NbdEvent::none && step.consumed == 0) return;
        }
    }

    NbdSession session;
    Heard heard;

  private:
    Bytes::iterator begin(std::size_t n) {
        return pending_.begin() + static_cast<std::ptrdiff_t>(n);
    }
    void note(const NbdStep& step) {
        if (step.event == NbdEvent::none || step.event == NbdEvent::replied) return;
        if (step.event == NbdEvent::close || step.event == NbdEvent::disconnect) {
            over_ = true;
            heard.closed = step.event == NbdEvent::close ? session.close_reason() : "left";
            return;
        }
        heard.events += std::to_string(static_cast<int>(step.command.type)) + " flags " +
                        std::to_string(step.command.flags) + " cookie " +
                        std::to_string(step.command.cookie) + " at " +
                        std::to_string(step.command.offset) + "+" +
                        std::to_string(step.command.length) + " refused " +
                        std::to_string(static_cast<int>(step.refusal)) + "\n";
        if (step.event == NbdEvent::command && step.command.type == Command::write) {
            payload_left_ = step.command.length;
        }
    }

    VolumeInfo volume_;
    Bytes pending_;
    std::size_t payload_left_ = 0;
    bool over_ = false;
};

Heard play(const Builder& client, VolumeInfo volume = info()) {
    Player player(volume);
    player.feed(client.bytes());
    return player.heard;
}

Builder client(std::uint32_t flags = 3) {
    Builder builder;
    builder.number(flags);
    return builder;
}

// Structured replies, both contexts, GO.
Builder in_transmission(bool structured = true) {
    Builder builder = client();
    if (structured) {
        builder.option(Option::structured_reply);
        builder.option(Option::set_meta_context,
                       meta_data("r0", {"base:allocation", "x-replica:dirty"}));
    }
    return builder.option(Option::go, info_data("r0"));
}

struct Reply {
    Option option;
    OptionReply type;
    Bytes data;
    std::string text() const { return {reinterpret_cast<const char*>(data.data()), data.size()}; }
};

std::vector<Reply> replies(const Bytes& out) {
    std::vector<Reply> result;
    std::size_t at = 0;
    while (at < out.size()) {
        REQUIRE(out.size() - at >= nbd::option_reply_header_bytes);
        const std::byte* const p = out.data() + at;
        REQUIRE(load_be<std::uint64_t>(p) == nbd::option_reply_magic);
        const auto length = load_be<std::uint32_t>(p + 16);
        REQUIRE(out.size() - at >= nbd::option_reply_header_bytes + length);
        result.push_back({static_cast<Option>(load_be<std::uint32_t>(p + 8)),
                          static_cast<OptionReply>(load_be<std::uint32_t>(p + 12)),
                          Bytes(p + 20, p + 20 + length)});
        at += nbd::option_reply_header_bytes + length;
    }
    return result;
}

std::vector<OptionReply> types(const Bytes& out) {
    std::vector<OptionReply> result;
    for (const Reply& reply : replies(out))
        result.push_back(reply.type);
    return result;
}

using Types = std::vector<OptionReply>;

}  // namespace

TEST_CASE("The server speaks first, and offers fixed newstyle without zeroes") {
    NbdSession session("r0");
    Bytes out;
    session.greet(out);
    Builder expected;
    expected.text("NBDMAGICIHAVEOPT").number(std::uint16_t{3});
    CHECK(out == expected.bytes());
}

TEST_CASE("Unknown client flags end the connection") {
    const Heard heard = play(client(4));
    CHECK(heard.closed == "unknown client flags: not an NBD client?");
    CHECK(heard.out.empty());
}

TEST_CASE("A client without fixed newstyle may only use EXPORT_NAME") {
    CHECK(play(client(0).option(Option::list)).closed.find("fixed newstyle") != std::string::npos);
    const Heard heard = play(client(0).option(Option::export_name, Builder().text("r0").bytes()));
    CHECK(heard.closed.empty());
    REQUIRE(heard.out.size() == 8 + 2 + 124);
    CHECK(load_be<std::uint64_t>(heard.out.data()) == size_bytes);
}

TEST_CASE("EXPORT_NAME leaves the zeroes out when asked, and hangs up on an unknown name") {
    CHECK(play(client().option(Option::export_name)).out.size() == 10);
    const Heard heard = play(client().option(Option::export_name, Builder().text("x").bytes()));
    CHECK(heard.closed == "the client asked for an unknown export");
    CHECK(heard.out.empty());
}

TEST_CASE("GO tells size, flags and block sizes, and begins the transmission") {
    const Heard heard = play(client().option(Option::go, info_data("", {1, 2, 999})));
    const auto answer = replies(heard.out);
    REQUIRE(types(heard.out) == Types{OptionReply::info, OptionReply::info, OptionReply::info,
                                      OptionReply::info, OptionReply::ack});
    CHECK(answer[0].data == Builder()
                                .number(std::uint16_t{0})
                                .number(size_bytes)
                                .number(std::uint16_t{0b1101'0110'1101})
                                .bytes());
    CHECK(answer[1].data == Builder()
                                .number(std::uint16_t{3})
                                .number(std::uint32_t{512})
                                .number(std::uint32_t{4096})
                                .number(std::uint32_t{32U << 20})
                                .bytes());
    CHECK(answer[2].data == Builder().number(std::uint16_t{1}).text("r0").bytes());
}

TEST_CASE("INFO stays in the handshake") {
    Builder builder = client();
    builder.option(Option::info, info_data("r0")).option(Option::info, info_data("r0"));
    Player player;
    player.feed(builder.bytes());
    CHECK(types(player.heard.out).size() == 6);
    CHECK_FALSE(player.session.in_transmission());
}

TEST_CASE("A volume that is not primary is exported read-only") {
    VolumeInfo volume = info();
    volume.writable = false;
    const Heard heard = play(client().option(Option::go, info_data("r0")), volume);
    const auto flags = load_be<std::uint16_t>(replies(heard.out)[0].data.data() + 10);
    CHECK((flags & nbd::flag_read_only) != 0);
    CHECK((flags & (nbd::flag_send_trim | nbd::flag_send_write_zeroes)) == 0);
    CHECK((flags & nbd::flag_can_multi_conn) != 0);
}

TEST_CASE("An unknown export and one without a size are refused in words") {
    Heard heard = play(client().option(Option::go, info_data("other\n")));
    auto answer = replies(heard.out);
    REQUIRE(answer.size() == 1);
    CHECK(answer[0].type == OptionReply::error_unknown);
    CHECK(answer[0].text() == "there is no export \"other?\" here, only \"r0\"");
    VolumeInfo volume = info();
    volume.size_bytes = 0;
    heard = play(client().option(Option::go, info_data("r0")), volume);
    CHECK(types(heard.out) == Types{OptionReply::error_unknown});
}

TEST_CASE("LIST names the export; with data it is invalid") {
    const auto answer = replies(play(client().option(Option::list)).out);
    REQUIRE(answer.size() == 2);
    CHECK(answer[0].data == Builder().number(std::uint32_t{2}).text("r0").bytes());
    CHECK(answer[1].type == OptionReply::ack);
    CHECK(types(play(client().option(Option::list, Bytes(1))).out) ==
          Types{OptionReply::error_invalid});
}

TEST_CASE("STARTTLS is against the policy, unknown options are unsupported, and both go on") {
    Builder builder = client();
    builder.option(Option::starttls).option(static_cast<Option>(11));
    builder.option(static_cast<Option>(0xffffffff), Bytes(100)).option(Option::list);
    CHECK(types(play(builder).out) ==
          Types{OptionReply::error_policy, OptionReply::error_unsupported,
                OptionReply::error_unsupported, OptionReply::server, OptionReply::ack});
}

TEST_CASE("ABORT is acknowledged, and then the client is gone") {
    const Heard heard = play(client().option(Option::abort));
    CHECK(types(heard.out) == Types{OptionReply::ack});
    CHECK(heard.closed == "left");
}

TEST_CASE("An option that is too long is skipped, one that is far too long ends it") {
    Builder builder = client();
    builder.option(Option::info, Bytes(nbd_option_bytes_max + 1)).option(Option::list);
    CHECK(types(play(builder).out) ==
          Types{OptionReply::error_too_big, OptionReply::server, OptionReply::ack});

    Builder huge = client();
    huge.number(nbd::option_magic).number(std::uint32_t{6}).number(std::uint32_t{0xffffffff});
    CHECK(play(huge).closed == "an option that is too long");
    Builder name = client();
    name.option(Option::export_name, Bytes(nbd_option_bytes_max + 1));
    CHECK(play(name).closed == "an option that is too long");
}

TEST_CASE("Lengths inside an option are checked against it") {
    std::vector<Bytes> broken = {
        {},
        Bytes(3),
        Builder().number(std::uint32_t{3}).text("r0").bytes(),
        Builder().number(std::uint32_t{0xffffffff}).text("r0").bytes(),
        Builder().number(std::uint32_t{2}).text("r0").number(std::uint16_t{2}).bytes(),
        Builder().raw(info_data("r0")).text("more").bytes(),
        info_data(std::string(4097, 'x')),
    };
    for (const Bytes& data : broken) {
        CHECK(types(play(client().option(Option::go, data)).out) ==
              Types{OptionReply::error_invalid});
        CHECK(types(play(client().option(Option::list_meta_context, data)).out) ==
              Types{OptionReply::error_invalid});
    }
    // A count of queries that the data can not hold must not be believed.
    const Bytes many = Builder()
                           .number(std::uint32_t{0})
                           .number(std::uint32_t{0xffffffff})
                           .number(std::uint32_t{0})
                           .bytes();
    CHECK(types(play(client().option(Option::list_meta_context, many)).out) ==
          Types{OptionReply::error_invalid});
}

TEST_CASE("Bad option magic ends the connection") {
    Builder builder = client();
    builder.text("GET / HTTP/1.1\r\n\r\n");
    CHECK(play(builder).closed.find("option magic") != std::string::npos);
}

TEST_CASE("Meta contexts: a list knows wildcards, a selection needs structured replies") {
    const auto list = [](const std::vector<std::string_view>& queries) {
        return types(play(client().option(Option::list_meta_context, meta_data("", queries))).out);
    };
    CHECK(list({}).size() == 3);
    CHECK(list({"base:"}).size() == 2);
    CHECK(list({"x-replica:", "x-replica:dirty"}).size() == 2);
    CHECK(list({"qemu:dirty-bitmap:x", ""}) == Types{OptionReply::ack});

    const Bytes dirty = meta_data("r0", {"x-replica:dirty", "nothing:here"});
    CHECK(types(play(client().option(Option::set_meta_context, dirty)).out) ==
          Types{OptionReply::error_invalid});
    const Builder set =
        client().option(Option::structured_reply).option(Option::set_meta_context, dirty);
    const auto answer = replies(play(set).out);
    REQUIRE(answer.size() == 3);
    CHECK(answer[1].data ==
          Builder().number(nbd_context_id(nbd_context_dirty)).text("x-replica:dirty").bytes());
}

TEST_CASE("A selection of contexts holds for the export name it was made with") {
    for (const bool same : {true, false}) {
        Builder builder = client();
        builder.option(Option::structured_reply);
        builder.option(Option::set_meta_context, meta_data("r0", {"base:allocation"}));
        builder.option(Option::go, info_data(same ? "r0" : ""));
        builder.request(Command::block_status, 0, 1, 0, 4096);
        const auto refused = same ? NbdRefusal::none : NbdRefusal::no_context;
        CHECK(play(builder).events == "7 flags 0 cookie 1 at 0+4096 refused " +
                                          std::to_string(static_cast<int>(refused)) + "\n");
    }
}

TEST_CASE("Every cut of the stream gives the same result") {
    Builder builder = client();
    builder.option(Option::starttls).option(Option::structured_reply);
    builder.option(Option::list_meta_context, meta_data("r0", {}));
    builder.option(Option::set_meta_context, meta_data("r0", {"base:allocation"}));
    builder.option(Option::info, info_data("r0", {3})).option(Option::go, info_data("r0"));
    builder.request(Command::read, nbd::command_df, 1, 4096, 512);
    builder.request(Command::write, nbd::command_fua, 2, 0, 512).raw(Bytes(512, std::byte{7}));
    builder.request(Command::write, 0, 3, size_bytes, 512).raw(Bytes(512, std::byte{8}));
    builder.request(Command::flush, 0, 4, 0, 0).request(Command::block_status, 8, 5, 0, 1U << 20);
    builder.request(Command::write_zeroes, 2, 6, 512, 4096)
        .request(Command::disconnect, 0, 7, 0, 0);
    builder.text("garbage after the end");

    const Heard whole = play(builder);
    CHECK(whole.closed == "left");
    CHECK(whole.payload == Bytes(512, std::byte{7}));
    const std::span<const std::byte> bytes = builder.bytes();
    for (std::size_t cut = 0; cut < bytes.size(); ++cut) {
        Player player;
        player.feed(bytes.first(cut));
        player.feed(bytes.subspan(cut));
        REQUIRE(player.heard.out == whole.out);
        REQUIRE(player.heard.events == whole.events);
        REQUIRE(player.heard.payload == whole.payload);
        REQUIRE(player.heard.closed == whole.closed);
    }
    Player trickle;
    for (std::size_t i = 0; i < bytes.size(); ++i)
        trickle.feed(bytes.subspan(i, 1));
    CHECK(trickle.heard.out == whole.out);
    CHECK(trickle.heard.events == whole.events);
}

TEST_CASE("Damaged streams are understood alike wherever they are cut") {
    Builder builder = client();
    builder.option(Option::structured_reply);
    builder.option(Option::set_meta_context, meta_data("r0", {"base:", "x-replica:dirty"}));
    builder.option(Option::info, info_data("r0", {1, 2, 3})).option(Option::go, info_data("r0"));
    for (std::uint16_t i = 0; i < 9; ++i) {
        builder.request(static_cast<Command>(i == 2 ? 99 : i), i, i, i * 512U, 512);
        if (i == 1) builder.raw(Bytes(512));
    }
    for (std::uint64_t seed = 0; seed < 3000; ++seed) {
        Prng prng(seed);
        Bytes bytes = builder.bytes();
        for (std::uint64_t damage = 1 + prng.below(4); damage > 0; --damage) {
            bytes[prng.below(bytes.size())] = static_cast<std::byte>(prng.next());
        }
        Player whole, cut;
        whole.feed(bytes);
        for (std::size_t at = 0; at < bytes.size();) {
            const std::size_t n = 1 + prng.below(std::min<std::size_t>(bytes.size() - at, 70));
            cut.feed(std::span(bytes).subspan(at, n));
            at += n;
        }
        REQUIRE(cut.heard.out == whole.heard.out);
        REQUIRE(cut.heard.events == whole.heard.events);
        REQUIRE(cut.heard.payload == whole.heard.payload);
        REQUIRE(cut.heard.closed == whole.heard.closed);
    }
}

TEST_CASE("Commands are checked before the engine sees them") {
    struct Case {
        Command type;
        unsigned flags;
        std::uint64_t offset;
        std::uint32_t length;
        NbdRefusal refusal;
        nbd::Errno error;
    };
    using R = NbdRefusal;
    using E = nbd::Errno;
    const std::uint64_t end = size_bytes;
    const std::uint32_t mib = 1U << 20;
    const Case cases[] = {
        {Command::read, 0, 0, 32 * mib, R::none, E::none},
        {Command::read, 0, 0, 32 * mib + 512, R::too_long, E::invalid},
        {Command::read, 0, end - 512, 512, R::none, E::none},
        {Command::read, 0, end - 512, 1024, R::beyond_end, E::invalid},
        {Command::read, 0, ~std::uint64_t{0} - 511, 1024, R::beyond_end, E::invalid},
        {Command::read, 0, 100, 512, R::unaligned, E::invalid},
        {Command::read, 0, 0, 100, R::unaligned, E::invalid},
        {Command::read, 0, 0, 0, R::zero_length, E::invalid},
        {Command::read, nbd::command_df, 0, mib, R::none, E::none},
        {Command::read, nbd::command_df, 0, mib + 512, R::not_one_chunk, E::overflow},
        {Command::read, nbd::command_req_one, 0, 512, R::unknown_flags, E::invalid},
        {Command::read, 0x8000, 0, 512, R::unknown_flags, E::invalid},
        {Command::trim, nbd::command_fua, 0, 32 * mib + 512, R::none, E::none},
        {Command::trim, 0, end, 512, R::beyond_end, E::no_space},
        {Command::write_zeroes, 0, end - 512, 1024, R::beyond_end, E::no_space},
        {Command::write_zeroes, nbd::command_fast_zero, 0, 512, R::none, E::none},
        {Command::write_zeroes, nbd::command_fast_zero | nbd::command_no_hole, 0, 512, R::not_fast,
         E::not_supported},
        {Command::flush, 0, 0, 0, R::none, E::none},
        {Command::flush, nbd::command_fua, 0, 0, R::none, E::none},
        {Command::flush, 0, 512, 0, R::flush_range, E::invalid},
        {Command::cache, 0, 0, mib, R::none, E::none},
        {Command::cache, 0, end, 512, R::beyond_end, E::invalid},
        {Command::block_status, nbd::command_req_one, 0, 512, R::none, E::none},
        {static_cast<Command>(99), 0, 0, 0, R::unknown_command, E::invalid},
    };
    for (const Case& c : cases) {
        NbdSession session("r0");
        Bytes out;
        const Bytes handshake = in_transmission().bytes();
        for (std::size_t at = 0; at < handshake.size();) {
            at += session.step(std::span(handshake).subspan(at), info(), out).consumed;
        }
        const Builder request =
            Builder().request(c.type, static_cast<std::uint16_t>(c.flags), 1, c.offset, c.length);
        const NbdStep step = session.step(request.bytes(), info(), out);
        INFO(static_cast<int>(c.type) << " " << c.flags << " " << c.offset << "+" << c.length);
        CHECK(step.refusal == c.refusal);
        CHECK((step.event == NbdEvent::command) == (c.refusal == R::none));
        CHECK(nbd_errno(step.refusal, c.type) == c.error);
        std::array<char, 200> room;
        const auto text = nbd_refusal_text(step.refusal, step.command, info(), room);
        CHECK(text.empty() == (c.refusal == R::none));
    }
}

TEST_CASE("A refused write is skipped, and one that is far too long ends the connection") {
    Builder builder = in_transmission();
    builder.request(Command::write, 0, 1, 0, nbd_payload_bytes_max + 512);
    builder.raw(Bytes(nbd_payload_bytes_max + 512)).request(Command::flush, 0, 2, 0, 0);
    const Heard heard = play(builder);
    CHECK(heard.events.find("\n3 flags 0 cookie 2 at 0+0 refused 0\n") != std::string::npos);
    CHECK(heard.payload.empty());
    Builder huge = in_transmission();
    huge.request(Command::write, 0, 1, 0, 0xffffffff);
    CHECK(play(huge).closed == "a write that is too long");
}

TEST_CASE("Bad request magic ends the connection") {
    Builder builder = in_transmission();
    builder.raw(Bytes(28, std::byte{0xff}));
    CHECK(play(builder).closed.find("request magic") != std::string::npos);
}

namespace {

// A session in transmission.
NbdSession negotiated(bool structured) {
    Player player;
    player.feed(in_transmission(structured).bytes());
    REQUIRE(player.session.in_transmission());
    return player.session;
}

NbdCommand command_of(Command type, std::uint64_t offset, std::uint32_t length,
                      std::uint16_t flags = 0) {
    NbdCommand command;
    command.type = type;
    command.cookie = 0x0123456789abcdefU;
    command.offset = offset;
    command.length = length;
    command.flags = flags;
    return command;
}

}  // namespace

TEST_CASE("Errors carry words where the client understands structured replies") {
    Bytes out(nbd_reply_bytes_max);
    const NbdCommand command = command_of(Command::write, 0, 512);
    std::size_t n = negotiated(false).encode_error(out, command, nbd::Errno::no_space, "no room");
    CHECK(Bytes(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(n)) ==
          Builder()
              .number(nbd::simple_reply_magic)
              .number(std::uint32_t{28})
              .number(command.cookie)
              .bytes());
    n = negotiated(true).encode_error(out, command, nbd::Errno::no_space, "no room");
    CHECK(Bytes(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(n)) ==
          Builder()
              .number(nbd::structured_reply_magic)
              .number(std::uint16_t{1})
              .number(std::uint16_t{0x8001})
              .number(command.cookie)
              .number(std::uint32_t{6 + 7})
              .number(std::uint32_t{28})
              .number(std::uint16_t{7})
              .text("no room")
              .bytes());
    n = negotiated(true).encode_error(out, command, nbd::Errno::io, std::string(9999, 'x'));
    CHECK(n <= nbd_reply_bytes_max);
}

TEST_CASE("Block status joins neighbours, clips to the request and obeys REQ_ONE") {
    MemoryVolume volume(16U << 20);
    volume.holes = {{8192, 12288}, {12288, 16384}, {1U << 20, 2U << 20}};
    volume.dirt = {{0, 4096}};
    const NbdSession session = negotiated(true);
    Bytes out(nbd_reply_bytes_max);

    std::size_t n =
        session.encode_block_status(out, command_of(Command::block_status, 4096, 16384), volume);
    const auto chunk = [](bool last, std::uint32_t id, std::vector<std::uint32_t> extents) {
        Builder b;
        b.number(nbd::structured_reply_magic).number(static_cast<std::uint16_t>(last));
        b.number(std::uint16_t{5}).number(std::uint64_t{0x0123456789abcdefU});
        b.number(static_cast<std::uint32_t>(4 + 4 * extents.size())).number(id);
        for (const std::uint32_t value : extents)
            b.number(value);
        return b.bytes();
    };
    CHECK(Bytes(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(n)) ==
          Builder()
              .raw(chunk(false, 1, {4096, 0, 8192, 3, 4096, 0}))
              .raw(chunk(true, 2, {16384, 0}))
              .bytes());
    n = session.encode_block_status(
        out, command_of(Command::block_status, 0, 4U << 20, nbd::command_req_one), volume);
    CHECK(Bytes(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(n)) ==
          Builder().raw(chunk(false, 1, {8192, 0})).raw(chunk(true, 2, {4096, 1})).bytes());
}

TEST_CASE("Block status never says hole of half a block, and ends after its limit of extents") {
    MemoryVolume volume(16U << 20);
    volume.state.logical_block_bytes = 4096;
    volume.holes = {{0, 512}, {5000, 6000}};
    const NbdSession session = negotiated(true);
    Bytes out(nbd_reply_bytes_max);
    static_cast<void>(
        session.encode_block_status(out, command_of(Command::block_status, 0, 1U << 20), volume));
    CHECK(load_be<std::uint32_t>(out.data() + 16) == 4 + 8);
    CHECK(load_be<std::uint32_t>(out.data() + 24) == 1U << 20);
    CHECK(load_be<std::uint32_t>(out.data() + 28) == 0);

    volume.holes.clear();
    for (std::uint64_t i = 0; i < 2000; ++i)
        volume.holes.push_back({i * 8192, i * 8192 + 4096});
    const std::size_t n =
        session.encode_block_status(out, command_of(Command::block_status, 0, 16U << 20), volume);
    CHECK(n <= nbd_reply_bytes_max);
    CHECK(load_be<std::uint32_t>(out.data() + 16) == 4 + 8 * 128);
}

TEST_CASE("Engine errors become numbers that the protocol knows") {
    CHECK(nbd_errno(EROFS) == nbd::Errno::perm);
    CHECK(nbd_errno(ENOSPC) == nbd::Errno::no_space);
    CHECK(nbd_errno(ESHUTDOWN) == nbd::Errno::shutdown);
    CHECK(nbd_errno(ENODEV) == nbd::Errno::io);
    for (const int error : {EROFS, ENOSPC, ESHUTDOWN, EIO, EINVAL, ENOMEM}) {
        CHECK_FALSE(nbd_error_text(error).empty());
    }
}

}  // namespace replica
