// SPDX-License-Identifier: Apache-2.0
// The snapshot before a resync where LVM is in the middle of something: an lvm(8) that says what it
// is told to. What LVM itself does is tested in a guest (vm_dm_snapshot).
#include <sys/stat.h>

#include <chrono>
#include <fstream>

#include "engine/mapper/thin_snapshot.hpp"
#include "engine/node/create_disk.hpp"
#include "engine/node/resync_snapshot.hpp"
#include "tests/integration/node_support.hpp"

using namespace replica;
using namespace replica::test;
using std::chrono::milliseconds;

namespace {

// vg0/r0 is a thin volume, and has the snapshot as long as the file "snapshot" is there.
class FakeLvm {
  public:
    FakeLvm() {
        std::ofstream(dir_ / "lvm") << "#!/bin/sh\ncd " << dir_.path() << R"(
echo "$*" >>calls
case "$*" in
    *segtype*) echo "  vg0 r0 thin" ;;
    *lv_tags*) [ ! -e snapshot ] || echo "  replica_r0" ;;
    *lv_device_open*) echo "  0" ;;
    lvcreate*)
        trap 'echo asked to end; rm -f half; exit 5' TERM
        touch half
        while [ -e slow ]; do sleep 0.05; done
        mv half snapshot ;;
    lvremove* | *--merge*) [ -e pending ] || rm -f snapshot ;;
    *) exit 3 ;;
esac
)";
        REQUIRE(::chmod((dir_ / "lvm").c_str(), 0700) == 0);
    }
    LvmProgram program() const { return {{dir_ / "lvm"}, milliseconds(1000)}; }
    ThinSnapshot snapshot() const {
        auto found = ThinSnapshot::of("/dev/vg0/r0", "r0", program());
        if (!found) FAIL(found.error().message);
        return std::move(found).value();
    }
    void set(const char* name) const { std::ofstream(dir_ / name) << "set"; }
    void clear(const char* name) const { ::unlink((dir_ / name).c_str()); }
    bool has(const char* name) const { return ::access((dir_ / name).c_str(), F_OK) == 0; }

  private:
    TempDir dir_;
};

}  // namespace

TEST_CASE("a snapshot is taken, found, put back") {
    const FakeLvm lvm;
    const ThinSnapshot snapshot = lvm.snapshot();
    CHECK(snapshot.name() == "vg0/r0-before-resync");
    CHECK_FALSE(snapshot.exists().value());
    CHECK(snapshot.restore().error().code == Errc::not_found);
    REQUIRE_OK(snapshot.take());
    CHECK(snapshot.exists().value());
    REQUIRE_OK(snapshot.check_unused());
    REQUIRE_OK(snapshot.restore());
    CHECK_FALSE(snapshot.exists().value());
}

// To kill it could leave the volume suspended, and all that waits for it.
TEST_CASE("LVM that takes too long is asked to end, and puts in order what it has begun") {
    const FakeLvm lvm;
    lvm.set("slow");
    const Status taken = lvm.snapshot().take();
    REQUIRE_FALSE(taken);
    CHECK(taken.error().message == "no snapshot: asked to end");
    CHECK_FALSE(lvm.has("half"));
    CHECK_FALSE(lvm.has("snapshot"));
    lvm.clear("slow");
    CHECK(lvm.snapshot().take());
}

// LVM would put the old data back below the new volume.
TEST_CASE("no volume is made of a disk whose snapshot LVM is still to put back") {
    const FakeLvm lvm;
    const TempDir dir;
    REQUIRE(::mkdir((dir / "superblocks").c_str(), 0700) == 0);
    ResourceConfig config;
    config.name = "r0";
    config.disk = dir / "disk";
    Pair::make_file(config.disk, 16U << 20);
    const DiskPaths paths{config.disk, "", dir / "superblocks/r0.v0"};
    lvm.set("snapshot");
    lvm.set("pending");
    CHECK(lvm.snapshot().restore().error().code == Errc::busy);
    REQUIRE_OK(save_snapshot_note(paths.copy, {0x1234, 1, true}));
    CreateOptions force;
    force.force = true;
    const Status refused = create_disk(config, force, paths, lvm.program());
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Errc::busy);
    CHECK(refused.error().message.find("lvchange -an") != std::string::npos);
    CHECK(load_snapshot_note(paths.copy).value());
    CHECK(::access(paths.copy.c_str(), F_OK) != 0);
    lvm.clear("snapshot");  // the volume was activated anew, and LVM has done it
    CHECK(create_disk(config, force, paths, lvm.program()));
    CHECK_FALSE(load_snapshot_note(paths.copy).value());
    CHECK(::access(paths.copy.c_str(), F_OK) == 0);
}
