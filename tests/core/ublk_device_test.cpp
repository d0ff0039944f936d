// SPDX-License-Identifier: Apache-2.0
// The life of a ublk device under a server that dies at any step, and under the next one, which may
// die, too: nothing of ours is left behind, nothing of others is touched, and a device with users
// goes on wherever the kernel lets it. On tests/core/ublk_fake.hpp; each server is a process.
#include <sys/stat.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>

#include "engine/frontend/ublk_device.hpp"
#include "tests/core/ublk_fake.hpp"

using namespace replica;

namespace {

constexpr std::uint64_t generation = 0xabcdef0123456780;

struct World {
    FakeKernel& kernel;
    std::string directory;

    World()
        : kernel(*new (::mmap(nullptr, sizeof(FakeKernel), PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0)) FakeKernel) {
        char name[] = "/tmp/ublk_test.XXXXXX";
        REQUIRE(::mkdtemp(name) != nullptr);
        directory = name;
        // Somebody else's, live.
        FakeDevice& foreign = kernel.devices[1];
        foreign.present = foreign.used = foreign.ready = true;
        foreign.info.dev_id = 1;
        foreign.info.server_flags = 0x5270'1234'5678'9abc;
        foreign.info.state = ublk::DeviceState::live;
        foreign.info.server_pid = -7;
    }
    ~World() {
        CHECK(kernel.devices[1].info.state == ublk::DeviceState::live);
        CHECK(kernel.devices[1].present);
        CHECK(std::system(("rm -r " + directory).c_str()) == 0);
        ::munmap(&kernel, sizeof(FakeKernel));
    }
    UblkDeviceOptions options() {
        UblkDeviceOptions options;
        options.state_dir = directory;
        options.resource = "r0";
        options.log = [](int, const std::string&) {};
        options.names = directory + "/names/by-res";
        options.nodes = std::make_shared<FakeNodes>(kernel);
        options.control = [this]() -> Result<std::unique_ptr<UblkControl>> {
            return std::unique_ptr<UblkControl>(new FakeControl(kernel));
        };
        options.patience = std::chrono::milliseconds(20);
        return options;
    }
    FakeDevice& ours() { return kernel.devices[0]; }
    DeviceRecordFile record() { return {directory, DeviceKind::ublk, "r0"}; }
    // A server that lives until `life` ends or it dies at a step. Returns the exit status.
    int serve(int die_at, const std::function<int()>& life) {
        kernel.die_at = die_at;
        kernel.steps = 0;
        const pid_t child = ::fork();
        if (child == 0) ::_exit(life());
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        REQUIRE(WIFEXITED(status));
        kernel.server_died();
        kernel.die_at = -1;
        return WEXITSTATUS(status);
    }
};

VolumeInfo volume() {
    VolumeInfo info;
    info.size_bytes = 64U << 20;
    info.logical_block_bytes = 512;
    info.writable = true;
    return info;
}

bool go_live(World& world, KernelDevice& device) {
    const auto channel = device.open_channel(volume());
    if (!channel) return false;
    world.kernel.fetch_all(0);
    return static_cast<bool>(device.start());
}

// Exports, and is then live.
int first_life(World& world) {
    auto device = UblkDevice::create(world.options(), volume(), generation);
    if (!device || !go_live(world, *device.value())) return 1;
    return world.ours().announced == 1 ? 0 : 2;
}

// Exports, serves and takes it down again.
int whole_life(World& world) {
    auto device = UblkDevice::create(world.options(), volume(), generation);
    if (!device || !go_live(world, *device.value())) return 1;
    if (!device.value()->note_generation(generation + 2)) return 2;
    if (!device.value()->stop(false) || !device.value()->remove()) return 3;
    return 0;
}

// Goes on with what it finds, or gives it up. 10: there was nothing; 11: given up; 0: adopted.
int next_life(World& world) {
    auto found = UblkDevice::find(world.options());
    if (!found) return 1;
    if (!found.value()) return 10;
    KernelDevice& device = *found.value();
    if (device.generation() == 0) return 2;
    for (int attempt = 0; attempt < 100; ++attempt) {
        const auto channel = device.open_channel(volume());
        if (channel) {
            world.kernel.fetch_all(0);
            return device.start() ? 0 : 3;
        }
        if (channel.error().code == Errc::corrupt) {
            return device.stop(true) && device.remove() ? 11 : 4;
        }
        if (channel.error().code != Errc::busy) return 5;
        ::usleep(1000);
    }
    return 6;
}

int last_life(World& world) {
    const int status = next_life(world);
    if (status != 0) return status;
    auto again = UblkDevice::find(world.options());  // a live one is found by its record, too
    if (!again || !again.value()) return 7;
    return again.value()->stop(true) && again.value()->remove() ? 0 : 8;
}

// Whoever has users is on record: else nobody could ever go on.
void check_on_record(World& world) {
    if (!world.ours().present) return;
    const auto record = world.record().load();
    REQUIRE(record);
    REQUIRE(record.value());
    CHECK(record.value()->token == world.ours().info.server_flags);
    CHECK(
        (record.value()->generation == generation || record.value()->generation == generation + 2));
}

void check_nothing_left(World& world) {
    CHECK_FALSE(world.ours().present);
    CHECK_FALSE(world.record().exists());
    struct stat at {};
    CHECK(::lstat((world.directory + "/names/by-res/r0").c_str(), &at) != 0);
}

}  // namespace

TEST_CASE("a server may die at any step of a device's life") {
    int points = 0;
    for (bool dies = true; dies; ++points) {
        World world;
        INFO("dies at step " << points);
        const int ended = world.serve(points, [&] { return whole_life(world); });
        dies = ended == died;
        if (!dies) CHECK(ended == 0);
        check_on_record(world);
        const bool used =
            world.ours().present && world.ours().info.state != ublk::DeviceState::dead;
        const int last = world.serve(-1, [&] { return last_life(world); });
        CHECK(last == (used ? 0 : 10));  // never given up
        check_nothing_left(world);
    }
    CHECK(points > 15);
}

TEST_CASE("the next server may die at any step of taking a device over") {
    int points = 0, given_up = 0;
    for (bool dies = true; dies; ++points) {
        World world;
        INFO("dies at step " << points);
        REQUIRE(world.serve(-1, [&] { return first_life(world); }) == 0);
        REQUIRE(world.ours().info.state == ublk::DeviceState::quiesced);
        const int ended = world.serve(points, [&] { return next_life(world); });
        dies = ended == died;
        if (!dies) CHECK(ended == 0);
        check_on_record(world);
        const int last = world.serve(-1, [&] { return last_life(world); });
        // Between the mapping and the last request asked for, and nowhere else.
        const bool hopeless = last == 11;
        given_up += hopeless ? 1 : 0;
        CHECK((last == 0 || hopeless));
        check_nothing_left(world);
    }
    CHECK(points > 10);
    CHECK(given_up == 3);
}

TEST_CASE("a channel that its dead server never closes is given up in the end") {
    World world;
    REQUIRE(world.serve(-1, [&] { return first_life(world); }) == 0);
    world.kernel.stay_open = true;
    // It dies amid the fetches, at whichever step that is.
    for (int at = 0; !world.ours().partly_fetched; ++at) {
        REQUIRE(at < 50);
        world.ours() = FakeDevice{};
        REQUIRE(world.serve(-1, [&] { return first_life(world); }) == 0);
        REQUIRE(world.serve(at, [&] { return next_life(world); }) == died);
    }
    CHECK(world.ours().open_by != 0);
    CHECK(world.serve(-1, [&] { return last_life(world); }) == 11);
    check_nothing_left(world);
}

TEST_CASE("a device is ours by its record alone") {
    World world;
    REQUIRE(world.serve(-1, [&] { return first_life(world); }) == 0);
    SECTION("another state directory, the same resource: not touched") {
        UblkDeviceOptions other = world.options();
        other.state_dir += "/elsewhere";
        REQUIRE(::mkdir(other.state_dir.c_str(), 0700) == 0);
        const auto found = UblkDevice::find(other);
        REQUIRE(found);
        CHECK(found.value() == nullptr);
        CHECK(world.ours().info.state == ublk::DeviceState::quiesced);
    }
    SECTION("a state directory that was moved: found") {
        const std::string moved = world.directory + "/moved";
        REQUIRE(::mkdir(moved.c_str(), 0700) == 0);
        REQUIRE(::rename((world.directory + "/ublk").c_str(), (moved + "/ublk").c_str()) == 0);
        UblkDeviceOptions other = world.options();
        other.state_dir = moved;
        const auto found = UblkDevice::find(other);
        REQUIRE(found);
        REQUIRE(found.value() != nullptr);
        CHECK(found.value()->generation() == generation);
    }
    SECTION("a record that is none: an error, and neither it nor the device is touched") {
        std::ofstream(world.record().path()) << "replica ublk device 1\ntoken 12";
        const auto found = UblkDevice::find(world.options());
        REQUIRE_FALSE(found);
        CHECK(found.error().code == Errc::corrupt);
        CHECK(world.record().exists());
        CHECK(world.ours().info.state == ublk::DeviceState::quiesced);
    }
    SECTION("a reboot: the record goes") {
        world.ours().present = false;
        const auto found = UblkDevice::find(world.options());
        REQUIRE(found);
        CHECK(found.value() == nullptr);
        CHECK_FALSE(world.record().exists());
    }
}

TEST_CASE("a device that does not fit is left alone, as it was") {
    World world;
    REQUIRE(world.serve(-1, [&] { return first_life(world); }) == 0);
    VolumeInfo now = volume();
    FakeDevice& device = world.ours();
    SECTION("a smaller volume") { now.size_bytes -= 4096; }
    SECTION("requests larger than its buffers") {
        device.params.basic.max_sectors = device.info.io_bytes_max / sector_bytes + 8;
    }
    SECTION("more queues") { device.info.queues = 2; }
    SECTION("a depth that is not served") { device.info.queue_depth = ublk_depth_max + 1; }
    auto found = UblkDevice::find(world.options());
    REQUIRE(found);
    REQUIRE(found.value() != nullptr);
    const auto channel = found.value()->open_channel(now);
    REQUIRE_FALSE(channel);
    CHECK(channel.error().code == Errc::state);
    CHECK(device.ready);  // not begun
    CHECK(device.info.state == ublk::DeviceState::quiesced);
}

TEST_CASE("a device of other sizes is served in its sizes") {
    World world;
    REQUIRE(world.serve(-1, [&] { return first_life(world); }) == 0);
    world.ours().info.queue_depth = 32;
    world.ours().info.io_bytes_max = 64U << 10;
    world.ours().params.basic.max_sectors = 128;
    auto found = UblkDevice::find(world.options());
    REQUIRE(found);
    REQUIRE(found.value() != nullptr);
    VolumeInfo now = volume();
    now.logical_block_bytes = 4096;  // another disk
    const auto channel = found.value()->open_channel(now);
    REQUIRE(channel);
    const auto& service = static_cast<const UblkService&>(*channel.value());
    CHECK(service.channel().depth() == 32);
    CHECK(service.channel().io_bytes() == 64U << 10);
}

TEST_CASE("nothing is stopped under its users, and what goes wrong late stops nobody") {
    World world;
    auto made = UblkDevice::create(world.options(), volume(), generation);
    REQUIRE(made);
    KernelDevice& device = *made.value();
    SECTION("mounted, or open without a claim") {
        REQUIRE(go_live(world, device));
        for (bool* use : {&world.kernel.held, &world.kernel.in_proc}) {
            *use = true;
            CHECK(device.check_unused().error().code == Errc::busy);
            CHECK(device.stop(false).error().code == Errc::busy);
            CHECK(world.ours().info.state == ublk::DeviceState::live);
            *use = false;
        }
        CHECK(device.check_unused());
        CHECK(device.stop(true));
    }
    SECTION("looked at by udev on a busy machine") {
        REQUIRE(go_live(world, device));
        world.kernel.looks = 12;
        CHECK(device.stop(false));
    }
    SECTION("a state directory that takes nothing, and an attribute that can not be set") {
        world.kernel.used_attribute_fails = true;
        auto options = world.options();
        REQUIRE(go_live(world, device));
        REQUIRE(::rename((world.directory + "/ublk").c_str(),
                         (world.directory + "/away").c_str()) == 0);
        std::ofstream(world.directory + "/ublk") << "not a directory";
        CHECK_FALSE(device.note_generation(generation + 4));
        CHECK(device.generation() == generation);  // as on the disk
        CHECK(world.ours().info.state == ublk::DeviceState::live);
    }
}

TEST_CASE("a live device grows where the kernel can, and else says so") {
    World world;
    const bool can = GENERATE(false, true);
    world.kernel.features = can ? ublk::flag_update_size : 0;
    auto made = UblkDevice::create(world.options(), volume(), generation);
    REQUIRE(made);
    REQUIRE(go_live(world, *made.value()));
    const std::uint64_t next = volume().size_bytes + (4U << 20);
    const Status grown = made.value()->grow(next);
    CHECK(static_cast<bool>(grown) == can);
    CHECK(made.value()->facts().value().size_bytes == (can ? next : volume().size_bytes));
    if (can) return;
    CHECK(grown.error().code == Errc::unsupported);
    CHECK(grown.error().message.find("6.16") != std::string::npos);
}

TEST_CASE("where the list of devices can not be read, none is believed to be gone") {
    World world;
    REQUIRE(world.serve(-1, [&] { return first_life(world); }) == 0);
    world.kernel.list_unread = true;
    const auto found = UblkDevice::find(world.options());
    REQUIRE_FALSE(found);
    CHECK(found.error().code == Errc::io);
    CHECK(world.record().exists());
    CHECK(world.ours().info.state == ublk::DeviceState::quiesced);
    world.kernel.list_unread = false;
    CHECK(world.serve(-1, [&] { return last_life(world); }) == 0);
    check_nothing_left(world);
}

TEST_CASE("a stop that is not done in time is no end, and may be asked for again") {
    World world;
    auto made = UblkDevice::create(world.options(), volume(), generation);
    REQUIRE(made);
    KernelDevice& device = *made.value();
    REQUIRE(go_live(world, device));
    world.kernel.slow_stops = 2;
    for (int attempt = 0; attempt < 2; ++attempt) {
        CHECK(device.stop(attempt > 0).error().code == Errc::timeout);
        CHECK(device.is_ending());
        CHECK(world.record().exists());
    }
    CHECK(device.stop(true));
    CHECK_FALSE(device.is_ending());
    CHECK(device.remove());
    check_nothing_left(world);
}
