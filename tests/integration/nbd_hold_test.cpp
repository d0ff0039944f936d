// SPDX-License-Identifier: Apache-2.0
// A socket of requests that one server after the other serves, each held in the middle of the
// stream: every request is answered once, by whoever has read it, and none is lost between two.
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <set>
#include <thread>

#include "engine/base/prng.hpp"
#include "engine/frontend/nbd_queue.hpp"
#include "engine/io/reactor.hpp"
#include "tests/core/nbd_support.hpp"

using namespace replica;

namespace {

constexpr std::uint64_t commands = 3000;
constexpr std::size_t volume_bytes = 8U << 20;

std::byte pattern(std::uint64_t cookie) { return static_cast<std::byte>(cookie * 7 + 1); }

// The kernel's end: sends requests in pieces of any length while it collects the replies.
class Client {
  public:
    explicit Client(int fd) : fd_(fd) {}

    void run() {
        while (answered_.size() < commands && good_) {
            pollfd polled{fd_, static_cast<short>(POLLIN | (more() ? POLLOUT : 0)), 0};
            if (::poll(&polled, 1, 100'000) != 1) break;
            if ((polled.revents & POLLOUT) != 0) send_some();
            if ((polled.revents & (POLLIN | POLLHUP)) != 0) receive_some();
        }
        ::close(fd_);
    }
    bool good() const { return good_ && answered_.size() == commands; }

  private:
    bool more() {
        if (out_at_ < out_.size()) return true;
        if (next_ == commands || next_ - answered_.size() >= 100) return false;
        Builder builder;
        const std::uint64_t cookie = next_++;
        const std::uint32_t length = 512U << (random_.next() % 8);
        const std::uint64_t offset = random_.next() % ((volume_bytes - length) / 512) * 512;
        const bool writes = random_.next() % 2 == 0;
        builder.request(writes ? nbd::Command::write : nbd::Command::read, 0, cookie, offset,
                        length);
        if (writes) builder.raw(Bytes(length, pattern(cookie)));
        reads_.push_back(writes ? 0 : length);
        out_ = builder.bytes();
        out_at_ = 0;
        return true;
    }
    void send_some() {
        const std::size_t length = std::min<std::size_t>(
            out_.size() - out_at_, random_.next() % 3 == 0 ? 1 + random_.next() % 40 : 20'000);
        const ssize_t sent =
            ::send(fd_, out_.data() + out_at_, length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0) out_at_ += static_cast<std::size_t>(sent);
        if (sent < 0 && errno != EAGAIN) good_ = false;
    }
    void receive_some() {
        std::byte bytes[65536];
        const ssize_t got = ::recv(fd_, bytes, sizeof bytes, MSG_DONTWAIT);
        if (got <= 0) {
            good_ = got < 0 && errno == EAGAIN;
            return;
        }
        in_.insert(in_.end(), bytes, bytes + got);
        std::size_t at = 0;
        while (in_.size() - at >= nbd::simple_reply_bytes) {
            const std::byte* const reply = in_.data() + at;
            const auto cookie = load_be<std::uint64_t>(reply + 8);
            const bool fits = load_be<std::uint32_t>(reply) == nbd::simple_reply_magic &&
                              load_be<std::uint32_t>(reply + 4) == 0 && cookie < next_;
            if (!fits) {
                good_ = false;
                return;
            }
            const std::size_t whole = nbd::simple_reply_bytes + reads_[cookie];
            if (in_.size() - at < whole) break;
            at += whole;
            good_ = good_ && answered_.insert(cookie).second;
        }
        in_.erase(in_.begin(), in_.begin() + static_cast<std::ptrdiff_t>(at));
    }

    const int fd_;
    Prng random_{4711};
    Bytes out_, in_;
    std::size_t out_at_ = 0;
    std::uint64_t next_ = 0;
    std::vector<std::uint32_t> reads_;  // bytes that a reply brings, by cookie
    std::set<std::uint64_t> answered_;
    bool good_ = true;
};

// Serves the other end, by one queue after the other.
struct Chain {
    Reactor& reactor;
    MemoryVolume volume{volume_bytes};
    std::unique_ptr<KernelQueue> queue;
    Timer timer;
    int handed = 0, resumed = 0, answered = 0;
    bool lost = false;
    // Held after so many requests, not after a time, so that it happens often on any machine.
    std::uint64_t served = 0, hold_at = 0;
    Prng random{42};

    explicit Chain(Reactor& on) : reactor(on) {
        timer.context = this;
        timer.callback = [](Timer& due) { static_cast<Chain*>(due.context)->hold(); };
        reactor.add_turn_hook([](void* self) { static_cast<Chain*>(self)->complete(); }, this);
    }
    void complete() {
        served += volume.submitted.size();
        volume.complete_all();
        if (served < hold_at) return;
        hold_at = UINT64_MAX;
        reactor.set_timer(timer, reactor.now());
    }
    void serve(int fd) {
        NbdChannel channel(fd);
        queue = channel.serve({reactor, volume, [](int, const std::string&) {},
                               [this] { lost = true; }, [this] { ++answered; }});
        hold_at = served + random.below(20);
    }
    void hold() {
        if (lost) return;
        queue->hold([this] { reactor.post([this] { next(); }); });
    }
    void next() {
        if (lost) return;
        if (handed % 3 == 2) {  // thinks better of it
            ++resumed;
            ++handed;
            queue->resume();
            hold_at = served + random.below(20);
            return;
        }
        const int fd = queue->abandon();
        if (fd < 0) return;
        ++handed;
        REQUIRE(volume.submitted.empty());
        REQUIRE(volume.buffers_out == 0);
        REQUIRE(queue->destructible());
        queue.reset();
        serve(fd);
    }
};

}  // namespace

TEST_CASE("a held queue stops between two requests, and another one goes on from there") {
    auto reactor = Reactor::create({});
    REQUIRE(reactor);
    Chain chain(*reactor.value());
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    Client client(ends[1]);
    chain.serve(ends[0]);
    std::thread kernel([&] {
        client.run();
        reactor.value()->post([&] {
            chain.timer.clear();
            chain.lost = true;
            chain.queue->when_ended([&] {
                chain.queue.reset();
                reactor.value()->stop();
            });
        });
    });
    reactor.value()->run();
    kernel.join();
    reactor.value()->remove_turn_hook(&chain);
    CHECK(client.good());
    CHECK(chain.handed > 20);
    CHECK(chain.resumed > 5);
    CHECK(chain.answered > 10);
}
