// SPDX-License-Identifier: Apache-2.0
// The write path of the shell allocates nothing: operator new is counted while frames with payloads
// go round and every one of them is written to a file.
#include <atomic>
#include <cstdlib>
#include <new>

#include "engine/base/endian.hpp"
#include "engine/io/block_file.hpp"
#include "engine/io/buffer_pool.hpp"
#include "engine/io/frame_socket.hpp"
#include "tests/catch.hpp"
#include "tests/integration/io_support.hpp"

namespace {
std::atomic<std::uint64_t> allocations = 0;
}

// The sanitizers bring allocators of their own; there only the round itself is checked.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool counting = false;
#else
constexpr bool counting = true;
void* operator new(std::size_t bytes) {
    allocations += 1;
    if (void* memory = std::malloc(bytes)) return memory;
    std::abort();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
#endif

using namespace replica;
using namespace replica::test;

namespace {

constexpr std::uint32_t depth = 32;
constexpr std::uint32_t writes_before = 500, writes_counted = 5000;

struct Loop final : FrameOwner {
    struct Item {
        Loop* loop = nullptr;
        DiskOp write;
        std::array<std::byte, frame_header_bytes> header{};
        std::byte* buffer = nullptr;
    };
    Reactor& reactor;
    BufferPool& pool;
    BlockFile& file;
    std::unique_ptr<FrameSocket> here, there;
    std::array<Item, depth> items;
    Timer timer;
    std::uint32_t written = 0, closed = 0;
    std::uint64_t allocations_before = 0, allocations_after = 0;

    Loop(Reactor& r, BufferPool& p, BlockFile& f) : reactor(r), pool(p), file(f) {
        for (Item& item : items) {
            item.loop = this;
            item.write.context = &item;
            item.write.done = [](DiskOp& op, int error) {
                CHECK(error == 0);
                auto* self = static_cast<Item*>(op.context);
                self->loop->wrote(*self);
            };
        }
        timer.callback = [](Timer&) {};
    }
    void send(Item& item, std::uint32_t index) {
        item.buffer = pool.acquire(4096);
        store_le(item.header.data(), index);
        const SendDone done{[](void* context, int) {
                                auto* self = static_cast<Item*>(context);
                                self->loop->pool.release(self->buffer);
                            },
                            &item};
        ASSERT(here->send(FrameHeader(item.header), {item.buffer, 4096}, done));
    }
    std::int64_t payload_bytes(FrameHeader) override { return 4096; }
    std::byte* payload_buffer(FrameHeader, std::size_t bytes) override {
        return pool.acquire(bytes);
    }
    void on_frame(FrameHeader header, std::span<std::byte> payload) override {
        const auto index = load_le<std::uint32_t>(header.data());
        Item& item = items[index];
        reactor.set_timer(timer, reactor.now() + ns_per_s);
        file.write(item.write, payload, index * 4096, index % 8 == 0);
        received_[index] = payload.data();
    }
    void wrote(Item& item) {
        const auto index = static_cast<std::uint32_t>(&item - items.data());
        pool.release(received_[index]);
        written += 1;
        if (written == writes_before) allocations_before = allocations;
        if (written == writes_before + writes_counted) {
            allocations_after = allocations;
            here->close(ESHUTDOWN);
        }
        if (here->open()) send(item, index);
    }
    void on_payload_dropped(std::byte* buffer) override { pool.release(buffer); }
    void on_closed(int) override {
        if (++closed == 2) reactor.stop();
    }

  private:
    std::array<std::byte*, depth> received_{};
};

}  // namespace

TEST_CASE("frames, disk writes, timers and buffers go round without an allocation") {
    ReactorOptions options;
    options.arena_bytes = BufferPool::arena_bytes(4 * depth, 1);
    auto reactor = std::move(Reactor::create(options)).value();
    auto pool = std::move(BufferPool::create(*reactor, 4 * depth, 1)).value();
    TempFile backing(depth * 4096);
    auto file = std::move(BlockFile::open(*reactor, backing.path(), {})).value();
    Loop loop(*reactor, *pool, *file);
    SocketPair pair;
    loop.here = std::make_unique<FrameSocket>(*reactor, pair.a, FrameSocketOptions{}, loop);
    loop.there = std::make_unique<FrameSocket>(*reactor, pair.b, FrameSocketOptions{}, loop);
    pair.a = pair.b = -1;  // the sockets' now
    loop.here->start();
    loop.there->start();
    reactor->post([&] {
        for (std::uint32_t i = 0; i < depth; ++i)
            loop.send(loop.items[i], i);
    });
    reactor->run();
    CHECK(loop.written >= writes_before + writes_counted);
    CHECK((loop.allocations_before > 0) == counting);
    CHECK(loop.allocations_after - loop.allocations_before == 0);
}
