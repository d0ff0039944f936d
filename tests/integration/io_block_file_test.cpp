// SPDX-License-Identifier: Apache-2.0
// Backing disks on the real kernel: files, loop devices and small file systems. What needs root is
// skipped loudly without it.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "engine/io/block_file.hpp"
#include "tests/catch.hpp"
#include "tests/integration/io_support.hpp"
#include "tests/integration/loop_device.hpp"

using namespace replica;
using namespace replica::test;

namespace {

struct Fixture {
    std::unique_ptr<Reactor> reactor;
    TempDir directory;

    Fixture() {
        ReactorOptions options;
        options.arena_bytes = 8U << 20;
        auto made = Reactor::create(options);
        if (!made) FAIL(made.error().message);
        reactor = std::move(made).value();
    }
    std::string make_file(const std::string& name, off_t bytes) {
        const std::string path = directory / name;
        const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        REQUIRE(fd >= 0);
        REQUIRE(ftruncate(fd, bytes) == 0);
        close(fd);
        return path;
    }
    std::unique_ptr<BlockFile> open_disk(const std::string& path, BlockFileOptions options = {}) {
        auto opened = BlockFile::open(*reactor, path, options);
        if (!opened) FAIL(opened.error().message);
        return std::move(opened).value();
    }
    Error refusal(const std::string& path, BlockFileOptions options = {}) {
        auto opened = BlockFile::open(*reactor, path, options);
        if (opened) FAIL("opened " + path);
        INFO(opened.error().message);
        CHECK(opened.error().message.find(path) != std::string::npos);
        return opened.error();
    }
    // Runs one request to its end; returns its error.
    int run(const std::function<void(DiskOp&)>& start) {
        struct Context {
            Reactor& reactor;
            int error = -1;
        } context{*reactor};
        DiskOp request;
        request.context = &context;
        request.done = [](DiskOp& done, int error) {
            auto* c = static_cast<Context*>(done.context);
            CHECK_FALSE(done.in_flight());
            c->error = error;
            c->reactor.stop();
        };
        reactor->post([&] {
            start(request);
            CHECK(request.in_flight());
        });
        reactor->run();
        return context.error;
    }
    bool reads_as(BlockFile& file, std::uint64_t offset, std::span<const std::byte> expected) {
        auto into = buffer(expected.size());
        CHECK(run([&](DiskOp& r) { file.read(r, into, offset); }) == 0);
        return std::memcmp(into.data(), expected.data(), expected.size()) == 0;
    }
    std::span<std::byte> buffer(std::size_t bytes) {
        // Page-aligned; the tests do not use up the arena.
        if (scratch_.size() < bytes)
            scratch_ = reactor->carve(std::max<std::size_t>(bytes, 1U << 20));
        REQUIRE(scratch_.size() >= bytes);
        return scratch_.first(bytes);
    }

  private:
    std::span<std::byte> scratch_;
};

class Mounted {
  public:
    Mounted(const std::string& source, const std::string& target, const std::string& options)
        : target_(target) {
        mkdir(target.c_str(), 0700);
        output_of("mount " + options + " " + source + " " + target);
    }
    Mounted(const Mounted&) = delete;
    Mounted& operator=(const Mounted&) = delete;
    ~Mounted() { umount2(target_.c_str(), MNT_DETACH); }

  private:
    std::string target_;
};

std::vector<std::byte> zero_bytes(std::size_t bytes) { return std::vector<std::byte>(bytes); }

// write, zero in the middle, flush, look: for whatever disk it is.
void check_round_trip(Fixture& f, BlockFile& file, bool unmap) {
    const std::size_t block = std::max<std::size_t>(file.logical_block_bytes(), 4096);
    auto data = f.reactor->carve(64 * block);
    REQUIRE(!data.empty());
    fill_pattern(data, 42);
    REQUIRE(f.run([&](DiskOp& r) { file.write(r, data, 16 * block, true); }) == 0);
    CHECK(f.reads_as(file, 16 * block, data));
    REQUIRE(f.run([&](DiskOp& r) { file.zero(r, 20 * block, 7 * block, unmap); }) == 0);
    REQUIRE(f.run([&](DiskOp& r) { file.flush(r); }) == 0);
    CHECK(f.reads_as(file, 16 * block, data.first(4 * block)));
    CHECK(f.reads_as(file, 20 * block, zero_bytes(7 * block)));
    CHECK(f.reads_as(file, 27 * block, data.subspan(11 * block, 53 * block)));
    CHECK(file.in_flight() == 0);
}

}  // namespace

TEST_CASE("a file is written, read, flushed and zeroed") {
    Fixture f;
    const auto path = f.make_file("disk", 8 << 20);
    for (const bool direct : {true, false}) {
        BlockFileOptions options;
        options.direct = direct;
        auto file = f.open_disk(path, options);
        CHECK(file->size_bytes() == 8U << 20);
        CHECK_FALSE(file->is_block_device());
        CHECK((file->logical_block_bytes() == 512 || file->logical_block_bytes() == 4096));
        CHECK(file->warning().empty());
        check_round_trip(f, *file, true);
        check_round_trip(f, *file, false);
    }
}

TEST_CASE("a punched hole shows as a hole, data as data") {
    Fixture f;
    auto file = f.open_disk(f.make_file("disk", 1 << 20));
    bool hole = false;
    CHECK(file->extent_status(0, 1U << 20, hole) == 1U << 20);
    CHECK(hole);
    auto data = f.reactor->carve(65536);
    fill_pattern(data, 3);
    REQUIRE(f.run([&](DiskOp& r) { file->write(r, data, 131072, false); }) == 0);
    CHECK(file->extent_status(0, 1U << 20, hole) == 131072);
    CHECK(hole);
    CHECK(file->extent_status(131072, 1U << 20, hole) == 65536);
    CHECK_FALSE(hole);
    CHECK(file->extent_status(131072 + 4096, 8192, hole) == 8192);
    CHECK_FALSE(hole);
    REQUIRE(f.run([&](DiskOp& r) { file->zero(r, 131072, 65536, true); }) == 0);
    CHECK(file->extent_status(0, 1U << 20, hole) == 1U << 20);
    CHECK(hole);
    CHECK(file->extent_status(4096, 0, hole) == 0);
}

TEST_CASE("a read beyond the end of a file is an error, and no data") {
    Fixture f;
    auto file = f.open_disk(f.make_file("disk", 8192));
    auto into = f.buffer(8192);
    CHECK(f.run([&](DiskOp& r) { file->read(r, into, 4096); }) == EIO);
    CHECK(f.run([&](DiskOp& r) { file->read(r, into, 1U << 30); }) == EIO);
    CHECK(f.run([&](DiskOp& r) { file->read(r, into.first(4096), 4096); }) == 0);
}

TEST_CASE("what can not be a disk is refused with a reason") {
    Fixture f;
    CHECK(f.refusal(f.directory / "missing").code == Errc::not_found);
    CHECK(f.refusal(f.directory.path()).code == Errc::invalid);
    CHECK(f.refusal("/dev/null").code == Errc::invalid);
    const auto fifo = f.directory / "fifo";
    REQUIRE(mkfifo(fifo.c_str(), 0600) == 0);
    CHECK(f.refusal(fifo).code == Errc::invalid);
    CHECK(f.refusal((f.directory / "missing") + "/disk").code == Errc::not_found);
}

TEST_CASE("a file that this user may not write is refused, but opens to read") {
    Fixture f;
    const auto path = f.make_file("disk", 8192);
    REQUIRE(chmod(path.c_str(), 0444) == 0);
    REQUIRE(chmod(f.directory.path().c_str(), 0755) == 0);
    // Root passes every check of rights, so ask as another user.
    const bool root = geteuid() == 0;
    if (root) REQUIRE(seteuid(65534) == 0);
    CHECK(f.refusal(path).code == Errc::permission);
    BlockFileOptions options;
    options.read_only = true;
    auto file = f.open_disk(path, options);
    if (root) REQUIRE(seteuid(0) == 0);
    CHECK(file->read_only());
    CHECK(f.reads_as(*file, 0, zero_bytes(4096)));
}

TEST_CASE("a disk file that is in use is refused, and the user is named") {
    Fixture f;
    const auto path = f.make_file("disk", 8192);
    {
        auto first = f.open_disk(path);
        const Error error = f.refusal(path);
        CHECK(error.code == Errc::busy);
        CHECK(error.message.find("process " + std::to_string(getpid())) != std::string::npos);
        BlockFileOptions shared;
        shared.exclusive = false;
        f.open_disk(path, shared);
    }
    f.open_disk(path);  // the lock went with the descriptor

    // As QEMU does it: shared open-file-description locks on single bytes.
    const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
    struct flock range {};
    range.l_type = F_RDLCK;
    range.l_start = 100;
    range.l_len = 1;
    REQUIRE(fcntl(fd, F_OFD_SETLK, &range) == 0);
    CHECK(f.refusal(path).code == Errc::busy);
    close(fd);
    f.open_disk(path);
}

TEST_CASE("requests of many sizes in flight at once all arrive") {
    Fixture f;
    auto file = f.open_disk(f.make_file("disk", 64 << 20));
    struct Item {
        DiskOp request;
        std::span<std::byte> data;
        int error = -1;
        struct Shared* shared = nullptr;
    };
    struct Shared {
        Reactor& reactor;
        int left;
    } shared{*f.reactor, 0};
    constexpr int count = 200;
    std::vector<std::unique_ptr<Item>> items;
    auto arena = f.reactor->carve(4U << 20);
    for (int i = 0; i < count; ++i) {
        auto item = std::make_unique<Item>();
        const auto at = static_cast<std::size_t>(i) * 16384;
        item->data = arena.subspan(at, 4096U * (1 + static_cast<unsigned>(i) % 4));
        fill_pattern(item->data, static_cast<std::uint64_t>(i));
        item->shared = &shared;
        item->request.context = item.get();
        item->request.done = [](DiskOp& request, int error) {
            auto* self = static_cast<Item*>(request.context);
            self->error = error;
            if (--self->shared->left == 0) self->shared->reactor.stop();
        };
        items.push_back(std::move(item));
    }
    shared.left = count;
    f.reactor->post([&] {
        for (std::size_t i = 0; i < items.size(); ++i) {
            file->write(items[i]->request, items[i]->data, i * 65536, i % 10 == 0);
        }
        CHECK(file->in_flight() == count);
    });
    f.reactor->run();
    for (std::size_t i = 0; i < items.size(); ++i) {
        CHECK(items[i]->error == 0);
        CHECK(f.reads_as(*file, i * 65536, items[i]->data));
    }
}

TEST_CASE("block devices: size, blocks, exclusive, read-only, holes") {
    if (!loop_devices_work("block devices")) return;
    Fixture f;
    const auto backing = f.make_file("backing", 16 << 20);
    {
        LoopDevice loop(backing, "--direct-io=on");
        auto file = f.open_disk(loop.path());
        CHECK(file->is_block_device());
        CHECK(file->size_bytes() == 16U << 20);
        CHECK(file->logical_block_bytes() == 512);
        check_round_trip(f, *file, true);
        check_round_trip(f, *file, false);
        bool hole = true;
        CHECK(file->extent_status(0, 4096, hole) == 4096);
        CHECK_FALSE(hole);
        CHECK(f.refusal(loop.path()).code == Errc::busy);
        CHECK(f.refusal(backing).message.find(loop.path()) != std::string::npos);
    }
    {
        LoopDevice loop(backing, "--sector-size 4096");
        auto file = f.open_disk(loop.path());
        CHECK(file->logical_block_bytes() == 4096);
        check_round_trip(f, *file, true);
    }
    {
        LoopDevice loop(backing, "--read-only");
        CHECK(f.refusal(loop.path()).code == Errc::permission);
        BlockFileOptions options;
        options.read_only = true;
        f.open_disk(loop.path(), options);
    }
    {
        LoopDevice loop(backing, "");
        output_of("mkfs.ext4 -q " + loop.path());
        Mounted mounted(loop.path(), f.directory / "mnt", "");
        const Error error = f.refusal(loop.path());
        CHECK(error.code == Errc::busy);
        CHECK(error.message.find("mounted on " + (f.directory / "mnt")) != std::string::npos);
    }
}

TEST_CASE("a full disk under a sparse file is ENOSPC, and what was there stays") {
    if (!loop_devices_work("a small file system")) return;
    Fixture f;
    const auto image = f.make_file("image", 16 << 20);
    output_of("mkfs.ext4 -q -m 0 " + image);
    Mounted mounted(image, f.directory / "mnt", "-o loop");
    const auto path = (f.directory / "mnt") + "/disk";
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    REQUIRE(fd >= 0);
    REQUIRE(ftruncate(fd, 64 << 20) == 0);
    close(fd);
    auto file = f.open_disk(path);
    auto data = f.reactor->carve(1U << 20);
    fill_pattern(data, 9);
    int error = 0;
    std::uint64_t written = 0;
    while (error == 0 && written < 64U << 20) {
        error = f.run([&](DiskOp& r) { file->write(r, data, written, false); });
        if (error == 0) written += data.size();
    }
    CHECK(error == ENOSPC);
    CHECK(written > 0);
    CHECK(f.reads_as(*file, 0, data));
    // Zeroing takes no new space and gives some back.
    CHECK(f.run([&](DiskOp& r) { file->zero(r, 0, 1U << 20, true); }) == 0);
    CHECK(f.run([&](DiskOp& r) { file->write(r, data, 0, false); }) == 0);
}

TEST_CASE("a disk that knows neither holes nor zeroed ranges gets zeroes written") {
    if (!loop_devices_work("file systems without fallocate")) return;
    Fixture f;
    const auto image = f.make_file("image", 32 << 20);
    // An ext4 without extents knows holes and no zeroed ranges; on a device-mapper... none is
    // needed: a loop device over a read-write FUSE or ramfs backing knows neither.
    output_of("mkfs.ext4 -q -O ^extent,^64bit " + image);
    {
        Mounted mounted(image, f.directory / "mnt", "-o loop");
        const auto path = (f.directory / "mnt") + "/disk";
        output_of("truncate -s 8M " + path);
        auto file = f.open_disk(path);
        check_round_trip(f, *file, false);
        check_round_trip(f, *file, true);
    }
    Mounted ram("none", f.directory / "ram", "-t ramfs");
    const auto path = (f.directory / "ram") + "/disk";
    output_of("truncate -s 8M " + path);
    auto file = f.open_disk(path);
    check_round_trip(f, *file, true);
    check_round_trip(f, *file, true);  // what was refused is not tried again
    auto data = f.reactor->carve(1U << 20);
    fill_pattern(data, 5);
    REQUIRE(f.run([&](DiskOp& r) { file->write(r, data, 1U << 20, false); }) == 0);
    REQUIRE(f.run([&](DiskOp& r) { file->zero(r, 0, 4U << 20, true); }) ==
            0);  // longer than one write
    CHECK(f.reads_as(*file, 1U << 20, zero_bytes(1U << 20)));
}
