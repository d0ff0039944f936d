// SPDX-License-Identifier: Apache-2.0
// Frames over real sockets: content and order both ways, back-pressure, pauses, and every way for a
// connection to end, with each frame and buffer accounted for.
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <deque>
#include <thread>

#include "engine/base/endian.hpp"
#include "engine/io/address.hpp"
#include "engine/io/frame_socket.hpp"
#include "tests/catch.hpp"
#include "tests/integration/io_support.hpp"

using namespace replica;
using namespace replica::test;

namespace {

constexpr std::size_t payload_max = 1U << 20;

// Header: le32 sequence, le32 payload bytes, then a pattern of the sequence; so is the payload.
using Header = std::array<std::byte, frame_header_bytes>;

void pattern(std::span<std::byte> bytes, std::uint32_t sequence) {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        bytes[i] = static_cast<std::byte>((sequence * 131 + i * 7 + (i >> 8) * 13) & 0xff);
    }
}
bool has_pattern(std::span<const std::byte> bytes, std::uint32_t sequence) {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        if (bytes[i] != static_cast<std::byte>((sequence * 131 + i * 7 + (i >> 8) * 13) & 0xff)) {
            return false;
        }
    }
    return true;
}
Header make_header(std::uint32_t sequence, std::uint32_t bytes) {
    Header header;
    pattern(header, sequence);
    store_le(header.data(), sequence);
    store_le(header.data() + 4, bytes);
    return header;
}

struct Peer;
struct Sent {
    Peer* peer;
    std::uint32_t sequence;
    std::vector<std::byte> payload;
};

// One end of a connection that checks what it gets and keeps account of what it gave.
struct Peer final : FrameOwner {
    explicit Peer(Reactor& r) : reactor(r), buffer(payload_max) {}

    Reactor& reactor;
    std::unique_ptr<FrameSocket> socket;
    std::deque<std::unique_ptr<Sent>> sent;
    std::vector<std::byte> buffer;
    bool buffer_out = false;
    bool no_buffer = false;  // payload_buffer() refuses
    bool destroy_on_close = true;
    std::uint32_t next_send = 0, next_done = 0, next_receive = 0, done_errors = 0;
    int asked_in_vain = 0;
    int closed = 0, closed_error = -1;
    std::function<void()> on_each_frame, when_closed;

    void open(int fd, FrameSocketOptions options = {}) {
        socket = std::make_unique<FrameSocket>(reactor, fd, options, *this);
        socket->start();
    }
    bool send_one(std::uint32_t bytes) {
        auto item = std::make_unique<Sent>(Sent{this, next_send, std::vector<std::byte>(bytes)});
        pattern(item->payload, next_send);
        const Header header = make_header(next_send, bytes);
        const SendDone done{[](void* context, int error) {
                                auto* self = static_cast<Sent*>(context);
                                Peer& peer = *self->peer;
                                CHECK(self->sequence == peer.next_done);
                                peer.next_done += 1;
                                if (error != 0) peer.done_errors += 1;
                                CHECK(peer.sent.front().get() == self);
                                peer.sent.pop_front();
                            },
                            item.get()};
        if (!socket || !socket->send(FrameHeader(header), item->payload, done)) return false;
        sent.push_back(std::move(item));
        next_send += 1;
        return true;
    }

    std::int64_t payload_bytes(FrameHeader header) override {
        const auto sequence = load_le<std::uint32_t>(header.data());
        if (sequence != next_receive) return -1;
        Header expected = make_header(sequence, load_le<std::uint32_t>(header.data() + 4));
        CHECK(std::memcmp(expected.data(), header.data(), header.size()) == 0);
        return load_le<std::uint32_t>(header.data() + 4);
    }
    std::byte* payload_buffer(FrameHeader, std::size_t bytes) override {
        CHECK(!buffer_out);
        CHECK(bytes <= payload_max);
        if (no_buffer) {
            asked_in_vain += 1;
            return nullptr;
        }
        buffer_out = true;
        return buffer.data();
    }
    void on_frame(FrameHeader header, std::span<std::byte> payload) override {
        CHECK(closed == 0);
        CHECK(payload.size() == load_le<std::uint32_t>(header.data() + 4));
        CHECK(has_pattern(payload, next_receive));
        CHECK(buffer_out == !payload.empty());
        buffer_out = false;
        next_receive += 1;
        if (on_each_frame) on_each_frame();
    }
    void on_payload_dropped(std::byte* dropped) override {
        CHECK(buffer_out);
        CHECK(dropped == buffer.data());
        buffer_out = false;
    }
    void on_closed(int error) override {
        closed += 1;
        closed_error = error;
        CHECK(sent.empty());  // every send has called back
        CHECK(next_done == next_send);
        CHECK_FALSE(buffer_out);
        if (destroy_on_close) socket.reset();
        if (when_closed) when_closed();
    }
};

std::unique_ptr<Reactor> make_reactor() {
    ReactorOptions options;
    options.arena_bytes = 0;
    auto made = Reactor::create(options);
    if (!made) FAIL(made.error().message);
    return std::move(made).value();
}

std::pair<int, int> tcp_pair() {
    const int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(bind(listening, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(listen(listening, 1) == 0);
    const SocketAddress bound = local_address(listening);
    const int a = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(connect(a, bound.get(), bound.length) == 0);
    const int b = accept4(listening, nullptr, nullptr, SOCK_CLOEXEC);
    REQUIRE(b >= 0);
    close(listening);
    configure_tcp(a, {});
    configure_tcp(b, {});
    return {a, b};
}
std::pair<int, int> unix_pair() {
    int fds[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    return {fds[0], fds[1]};
}

struct Both {
    std::unique_ptr<Reactor> reactor = make_reactor();
    Peer a{*reactor}, b{*reactor};
    Timer guard;  // a test that hangs is a failure, not a time-out of the whole run

    explicit Both(std::pair<int, int> fds, FrameSocketOptions options = {}) {
        a.open(fds.first, options);
        b.open(fds.second, options);
        guard.context = this;
        guard.callback = [](Timer& timer) {
            auto* self = static_cast<Both*>(timer.context);
            FAIL_CHECK("no end after 200 s");
            self->reactor->stop();
        };
        reactor->set_timer(guard, reactor->now() + 200 * ns_per_s);
        a.when_closed = b.when_closed = [this] {
            if (a.closed == 1 && b.closed == 1) reactor->stop();
        };
    }
    void run() {
        reactor->run();
        CHECK(a.closed == 1);
        CHECK(b.closed == 1);
    }
};

std::uint32_t random_bytes(Prng& prng) {
    switch (prng.below(6)) {
        case 0:
            return 0;
        case 1:
            return static_cast<std::uint32_t>(prng.below(200));
        case 2:
        case 3:
            return 4096;
        case 4:
            return static_cast<std::uint32_t>(prng.below(70'000));
        default:
            return static_cast<std::uint32_t>(prng.below(20) == 0 ? prng.below(payload_max) : 512);
    }
}

}  // namespace

TEST_CASE("thousands of frames both ways at once keep order and content") {
    for (const bool tcp : {true, false}) {
        for (const int small_buffers : {0, 1}) {
            FrameSocketOptions options;
            options.send_slots = 64;
            options.receive_bytes = small_buffers != 0 ? 4096 : 128 * 1024;
            const auto fds = tcp ? tcp_pair() : unix_pair();
            if (small_buffers != 0) {
                const int bytes = 4096;  // partial sends all the time
                setsockopt(fds.first, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
                setsockopt(fds.second, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
            }
            Both both(fds, options);
            constexpr std::uint32_t frames = 2000;
            Prng prng(7);
            auto pump = [&](Peer& peer) {
                while (peer.next_send < frames && peer.send_one(random_bytes(prng))) {
                }
            };
            auto each = [&](Peer& peer, Peer& other) {
                return [&] {
                    pump(peer);
                    pump(other);
                    if (peer.next_receive == frames && other.next_receive == frames) {
                        peer.socket->close(ESHUTDOWN);
                    }
                };
            };
            both.a.on_each_frame = each(both.a, both.b);
            both.b.on_each_frame = each(both.b, both.a);
            both.reactor->post([&] {
                pump(both.a);
                pump(both.b);
            });
            both.run();
            CHECK(both.a.next_receive == frames);
            CHECK(both.b.next_receive == frames);
            CHECK(both.a.done_errors == 0);
            CHECK(both.b.done_errors == 0);
            const std::vector<int> errors{both.a.closed_error, both.b.closed_error};
            CHECK(std::count(errors.begin(), errors.end(), ESHUTDOWN) == 1);
            CHECK(std::count(errors.begin(), errors.end(), 0) == 1);
        }
    }
}

TEST_CASE("the queue is bounded, says how full it is, and opens again") {
    FrameSocketOptions options;
    options.send_slots = 8;
    Both both(tcp_pair(), options);
    both.reactor->post([&] {
        CHECK(both.a.socket->free_slots() == 8);
        for (int i = 0; i < 8; ++i)
            CHECK(both.a.send_one(100));
        CHECK_FALSE(both.a.send_one(100));
        CHECK(both.a.socket->free_slots() == 0);
        CHECK(both.a.socket->queued_bytes() == 8 * 164);
    });
    both.b.on_each_frame = [&] {
        if (both.b.next_receive < 8) return;
        CHECK(both.a.socket->free_slots() == 8);
        CHECK(both.a.socket->queued_bytes() == 0);
        CHECK(both.a.socket->sent_bytes() == 8 * 164);
        CHECK(both.b.socket->received_bytes() == 8 * 164);
        both.b.socket->close(ECANCELED);
        CHECK_FALSE(both.b.send_one(1));
    };
    both.run();
}

TEST_CASE("without a payload buffer receiving stops, and goes on where it was") {
    Both both(tcp_pair());
    both.b.no_buffer = true;
    struct Context {
        Both& both;
        bool stopped = false;
    } context{both};
    Timer resume;
    resume.context = &context;
    resume.callback = [](Timer& timer) {
        auto& seen = *static_cast<Context*>(timer.context);
        Peer& b = seen.both.b;
        if (!seen.stopped) {  // and then no more is asked for, for a while
            seen.stopped = b.asked_in_vain > 0;
            Reactor& reactor = *seen.both.reactor;
            return reactor.set_timer(timer, reactor.now() + 50 * ns_per_ms);
        }
        CHECK(b.asked_in_vain == 1);
        CHECK(b.next_receive == 2);  // frames without a payload before it came through
        b.no_buffer = false;
        b.socket->resume_receive();
        b.socket->resume_receive();
    };
    both.reactor->post([&] {
        both.a.send_one(0);
        both.a.send_one(0);
        both.a.send_one(50'000);
        both.a.send_one(4096);
        both.a.send_one(0);
        both.reactor->set_timer(resume, both.reactor->now() + 50 * ns_per_ms);
    });
    both.b.on_each_frame = [&] {
        if (both.b.next_receive == 5) both.a.socket->close(ECANCELED);
    };
    both.run();
    CHECK(both.b.next_receive == 5);
    CHECK(both.b.closed_error == 0);
}

TEST_CASE("a bad header closes the connection with EPROTO") {
    Both both(unix_pair());
    both.reactor->post([&] {
        both.a.send_one(10);
        const Header header = make_header(7, 0);  // a gap in the sequence
        CHECK(both.a.socket->send(FrameHeader(header), {}, {}));
    });
    both.run();
    CHECK(both.b.next_receive == 1);
    CHECK(both.b.closed_error == EPROTO);
    CHECK(both.a.closed_error == 0);
}

// A plain client writes the bytes of three frames and ends after each possible number of them.
TEST_CASE("a stream cut at any byte delivers the whole frames and reports how it ended") {
    std::vector<std::byte> stream;
    std::vector<std::size_t> ends{0};
    for (std::uint32_t i = 0; i < 3; ++i) {
        const std::uint32_t bytes = i == 1 ? 0 : 40 + i;
        const Header header = make_header(i, bytes);
        stream.insert(stream.end(), header.begin(), header.end());
        std::vector<std::byte> payload(bytes);
        pattern(payload, i);
        stream.insert(stream.end(), payload.begin(), payload.end());
        ends.push_back(stream.size());
    }
    auto reactor = make_reactor();
    for (std::size_t cut = 0; cut <= stream.size(); ++cut) {
        for (const std::size_t step : {stream.size(), std::size_t{1}}) {
            if (step == 1 && cut % 16 != 5) continue;
            const auto fds = unix_pair();
            Peer peer(*reactor);
            peer.when_closed = [&] { reactor->stop(); };
            peer.open(fds.second);
            bool written = true;  // Catch2's checks are for one thread only
            std::thread client([&] {
                for (std::size_t at = 0; at < cut; at += step) {
                    const std::size_t bytes = std::min(step, cut - at);
                    written = write(fds.first, stream.data() + at, bytes) ==
                                  static_cast<ssize_t>(bytes) &&
                              written;
                    if (step == 1) std::this_thread::sleep_for(std::chrono::microseconds(50));
                }
                close(fds.first);
            });
            reactor->run();
            client.join();
            CHECK(written);
            std::uint32_t whole = 0;
            while (whole + 1 < ends.size() && ends[whole + 1] <= cut)
                ++whole;
            CHECK(peer.next_receive == whole);
            CHECK(peer.closed == 1);
            CHECK(peer.closed_error == (ends[whole] == cut ? 0 : ECONNRESET));
        }
    }
}

TEST_CASE("closing at any moment gives back every frame and every buffer exactly once") {
    for (std::uint64_t seed = 1; seed <= 300; ++seed) {
        Prng prng(seed);
        FrameSocketOptions options;
        options.send_slots = 16;
        const auto fds = prng.below(2) == 0 ? tcp_pair() : unix_pair();
        if (prng.below(2) == 0) {
            const int bytes = 4096;
            setsockopt(fds.first, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
        }
        Both both(fds, options);
        const auto limit = static_cast<std::uint32_t>(prng.below(60));
        const auto how = prng.below(5);
        auto end = [&](Peer& peer) {
            if (!peer.socket) return;
            if (how == 0) peer.socket->close(ETIMEDOUT);
            if (how == 1) peer.socket->finish(ESHUTDOWN);
            if (how == 2) shutdown(peer.socket->fd(), SHUT_RDWR);
            if (how == 3) {
                peer.socket->finish(ESHUTDOWN);
                peer.socket->close(ETIMEDOUT);
            }
            if (how == 4) {
                both.a.socket->close(1);
                if (both.b.socket) both.b.socket->close(2);
            }
        };
        auto each = [&](Peer& peer, Peer& other) {
            return [&] {
                while (peer.send_one(random_bytes(prng))) {
                }
                if (prng.below(8) == 0) {
                    other.no_buffer = !other.no_buffer;
                    if (!other.no_buffer && other.socket) other.socket->resume_receive();
                }
                if (peer.next_receive + other.next_receive >= limit)
                    end(prng.below(2) == 0 ? peer : other);
            };
        };
        both.a.on_each_frame = each(both.a, both.b);
        both.b.on_each_frame = each(both.b, both.a);
        Timer late;  // both may be without a buffer
        struct End {
            std::function<void()> run;
        } at_end{[&] {
            for (Peer* peer : {&both.a, &both.b}) {
                if (peer->socket) peer->socket->close(ETIMEDOUT);
            }
        }};
        late.context = &at_end;
        late.callback = [](Timer& timer) { static_cast<End*>(timer.context)->run(); };
        both.reactor->post([&] {
            while (both.a.send_one(random_bytes(prng))) {
            }
            while (both.b.send_one(random_bytes(prng))) {
            }
            both.reactor->set_timer(late, both.reactor->now() + 60 * ns_per_ms);
        });
        both.run();
    }
}

TEST_CASE("stopping the reactor ends every connection in the same way") {
    Both both(tcp_pair());
    both.a.when_closed = both.b.when_closed = nullptr;
    both.reactor->post([&] {
        for (int i = 0; i < 500; ++i)
            both.a.send_one(100'000);
        both.reactor->post([&] { both.reactor->stop(); });
    });
    both.run();
    CHECK(both.a.closed_error == ECANCELED);
    CHECK(both.b.closed_error == ECANCELED);
}

TEST_CASE("finish() gets the last frame through although unread data waits") {
    // close() with unread data makes TCP send a reset, which drops what the peer has not read yet.
    FrameSocketOptions options;
    options.finish_timeout_ns = 100 * ns_per_s;  // for a peer that is slow, as a busy machine is
    for (int round = 0; round < 20; ++round) {
        Both both(tcp_pair(), options);
        both.b.on_each_frame = [&] {
            if (both.b.next_receive == 1) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        };
        both.reactor->post([&] {
            for (int i = 0; i < 20; ++i)
                both.b.send_one(100'000);
            both.a.send_one(300'000);
            both.a.send_one(64);
            both.a.socket->finish(ESHUTDOWN);
            CHECK_FALSE(both.a.send_one(1));
        });
        both.run();
        CHECK(both.b.next_receive == 2);
        CHECK(both.b.closed_error == 0);
        CHECK(both.a.closed_error == ESHUTDOWN);
        CHECK(both.a.done_errors == 0);
    }
}

TEST_CASE("finish() does not wait for a peer for ever") {
    auto reactor = make_reactor();
    const auto fds = tcp_pair();
    FrameSocketOptions options;
    options.finish_timeout_ns = 50 * ns_per_ms;
    options.send_slots = 16;
    Peer peer(*reactor);
    peer.when_closed = [&] { reactor->stop(); };
    peer.open(fds.first, options);
    reactor->post([&] {
        while (peer.send_one(payload_max)) {
        }
        peer.socket->finish(ESHUTDOWN);
    });
    reactor->run();
    CHECK(peer.closed_error == ESHUTDOWN);
    CHECK(peer.done_errors > 0);
    close(fds.second);
}

TEST_CASE("both ends on threads of their own") {
    const auto fds = tcp_pair();
    constexpr std::uint32_t frames = 20'000;
    struct Answer final : FrameOwner {  // sends every header back
        std::unique_ptr<Reactor> reactor = make_reactor();
        std::unique_ptr<FrameSocket> socket;
        std::vector<std::byte> buffer = std::vector<std::byte>(4096);
        std::int64_t payload_bytes(FrameHeader header) override {
            return load_le<std::uint32_t>(header.data() + 4);
        }
        std::byte* payload_buffer(FrameHeader, std::size_t) override { return buffer.data(); }
        void on_frame(FrameHeader header, std::span<std::byte>) override {
            Header answer;
            std::copy(header.begin(), header.end(), answer.begin());
            store_le<std::uint32_t>(answer.data() + 4, 0);
            if (!socket->send(FrameHeader(answer), {}, {})) socket->close(ENOBUFS);
        }
        void on_payload_dropped(std::byte*) override {}
        void on_closed(int) override {
            socket.reset();
            reactor->stop();
        }
    } answer;
    std::thread far([&] {
        answer.socket = std::make_unique<FrameSocket>(*answer.reactor, fds.second,
                                                      FrameSocketOptions{}, answer);
        answer.socket->start();
        answer.reactor->run();
    });
    struct Asker final : FrameOwner {
        std::unique_ptr<Reactor> reactor = make_reactor();
        std::unique_ptr<FrameSocket> socket;
        std::vector<std::byte> payload = std::vector<std::byte>(4096);
        std::uint32_t sent = 0, answered = 0;
        bool in_order = true;
        void pump() {
            while (sent < frames && sent - answered < 64) {
                const Header header = make_header(sent, sent % 3 == 0 ? 4096 : 0);
                const auto bytes = std::span(payload).first(sent % 3 == 0 ? 4096 : 0);
                if (!socket->send(FrameHeader(header), bytes, {})) return;
                sent += 1;
            }
        }
        std::int64_t payload_bytes(FrameHeader) override { return 0; }
        std::byte* payload_buffer(FrameHeader, std::size_t) override { return nullptr; }
        void on_frame(FrameHeader header, std::span<std::byte>) override {
            in_order = in_order && load_le<std::uint32_t>(header.data()) == answered;
            answered += 1;
            if (answered == frames) return socket->close(ESHUTDOWN);
            pump();
        }
        void on_payload_dropped(std::byte*) override {}
        void on_closed(int) override {
            socket.reset();
            reactor->stop();
        }
    } asker;
    asker.socket =
        std::make_unique<FrameSocket>(*asker.reactor, fds.first, FrameSocketOptions{}, asker);
    asker.socket->start();
    asker.reactor->post([&] { asker.pump(); });
    asker.reactor->run();
    far.join();
    CHECK(asker.answered == frames);
    CHECK(asker.in_order);
}
