// SPDX-License-Identifier: Apache-2.0
// Every crash while metadata is moved to the end of a disk that has grown: from any image, whatever
// lay at the new place before, the superblock, the log and the bitmap are found whole, at the old
// place or at the new one. (The superblock and its copy are written here as MetadataStore does it.)
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "engine/format/activity_log.hpp"
#include "engine/io/metadata_file.hpp"
#include "engine/node/disk_growth.hpp"
#include "tests/catch.hpp"
#include "tests/integration/write_recorder.hpp"

using namespace replica;
using namespace replica::test;

namespace {

constexpr std::uint64_t old_bytes = 1U << 20;
constexpr std::uint64_t new_bytes = 3U << 20;
constexpr std::uint64_t copy_at = new_bytes;  // in an image the copy follows the disk

using Image = std::vector<std::byte>;
using Block = MetadataFile::Block;

Block encoded(const Superblock& superblock) {
    Block block;
    encode_superblock(superblock, block);
    return block;
}

void put(Image& image, std::uint64_t offset, std::span<const std::byte> bytes) {
    std::copy(bytes.begin(), bytes.end(), image.begin() + static_cast<std::ptrdiff_t>(offset));
}

class GrownDisk {
  public:
    GrownDisk() {
        fd_ = mkstemp(path_.data());
        REQUIRE(fd_ >= 0);
        resize(old_bytes);
    }
    ~GrownDisk() {
        close(fd_);
        unlink(path_.c_str());
    }
    MetadataTarget target() const { return {path_, {}}; }
    void resize(std::uint64_t bytes) { REQUIRE(ftruncate(fd_, static_cast<off_t>(bytes)) == 0); }
    int fd() const { return fd_; }
    Image read() const {
        Image image(new_bytes);
        REQUIRE(pread(fd_, image.data(), new_bytes, 0) == static_cast<ssize_t>(new_bytes));
        return image;
    }
    void write(std::span<const std::byte> image) const {
        REQUIRE(pwrite(fd_, image.data(), new_bytes, 0) == static_cast<ssize_t>(new_bytes));
    }

  private:
    std::string path_ = "/tmp/disk_growth_crash_test.XXXXXX";
    int fd_ = -1;
};

struct Found {
    Superblock superblock;
    std::vector<std::byte> log, bitmap;
};

Found find(const GrownDisk& disk, std::span<const std::byte> copy) {
    auto file = MetadataFile::open(disk.target(), DiskAccess::shared_read);
    REQUIRE(file);
    const auto image = read_metadata(file.value(), copy);
    if (!image) FAIL(image.error().message);
    Found found{image.value().superblock, image.value().activity_log, {}};
    found.bitmap.resize(4096);
    REQUIRE(file.value().device().read(image.value().layout.bitmap_offset, found.bitmap));
    return found;
}

// In use: a log with two extents, and bits.
Superblock make_old(GrownDisk& disk, Found& contents) {
    Superblock superblock;
    superblock.max_peers = 2;
    superblock.node_id = 1;
    superblock.device_uuid = 0x4242;
    superblock.flags = md_flag::consistent | md_flag::primary_ind;
    superblock.extension.present = true;
    superblock.extension.write_seq = 41;
    const auto made = create_metadata(disk.target(), superblock, true);
    REQUIRE(made);
    superblock = made.value().superblock;
    CHECK(superblock.extension.device_bytes == old_bytes);
    superblock.effective_size_sectors = made.value().layout.data_bytes_max / sector_bytes;
    auto file = MetadataFile::open(disk.target(), DiskAccess::exclusive);
    REQUIRE(file);
    AlTransaction transaction;
    transaction.slots = 67;
    transaction.update_count = 1;
    transaction.updates[0] = {3, 0};
    std::array<std::byte, al_block_bytes> block;
    encode_al_transaction(transaction, block);
    REQUIRE(file.value().device().write(made.value().layout.al_offset + 4096, block));
    std::vector<std::byte> bits(64, std::byte{0x5a});
    bits.resize(512);
    REQUIRE(file.value().device().write(made.value().layout.bitmap_offset, bits));
    REQUIRE(file.value().write_superblock(encoded(superblock)));
    contents = find(disk, encoded(superblock));
    return superblock;
}

// What may lie where the new metadata goes: nothing, noise, or another superblock.
void litter(Image& image, int kind, const Superblock& old, std::uint64_t superblock_at) {
    Prng prng(7);
    if (kind == 0) return;
    for (std::uint64_t at = old_bytes; at < new_bytes; ++at)
        image[at] = static_cast<std::byte>(prng.below(256));
    if (kind == 1) return;
    Superblock other = old;
    other.extension.device_bytes = new_bytes;  // as when it had this size once
    other.extension.write_seq = old.extension.write_seq - 7;
    if (kind == 3) other.device_uuid = 0x9999;
    put(image, superblock_at, encoded(other));
}

void apply_step(Image& image, const Step& step) {
    if (!step.flush) put(image, step.offset, step.bytes);
}

void append_block(std::uint64_t offset, const Block& block) {
    for (std::size_t at = 0; at < block.size(); at += sector_bytes) {
        const auto sector = std::span(block).subspan(at, sector_bytes);
        record.push_back({false, offset + at, {sector.begin(), sector.end()}});
    }
    record.push_back({true, 0, {}});
}

AttachedDisk attached(const GrownDisk& disk, const Superblock& superblock,
                      const MetadataLayout& layout) {
    AttachedDisk attached;
    attached.path = "test";
    attached.data = OwnedFd(dup(disk.fd()));
    attached.layout = layout;
    attached.superblock = superblock;
    attached.volume_bytes = attached.zeroed_bytes =
        superblock.effective_size_sectors * sector_bytes;
    return attached;
}

}  // namespace

TEST_CASE("a crash while metadata is moved loses none of it") {
    const int kind = GENERATE(0, 1, 2, 3);
    GrownDisk disk;
    Found before;
    const Superblock old = make_old(disk, before);
    const auto layout = check_layout(MetadataPlace::internal, old_bytes, 0, old);
    REQUIRE(layout);
    disk.resize(new_bytes);
    const AttachedDisk in_use = attached(disk, old, layout.value());
    const auto plan = plan_growth(in_use);
    REQUIRE(plan);
    REQUIRE(plan.value().changes);
    const MetadataLayout& to = plan.value().layout;

    Image start = disk.read();
    litter(start, kind, old, to.superblock_offset);
    disk.write(start);
    start.resize(copy_at + superblock_bytes);
    put(start, copy_at, encoded(old));
    recorded([&] {
        REQUIRE(prepare_move(in_use, plan.value()));
        REQUIRE(copy_metadata(in_use, plan.value()));
    });
    Superblock moved = plan.value().placed;
    moved.extension.write_seq += 1;
    append_block(to.superblock_offset, encoded(moved));
    append_block(copy_at, encoded(moved));

    Prng prng(3);
    std::size_t at_old = 0, at_new = 0;
    for_each_crash_of(
        record, start, prng, apply_step,
        [&](const Image& image, const Steps&) {
            disk.write(image);
            const Found found = find(disk, std::span(image).subspan(copy_at, superblock_bytes));
            const bool is_moved = found.superblock == moved;
            if (!is_moved) REQUIRE(found.superblock == old);
            (is_moved ? at_new : at_old) += 1;
            REQUIRE(found.log == before.log);
            REQUIRE(found.bitmap == before.bitmap);
        },
        40);
    CHECK(at_old > 50);
    CHECK(at_new > 50);
}

TEST_CASE("a disk that has grown by less than its metadata takes is left as it is") {
    GrownDisk disk;
    Found before;
    const Superblock old = make_old(disk, before);
    const auto layout = check_layout(MetadataPlace::internal, old_bytes, 0, old);
    REQUIRE(layout);
    disk.resize(old_bytes + 8192);
    const auto plan = plan_growth(attached(disk, old, layout.value()));
    REQUIRE_FALSE(plan);
    CHECK(plan.error().code == Errc::no_space);
    CHECK(find(disk, encoded(old)).log == before.log);
    disk.resize(old_bytes - 4096);
    CHECK_FALSE(plan_growth(attached(disk, old, layout.value())));
}

// What is done by then is put on record as zeroed.
TEST_CASE("a zeroing that is interrupted has flushed what it did") {
    GrownDisk disk;
    Found before;
    const Superblock old = make_old(disk, before);
    const auto layout = check_layout(MetadataPlace::internal, old_bytes, 0, old);
    REQUIRE(layout);
    disk.resize(100U << 20);
    const AttachedDisk in_use = attached(disk, old, layout.value());
    std::uint64_t done = 0;
    recorded([&] {
        const Status ended = zero_room(in_use, old_bytes, 100U << 20, [&](std::uint64_t so_far) {
            done = so_far;
            return so_far == 0;
        });
        REQUIRE_FALSE(ended);
        CHECK(ended.error().code == Errc::cancelled);
    });
    CHECK(done > 0);
    CHECK(record.back().flush);
}
