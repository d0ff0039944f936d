// SPDX-License-Identifier: Apache-2.0
// The wrapper of device-mapper against the kernel of a guest (mapper_test.sh): two disks, /dev/vda
// and /dev/vdb, that nobody else uses. The test [absent] is for a machine without it.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "engine/mapper/mapper.hpp"
#include "tests/catch.hpp"

namespace replica {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;
constexpr std::uint64_t sectors = 16'384, block = 4096;
const MapKey key = MapKey::of_uuid("REPLICA-TEST-one");
const std::string path = "/dev/mapper/replica-test";

dev_t device_of(const std::string& at) {
    struct stat found {};
    REQUIRE(::stat(at.c_str(), &found) == 0);
    REQUIRE(S_ISBLK(found.st_mode));
    return found.st_rdev;
}

std::string number_of(dev_t device) {
    return std::to_string(major(device)) + ":" + std::to_string(minor(device));
}

MapTable over(const std::string& disk, std::uint64_t first = 0) {
    return {{sectors, "linear", map_parameters(device_of(disk), first)}};
}

std::unique_ptr<Mapper> open_mapper() {
    auto mapper = Mapper::open(
        [](int level, const std::string& line) { UNSCOPED_INFO(level << " " << line); });
    if (!mapper) FAIL(mapper.error().message);
    return std::move(mapper).value();
}

void check(const Status& status) {
    if (!status) FAIL(status.error().message);
}

char first_byte(const std::string& at) {
    const int fd = ::open(at.c_str(), O_RDONLY | O_DIRECT);
    REQUIRE(fd >= 0);
    void* memory = nullptr;
    REQUIRE(::posix_memalign(&memory, block, block) == 0);
    REQUIRE(::pread(fd, memory, block, 0) == static_cast<ssize_t>(block));
    const char value = *static_cast<char*>(memory);
    ::free(memory);
    ::close(fd);
    return value;
}

// A block of `value` at the beginning, from this thread or another.
bool write_first(const std::string& at, char value) {
    const int fd = ::open(at.c_str(), O_WRONLY | O_DIRECT);
    if (fd < 0) return false;
    void* memory = nullptr;
    if (::posix_memalign(&memory, block, block) != 0) return false;
    std::fill_n(static_cast<char*>(memory), block, value);
    const bool good = ::pwrite(fd, memory, block, 0) == static_cast<ssize_t>(block);
    ::free(memory);
    ::close(fd);
    return good;
}

struct Mapped {
    std::unique_ptr<Mapper> mapper = open_mapper();
    explicit Mapped(const MapTable& table) {
        const auto made = mapper->create("replica-test", key.uuid, table);
        if (!made) FAIL(made.error().message);
    }
    ~Mapped() {
        static_cast<void>(mapper->resume(key));
        static_cast<void>(mapper->remove(key));
    }
};

TEST_CASE("Without device-mapper the reason is said", "[absent]") {
    const auto mapper = Mapper::open(nullptr);
    REQUIRE_FALSE(mapper);
    CHECK(mapper.error().code == Errc::unsupported);
    CHECK(mapper.error().message.find("no device-mapper here: ") == 0);
}

TEST_CASE("A device is made, described, found and removed", "[guest]") {
    const auto mapper = open_mapper();
    auto none = mapper->info(key);
    REQUIRE(none);
    CHECK_FALSE(none.value());
    CHECK(mapper->list("REPLICA-TEST-").value().empty());
    CHECK(mapper->suspend(key).error().code == Errc::not_found);
    CHECK(mapper->resume(key).error().code == Errc::not_found);
    CHECK(mapper->remove(key).error().code == Errc::not_found);

    const MapTable table = {
        {sectors / 2, "linear", map_parameters(device_of("/dev/vda"), 2048)},
        {sectors / 2, "linear", map_parameters(device_of("/dev/vdb"), 0)},
    };
    const auto made = mapper->create("replica-test", key.uuid, table);
    REQUIRE(made);
    CHECK(made.value().name == "replica-test");
    CHECK(made.value().uuid == key.uuid);
    CHECK(made.value().live);
    CHECK_FALSE(made.value().suspended);
    CHECK_FALSE(made.value().loaded);
    CHECK(made.value().device == device_of(path));
    CHECK(mapper->table(key).value() == table);
    CHECK(mapper->dependencies(key).value().size() == 2);
    for (const MapKey& other :
         {MapKey::of_name("replica-test"), MapKey::of_device(made.value().device)}) {
        const auto info = mapper->info(other);
        REQUIRE(info);
        REQUIRE(info.value());
        CHECK(info.value()->uuid == key.uuid);
    }
    const auto listed = mapper->list("REPLICA-TEST-");
    REQUIRE(listed.value().size() == 1);
    CHECK(listed.value().front().name == "replica-test");

    CHECK(mapper->create("replica-test", "REPLICA-TEST-two", table).error().code == Errc::exists);
    CHECK(mapper->create("replica-other", key.uuid, table).error().code == Errc::exists);
    const auto bad = mapper->load(key, {{sectors, "linear", "nonsense"}});
    REQUIRE_FALSE(bad);
    CHECK(bad.error().code == Errc::invalid);
    INFO(bad.error().message);
    CHECK(bad.error().message.find("replica-test") == std::string::npos);
    CHECK(bad.error().message.find(key.uuid) != std::string::npos);

    REQUIRE(write_first(path, 'm'));
    const int fd = ::open(path.c_str(), O_RDONLY);
    REQUIRE(fd >= 0);
    const auto busy = mapper->remove(key);
    CHECK(busy.error().code == Errc::busy);
    CHECK(mapper->info(key).value()->open_count == 1);
    ::close(fd);
    check(mapper->remove(key));
    CHECK(::access(path.c_str(), F_OK) != 0);
}

TEST_CASE("What lies below is swapped under a user, whose I/O waits", "[guest]") {
    REQUIRE(write_first("/dev/vda", '0'));
    REQUIRE(write_first("/dev/vdb", '0'));
    Mapped mapped(over("/dev/vda"));
    const int user = ::open(path.c_str(), O_RDWR);
    REQUIRE(user >= 0);
    REQUIRE(write_first(path, '1'));
    check(mapped.mapper->load(key, over("/dev/vdb")));
    CHECK(mapped.mapper->info(key).value()->loaded);
    check(mapped.mapper->drop_loaded(key));
    CHECK_FALSE(mapped.mapper->info(key).value()->loaded);
    check(mapped.mapper->load(key, over("/dev/vdb")));
    REQUIRE(write_first(path, '2'));

    check(mapped.mapper->suspend(key));
    CHECK(mapped.mapper->info(key).value()->suspended);
    check(mapped.mapper->suspend(key));
    std::atomic<int> written{-1};
    std::thread waits([&] { written = write_first(path, '3') ? 1 : 0; });
    std::this_thread::sleep_for(milliseconds(300));
    CHECK(written == -1);
    check(mapped.mapper->resume(key));
    waits.join();
    CHECK(written == 1);
    CHECK(first_byte("/dev/vda") == '2');
    CHECK(first_byte("/dev/vdb") == '3');
    CHECK(mapped.mapper->table(key).value() == over("/dev/vdb"));
    ::close(user);
}

bool waits_in(dev_t device) {  // something that was asked of it is not answered yet
    const std::string at = "/sys/dev/block/" + number_of(device) + "/inflight";
    std::FILE* const file = std::fopen(at.c_str(), "r");
    REQUIRE(file != nullptr);
    int reads = 0, writes = 0;
    const int found = std::fscanf(file, "%d %d", &reads, &writes);
    std::fclose(file);
    return found == 2 && reads + writes > 0;
}

TEST_CASE("A suspend that can not end is given up, and the device goes on", "[guest]") {
    REQUIRE(std::system("modprobe dm_delay") == 0);
    auto mapper = open_mapper();
    const MapKey slow_key = MapKey::of_uuid("REPLICA-TEST-slow");
    const auto slow = mapper->create("replica-slow", slow_key.uuid,
                                     {{sectors, "delay",
                                       map_parameters(device_of("/dev/vda"), 0) + " 0 " +
                                           map_parameters(device_of("/dev/vda"), 0) + " 100000"}});
    if (!slow) FAIL(slow.error().message);
    {
        Mapped mapped({{sectors, "linear", map_parameters(slow.value().device, 0)}});
        std::atomic<bool> good{false};
        std::thread writes([&] { good = write_first(path, 's'); });
        while (!waits_in(device_of(path)))
            std::this_thread::sleep_for(milliseconds(10));
        const Clock::time_point before = Clock::now();
        const auto given_up = mapped.mapper->suspend(key, {.limit = milliseconds(700)});
        const auto took = Clock::now() - before;
        CHECK_FALSE(given_up);
        if (!given_up) {
            INFO(given_up.error().message);
            CHECK(given_up.error().code == Errc::timeout);
        }
        CHECK(took < milliseconds(60000));
        CHECK_FALSE(mapped.mapper->info(key).value()->suspended);
        // What waits there is let go.
        check(mapper->suspend(slow_key));
        check(mapper->resume(slow_key));
        writes.join();
        CHECK(good);
        check(mapped.mapper->suspend(key));
    }
    check(mapper->remove(slow_key));
    CHECK(first_byte("/dev/vda") == 's');
}

TEST_CASE("Messages reach a thin pool, and its status is read", "[guest]") {
    const auto mapper = open_mapper();
    REQUIRE(write_first("/dev/vdb", 0));  // an empty superblock: a new pool
    const MapKey pool = MapKey::of_uuid("REPLICA-TEST-pool");
    const auto metadata = mapper->create("replica-pool-meta", "REPLICA-TEST-pool-meta",
                                         over("/dev/vdb"), {.hidden = true});
    if (!metadata) FAIL(metadata.error().message);
    const auto made = mapper->create(
        "replica-pool", pool.uuid,
        {{sectors, "thin-pool",
          number_of(metadata.value().device) + " " + number_of(device_of("/dev/vda")) + " 128 0"}},
        {.hidden = true});
    if (!made) FAIL(made.error().message);
    CHECK(mapper->message(pool, 0, "create_thin 7").value().empty());
    const auto again = mapper->message(pool, 0, "create_thin 7");
    REQUIRE_FALSE(again);
    CHECK(again.error().os_errno != 0);
    INFO(again.error().message);
    const auto said = mapper->status(pool);
    REQUIRE(said.value().size() == 1);
    CHECK(said.value().front().type == "thin-pool");
    CHECK(said.value().front().parameters.find(" rw ") != std::string::npos);
    check(mapper->remove(pool));
    check(mapper->remove(MapKey::of_uuid("REPLICA-TEST-pool-meta")));
    CHECK(mapper->list("REPLICA-TEST-").value().empty());
}

}  // namespace
}  // namespace replica
