// SPDX-License-Identifier: Apache-2.0
// Requests of sectors on a disk that takes only blocks of 4096: a loop device.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <vector>

#include "engine/node/backing_disk.hpp"
#include "tests/catch.hpp"
#include "tests/integration/io_support.hpp"
#include "tests/integration/loop_device.hpp"

namespace replica::test {
namespace {

constexpr std::uint64_t disk_bytes = 256U << 10, sectors = disk_bytes / sector_bytes;

// Random requests, many at once, on few blocks. As the core does it, a sector that is being changed
// is not touched by another request. The model is what each sector has to hold.
class Load {
  public:
    Load(Reactor& reactor, BlockFile& file, std::uint64_t seed)
        : reactor_(reactor), prng_(seed), disk_(file, &Load::done, this), model_(disk_bytes) {
        for (unsigned i = 0; i < in_flight_max; ++i)
            requests_.emplace_back();
    }
    void run(unsigned total) {
        left_ = total;
        reactor_.post([this] { fill(); });
        reactor_.run();
        CHECK(disk_.idle());
    }
    unsigned wrong() const { return wrong_; }
    bool met_part_of_block() const { return disk_.met_part_of_block(); }
    std::span<const std::byte> model() const { return model_; }

  private:
    static constexpr unsigned in_flight_max = 24;
    static constexpr std::uint64_t longest = 80U << 10;  // more than the bounce buffer holds
    enum class Kind { read, write, zero, flush };
    struct Request {
        alignas(4096) std::array<std::byte, longest + 4096> memory;
        std::span<std::byte> data;
        Kind kind = Kind::read;
        std::uint64_t first = 0, count = 0;  // sectors
        bool busy = false, zeroes = false;
    };

    bool overlaps(std::uint64_t first, std::uint64_t count) const {
        return std::any_of(requests_.begin(), requests_.end(), [&](const Request& other) {
            return other.busy && first < other.first + other.count && other.first < first + count;
        });
    }
    void fill() {
        for (std::uint32_t i = 0; i < in_flight_max && left_ > 0; ++i) {
            if (!requests_[i].busy) start(i);
        }
        if (left_ == 0 && disk_.idle()) reactor_.stop();
    }
    void start(std::uint32_t index) {
        Request& r = requests_[index];
        const bool whole = prng_.below(3) == 0;
        const std::uint64_t grain = whole ? 8 : 1;
        const std::uint64_t most = prng_.below(10) == 0 ? longest / sector_bytes : 20;
        r.count = (1 + prng_.below(most / grain)) * grain;
        r.first = prng_.below((sectors - r.count) / grain + 1) * grain;
        r.kind = static_cast<Kind>(prng_.below(20) == 0 ? 3 : prng_.below(3));
        if (r.kind == Kind::flush) r.count = 0;
        if (overlaps(r.first, r.count)) return;
        --left_;
        r.busy = true;
        // A piece that begins at an extent may lie anywhere in the payload.
        r.data = std::span(r.memory).subspan(prng_.below(8) * sector_bytes, r.count * sector_bytes);
        const bool durable = prng_.below(4) == 0;
        const std::uint64_t offset = r.first * sector_bytes;
        const std::span<std::byte> held = std::span(model_).subspan(offset, r.count * sector_bytes);
        const IoTag tag{.index = index};
        switch (r.kind) {
            case Kind::read:
                r.zeroes = std::all_of(held.begin(), held.end(),
                                       [](std::byte b) { return b == std::byte{0}; });
                return disk_.read(tag, r.data, offset, true);
            case Kind::write:
                fill_pattern(r.data, prng_.next());
                std::memcpy(held.data(), r.data.data(), held.size());
                return disk_.write(tag, r.data, offset, durable);
            case Kind::zero:
                std::memset(held.data(), 0, held.size());
                return disk_.zero(tag, offset, held.size(), prng_.below(2) == 0, durable);
            case Kind::flush:
                return disk_.flush(tag);
        }
    }
    static void done(void* context, IoTag tag, int error, bool zeroes) {
        Load& load = *static_cast<Load*>(context);
        Request& r = load.requests_[tag.index];
        CHECK(error == 0);
        if (r.kind == Kind::read) {
            const std::byte* held = load.model_.data() + r.first * sector_bytes;
            const bool right = std::memcmp(held, r.data.data(), r.data.size()) == 0;
            load.wrong_ += right && zeroes == r.zeroes ? 0 : 1;
        }
        r.busy = false;
        load.fill();
    }

    Reactor& reactor_;
    Prng prng_;
    std::deque<Request> requests_;
    BackingDisk disk_;
    std::vector<std::byte> model_;
    unsigned left_ = 0, wrong_ = 0;
};

// What is on the file below the loop device when everything has been written through.
std::vector<std::byte> content(const std::string& path) {
    sync();
    std::vector<std::byte> bytes(disk_bytes);
    std::FILE* const file = std::fopen(path.c_str(), "re");
    REQUIRE(file != nullptr);
    CHECK(std::fread(bytes.data(), 1, bytes.size(), file) == bytes.size());
    std::fclose(file);
    return bytes;
}

TEST_CASE("sectors are read, written and zeroed on a disk of larger blocks") {
    if (!loop_devices_work("sectors on a disk with blocks of 4096")) return;
    ReactorOptions options;
    options.arena_bytes = 8U << 20;
    auto made = Reactor::create(options);
    REQUIRE(made);
    Reactor& reactor = *made.value();
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
        TempFile backing(disk_bytes);
        const LoopDevice loop(backing.path(), "--sector-size 4096");
        auto opened = BlockFile::open(reactor, loop.path(), {});
        REQUIRE(opened);
        REQUIRE(opened.value()->logical_block_bytes() == 4096);
        Load load(reactor, *opened.value(), seed);
        load.run(1500);
        CHECK(load.wrong() == 0);
        CHECK(load.met_part_of_block());
        opened.value().reset();
        const auto bytes = content(loop.path());
        CHECK(std::equal(bytes.begin(), bytes.end(), load.model().begin()));
    }
}

}  // namespace
}  // namespace replica::test
