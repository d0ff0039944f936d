// SPDX-License-Identifier: Apache-2.0
// Every crash of create_metadata() and apply_activity_log(), from a record of their writes: the
// image must be old, new or visibly absent, and applying the log again must end where an
// undisturbed run ends.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "engine/base/prng.hpp"
#include "engine/format/activity_log.hpp"
#include "engine/io/metadata_file.hpp"
#include "tests/catch.hpp"
#include "tests/integration/write_recorder.hpp"

using namespace replica;
using namespace replica::test;

namespace {

constexpr std::uint64_t disk_bytes = 5U << 20;   // two extents, the second cut by the metadata
constexpr std::uint64_t tail_bytes = 64U << 10;  // holds all metadata

using Tail = std::vector<std::byte>;

// The disk, of which only the metadata at its end is ever written.
class Disk {
  public:
    Disk() {
        fd_ = mkstemp(path_.data());
        REQUIRE(fd_ >= 0);
        REQUIRE(ftruncate(fd_, disk_bytes) == 0);
    }
    ~Disk() {
        close(fd_);
        unlink(path_.c_str());
    }
    MetadataTarget target() const { return {path_, {}}; }
    Tail tail() const {
        Tail bytes(tail_bytes);
        REQUIRE(pread(fd_, bytes.data(), tail_bytes, disk_bytes - tail_bytes) == tail_bytes);
        return bytes;
    }
    void put(const Tail& bytes) {
        REQUIRE(pwrite(fd_, bytes.data(), tail_bytes, disk_bytes - tail_bytes) == tail_bytes);
    }

  private:
    std::string path_ = "/tmp/metadata_crash_test.XXXXXX";
    int fd_ = -1;
};

void apply_step(Tail& tail, const Step& step) {
    if (step.flush) return;
    REQUIRE(step.offset >= disk_bytes - tail_bytes);
    std::copy(step.bytes.begin(), step.bytes.end(),
              tail.begin() + static_cast<std::ptrdiff_t>(step.offset - disk_bytes + tail_bytes));
}

// Calls check(image, superblock_touched) for the crash images of the record.
template <class Check>
void for_each_crash(const Tail& before, Prng& prng, Check&& check) {
    for_each_crash_of(
        record, before, prng, apply_step, [&](const Tail& image, const Steps& landed) {
            const bool touched = std::any_of(landed.begin(), landed.end(), [](const Step* step) {
                return step->offset >= disk_bytes - superblock_bytes;
            });
            check(image, touched);
        });
}

Superblock initial() {
    Superblock superblock;
    superblock.max_peers = 3;
    superblock.node_id = 1;
    superblock.device_uuid = 0x4242;
    superblock.extension.present = true;
    superblock.extension.write_seq = 1;
    return superblock;
}

void write_state(Disk& disk, const Superblock& superblock, const AlTransaction& transaction) {
    auto file = MetadataFile::open(disk.target(), DiskAccess::exclusive);
    REQUIRE(file);
    std::array<std::byte, al_block_bytes> block;
    encode_al_transaction(transaction, block);
    auto image = read_metadata(file.value());
    REQUIRE(image);
    REQUIRE(file.value().device().write(image.value().layout.al_offset, block));
    MetadataFile::Block bytes;
    encode_superblock(superblock, bytes);
    REQUIRE(file.value().write_superblock(bytes));
}

AlTransaction two_hot_extents() {
    AlTransaction transaction;
    transaction.slots = 67;
    transaction.update_count = 2;
    transaction.updates[0] = {0, 0};
    transaction.updates[1] = {1, 1};
    return transaction;
}

struct Applied {
    Superblock superblock;
    Tail tail;
};

Applied apply_log(Disk& disk, std::span<const std::byte> copy) {
    auto file = MetadataFile::open(disk.target(), DiskAccess::exclusive);
    REQUIRE(file);
    auto image = read_metadata(file.value(), copy);
    REQUIRE(image);
    REQUIRE(apply_activity_log(file.value(), image.value(), 1, {}));
    return {image.value().superblock, disk.tail()};
}

}  // namespace

TEST_CASE("a crash during creation leaves no metadata, or all of it") {
    const bool over_old = GENERATE(false, true);
    Disk disk;
    if (over_old) {
        Superblock old = initial();
        old.device_uuid = 0x1111;
        const auto created = create_metadata(disk.target(), old, true);
        REQUIRE(created);
        write_state(disk, created.value().superblock, two_hot_extents());  // something to lose
    }
    const Tail before = disk.tail();
    recorded([&] { REQUIRE(create_metadata(disk.target(), initial(), true)); });
    const Tail after = disk.tail();
    Prng prng(1);
    std::set<Errc> verdicts;
    for_each_crash(before, prng, [&](const Tail& image, bool) {
        disk.put(image);
        const auto found = read_metadata(disk.target());
        verdicts.insert(found ? Errc::ok : found.error().code);
        if (!found) {
            REQUIRE(found.error().code == Errc::corrupt);
        } else if (found.value().superblock.device_uuid == 0x4242) {
            REQUIRE(image == after);
        } else {
            REQUIRE(image == before);  // not yet begun
        }
    });
    CHECK(verdicts == std::set<Errc>{Errc::ok, Errc::corrupt});
}

TEST_CASE("a crash while the log is applied loses no extent") {
    Disk disk;
    REQUIRE(create_metadata(disk.target(), initial(), true));
    Superblock crashed = read_metadata(disk.target()).value().superblock;
    crashed.flags = md_flag::consistent | md_flag::primary_ind;
    crashed.effective_size_sectors =
        read_metadata(disk.target()).value().layout.data_bytes_max / 512;
    crashed.extension.write_seq = 2;
    write_state(disk, crashed, two_hot_extents());
    const Tail before = disk.tail();

    Applied reference;
    recorded([&] { reference = apply_log(disk, {}); });
    MetadataFile::Block old_copy;
    MetadataFile::Block new_copy;
    encode_superblock(crashed, old_copy);
    encode_superblock(reference.superblock, new_copy);

    Prng prng(2);
    for_each_crash(before, prng, [&](const Tail& image, bool superblock_touched) {
        disk.put(image);
        // The copy is written before the disk's superblock and after everything else.
        const Applied again = apply_log(disk, superblock_touched ? new_copy : old_copy);
        REQUIRE(again.superblock.flags == reference.superblock.flags);
        const std::size_t superblock_at = tail_bytes - superblock_bytes;
        REQUIRE(std::equal(again.tail.begin(), again.tail.begin() + superblock_at,
                           reference.tail.begin()));
    });
}
