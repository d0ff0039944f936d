// SPDX-License-Identifier: Apache-2.0
// The reactor on the real kernel: files, sockets, timers, cancelling, other threads, stopping.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "engine/io/reactor.hpp"
#include "tests/catch.hpp"
#include "tests/integration/io_support.hpp"

using namespace replica;
using namespace replica::test;

namespace {

std::unique_ptr<Reactor> make_reactor(ReactorOptions options = {}) {
    auto made = Reactor::create(options);
    if (!made) FAIL(made.error().message);
    return std::move(made).value();
}

}  // namespace

TEST_CASE("what is written through the ring is read back, registered buffer or not") {
    for (const bool defer_taskrun : {true, false}) {
        ReactorOptions options;
        options.defer_taskrun = defer_taskrun;
        options.arena_bytes = 1U << 20;
        auto reactor = make_reactor(options);
        CHECK(reactor->warning().empty());
        TempFile file(0);
        auto arena = reactor->carve(65536);
        REQUIRE(arena.size() == 65536);
        std::vector<std::byte> heap(4096);
        fill_pattern(arena.first(4096), 1);
        fill_pattern(heap, 2);
        std::vector<std::byte> back(8192);
        run_ops(*reactor,
                {[&](Op& op) { reactor->write(op, file.fd(), arena.first(4096), 0, true); },
                 [&](Op& op) { reactor->write(op, file.fd(), heap, 4096, false); }});
        auto results = run_ops(*reactor, {[&](Op& op) { reactor->fdatasync(op, file.fd()); }});
        CHECK(results[0] == 0);
        results = run_ops(*reactor, {[&](Op& op) { reactor->read(op, file.fd(), back, 0); }});
        CHECK(results[0] == 8192);
        CHECK(std::memcmp(back.data(), arena.data(), 4096) == 0);
        CHECK(std::memcmp(back.data() + 4096, heap.data(), 4096) == 0);
        results = run_ops(*reactor, {[&](Op& op) {
            reactor->fallocate(op, file.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096);
        }});
        CHECK(results[0] == 0);
        // Across the end of the arena part: falls back to the plain opcode, or is refused as a
        // whole.
        results =
            run_ops(*reactor,
                    {[&](Op& op) { reactor->read(op, file.fd(), arena.subspan(4096, 8192), 0); }});
        CHECK(results[0] == 8192);
        CHECK(arena[4096] == std::byte{0});
    }
}

TEST_CASE("the arena is page-aligned, zeroed and can be used up") {
    ReactorOptions options;
    options.arena_bytes = 10 * 4096;
    auto reactor = make_reactor(options);
    auto a = reactor->carve(1);
    auto b = reactor->carve(5000);
    REQUIRE(a.size() == 4096);
    REQUIRE(b.size() == 8192);
    CHECK(reinterpret_cast<std::uintptr_t>(b.data()) % 4096 == 0);
    CHECK(reactor->carve(8 * 4096).empty());
    CHECK(reactor->carve(7 * 4096).size() == 7 * 4096);
    CHECK(reactor->carve(1).empty());
}

TEST_CASE("a failing operation gives its errno") {
    auto reactor = make_reactor();
    std::vector<std::byte> buffer(512);
    auto results = run_ops(*reactor, {[&](Op& op) { reactor->read(op, 999, buffer, 0); }});
    CHECK(results[0] == -EBADF);
}

TEST_CASE("timers call back in order of their time, and equal ones in order of setting") {
    auto reactor = make_reactor();
    struct Shared {
        Reactor& reactor;
        std::vector<int> order;
        std::vector<std::uint64_t> late_ns;
    } shared{*reactor, {}, {}};
    struct Slot {
        Shared* shared;
        int number;
    };
    constexpr int count = 100;
    std::vector<Slot> slots;
    for (int i = 0; i < count; ++i)
        slots.push_back({&shared, i});
    std::vector<std::unique_ptr<Timer>> timers;
    auto callback = [](Timer& timer) {
        auto* slot = static_cast<Slot*>(timer.context);
        CHECK(slot->shared->reactor.now() >= timer.due());
        slot->shared->order.push_back(slot->number);
        slot->shared->late_ns.push_back(slot->shared->reactor.now().ns - timer.due().ns);
        if (slot->number == 99) slot->shared->reactor.stop();
    };
    const Instant base = reactor->now();
    std::vector<int> due_ms(count);
    for (int i = 0; i < count; ++i) {
        due_ms[static_cast<std::size_t>(i)] = i == 99 ? 60 : (i * 37) % 50;
        timers.push_back(std::make_unique<Timer>(callback, &slots[static_cast<std::size_t>(i)]));
        const auto delay = static_cast<std::uint64_t>(due_ms[static_cast<std::size_t>(i)]);
        reactor->set_timer(*timers.back(), base + delay * ns_per_ms);
    }
    timers[7]->clear();
    timers[8].reset();
    reactor->run();
    REQUIRE(shared.order.size() == count - 2);
    for (std::size_t i = 1; i < shared.order.size(); ++i) {
        const int before = shared.order[i - 1], after = shared.order[i];
        const int due_before = due_ms[static_cast<std::size_t>(before)];
        const int due_after = due_ms[static_cast<std::size_t>(after)];
        CHECK((due_before < due_after || (due_before == due_after && before < after)));
    }
}

TEST_CASE("a timer that is moved to an earlier time while the thread sleeps on a later one") {
    auto reactor = make_reactor();
    struct Context {
        Reactor& reactor;
        Timer* late;
        bool early_ran = false;
    } context{*reactor, nullptr};
    Timer late(
        [](Timer& t) {
            static_cast<Context*>(t.context)->early_ran = true;
            static_cast<Context*>(t.context)->reactor.stop();
        },
        &context);
    Timer mover(
        [](Timer& t) {
            auto* c = static_cast<Context*>(t.context);
            c->reactor.set_timer(*c->late, c->reactor.now() + 5 * ns_per_ms);
        },
        &context);
    context.late = &late;
    const Instant base = reactor->now();
    reactor->set_timer(late, base + 3600 * ns_per_s);
    std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        reactor->post([&] { reactor->set_timer(mover, reactor->now() + ns_per_ms); });
    });
    reactor->run();
    other.join();
    CHECK(context.early_ran);
    CHECK(reactor->now().ns - base.ns < 3600 * ns_per_s);
}

TEST_CASE("kernel timeouts come in order and can be cancelled") {
    auto reactor = make_reactor();
    std::vector<std::int32_t> results =
        run_ops(*reactor, {[&](Op& op) { reactor->timeout(op, reactor->now() + 20 * ns_per_ms); },
                           [&](Op& op) {
                               reactor->timeout(op, reactor->now() + 3600 * ns_per_s);
                               reactor->cancel(op);
                           },
                           [&](Op& op) { reactor->timeout(op, Instant{1}); }});
    CHECK(results[0] == -ETIME);
    CHECK(results[1] == -ECANCELED);
    CHECK(results[2] == -ETIME);
}

TEST_CASE("a receive is cancelled once, and its operation can be used again") {
    auto reactor = make_reactor();
    SocketPair pair;
    std::vector<std::byte> buffer(64);
    auto results = run_ops(*reactor, {[&](Op& op) {
        reactor->recv(op, pair.a, buffer, 0);
        reactor->cancel(op);
        reactor->cancel(op);
    }});
    CHECK(results[0] == -ECANCELED);
    REQUIRE(write(pair.b, "abc", 3) == 3);
    results = run_ops(*reactor, {[&](Op& op) { reactor->recv_later(op, pair.a, buffer, 0); }});
    CHECK(results[0] == 3);
    results = run_ops(*reactor, {[&](Op& op) { reactor->poll(op, pair.a, POLLOUT); }});
    CHECK((results[0] & POLLOUT) != 0);
}

TEST_CASE("more operations in one turn than the submission queue and the completion queue hold") {
    ReactorOptions options;
    options.entries = 8;
    options.arena_bytes = 0;
    for (const bool defer_taskrun : {true, false}) {
        options.defer_taskrun = defer_taskrun;
        auto reactor = make_reactor(options);
        TempFile file(1U << 20);
        std::vector<std::byte> buffer(512);
        std::vector<std::function<void(Op&)>> many;
        for (int i = 0; i < 500; ++i) {
            many.push_back([&](Op& op) { reactor->read(op, file.fd(), buffer, 0); });
        }
        auto results = run_ops(*reactor, many);
        for (const auto result : results)
            CHECK(result == 512);
    }
}

TEST_CASE("tasks of other threads run in order and none is lost") {
    auto reactor = make_reactor();
    constexpr int threads = 4, each = 5000;
    std::vector<int> last(threads, -1);
    int ran = 0;
    bool in_order = true;
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) {
        pool.emplace_back([&, t] {
            for (int i = 0; i < each; ++i) {
                reactor->post([&, t, i] {
                    in_order = in_order && last[static_cast<std::size_t>(t)] == i - 1;
                    last[static_cast<std::size_t>(t)] = i;
                    if (++ran == threads * each) reactor->stop();
                });
            }
        });
    }
    reactor->run();
    for (auto& thread : pool)
        thread.join();
    CHECK(in_order);
    CHECK(ran == threads * each);
}

TEST_CASE("the reactor runs on another thread than the one that made it, and may run again") {
    auto reactor = make_reactor();
    SocketPair pair;
    std::vector<std::byte> buffer(64);
    std::int32_t result = 1;
    Op op;
    op.context = &result;
    op.callback = [](Op& done, std::int32_t r) { *static_cast<std::int32_t*>(done.context) = r; };
    reactor->recv(op, pair.a, buffer, 0);  // before run()
    bool owner = false;
    std::thread thread([&] {
        reactor->post([&] { owner = reactor->on_owner_thread(); });
        reactor->run();
        reactor->post([&] { reactor->stop(); });
        reactor->run();
    });
    reactor->stop();
    thread.join();
    CHECK(owner);
    CHECK_FALSE(reactor->on_owner_thread());
    CHECK(result == -ECANCELED);  // stopping calls back what is in flight
}

TEST_CASE("stopping calls back everything, refuses what is new, and runs what was posted") {
    auto reactor = make_reactor();
    SocketPair pair;
    TempFile file(1U << 20);
    std::vector<std::byte> buffer(4096);
    struct Context {
        Reactor* reactor;
        SocketPair* pair;
        std::vector<std::byte>* buffer;
        Op* again;
        int called = 0;
        int refused = 0;
    } context{reactor.get(), &pair, &buffer, nullptr};
    Op second;
    second.context = &context;
    second.callback = [](Op& op, std::int32_t result) {
        if (result == -ECANCELED) static_cast<Context*>(op.context)->refused += 1;
    };
    context.again = &second;
    std::vector<std::unique_ptr<Op>> ops;
    auto count = [](Op& op, std::int32_t) { static_cast<Context*>(op.context)->called += 1; };
    reactor->post([&] {
        for (int i = 0; i < 50; ++i) {
            ops.push_back(std::make_unique<Op>());
            ops.back()->context = &context;
            ops.back()->callback = count;
            if (i % 3 == 0) reactor->recv(*ops.back(), pair.a, buffer, 0);
            if (i % 3 == 1) reactor->timeout(*ops.back(), reactor->now() + 3600 * ns_per_s);
            if (i % 3 == 2) reactor->read(*ops.back(), file.fd(), buffer, 0);
        }
        ops[0]->callback = [](Op& op, std::int32_t result) {
            auto* c = static_cast<Context*>(op.context);
            c->called += 1;
            CHECK(result == -ECANCELED);
            c->reactor->recv(*c->again, c->pair->a, *c->buffer, 0);
        };
        reactor->stop();
        reactor->post([&] { context.called += 100; });
    });
    reactor->run();
    CHECK(context.called == 150);
    CHECK(context.refused == 1);
}

TEST_CASE("hooks run before the thread sleeps, deferred tasks after them and hooks once more") {
    auto reactor = make_reactor();
    struct Context {
        Reactor* reactor;
        std::string log;
        Deferred first, second;
    } context{reactor.get(), {}, {}, {}};
    context.first.context = context.second.context = &context;
    context.first.callback = [](Deferred& task) {
        auto* c = static_cast<Context*>(task.context);
        c->log += '1';
        c->reactor->defer(c->second);
        c->reactor->defer(c->second);  // once is enough
    };
    context.second.callback = [](Deferred& task) {
        auto* c = static_cast<Context*>(task.context);
        c->log += '2';
        c->reactor->stop();
    };
    reactor->post([&] {
        reactor->add_turn_hook([](void* c) { static_cast<Context*>(c)->log += 'h'; }, &context);
        context.log += 'p';
        reactor->defer(context.first);
    });
    reactor->run();
    CHECK(context.log.substr(0, 6) == "ph1h2h");
    reactor->remove_turn_hook(&context);
    context.log.clear();
    reactor->post([&] { reactor->stop(); });
    reactor->run();
    CHECK(context.log.empty());
}

TEST_CASE("the heap of timers agrees with a plain sort") {
    TimerHeap heap(4);
    std::uint64_t seed = 1;
    auto next = [&] { return seed = seed * 6364136223846793005U + 1442695040888963407U; };
    auto nothing = [](Timer&) {};
    std::vector<std::unique_ptr<Timer>> timers;
    for (int i = 0; i < 500; ++i)
        timers.push_back(std::make_unique<Timer>(nothing, nullptr));
    for (int round = 0; round < 20'000; ++round) {
        Timer& timer = *timers[(next() >> 33) % timers.size()];
        if ((next() >> 40) % 3 == 0) {
            timer.clear();
        } else {
            heap.set(timer, Instant{(next() >> 33) % 1000});
        }
        if (round % 100 != 0) continue;
        std::uint64_t least = UINT64_MAX;
        for (const auto& t : timers) {
            if (t->is_set() && t->due().ns < least) least = t->due().ns;
        }
        CHECK(heap.empty() == (least == UINT64_MAX));
        if (!heap.empty()) CHECK(heap.earliest().ns == least);
    }
    Instant last{0};
    while (Timer* timer = heap.take_due(Instant{500})) {
        CHECK(timer->due() >= last);
        CHECK_FALSE(timer->is_set());
        last = timer->due();
    }
    for (const auto& t : timers)
        CHECK((!t->is_set() || t->due().ns > 500));
}
