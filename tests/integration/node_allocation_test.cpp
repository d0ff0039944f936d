// SPDX-License-Identifier: Apache-2.0
// The write path of a mirror allocates nothing: operator new is counted in the whole process, which
// holds both nodes, while writes go through the in-process door, both disks and the sockets
// between.
#include <atomic>
#include <cstdlib>
#include <new>

#include "engine/node/read_view.hpp"
#include "tests/integration/node_support.hpp"

namespace {
std::atomic<std::uint64_t> allocations = 0;
}

// The sanitizers bring allocators of their own; there only the mirror itself is checked.
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

namespace replica::test {
namespace {

constexpr std::uint64_t disk_bytes = 64U << 20;
constexpr std::uint32_t writes_warm = 4000, writes_counted = 4000, depth = 16;

// Keeps `depth` writes in flight. Each submits the next one from its completion, on the reactor's
// thread, so that no other thread has a part in it.
class Load {
  public:
    Load(Node& node, std::uint64_t size) : node_(node), blocks_(size / 4096) {
        for (Slot& slot : slots_)
            slot = {this, pattern(4096, 1)};
    }
    void run(std::uint32_t writes) {
        left_ = static_cast<std::int64_t>(writes);
        flying_ = depth;
        for (Slot& slot : slots_)
            next(slot);
        while (flying_ > 0)
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::uint32_t failed() const { return failed_; }

  private:
    struct Slot {
        Load* load = nullptr;
        std::vector<std::byte> bytes;
    };
    void next(Slot& slot) {
        const std::int64_t number = left_--;
        if (number <= 0) {
            --flying_;
            return;
        }
        const auto block = static_cast<std::uint64_t>(number) * 2654435761U % blocks_;
        const bool flush = number % 64 == 0;
        const auto submitted = node_.submit(
            resource_, flush ? IoKind::flush : IoKind::write, number % 16 == 0 && !flush,
            flush ? 0 : block * 4096, flush ? std::span<std::byte>() : std::span(slot.bytes), 0,
            [](void* context, int error) {
                Slot& ended = *static_cast<Slot*>(context);
                if (error != 0) ++ended.load->failed_;
                ended.load->next(ended);
            },
            &slot);
        if (!submitted) {
            ++failed_;
            --flying_;
        }
    }

    Node& node_;
    const std::string resource_ = "r0";
    std::uint64_t blocks_;
    std::array<Slot, depth> slots_;
    std::atomic<std::int64_t> left_ = 0;
    std::atomic<std::uint32_t> flying_ = 0, failed_ = 0;
};

TEST_CASE("writes of a mirror allocate nothing once it is warm") {
    Pair pair;
    pair.create(disk_bytes);
    pair.up();
    REQUIRE_OK(pair.a->promote("r0", true));
    pair.wait_synced();
    pair.remember_size();
    Load load(*pair.a, pair.status(0).size_bytes);
    load.run(writes_warm);
    const std::uint64_t before = allocations;
    load.run(writes_counted);
    const std::uint64_t after = allocations;
    CHECK(load.failed() == 0);
    CHECK((before > 0) == counting);
    CHECK(after - before == 0);
    pair.down();
    CHECK(pair.same_content());
}

// Only its size is asked for: the disk has the data.
class NoVolume final : public Volume {
  public:
    VolumeInfo info() const override { return {disk_bytes, 512, true, false}; }
    void submit(IoRequest&) override { FAIL("asked for the whole volume"); }
    std::byte* acquire_buffer() override { return nullptr; }
    void release_buffer(std::byte*) override {}
    std::uint64_t extent_status(std::uint64_t, std::uint64_t length, bool&) override {
        return length;
    }
    std::uint64_t dirty_status(std::uint64_t, std::uint64_t length, bool&) override {
        return length;
    }
};

// All at once, more than it takes to the disk at a time, and without a warm-up.
TEST_CASE("reads of a secondary's disk allocate nothing, from the first one on") {
    constexpr std::size_t reads = 2000;
    const bool lost = GENERATE(false, true);  // its place, and then those that wait end, too
    const TempDir dir;
    Pair::make_file(dir / "disk", disk_bytes);
    ReactorOptions options;
    options.arena_bytes = 0;
    auto reactor = Reactor::create(options);
    REQUIRE(reactor);
    auto file = BlockFile::open(*reactor.value(), dir / "disk", {});
    REQUIRE(file);
    NoVolume volume;
    ReadView::Source source = ReadView::Source::disk;
    ReadView view(*reactor.value(), volume, [&] { return source; });
    view.attach(*file.value());
    struct Memory {
        alignas(4096) std::array<std::byte, 4096> bytes;
    };
    const auto memory = std::make_unique<Memory>();
    struct Count {
        Reactor& reactor;
        std::size_t good = 0, bad = 0;
    } count{*reactor.value()};
    std::vector<IoRequest> requests(reads);
    for (std::size_t i = 0; i < reads; ++i) {
        requests[i].offset = i * 4096;
        requests[i].length = 4096;
        requests[i].buffer = memory->bytes.data();
        requests[i].context = &count;
        requests[i].done = [](IoRequest& request, int error) {
            Count& counted = *static_cast<Count*>(request.context);
            ++(error == 0 ? counted.good : counted.bad);
            if (counted.good + counted.bad == reads) counted.reactor.stop();
        };
    }
    const std::uint64_t before = allocations;
    for (IoRequest& request : requests)
        view.submit(request);
    if (lost) source = ReadView::Source::nothing;
    reactor.value()->run();
    const std::uint64_t after = allocations;
    CHECK(after - before == 0);
    CHECK((lost ? count.bad : count.good) == reads);
    CHECK(view.idle());
    view.detach();
}

}  // namespace
}  // namespace replica::test
