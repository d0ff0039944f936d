// SPDX-License-Identifier: Apache-2.0
// Metadata on real files: created, read, applied, wiped; and what must be refused.
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "engine/format/activity_log.hpp"
#include "engine/io/metadata_file.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

constexpr std::uint64_t mib = 1 << 20;

// A folder that goes away with everything in it.
struct Folder {
    Folder() { REQUIRE(mkdtemp(path.data()) != nullptr); }
    ~Folder() { std::system(("rm -r " + path).c_str()); }
    std::string file(const std::string& name, std::uint64_t bytes) const {
        std::ofstream(path + "/" + name).close();
        REQUIRE(truncate((path + "/" + name).c_str(), static_cast<off_t>(bytes)) == 0);
        return path + "/" + name;
    }
    std::string path = "/tmp/metadata_file_test.XXXXXX";
};

void poke(const std::string& path, std::uint64_t offset, const std::string& bytes) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(offset));
    file << bytes;
    REQUIRE(file.good());
}

Superblock initial(std::uint32_t max_peers = 2) {
    Superblock superblock;
    superblock.max_peers = max_peers;
    superblock.node_id = 1;
    superblock.device_uuid = 0x77;
    superblock.extension.present = true;
    superblock.extension.write_seq = 1;
    return superblock;
}

template <class T>
void check_refused(const Result<T>& result, Errc code, const std::string& part) {
    REQUIRE_FALSE(result);
    INFO(result.error().message);
    CHECK(result.error().code == code);
    CHECK(result.error().message.find(part) != std::string::npos);
}

// As if the node had crashed while it wrote to these extents.
void crash_as_primary(const MetadataTarget& target, std::vector<std::uint32_t> extents) {
    auto file = MetadataFile::open(target, DiskAccess::exclusive);
    REQUIRE(file);
    auto image = read_metadata(file.value());
    REQUIRE(image);
    AlTransaction transaction;
    transaction.slots = 67;
    for (const std::uint32_t extent : extents) {
        const auto slot = transaction.update_count++;
        transaction.updates[slot] = {slot, extent};
    }
    std::array<std::byte, al_block_bytes> block;
    encode_al_transaction(transaction, block);
    REQUIRE(file.value().device().write(image.value().layout.al_offset, block));
    Superblock& superblock = image.value().superblock;
    superblock.flags = md_flag::consistent | md_flag::primary_ind;
    superblock.effective_size_sectors = image.value().layout.data_bytes_max / sector_bytes;
    ++superblock.extension.write_seq;
    MetadataFile::Block bytes;
    encode_superblock(superblock, bytes);
    REQUIRE(file.value().write_superblock(bytes));
}

}  // namespace

TEST_CASE("metadata that was created is read back, internal and external") {
    const Folder folder;
    MetadataTarget target{folder.file("disk", 64 * mib + 512), {}};
    if (GENERATE(false, true)) target.metadata = folder.file("metadata", mib);
    const auto created = create_metadata(target, initial(), false);
    REQUIRE(created);
    const auto read = read_metadata(target);
    REQUIRE(read);
    CHECK(read.value().superblock == created.value().superblock);
    CHECK(read.value().activity_log == created.value().activity_log);
    const auto file = MetadataFile::open(target, DiskAccess::shared_read);
    REQUIRE(file);
    const auto counts = count_bitmap(file.value(), read.value());
    REQUIRE(counts);
    CHECK(counts.value().slots == std::vector<std::uint64_t>{0, 0});
}

TEST_CASE("metadata takes its space from the file system at once") {
    const Folder folder;
    const MetadataTarget target{folder.file("disk", 512 * mib), {}};
    const auto created = create_metadata(target, initial(31), false);
    REQUIRE(created);
    struct stat st {};
    REQUIRE(stat(target.disk.c_str(), &st) == 0);
    const auto allocated = static_cast<std::uint64_t>(st.st_blocks) * 512;
    CHECK(allocated >= created.value().layout.bitmap_bytes + created.value().layout.al_bytes);
    CHECK(allocated < 8 * mib);
}

TEST_CASE("what a disk holds is found out before it is overwritten") {
    const Folder folder;
    const MetadataTarget target{folder.file("disk", 16 * mib), {}};
    CHECK(probe_signature(target.disk).value().empty());
    poke(target.disk, 1000, "x");
    check_refused(create_metadata(target, initial(), false), Errc::exists, "unknown kind");
    poke(target.disk, 1000, std::string(1, '\0'));
    poke(target.disk, 16 * mib - 1, "x");
    check_refused(create_metadata(target, initial(), false), Errc::exists, "last 64 KiB");
    REQUIRE(create_metadata(target, initial(), true));
    check_refused(create_metadata(target, initial(), false), Errc::exists, "Replica metadata");

    const MetadataTarget external{target.disk, folder.file("metadata", mib)};
    check_refused(create_metadata(external, initial(), false), Errc::exists, "Replica metadata");
    REQUIRE(create_metadata(external, initial(), true));
    const MetadataTarget other{folder.file("blank", 16 * mib), external.metadata};
    check_refused(create_metadata(other, initial(), false), Errc::exists, "Replica metadata");
}

TEST_CASE("a volume that does not fit is refused before anything is written") {
    const Folder folder;
    const MetadataTarget target{folder.file("disk", 16 * mib), {}};
    Superblock superblock = initial();
    superblock.effective_size_sectors = 16 * mib / sector_bytes;
    check_refused(create_metadata(target, superblock, true), Errc::no_space, "does not fit");
    check_refused(create_metadata({folder.file("small", 4096), {}}, initial(), true),
                  Errc::no_space, "no room");
    check_refused(create_metadata({folder.file("empty", 0), {}}, initial(), false), Errc::no_space,
                  "no room");
    CHECK(probe_signature(target.disk).value().empty());
}

TEST_CASE("paths that can not be a disk are refused by name") {
    const Folder folder;
    const auto open = [](const std::string& path) {
        return DiskFile::open(path, DiskAccess::exclusive);
    };
    check_refused(open(folder.path + "/missing"), Errc::not_found, "missing");
    check_refused(open(folder.path), Errc::invalid, "neither");
    REQUIRE(mkfifo((folder.path + "/fifo").c_str(), 0600) == 0);
    check_refused(open(folder.path + "/fifo"), Errc::invalid, "neither");
    const std::string disk = folder.file("disk", mib);
    REQUIRE(link(disk.c_str(), (folder.path + "/hard").c_str()) == 0);
    check_refused(MetadataFile::open({disk, folder.path + "/hard"}, DiskAccess::exclusive),
                  Errc::invalid, "for data and for metadata");
}

TEST_CASE("a disk in use is busy for whoever would write, not for whoever looks") {
    const Folder folder;
    const MetadataTarget target{folder.file("disk", 16 * mib), {}};
    REQUIRE(create_metadata(target, initial(), false));
    const auto user = DiskFile::open(target.disk, DiskAccess::exclusive);
    REQUIRE(user);
    check_refused(create_metadata(target, initial(), true), Errc::busy, "in use");
    check_refused(MetadataFile::open(target, DiskAccess::exclusive), Errc::busy, "in use");
    CHECK(read_metadata(target));
}

TEST_CASE("applying the log marks hot extents once and counts the superblock on") {
    const Folder folder;
    const MetadataTarget target{folder.file("disk", 64 * mib), {}};
    REQUIRE(create_metadata(target, initial(), false));
    crash_as_primary(target, {0, 3, 15, 1000});
    const std::string copy = folder.path + "/copy";
    {
        auto file = MetadataFile::open(target, DiskAccess::exclusive);
        REQUIRE(file);
        auto image = read_metadata(file.value());
        REQUIRE(image);
        const auto applied = apply_activity_log(file.value(), image.value(), 1, copy);
        REQUIRE(applied);
        CHECK(applied.value().was_primary);
        CHECK(applied.value().extents_hot == 4);
        CHECK(applied.value().extents_beyond == 1);
        const std::uint64_t bits = image.value().superblock.effective_size_sectors / 8;
        CHECK(applied.value().bits_marked == 2 * (1024 + 1024 + bits - 15 * 1024));
        const auto counts = count_bitmap(file.value(), image.value());
        REQUIRE(counts);
        CHECK(counts.value().beyond == 0);
        CHECK(2 * counts.value().slots[0] == applied.value().bits_marked);
        CHECK(counts.value().slots[0] == counts.value().slots[1]);
    }
    auto file = MetadataFile::open(target, DiskAccess::exclusive);
    REQUIRE(file);
    const auto bytes = read_superblock_copy(copy);
    REQUIRE(bytes);
    auto image = read_metadata(file.value(), bytes.value());
    REQUIRE(image);
    CHECK(image.value().superblock.extension.write_seq == 3);
    CHECK((image.value().superblock.flags & md_flag::al_clean) != 0);
    CHECK((image.value().superblock.flags & md_flag::primary_ind) != 0);
    const auto again = apply_activity_log(file.value(), image.value(), 1, copy);
    REQUIRE(again);
    CHECK(again.value().bits_marked == 0);
}

TEST_CASE("an unusable log of a primary is refused and nothing is changed") {
    const Folder folder;
    const MetadataTarget target{folder.file("disk", 64 * mib), {}};
    REQUIRE(create_metadata(target, initial(), false));
    crash_as_primary(target, {1});
    auto file = MetadataFile::open(target, DiskAccess::exclusive);
    REQUIRE(file);
    auto image = read_metadata(file.value());
    REQUIRE(image);
    const auto layout = image.value().layout;
    REQUIRE(file.value().device().zero(layout.al_offset, layout.al_bytes));
    image = read_metadata(file.value());
    REQUIRE(image);
    const auto before = file.value().read_superblock();
    check_refused(apply_activity_log(file.value(), image.value(), 1, {}), Errc::corrupt, "none of");
    CHECK(file.value().read_superblock().value() == before.value());
}

TEST_CASE("wiping takes metadata only, and leaves a blank disk") {
    const Folder folder;
    const MetadataTarget target{folder.file("disk", 16 * mib), {}};
    {
        auto file = MetadataFile::open(target, DiskAccess::exclusive);
        REQUIRE(file);
        check_refused(wipe_metadata(file.value()), Errc::not_found, "nothing was changed");
    }
    REQUIRE(create_metadata(target, initial(), false));
    {
        auto file = MetadataFile::open(target, DiskAccess::exclusive);
        REQUIRE(file);
        REQUIRE(wipe_metadata(file.value()));
    }
    CHECK(probe_signature(target.disk).value().empty());
    check_refused(read_metadata(target), Errc::corrupt, "no DRBD v09 superblock");
}

TEST_CASE("the superblock's copy is replaced as a whole") {
    const Folder folder;
    const std::string path = folder.path + "/copy";
    CHECK(read_superblock_copy(path).value().empty());
    MetadataFile::Block block;
    for (const char fill : {'a', 'b'}) {
        block.fill(static_cast<std::byte>(fill));
        REQUIRE(write_superblock_copy(path, block));
        const auto read = read_superblock_copy(path);
        REQUIRE(read);
        CHECK(std::equal(read.value().begin(), read.value().end(), block.begin(), block.end()));
    }
    REQUIRE(truncate(path.c_str(), 100) == 0);
    CHECK(read_superblock_copy(path).value().empty());
    check_refused(write_superblock_copy(folder.path + "/no/copy", block), Errc::io, "failed");
}
