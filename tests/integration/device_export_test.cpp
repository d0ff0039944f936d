// SPDX-License-Identifier: Apache-2.0
// What a node does with its block devices while the kernel, the disk and the other nodes do
// something else at the same moment: the real state machine on a real resource, over a device and a
// queue that do as they are told.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <memory>
#include <mutex>

#include "engine/node/create_disk.hpp"
#include "engine/node/kernel_doors.hpp"
#include "engine/node/resource_shell.hpp"
#include "tests/integration/node_support.hpp"

using namespace replica;
using namespace replica::test;

namespace {

constexpr std::uint64_t disk_bytes = 16U << 20;
constexpr std::chrono::seconds limit{100};

// What the kernel is told to do, and what was done.
struct Script {
    std::atomic<bool> left = false;  // an earlier daemon left a device
    std::atomic<std::uint64_t> generation = 0;
    std::atomic<std::uint64_t> size_bytes = 0;
    std::atomic<bool> start_fails = false;
    std::atomic<int> stops_that_fail = 0;
    std::atomic<bool> holds = true;  // requests under way end
    // A disk hangs: the driver stops the device when its requests are cut off, and the volume is
    // not through with them; and nobody writes out what the page cache has.
    std::atomic<bool> hangs = false, cache_hangs = false;
    std::atomic<int> cut_off = 0, released = 0, queues_gone = 0;
    std::function<void()> on_find;  // of the other kind, which never is there
    std::atomic<int> grown = 0, grown_held = 0, stopped = 0;
    std::atomic<bool> held = false;
};

class ScriptedNodes final : public BlockNodes {
  public:
    explicit ScriptedNodes(Script& script) : script_(script) {}
    int write_out(int) override {
        while (script_.cache_hangs)
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        return 0;
    }
    void release(int claimed) override {
        ++script_.released;
        BlockNodes::release(claimed);
    }
    int claim(const std::string&) override { return ::memfd_create("claimed", MFD_CLOEXEC); }
    std::string user_of(const std::string&) override { return ""; }
    int set_io_timeout(const std::string&, unsigned) override { return 0; }
    void announce(const std::string&) override {}
    Result<BlockFacts> facts(const std::string&) override {
        return BlockFacts{script_.size_bytes, 512, 43, 0};
    }

  private:
    Script& script_;
};

class ScriptedQueue final : public KernelQueue {
  public:
    ScriptedQueue(const KernelChannel::Server& server, Script& script)
        : reactor_(server.reactor), script_(script), on_answer_(server.on_answer) {
        if (on_answer_) on_answer_();
    }
    ~ScriptedQueue() override { ++script_.queues_gone; }
    void started() override {}
    void cut_off() override { ++script_.cut_off; }
    void when_ended(std::function<void()> done) override { reactor_.post(std::move(done)); }
    void when_idle(std::function<void()> done) override {
        idle_ = std::move(done);
        look();
    }
    bool lost() const override { return false; }
    void hold(std::function<void()> held) override {
        script_.held = true;
        if (script_.holds) reactor_.post(std::move(held));
    }
    void resume() override { script_.held = false; }
    int abandon() override { return -1; }
    bool destructible() const override { return true; }

  private:
    void look() {
        if (!script_.hangs) return reactor_.post(std::move(idle_));
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        reactor_.post([this] { look(); });
    }
    Reactor& reactor_;
    Script& script_;
    std::function<void()> on_answer_, idle_;
};

class ScriptedChannel final : public KernelChannel {
  public:
    explicit ScriptedChannel(Script& script) : script_(script) {}
    std::unique_ptr<KernelQueue> serve(const Server& server) override {
        return std::make_unique<ScriptedQueue>(server, script_);
    }

  private:
    Script& script_;
};

class ScriptedDevice final : public KernelDevice {
  public:
    ScriptedDevice(const KernelDeviceOptions& options, const DeviceRecord& record, Script& script)
        : KernelDevice(DeviceKind::nbd, options, record), script_(script) {
        set_node("scripted0");
    }
    Result<std::unique_ptr<KernelChannel>> open_channel(const VolumeInfo&) override {
        return std::unique_ptr<KernelChannel>(std::make_unique<ScriptedChannel>(script_));
    }
    Status grow(std::uint64_t size_bytes) override {
        ++(script_.held ? script_.grown_held : script_.grown);
        script_.size_bytes = size_bytes;
        return ok_status();
    }

  private:
    Status begin() override {
        return script_.start_fails ? Status(Error{Errc::io, EIO, "it does not start"})
                                   : ok_status();
    }
    Status end() override {
        if (script_.hangs && script_.cut_off == 0) {
            return Error{Errc::timeout, ETIME, "requests do not end"};
        }
        if (script_.stops_that_fail > 0) {
            --script_.stops_that_fail;
            return Error{Errc::io, EIO, "it does not stop"};
        }
        ++script_.stopped;
        return ok_status();
    }
    Status erase() override { return ok_status(); }
    unsigned io_timeout_ms() const override { return 1000; }

    Script& script_;
};

// A resource that was Primary once, without peers, and its doors.
class World {
  public:
    template <class F>
    auto ask(F&& f) {
        return thread->call([&] { return f(*shell); });
    }
    explicit World(Script& told) : script(told) {
        auto started = ReactorThread::start([](int, const std::string&) {});
        REQUIRE(started);
        thread = std::move(started).value();
        ResourceConfig config;
        config.name = "r0";
        config.disk = dir / "disk";
        Pair::make_file(config.disk, disk_bytes);
        REQUIRE(::mkdir((dir / "superblocks").c_str(), 0700) == 0);
        const DiskPaths paths{config.disk, "", dir / "superblocks/r0.v0"};
        REQUIRE_OK(create_disk(config, {}, paths));
        auto disk = open_disk(thread->reactor(), paths);
        REQUIRE(disk);
        auto opened = std::make_shared<OpenDisk>(std::move(disk).value());
        shell = std::make_unique<ResourceShell>(
            ResourceShell::Context{*thread, hub, [](int, const std::string&) {}}, config);
        REQUIRE_OK(shell->load(*opened));
        REQUIRE_OK(thread->call_async(
            [&, opened](ResourceShell::Done done) {
                shell->start();
                shell->attach(std::move(*opened), std::move(done));
            },
            limit));
        REQUIRE_OK(command({.kind = CommandKind::promote, .force = true}));
        script.generation = ask([](ResourceShell& s) { return s.generation(); });
        script.size_bytes = ask([](ResourceShell& s) { return s.info().size_bytes; });
        make_doors();
    }
    ~World() {
        doors->leave();
        {
            const std::lock_guard locked(changing);
            doors->resume();
            CHECK(doors->close({}, true));
        }
        doors.reset();
        CHECK(each(&ResourceShell::stop_doors));
        CHECK(command({.kind = CommandKind::demote}));
        CHECK(command({.kind = CommandKind::down}));
        CHECK(each(&ResourceShell::wait_quiet));
        CHECK(wait_until([&] {
            return thread->call([&] {
                if (shell->removable()) shell.reset();
                return !shell;
            });
        }));
    }
    Status command(const Command& wanted) {
        return thread->call_async(
            [&](ResourceShell::Done done) { shell->command(wanted, std::move(done)); }, limit);
    }
    bool primary() {
        return ask([](ResourceShell& s) { return s.primary(); });
    }
    bool open() {
        const std::lock_guard locked(changing);
        return doors->is_open(DeviceKind::nbd);
    }

    Script& script;
    TempDir dir;
    EventHub hub;
    std::unique_ptr<ReactorThread> thread;
    std::unique_ptr<ResourceShell> shell;
    ChangeLock changing;
    std::atomic<int> promotions = 0;
    bool promotion_fails = false;
    std::unique_ptr<KernelDoors> doors;

  private:
    Status each(void (ResourceShell::*what)(ResourceShell::Done)) {
        return thread->call_async(
            [&](ResourceShell::Done done) { (shell.get()->*what)(std::move(done)); }, limit);
    }
    void make_doors() {
        KernelDeviceOptions options;
        options.state_dir = dir.path();
        options.resource = "r0";
        options.log = log_of("doors") ? log_of("doors") : [](int, const std::string&) {};
        options.names = dir / "names";
        options.nodes = std::make_shared<ScriptedNodes>(script);
        options.write_out_limit = std::chrono::milliseconds(100);
        using Device = std::unique_ptr<KernelDevice>;
        const auto create = [&told = script, options](const VolumeInfo&,
                                                      std::uint64_t generation) -> Result<Device> {
            return Device(
                std::make_unique<ScriptedDevice>(options, DeviceRecord{7, generation}, told));
        };
        const auto find = [&told = script, options]() -> Result<Device> {
            if (!told.left.exchange(false)) return Device();
            return Device(
                std::make_unique<ScriptedDevice>(options, DeviceRecord{7, told.generation}, told));
        };
        const auto find_none = [&told = script]() -> Result<Device> {
            if (told.on_find) std::exchange(told.on_find, nullptr)();
            return Device();
        };
        const auto promote = [this]() -> Status {
            ++promotions;
            if (promotion_fails) return Error{Errc::state, 0, "another node is Primary"};
            return command({.kind = CommandKind::promote});
        };
        doors = std::make_unique<KernelDoors>(
            DeviceExport::Resource{*thread, shell, changing, promote, [] { return ok_status(); },
                                   nullptr},
            options,
            std::array<DeviceMaker, device_kinds>{DeviceMaker{DeviceKind::ublk, create, find_none},
                                                  DeviceMaker{DeviceKind::nbd, create, find}});
    }
};

}  // namespace

TEST_CASE("a device is adopted: the node is promoted for it, once") {
    Script script;
    World world(script);
    REQUIRE_OK(world.command({.kind = CommandKind::demote}));
    script.left = true;
    {
        const std::lock_guard locked(world.changing);
        REQUIRE_OK(world.doors->look());
    }
    CHECK(wait_until([&] {
        const std::lock_guard locked(world.changing);
        return world.doors->is_live(DeviceKind::nbd);
    }));
    CHECK(world.primary());
    CHECK(world.promotions == 1);
}

// Between the moment that a device is found to be good and the promotion for it, a peer comes that
// has written since. The device is given up; then there is nothing to be promoted for.
TEST_CASE("what another node has written meanwhile ends an adoption, and promotes nobody") {
    Script script;
    World world(script);
    world.promotion_fails = GENERATE(false, true);
    REQUIRE_OK(world.command({.kind = CommandKind::demote}));
    script.left = true;
    {
        const std::lock_guard locked(world.changing);
        REQUIRE_OK(world.doors->look());
        script.on_find = [&] {
            world.ask([](ResourceShell& shell) {
                shell.device_waits(DeviceKind::nbd, 0x7770, "a generation that is not known here");
                return true;
            });
        };
    }
    CHECK(wait_until([&] { return !world.open(); }));
    CHECK(script.stopped == 1);
    CHECK_FALSE(world.primary());
    CHECK(world.promotions == 0);
}

TEST_CASE("a device that neither starts nor stops at first is gone in the end") {
    Script script;
    World world(script);
    script.start_fails = true;
    script.stops_that_fail = 2;
    {
        const std::lock_guard locked(world.changing);
        CHECK_FALSE(world.doors->open(DeviceKind::nbd, false));
        CHECK(world.doors->is_open(DeviceKind::nbd));
    }
    CHECK(wait_until([&] { return !world.open(); }));
    CHECK(script.stopped == 1);
}

// The kernel waits for the requests under way before it changes the size of a device, and those of
// a held queue wait for the next program.
TEST_CASE("a held device does not grow on its way to the next program") {
    Script script;
    World world(script);
    const std::lock_guard locked(world.changing);
    REQUIRE_OK(world.doors->open(DeviceKind::nbd, false));
    REQUIRE_OK(world.doors->hold(std::chrono::seconds(60)));
    script.size_bytes -= 4096;  // the volume has just grown
    const auto handed = world.doors->hand_over();
    REQUIRE(handed.size() == 1);
    CHECK(handed.front().held_ns > 0);
    CHECK(script.grown_held == 0);
}

TEST_CASE("an upgrade that came to nothing leaves no pause behind") {
    Script script;
    World world(script);
    const std::lock_guard locked(world.changing);
    REQUIRE_OK(world.doors->open(DeviceKind::nbd, false));
    script.holds = false;
    const Status held = world.doors->hold(std::chrono::seconds(1));
    REQUIRE_FALSE(held);
    CHECK(held.error().code == Errc::timeout);
    CHECK_FALSE(script.held);
    CHECK(world.doors->pauses().empty());
}

// ---- a disk that hangs --------------------------------------------------------------------------

namespace {

// With `changing` held for all of it, as a command has it.
Status closed(World& world, bool force) {
    const std::lock_guard locked(world.changing);
    return world.doors->close(DeviceKind::nbd, force);
}

}  // namespace

TEST_CASE("by force a device is taken away over a disk that hangs, and others open meanwhile") {
    Script script;
    World world(script);
    {
        const std::lock_guard locked(world.changing);
        REQUIRE_OK(world.doors->open(DeviceKind::nbd, false));
    }
    script.hangs = true;
    REQUIRE_OK(closed(world, true));
    CHECK(script.cut_off > 0);
    CHECK(script.stopped == 1);
    CHECK_FALSE(world.open());
    CHECK(script.queues_gone == 0);  // what was asked for is still under way
    {
        const std::lock_guard locked(world.changing);
        CHECK(world.doors->open(DeviceKind::nbd, false));
    }
    REQUIRE_OK(closed(world, true));
    CHECK(script.queues_gone == 0);
    script.hangs = false;
    CHECK(wait_until([&] { return script.queues_gone == 2; }));
}

// The driver was told to stop it, which is not taken back: so it is ended in the end, by whoever.
TEST_CASE("a stop that is not done in time is gone on with, by the keeper or by force") {
    Script script;
    World world(script);
    {
        const std::lock_guard locked(world.changing);
        REQUIRE_OK(world.doors->open(DeviceKind::nbd, false));
    }
    script.hangs = true;
    const Status stopped = closed(world, false);
    REQUIRE_FALSE(stopped);
    CHECK(stopped.error().code == Errc::timeout);
    CHECK(wait_until([&] { return !world.open(); }));
    CHECK(script.stopped == 1);
    script.hangs = false;
}

TEST_CASE("what can not be written out holds no command up for long, and force does without") {
    Script script;
    World world(script);
    {
        const std::lock_guard locked(world.changing);
        REQUIRE_OK(world.doors->open(DeviceKind::nbd, false));
    }
    script.cache_hangs = true;
    for (int attempt = 0; attempt < 2; ++attempt) {
        const auto began = std::chrono::steady_clock::now();
        const Status refused = closed(world, false);
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code == Errc::timeout);
        CHECK(refused.error().message.find("--force") != std::string::npos);
        CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(5));
        CHECK(world.open());
        CHECK(script.stopped == 0);
        CHECK(script.cut_off == 0);
    }
    const bool force = GENERATE(true, false);
    if (!force) script.cache_hangs = false;
    REQUIRE_OK(closed(world, force));
    CHECK_FALSE(world.open());
    CHECK((script.cut_off > 0) == force);
    script.cache_hangs = false;
    // Nobody keeps it from being mounted by a claim that was forgotten.
    const int claims = force ? 2 : 4;
    CHECK(wait_until([&] { return script.released == claims; }));
}
