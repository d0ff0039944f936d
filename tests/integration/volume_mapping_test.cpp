// SPDX-License-Identifier: Apache-2.0
// The mapped device of a resource where device-mapper does not answer, or fails half-way: who uses
// it must not wait for ever, and what is on record must be what lies below. The kernel is a fake;
// the real one is driven in a guest (vm_dm_mapped, vm_mapper).
#include <sys/sysmacros.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <mutex>

#include "engine/node/volume_mapping.hpp"
#include "tests/integration/node_support.hpp"

using namespace replica;
using namespace replica::test;

namespace {

constexpr std::uint64_t volume_bytes = 16U << 20;
const dev_t ublk = makedev(259, 1), nbd = makedev(43, 0);

// One mapped device. Its table is named by the device below.
struct Kernel {
    std::mutex mutex;
    bool there = false, suspended = false;
    std::string uuid, live, loaded;
    // What goes wrong, so many times.
    int suspends_without_answer = 0, resumes_that_fail = 0;
    bool late_suspend = false;  // is done when the next call is made
    int suspends = 0, resumes = 0;
};

class FakeMapper final : public Mapper {
  public:
    explicit FakeMapper(Kernel& kernel) : kernel_(kernel) {}

    Result<std::optional<MapInfo>> info(const MapKey&) override {
        const std::lock_guard lock(kernel_.mutex);
        begin();
        if (!kernel_.there) return std::optional<MapInfo>();
        return std::optional<MapInfo>(described());
    }
    Result<std::vector<MapInfo>> list(const std::string&) override {
        return std::vector<MapInfo>();
    }
    Result<MapTable> table(const MapKey&) override {
        const std::lock_guard lock(kernel_.mutex);
        begin();
        return MapTable{{volume_bytes / 512, "linear", kernel_.live}};
    }
    Result<MapTable> status(const MapKey& key) override { return table(key); }
    Result<std::vector<dev_t>> dependencies(const MapKey&) override {
        const std::lock_guard lock(kernel_.mutex);
        begin();
        return std::vector<dev_t>{kernel_.live == map_parameters(ublk, 0) ? ublk : nbd};
    }
    Result<MapInfo> create(const std::string&, const std::string& uuid, const MapTable& table,
                           const MapOptions&) override {
        const std::lock_guard lock(kernel_.mutex);
        kernel_.there = true;
        kernel_.uuid = uuid;
        kernel_.live = table.front().parameters;
        return described();
    }
    Status load(const MapKey&, const MapTable& table, bool) override {
        const std::lock_guard lock(kernel_.mutex);
        begin();
        kernel_.loaded = table.front().parameters;
        return ok_status();
    }
    Status drop_loaded(const MapKey&) override {
        const std::lock_guard lock(kernel_.mutex);
        begin();
        kernel_.loaded.clear();
        return ok_status();
    }
    Status suspend(const MapKey&, const MapSuspend&) override {
        const std::lock_guard lock(kernel_.mutex);
        begin();
        ++kernel_.suspends;
        if (kernel_.suspends_without_answer > 0) {
            --kernel_.suspends_without_answer;
            kernel_.late_suspend = true;
            return Error{Errc::timeout, ETIMEDOUT, "device-mapper does not answer"};
        }
        kernel_.suspended = true;
        return ok_status();
    }
    Status resume(const MapKey&) override {
        const std::lock_guard lock(kernel_.mutex);
        begin();
        ++kernel_.resumes;
        if (kernel_.resumes_that_fail > 0) {
            --kernel_.resumes_that_fail;
            return Error{Errc::io, ENOMEM, "resuming replica-r0: out of memory"};
        }
        kernel_.suspended = false;
        if (!kernel_.loaded.empty()) kernel_.live = std::exchange(kernel_.loaded, "");
        return ok_status();
    }
    Status remove(const MapKey&) override {
        const std::lock_guard lock(kernel_.mutex);
        kernel_.there = false;
        return ok_status();
    }
    Status remove_when_unused(const MapKey& key) override { return remove(key); }
    Result<std::string> message(const MapKey&, std::uint64_t, const std::string&) override {
        return std::string();
    }

  private:
    MapInfo described() const {
        MapInfo info;
        info.name = "replica-r0";
        info.uuid = kernel_.uuid;
        info.device = makedev(4000, 7);  // of nothing that this machine has
        info.suspended = kernel_.suspended;
        info.live = !kernel_.live.empty();
        info.loaded = !kernel_.loaded.empty();
        return info;
    }
    void begin() {
        if (std::exchange(kernel_.late_suspend, false)) kernel_.suspended = true;
    }
    Kernel& kernel_;
};

// A resource whose doors open and close as they are told.
struct World {
    Kernel kernel;
    TempDir dir;
    ChangeLock changing;
    std::atomic<bool> ublk_open = false, nbd_open = false;
    MapperHost host{{}, [this](const Mapper::Log&) -> Result<std::unique_ptr<Mapper>> {
                        return std::unique_ptr<Mapper>(std::make_unique<FakeMapper>(kernel));
                    }};
    VolumeMapping mapping{
        {dir.path(), "r0", [](int, const std::string&) {}}, host, doors(), changing};

    std::atomic<bool>& is_open(const std::string& kind) {
        return kind == "ublk" ? ublk_open : nbd_open;
    }
    VolumeMapping::Doors doors() {
        const auto facts = [this](const std::string& kind) -> Result<BlockTarget> {
            if (!is_open(kind)) return Error{Errc::not_found, 0, "there is no " + kind};
            return BlockTarget{kind == "ublk" ? ublk : nbd, volume_bytes};
        };
        return {[this, facts](const std::string& kind) {
                    is_open(kind) = true;
                    return facts(kind);
                },
                facts,
                [this](const std::string& kind, bool) {
                    is_open(kind) = false;
                    return ok_status();
                },
                [] { return volume_bytes; }};
    }
    Status map(const std::string& place) {
        const std::lock_guard locked(changing);
        return mapping.map(place);
    }
    bool goes_on_over(dev_t below) {
        const std::lock_guard lock(kernel.mutex);
        return !kernel.suspended && kernel.loaded.empty() &&
               kernel.live == map_parameters(below, 0);
    }
    bool settled_over(const std::string& place) {
        const auto loaded = MappingRecordFile(dir.path(), "r0").load();
        return loaded && loaded.value() && loaded.value()->over == place &&
               loaded.value()->from.empty() && mapping.view().trouble.empty();
    }
};

}  // namespace

TEST_CASE("what is mapped is swapped under its users") {
    World world;
    REQUIRE_OK(world.map("ublk"));
    CHECK(world.goes_on_over(ublk));
    REQUIRE_OK(world.map("nbd"));
    CHECK(world.goes_on_over(nbd));
    CHECK_FALSE(world.ublk_open);
    CHECK(world.settled_over("nbd"));
}

// It is done after all, when nobody waits for it any more: its users would wait for ever.
TEST_CASE("a suspend without an answer, which is done later, is ended by the keeper") {
    World world;
    REQUIRE_OK(world.map("ublk"));
    world.kernel.suspends_without_answer = 1;
    const Status swapped = world.map("nbd");
    REQUIRE_FALSE(swapped);
    CHECK(swapped.error().code == Errc::timeout);
    CHECK(wait_until([&] { return world.goes_on_over(ublk) && world.settled_over("ublk"); }));
    CHECK(world.ublk_open);
    CHECK_FALSE(world.nbd_open);
    CHECK(world.kernel.resumes == 1);
    REQUIRE_OK(world.map("nbd"));
    CHECK(world.goes_on_over(nbd));
}

TEST_CASE("a resume that fails is done again by the keeper, and the swap with it") {
    World world;
    REQUIRE_OK(world.map("ublk"));
    world.kernel.resumes_that_fail = 2;
    const Status swapped = world.map("nbd");
    REQUIRE_FALSE(swapped);
    CHECK(swapped.error().os_errno == ENOMEM);
    CHECK(wait_until([&] { return world.goes_on_over(nbd) && world.settled_over("nbd"); }));
    CHECK_FALSE(world.ublk_open);
    CHECK(world.nbd_open);
    CHECK(world.kernel.resumes == 3);
}

TEST_CASE("a hold whose suspend has no answer holds nobody") {
    World world;
    REQUIRE_OK(world.map("ublk"));
    world.kernel.suspends_without_answer = 1;
    {
        const std::lock_guard locked(world.changing);
        CHECK(world.mapping.hold().error().code == Errc::timeout);
    }
    CHECK(wait_until([&] { return world.goes_on_over(ublk) && world.settled_over("ublk"); }));
    CHECK_FALSE(world.mapping.view().held);
    CHECK(world.ublk_open);
}
