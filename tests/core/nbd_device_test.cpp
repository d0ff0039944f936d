// SPDX-License-Identifier: Apache-2.0
// The life of a block device of the kernel's nbd under a server that dies at any step, and under
// the next one, which may die, too: as ublk_device_test.cpp has it for ublk. The kernel is a fake
// in memory that processes share; each server is a process.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>

#include "engine/node/handover.hpp"
#include "engine/node/nbd_block_device.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

constexpr std::uint64_t generation = 0xabcdef0123456780;
constexpr int died = 42;  // exit status

struct FakeDisk {
    bool connected = false;  // has a configuration
    bool alive = false;      // and a socket that somebody serves
    int server = 0;
    char backend[96] = {};
    std::uint64_t size_bytes = 0;
    std::uint32_t block_bytes = 0;
    std::uint32_t dead_connection_s = 0;
    std::uint32_t request_timeout_s = 0;
    std::size_t sockets = 0;
};

struct FakeKernel {
    std::array<FakeDisk, 4> disks;
    int server = 1;
    int steps = 0, die_at = -1;
    int slow = 0;  // so many reconfigurations come before the kernel has seen the old socket's end
    bool held = false, in_proc = false;
    bool backends_unread = false;  // sysfs does not say who has connected what
    // A request to some nbd device does not end, so neither do calls, until it does.
    std::atomic<bool> hangs = false;
    void answer() const {
        while (hangs)
            ::usleep(1000);
    }

    void step() {
        if (steps++ == die_at) ::_exit(died);
    }
    void server_died() {
        for (FakeDisk& disk : disks) {
            if (disk.server == server) disk.alive = false;
        }
        ++server;
        steps = 0;
    }
};

class FakeControl final : public NbdControl {
  public:
    explicit FakeControl(FakeKernel& kernel) : kernel_(kernel) {}
    ~FakeControl() override {
        for (const int fd : taken_)
            ::close(fd);
    }

    Result<int> connect(const NbdDeviceConfig& config, std::span<const int> sockets) override {
        kernel_.step();
        kernel_.answer();
        for (std::size_t i = 0; i < kernel_.disks.size(); ++i) {
            FakeDisk& disk = kernel_.disks[i];
            if (disk.connected) continue;
            disk = FakeDisk{};
            disk.connected = disk.alive = true;
            disk.server = kernel_.server;
            std::strncpy(disk.backend, config.backend.c_str(), sizeof disk.backend - 1);
            disk.size_bytes = config.size_bytes;
            disk.block_bytes = config.block_bytes;
            disk.dead_connection_s = config.dead_connection_s;
            disk.request_timeout_s = config.request_timeout_s;
            disk.sockets = sockets.size();
            take(sockets);
            kernel_.step();
            return static_cast<int>(i);
        }
        return Error{Errc::busy, 0, "no device is free"};
    }
    Status reconfigure(int index, const NbdDeviceChange& change,
                       std::span<const int> sockets) override {
        kernel_.step();
        FakeDisk& disk = kernel_.disks.at(static_cast<std::size_t>(index));
        if (!disk.connected || change.backend != disk.backend) {
            return Error{Errc::invalid, 0, "not that one"};
        }
        if (change.size_bytes) disk.size_bytes = *change.size_bytes;
        if (sockets.empty() || disk.alive) return ok_status();  // closed without a word
        if (kernel_.slow > 0) {
            --kernel_.slow;
            return ok_status();
        }
        disk.alive = true;
        disk.server = kernel_.server;
        take(sockets);
        kernel_.step();
        return ok_status();
    }
    Status disconnect(int index) override {
        kernel_.step();
        kernel_.answer();
        kernel_.disks.at(static_cast<std::size_t>(index)) = FakeDisk{};
        kernel_.step();
        return ok_status();
    }
    Result<std::vector<NbdDeviceState>> status() override {
        kernel_.answer();
        std::vector<NbdDeviceState> states;
        for (std::size_t i = 0; i < kernel_.disks.size(); ++i)
            states.push_back({static_cast<int>(i), kernel_.disks[i].connected});
        return states;
    }
    Result<std::string> backend_of(int index) override {
        if (kernel_.backends_unread) return Error{Errc::io, EMFILE, "no descriptor is left"};
        return std::string(kernel_.disks.at(static_cast<std::size_t>(index)).backend);
    }

  private:
    void take(std::span<const int> sockets) {
        for (const int fd : sockets)
            taken_.push_back(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
    }
    FakeKernel& kernel_;
    std::vector<int> taken_;
};

class FakeNodes final : public BlockNodes {
  public:
    explicit FakeNodes(FakeKernel& kernel) : kernel_(kernel) {}
    int claim(const std::string& name) override {
        kernel_.step();
        if (!at(name).connected) return -ENXIO;
        return kernel_.held ? -EBUSY : ::memfd_create("claimed", MFD_CLOEXEC);
    }
    std::string user_of(const std::string&) override { return kernel_.in_proc ? "dd (pid 7)" : ""; }
    int set_io_timeout(const std::string&, unsigned) override {
        kernel_.step();
        return 0;
    }
    void announce(const std::string&) override { kernel_.step(); }
    Result<BlockFacts> facts(const std::string& name) override {
        return BlockFacts{at(name).size_bytes, at(name).block_bytes, 43, 0};
    }

  private:
    FakeDisk& at(const std::string& name) {
        return kernel_.disks.at(static_cast<std::size_t>(std::atoi(name.c_str() + 3)));
    }
    FakeKernel& kernel_;
};

VolumeInfo volume() {
    VolumeInfo info;
    info.size_bytes = 64U << 20;
    info.logical_block_bytes = 512;
    info.writable = true;
    return info;
}

struct World {
    FakeKernel& kernel;
    std::string directory;

    World()
        : kernel(*new (::mmap(nullptr, sizeof(FakeKernel), PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0)) FakeKernel) {
        char name[] = "/tmp/nbd_test.XXXXXX";
        REQUIRE(::mkdtemp(name) != nullptr);
        directory = name;
        FakeDisk& foreign = kernel.disks[1];
        foreign.connected = foreign.alive = true;
        foreign.server = -7;
        std::strcpy(foreign.backend, "replica:r0:0123456789abcdef");
    }
    ~World() {
        CHECK(kernel.disks[1].alive);
        CHECK(kernel.disks[1].server == -7);
        CHECK(std::system(("rm -r " + directory).c_str()) == 0);
        ::munmap(&kernel, sizeof(FakeKernel));
    }
    NbdBlockDeviceOptions options() {
        NbdBlockDeviceOptions options;
        options.state_dir = directory;
        options.resource = "r0";
        options.log = [](int, const std::string&) {};
        options.names = directory + "/names/by-res";
        options.nodes = std::make_shared<FakeNodes>(kernel);
        options.control = [this]() -> Result<std::unique_ptr<NbdControl>> {
            return std::unique_ptr<NbdControl>(new FakeControl(kernel));
        };
        return options;
    }
    FakeDisk& ours() { return kernel.disks[0]; }
    DeviceRecordFile record() { return {directory, DeviceKind::nbd, "r0"}; }
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

int first_life(World& world) {
    auto device = NbdBlockDevice::create(world.options(), volume(), generation);
    if (!device) return 1;
    return device.value()->open_channel(volume()) && device.value()->start() ? 0 : 2;
}

int whole_life(World& world) {
    auto device = NbdBlockDevice::create(world.options(), volume(), generation);
    if (!device) return 1;
    const auto channel = device.value()->open_channel(volume());
    if (!channel || !device.value()->start()) return 2;
    if (!device.value()->note_generation(generation + 2)) return 3;
    return device.value()->stop(false) && device.value()->remove() ? 0 : 4;
}

// 10: there was nothing; 0: adopted.
int next_life(World& world) {
    auto found = NbdBlockDevice::find(world.options());
    if (!found) return 1;
    if (!found.value()) return 10;
    KernelDevice& device = *found.value();
    if (device.generation() == 0) return 2;
    for (int attempt = 0; attempt < 100; ++attempt) {
        const auto channel = device.open_channel(volume());
        if (channel) return device.start() ? 0 : 3;
        if (channel.error().code != Errc::busy) return 5;
    }
    return 6;
}

int last_life(World& world) {
    const int status = next_life(world);
    if (status != 0) return status;
    auto again = NbdBlockDevice::find(world.options());
    if (!again || !again.value()) return 7;
    return again.value()->stop(true) && again.value()->remove() ? 0 : 8;
}

void check_on_record(World& world) {
    if (!world.ours().connected) return;
    const auto record = world.record().load();
    REQUIRE(record);
    REQUIRE(record.value());
    char token[20];
    std::snprintf(token, sizeof token, "%016llx",
                  static_cast<unsigned long long>(record.value()->token));
    CHECK(world.ours().backend == std::string("replica:r0:") + token);
}

void check_nothing_left(World& world) {
    CHECK_FALSE(world.ours().connected);
    CHECK_FALSE(world.record().exists());
    struct stat at {};
    CHECK(::lstat((world.directory + "/names/by-res/r0").c_str(), &at) != 0);
}

}  // namespace

TEST_CASE("nbd: a server may die at any step of a device's life") {
    int points = 0;
    for (bool dies = true; dies; ++points) {
        World world;
        INFO("dies at step " << points);
        const int ended = world.serve(points, [&] { return whole_life(world); });
        dies = ended == died;
        if (!dies) CHECK(ended == 0);
        check_on_record(world);
        const bool left = world.ours().connected;
        CHECK(world.serve(-1, [&] { return last_life(world); }) == (left ? 0 : 10));
        check_nothing_left(world);
    }
    CHECK(points > 5);
}

TEST_CASE("nbd: the next server may die at any step of taking a device over") {
    int points = 0;
    for (bool dies = true; dies; ++points) {
        World world;
        INFO("dies at step " << points);
        REQUIRE(world.serve(-1, [&] { return first_life(world); }) == 0);
        REQUIRE(world.ours().connected);
        REQUIRE_FALSE(world.ours().alive);
        const int ended = world.serve(points, [&] { return next_life(world); });
        dies = ended == died;
        if (!dies) CHECK(ended == 0);
        check_on_record(world);
        CHECK(world.serve(-1, [&] { return last_life(world); }) == 0);  // never given up
        check_nothing_left(world);
    }
    CHECK(points > 3);
}

TEST_CASE("nbd: a device waits for its next server as long as it takes") {
    World world;
    REQUIRE(world.serve(-1, [&] { return first_life(world); }) == 0);
    CHECK(world.ours().sockets == 1);            // of more, a timer would close one after another
    CHECK(world.ours().request_timeout_s == 0);  // a request may wait on purpose
    CHECK(world.ours().dead_connection_s >= 365U * 24 * 3600);
    CHECK(world.ours().size_bytes == volume().size_bytes);
    SECTION("also when the kernel has not yet seen the old one's end") {
        world.kernel.slow = 3;
        CHECK(world.serve(-1, [&] { return next_life(world); }) == 0);
        CHECK(world.kernel.slow == 0);
    }
    SECTION("an old one that lives keeps it") {
        world.ours().alive = true;
        CHECK(world.serve(-1, [&] { return next_life(world); }) == 6);
    }
    SECTION("somebody has disconnected it: it is gone") {
        auto found = NbdBlockDevice::find(world.options());
        REQUIRE(found);
        REQUIRE(found.value() != nullptr);
        world.ours() = FakeDisk{};
        const auto channel = found.value()->open_channel([] {
            VolumeInfo info = volume();
            info.size_bytes += 4096;
            return info;
        }());
        REQUIRE_FALSE(channel);
        CHECK((channel.error().code == Errc::corrupt || channel.error().code == Errc::state));
        CHECK(found.value()->stop(true));
        CHECK(found.value()->remove());
        check_nothing_left(world);
    }
}

TEST_CASE("nbd: a device is ours by its record alone, and only if it fits") {
    World world;
    REQUIRE(world.serve(-1, [&] { return first_life(world); }) == 0);
    SECTION("a reboot: the record goes") {
        world.ours() = FakeDisk{};
        const auto found = NbdBlockDevice::find(world.options());
        REQUIRE(found);
        CHECK(found.value() == nullptr);
        CHECK_FALSE(world.record().exists());
    }
    SECTION("its number has gone to somebody else: not stopped") {
        auto found = NbdBlockDevice::find(world.options());
        REQUIRE(found);
        REQUIRE(found.value() != nullptr);
        std::strcpy(world.ours().backend, "somebody else's");
        CHECK(found.value()->stop(true));
        CHECK(world.ours().connected);
    }
    SECTION("a smaller volume") {
        auto found = NbdBlockDevice::find(world.options());
        REQUIRE(found);
        REQUIRE(found.value() != nullptr);
        VolumeInfo now = volume();
        now.size_bytes -= 4096;
        CHECK(found.value()->open_channel(now).error().code == Errc::state);
        CHECK_FALSE(world.ours().alive);  // not begun
    }
    SECTION("it can not be told whose devices there are: neither record nor device is given up") {
        auto found = NbdBlockDevice::find(world.options());
        REQUIRE(found);
        REQUIRE(found.value() != nullptr);
        world.kernel.backends_unread = true;
        CHECK_FALSE(found.value()->stop(true));
        CHECK(world.ours().connected);
        const auto again = NbdBlockDevice::find(world.options());
        REQUIRE_FALSE(again);
        CHECK(again.error().code == Errc::io);
        CHECK(world.record().exists());
    }
    SECTION("a record that is none: an error, and neither it nor the device is touched") {
        std::ofstream(world.record().path()) << "replica ublk device 1\ntoken 12";
        const auto found = NbdBlockDevice::find(world.options());
        REQUIRE_FALSE(found);
        CHECK(found.error().code == Errc::corrupt);
        CHECK(world.record().exists());
    }
}

TEST_CASE("nbd: nothing is stopped under its users") {
    World world;
    auto made = NbdBlockDevice::create(world.options(), volume(), generation);
    REQUIRE(made);
    KernelDevice& device = *made.value();
    const auto channel = device.open_channel(volume());
    REQUIRE(channel);
    REQUIRE(device.start());
    CHECK(device.path() == "/dev/nbd0");
    CHECK(device.door() == "nbd:/dev/nbd0");
    for (bool* use : {&world.kernel.held, &world.kernel.in_proc}) {
        *use = true;
        CHECK(device.check_unused().error().code == Errc::busy);
        CHECK(device.stop(false).error().code == Errc::busy);
        CHECK(world.ours().connected);
        *use = false;
    }
    CHECK(device.stop(false));
    CHECK(device.remove());
    check_nothing_left(world);
}

TEST_CASE("nbd: a kernel that does not answer is waited for, but not for ever") {
    using Clock = std::chrono::steady_clock;
    World world;
    NbdBlockDeviceOptions options = world.options();
    options.call_limit = std::chrono::milliseconds(100);
    auto made = NbdBlockDevice::create(options, volume(), generation);
    REQUIRE(made);
    KernelDevice& device = *made.value();
    const auto in_time = [](const auto& call) {
        const Clock::time_point began = Clock::now();
        const Status ended = call();
        CHECK(Clock::now() - began < std::chrono::seconds(5));
        return ended;
    };
    const auto open = [&]() -> Status {
        const auto channel = device.open_channel(volume());
        return channel ? ok_status() : channel.error();
    };
    SECTION("disconnecting: neither device nor record is given up") {
        const auto channel = device.open_channel(volume());
        REQUIRE(channel);
        REQUIRE(device.start());
        world.kernel.hangs = true;
        const Status stopped = in_time([&] { return device.stop(true); });
        REQUIRE_FALSE(stopped);
        CHECK(stopped.error().code == Errc::timeout);
        CHECK(stopped.error().message.find("does not answer") != std::string::npos);
        CHECK(device.is_ending());
        CHECK(world.record().exists());
        const Status found = in_time([&]() -> Status {
            const auto other = NbdBlockDevice::find(options);
            return other ? ok_status() : other.error();
        });
        CHECK(found.error().code == Errc::timeout);
        CHECK(world.record().exists());
        world.kernel.hangs = false;
        CHECK(device.stop(true));
    }
    SECTION("connecting, which is done after all: the device is found and ended") {
        world.kernel.hangs = true;
        CHECK(in_time(open).error().code == Errc::timeout);
        const Status stopped = in_time([&] { return device.stop(true); });
        CHECK(stopped.error().code == Errc::timeout);
        world.kernel.hangs = false;
        CHECK(device.stop(true));
    }
    CHECK(device.remove());
    check_nothing_left(world);
}

TEST_CASE("nbd: a live device grows, and is not served anew for that") {
    World world;
    auto made = NbdBlockDevice::create(world.options(), volume(), generation);
    REQUIRE(made);
    const auto channel = made.value()->open_channel(volume());
    REQUIRE(channel);
    REQUIRE(made.value()->start());
    CHECK(made.value()->grow(volume().size_bytes + (4U << 20)));
    CHECK(made.value()->facts().value().size_bytes == volume().size_bytes + (4U << 20));
    CHECK(world.ours().alive);
}

TEST_CASE("nbd: a kernel without it is told in a sentence") {
    const auto control = NbdControl::open();
    if (control) {
        WARN("this kernel has nbd: nothing to see here");
        return;
    }
    CHECK((control.error().code == Errc::unsupported || control.error().code == Errc::permission));
    CHECK(control.error().message.find("nbd") != std::string::npos);
    const auto device = nbd_device_of("replica:r0:0123456789abcdef");
    REQUIRE(device);
    CHECK(device.value() == -1);
}

TEST_CASE("nbd: who has connected a device is known, is nobody, or can not be told") {
    World world;
    const auto in = [&](const char* name) { return world.directory + "/" + name; };
    REQUIRE(::mkdir(in("nbd0").c_str(), 0700) == 0);
    REQUIRE(::mkdir(in("nbd1").c_str(), 0700) == 0);
    REQUIRE(::mkdir(in("nbd2").c_str(), 0700) == 0);
    REQUIRE(::mkdir(in("nbd2/backend").c_str(), 0700) == 0);  // opens, and is not read
    std::ofstream(in("nbd0/backend")) << "replica:r0:0123456789abcdef\n";
    CHECK(nbd_backend_in(world.directory, 0).value() == "replica:r0:0123456789abcdef");
    CHECK(nbd_backend_in(world.directory, 1).value().empty());
    CHECK(nbd_backend_in(world.directory, 2).error().code == Errc::io);
    CHECK(nbd_backend_in(world.directory, 3).error().code == Errc::io);  // /sys is not there
}

TEST_CASE("records and names of one resource do not touch those of another") {
    World world;
    const DeviceRecordFile other(world.directory, DeviceKind::nbd, "r0.new");
    const DeviceRecord record{1, 2, false};
    REQUIRE(other.save(record));
    REQUIRE(world.record().save({3, 4, false}));
    const auto kept = other.load();
    REQUIRE(kept);
    REQUIRE(kept.value());
    CHECK(kept.value()->token == record.token);
    REQUIRE(other.remove());
    NbdBlockDeviceOptions second = world.options();
    second.resource = "r0.new";
    for (const NbdBlockDeviceOptions& options : {second, world.options()}) {
        auto device = NbdBlockDevice::create(options, volume(), generation);
        REQUIRE(device);
        REQUIRE(device.value()->open_channel(volume()));
        REQUIRE(device.value()->start());
    }
    struct stat at {};
    CHECK(::lstat((world.directory + "/names/by-res/r0.new").c_str(), &at) == 0);
    CHECK(::lstat((world.directory + "/names/by-res/r0").c_str(), &at) == 0);
}

TEST_CASE("what is handed on survives the way, and garbage does not") {
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    const std::vector<HandedDevice> devices = {
        {"r0", DeviceKind::nbd, 123'456'789'012, ends[0]},
        {std::string(63, 'x'), DeviceKind::ublk, 7, -1},
    };
    REQUIRE(::fcntl(ends[0], F_SETFD, 0) == 0);  // as it comes through execve
    CHECK(handed_devices(to_text(devices)) == devices);
    // One that is never adopted must not outlive this program: its device could not be taken over.
    CHECK((::fcntl(ends[0], F_GETFD) & FD_CLOEXEC) != 0);
    CHECK(handed_devices("").empty());
    CHECK(handed_devices("r0 nbd r0/nbd r0/nbd@ =7 @=").empty());
    // What is no socket is nobody's to read from.
    const int file = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    const auto other = handed_devices("r0/nbd@1=" + std::to_string(file));
    REQUIRE(other.size() == 1);
    CHECK(other.front().socket == -1);
    for (const int fd : {ends[0], ends[1], file})
        ::close(fd);
}

TEST_CASE("nbd: a device of a volume that is not writable says so, also to the next server") {
    World world;
    VolumeInfo info = volume();
    info.writable = false;
    CHECK((nbd_device_flags(info) & nbd::flag_read_only) != 0);
    CHECK((nbd_device_flags(volume()) & nbd::flag_read_only) == 0);
    REQUIRE(world.serve(-1, [&] {
        auto device = NbdBlockDevice::create(world.options(), info, generation);
        return device && device.value()->open_channel(info) && device.value()->start() &&
                       device.value()->note_generation(generation + 2)
                   ? 0
                   : 1;
    }) == 0);
    const auto found = NbdBlockDevice::find(world.options());
    REQUIRE(found);
    REQUIRE(found.value() != nullptr);
    CHECK(found.value()->read_only());
    CHECK(found.value()->generation() == generation + 2);
}
