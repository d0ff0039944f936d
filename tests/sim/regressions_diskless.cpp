// SPDX-License-Identifier: Apache-2.0
// Regressions (regressions.cpp) of Primaries whose disk failed, and of disks that come back to
// them.
#include <cerrno>
#include <functional>
#include <utility>

#include "tests/sim/regressions.hpp"

namespace replica::sim {
namespace {

// A primary whose disk failed and that lives on its peers'. What it does when it meets one of them
// again is a table of its own (Core::meet_without_disk).
class Diskless : public Scenario {
  public:
    Diskless(const Options& options, const Setup& setup) : Scenario(options, setup) {
        break_disk(0);
        acknowledged(write(0, 1));
        until("its disk is gone", [&] { return core(0).disk() == DiskState::diskless; });
        run_ms(500);
    }
};

// b lost its cache meanwhile: what it acknowledged is gone, and nothing may be read as if it were
// there.
void diskless_primary_and_lost_cache(const Options& options) {
    Setup setup;
    setup.idle_flush_ns = 60 * ns_per_s;
    Diskless s(options, setup);
    s.acknowledged(s.write(0, 2));
    s.power_cut(1);
    s.run_ms(1'000);
    s.start(1);
    s.until("they meet", [&] { return s.connected(0, 1); });
    s.run_ms(2'000);
    s.expect(!s.core(0).has_good_data(), "the primary does not go on");
    const auto seen = s.read(0, 2);
    s.run_ms(1'000);
    s.expect(!s.answered(seen) || s.result(seen) != 0, "nothing is read from b");
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "it can be demoted");
    s.finish();
}

// Its only copy is taken away in order and comes back: nobody has written meanwhile.
void last_copy_leaves_and_returns(const Options& options) {
    Diskless s(options, {});
    s.acknowledged(s.write(0, 2));
    s.expect(s.ended(s.command(1, CommandKind::disconnect)) == Errc::ok, "b has left");
    s.until("the primary sees it", [&] { return !s.core(0).has_good_data(); });
    const auto lost = s.write(0, 3);
    s.until("there is nowhere to write", [&] { return s.answered(lost); });
    s.expect(s.result(lost) == ENOLINK, "a replica is out of reach");
    s.expect(s.core(1).disk() == DiskState::up_to_date, "b has all there is");
    s.expect(s.ended(s.command(1, CommandKind::connect)) == Errc::ok, "b may come back");
    s.until("the primary goes on", [&] { return s.core(0).has_good_data(); });
    s.acknowledged(s.write(0, 3));

    s.command(1, CommandKind::down);
    s.until("the primary sees it", [&] { return !s.core(0).has_good_data(); });
    s.run_ms(1'000);
    s.start(1);
    s.until("the primary goes on again", [&] { return s.core(0).has_good_data(); });
    s.acknowledged(s.write(0, 4));
    s.acknowledged(s.read(0, 3));
    s.finish();
}

// b is lost before the generation that c's loss opened reached it: it gets it now, and the
// application goes on.
void diskless_primary_and_lost_generation(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Diskless s(options, setup);
    s.hold(0, 1, MessageType::generation);
    s.kill(2);
    s.run_ms(50);
    s.cut(0, 1);
    s.release_messages();
    s.run_ms(2'000);
    s.join(0, 1);
    s.until("b is met again", [&] { return s.core(0).has_good_data(); });
    s.acknowledged(s.write(0, 3));
    s.expect(!s.core(0).in_sync().has(2), "c is behind");
    s.start(2);
    s.finish();
}

// b has brought c up to date by itself meanwhile. c gets nothing from a, which does not know it:
// the next write is not counted as c's.
void diskless_primary_and_grown_set(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Diskless s(options, setup);
    s.kill(2);
    s.acknowledged(s.write(0, 3));
    s.cut(0, 1);
    s.cut(0, 2);
    s.start(2);
    s.until("b counts c in", [&] { return s.core(1).in_sync().has(2) && s.bits(1, 2) == 0; });
    s.run_ms(1'000);
    s.join(0, 1);
    s.until("b is met again", [&] { return s.core(0).has_good_data(); });
    s.acknowledged(s.write(0, 4));
    s.kill(1);
    s.run_ms(1'000);
    s.expect(!s.core(0).in_sync().has(2), "c was not counted on");
    s.join(0, 2);
    s.start(1);
    s.finish();
}

// b became primary meanwhile and has written: a keeps away from it until it is demoted.
void diskless_primary_and_other_data(const Options& options) {
    Diskless s(options, {});
    s.cut(0, 1);
    s.run_ms(2'500);
    s.promote(1);
    s.acknowledged(s.write(1, 6));
    s.expect(s.ended(s.command(1, CommandKind::demote)) == Errc::ok, "b is demoted");
    s.join(0, 1);
    s.until("they keep away from each other", [&] {
        return s.view(0, 1).connection == ConnectionState::standalone ||
               s.view(1, 0).connection == ConnectionState::standalone;
    });
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.command(0, CommandKind::connect);
    s.command(1, CommandKind::connect);
    s.until("b sees that a is Secondary",
            [&] { return s.connected(0, 1) && s.view(1, 0).role == Role::secondary; });
    s.promote(1);
    s.acknowledged(s.read(1, 6));
    s.finish();
}

// b's disk failed in a flush, which may have cost what its cache held. That stays true when b's
// process is started anew and the disk works again.
void failed_disk_and_restart(const Options& options) {
    Setup setup;
    setup.idle_flush_ns = 60 * ns_per_s;
    Diskless s(options, setup);
    s.acknowledged(s.write(0, 2));
    s.break_disk(1);
    const auto flush = s.flush(0);
    s.until("the flush fails", [&] { return s.answered(flush) && s.result(flush) != 0; });
    s.kill(1);
    s.run_ms(1'000);
    s.mend_disk(1);
    s.start(1);
    s.until("they meet", [&] { return s.connected(0, 1); });
    s.run_ms(2'000);
    s.expect(!s.core(0).has_good_data(), "the primary does not go on with what is left");
    s.finish();
}

// A target is told that it is UpToDate when its source has on record that it counts: a source that
// lost that in a power cut would go on alone, in the generation that the target carries.
void target_counted_on_record(const Options& options) {
    Setup setup;
    setup.chunk_blocks = 1;
    Scenario s(options, setup);
    s.kill(1);
    s.run_ms(1'000);
    for (std::uint64_t block = 0; block < 40; ++block)
        s.acknowledged(s.write(0, 2 * block));
    s.start(1);
    s.until("it is being resynced",
            [&] { return s.view(0, 1).replication == ReplicationState::sync_source; });
    s.hold_io(0, IoOrigin::superblock);
    s.until("nothing is left to be sent", [&] { return s.bits(0, 1) == 0; });
    s.run_ms(500);
    s.expect(s.core(1).disk() == DiskState::inconsistent, "b is not told yet");
    s.power_cut(0);
    s.run_ms(2'000);
    s.release_io();
    s.start(0);
    s.finish();
}

// While b asks for its promotion a Primary connects that it could not see before.
void promotion_meets_a_primary(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    s.cut(0, 1);
    s.cut(0, 2);
    s.until("a is gone", [&] { return !s.connected(1, 0) && !s.connected(2, 0); });
    s.run_ms(2'000);
    s.hold(2, 1, MessageType::promote_reply);
    const auto token = s.command(1, CommandKind::promote);
    s.run_ms(100);
    s.join(0, 1);
    s.until(
        "a is back", [&] { return s.connected(1, 0) && s.connected(0, 1); }, 3'000);
    s.expect(s.ended(token) == Errc::state, "the promotion is given up");
    s.expect(s.core(1).role() == Role::secondary, "b is Secondary");
    s.release_messages();
    s.finish();
}

// The disk of a Primary is mended, or replaced, under its application: it takes what it lacks from
// a peer, and from then on the Primary does not need that peer any more.
void attach_on_a_primary(const Options& options, const Setup& setup,
                         const std::function<void(Diskless&)>& repair, std::uint64_t sent_max) {
    Diskless s(options, setup);
    for (std::uint64_t block = 0; block < 8; ++block)
        s.acknowledged(s.write(0, 3 * block));
    repair(s);
    std::uint64_t total = 0, turn = 0;
    s.until("the disk is UpToDate", [&] {
        total = std::max(total, s.view(0, 1).resync_total_bits);
        // Where the resync is, was and will be.
        if (++turn % 16 == 0) s.write(0, turn / 16 % 64);
        return s.core(0).disk() == DiskState::up_to_date;
    });
    s.expect(s.core(0).role() == Role::primary, "it stayed Primary");
    s.expect(total <= sent_max, "it takes no more than it lacks");
    s.run_ms(1'000);
    s.audit();
    s.kill(1);
    s.until("b is left behind", [&] { return !s.core(0).in_sync().has(1); });
    for (std::uint64_t block = 0; block < 64; ++block)
        s.acknowledged(s.read(0, block));
    s.start(1);
    s.finish();
}

void mended_disk_of_a_primary(const Options& options) {
    // Its label, its log and the peer's marks say what it lacks.
    attach_on_a_primary(
        options, {}, [](Diskless& s) { s.attach(0); }, 4 * extent_blocks);
}

void new_disk_of_a_primary(const Options& options) {
    attach_on_a_primary(
        options, {},
        [](Diskless& s) {
            s.replace_disk(0);
            s.attach(0);
        },
        4 * extent_blocks);
}

// A write is on b; c, whose answer it waits for, is lost, and then b, before b has recorded the
// generation without c. Who promotes c later is not told of that: the write is not acknowledged.
void last_copy_is_lost_with_the_generation(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Diskless s(options, setup);
    s.hold(2, 0, MessageType::write_ack);
    const auto ticket = s.write(0, 2);
    s.run_ms(200);
    s.hold(0, 1, MessageType::generation);
    s.cut(0, 2);
    s.until("c is left behind", [&] { return !s.core(0).in_sync().has(2); });
    s.attach(0);
    s.run_ms(300);
    s.kill(1);
    s.until("the request is answered", [&] { return s.answered(ticket); });
    s.expect(s.result(ticket) != 0, "it failed");
    s.release_messages();
    s.join(0, 2);
    s.start(1);
    s.until("b is back", [&] { return s.connected(0, 1); });
    s.finish();
}

// The first block that this Primary lacks and `from` has.
std::uint64_t first_missing(Scenario& s, int from) {
    const auto& label = s.core(0).superblock();
    const auto slot =
        static_cast<unsigned>(label.peers[static_cast<std::size_t>(from)].bitmap_index);
    std::uint64_t block = 0;
    while (!s.core(0).bitmap()->any_in_bytes(slot, block * block_bytes, block_bytes))
        ++block;
    return block;
}

// A resync brings a write of the Primary back to it that is not on its own disk yet: it waits.
void resync_meets_an_own_write(const Options& options) {
    Setup setup;
    setup.chunk_blocks = 1;
    Diskless s(options, setup);
    for (std::uint64_t block = 0; block < 30; ++block)
        s.acknowledged(s.write(0, block));
    s.hold(0, 1, MessageType::bitmap_done);
    s.attach(0);
    s.run_ms(200);
    const auto hold_chunks = [&] {
        s.hold(1, 0, MessageType::resync_data);
        s.hold(1, 0, MessageType::resync_zeroes);
    };
    s.release_messages();
    hold_chunks();
    s.run_ms(50);
    s.hold_io(0, IoOrigin::request);
    const auto ticket = s.write(0, 20);
    s.run_ms(100);  // it is on b's disk
    s.release_messages();
    s.run_ms(300);
    s.release_io();
    s.acknowledged(ticket);
    s.until("the disk is UpToDate", [&] { return s.core(0).disk() == DiskState::up_to_date; });
    s.finish();
}

// A write waits for the activity log; meanwhile a resync's write to the same block is begun, whose
// extent is active.
void resync_overtakes_a_waiting_write(const Options& options) {
    Setup setup;
    setup.chunk_blocks = 1;
    setup.al_extents = 2;
    setup.idle_flush_ns = 60 * ns_per_s;
    Diskless s(options, setup);
    s.hold(0, 1, MessageType::bitmap_done);
    s.attach(0);
    s.run_ms(200);
    s.release_messages();
    s.hold(1, 0, MessageType::resync_data);
    s.hold(1, 0, MessageType::resync_zeroes);
    s.run_ms(50);
    const std::uint64_t block = first_missing(s, 1), extent = block / extent_blocks;
    const auto in_extent = [&](std::uint64_t after) {
        return (extent + after) % 4 * extent_blocks + 40;
    };
    s.hold_io(0, IoOrigin::request);
    s.write(0, in_extent(0));
    s.write(0, in_extent(1));
    s.run_ms(100);
    s.write(0, in_extent(2));               // no slot is free
    const auto ticket = s.write(0, block);  // its extent is active; it waits all the same
    s.run_ms(20);
    s.hold_io(0, IoOrigin::peer_request);
    s.release_messages();
    s.run_ms(100);
    s.release_io(2, 0, IoOrigin::peer_request);
    s.run_ms(1000);
    s.release_io();
    s.acknowledged(ticket);
    s.until("the disk is UpToDate", [&] { return s.core(0).disk() == DiskState::up_to_date; });
    s.acknowledged(s.read(0, block));
    s.finish();
}

// What the source of a resync read before a write of the Primary reached it does not land on that
// write.
void newer_than_the_source(const Options& options) {
    Setup setup;
    setup.chunk_blocks = 1;
    Diskless s(options, setup);
    s.hold(0, 1, MessageType::bitmap_done);
    s.attach(0);
    s.run_ms(200);
    s.hold_io(1, IoOrigin::resync);
    s.release_messages();
    s.run_ms(50);  // b has read the first chunks, and they are not on their way yet
    const std::uint64_t block = first_missing(s, 1);
    const auto ticket = s.write(0, block);
    s.run_ms(20);
    s.release_io();
    s.acknowledged(ticket);
    s.until("the disk is UpToDate", [&] { return s.core(0).disk() == DiskState::up_to_date; });
    s.acknowledged(s.read(0, block));
    s.finish();
}

// The last good disk fails for a moment. Attached under its Primary it would be called
// Inconsistent, and lose against the older data of the peer that comes back.
void last_disk_of_a_primary(const Options& options) {
    Scenario s(options, {});
    s.kill(1);
    s.until("b is left behind", [&] { return !s.core(0).in_sync().has(1); });
    s.acknowledged(s.write(0, 3, 1, true));
    s.fail_io(0, IoOrigin::request);
    const auto seen = s.read(0, 9);
    s.until("the disk is given up",
            [&] { return s.answered(seen) && s.core(0).disk() == DiskState::diskless; });
    s.mend_io();
    s.attach(0);
    s.run_ms(500);
    s.expect(s.core(0).disk() == DiskState::diskless, "the attach is refused");
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.attach(0);
    s.until("its data is as good as before",
            [&] { return s.core(0).disk() == DiskState::up_to_date; });
    s.start(1);
    s.until("b takes it", [&] {
        return s.connected(0, 1) && s.core(0).in_sync().has(1) &&
               s.core(1).disk() == DiskState::up_to_date;
    });
    s.run_ms(500);
    s.promote(1);
    s.acknowledged(s.read(1, 3));
    s.finish();
}

// The peer that it takes from is lost in the middle: without a good copy there is nothing to read,
// and when the peer is back it goes on.
void source_of_a_primary_is_lost(const Options& options) {
    Setup setup;
    setup.chunk_blocks = 1;
    Diskless s(options, setup);
    s.replace_disk(0);
    s.attach(0);
    s.until("a quarter of it is there",
            [&] { return s.view(0, 1).resync_done_bits > extent_blocks; });
    s.kill(1);
    s.until("it has no data", [&] { return !s.core(0).has_good_data(); });
    s.run_ms(500);
    s.start(1);
    s.until("the disk is UpToDate", [&] { return s.core(0).disk() == DiskState::up_to_date; });
    s.expect(s.core(0).role() == Role::primary, "it stayed Primary");
    s.acknowledged(s.write(0, 1));
    s.finish();
}

// A source that is told of a write while a block of it is on its way to the target.
void write_held_by_a_chunk(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Diskless s(options, setup);
    s.kill(2);
    s.acknowledged(s.write(0, 3));
    s.cut(0, 1);
    s.cut(0, 2);
    s.hold(2, 1, MessageType::resync_ack);
    s.start(2);
    s.until("b gives to c", [&] { return s.view(2, 1).resync_received_bytes > 0; });
    s.join(0, 1);
    s.until("a meets b again", [&] { return s.core(0).has_good_data(); });
    const auto ticket = s.write(0, 3);
    s.run_ms(20);
    s.expect(!s.answered(ticket), "it waits for the block to arrive");
    s.release_messages();
    s.acknowledged(ticket);
    const auto slot = static_cast<unsigned>(s.core(1).superblock().peers[2].bitmap_index);
    s.expect(s.core(1).bitmap()->any_in_bytes(slot, 3 * block_bytes, 1), "b knows that c lacks it");
    s.join(0, 2);
    s.finish();
}

// The disk is lost under a write that waits for the activity log, with no room in the journal.
void disk_lost_at_a_full_journal(const Options& options) {
    Setup setup;
    setup.journal = 8;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 0));
    s.acknowledged(s.flush(0));
    s.hold_io(0, IoOrigin::al);
    const auto waits = s.write(0, extent_blocks);
    s.hold(1, 0, MessageType::flush_ack);
    for (std::uint64_t block = 1; block <= 8; ++block)
        s.write(0, block);
    s.run_ms(50);
    s.break_disk(0);
    s.read(0, 20);
    s.until("the disk is given up", [&] { return s.core(0).disk() <= DiskState::failed; });
    s.release_io();
    s.release_messages();
    s.acknowledged(waits);
    s.finish();
}

constexpr Regression table[] = {
    {"diskless-primary-and-lost-cache", "a primary went on over a disk that had lost writes",
     diskless_primary_and_lost_cache},
    {"last-copy-leaves-and-returns", "a primary refused its only copy when that was back",
     last_copy_leaves_and_returns},
    {"diskless-primary-and-lost-generation", "its last copy did not know the generation",
     diskless_primary_and_lost_generation},
    {"diskless-primary-and-grown-set", "a copy that gets no writes was counted on",
     diskless_primary_and_grown_set},
    {"diskless-primary-and-other-data", "it met data that it does not work on",
     diskless_primary_and_other_data},
    {"failed-disk-and-restart", "a restart hid that a failed disk may have lost its cache",
     failed_disk_and_restart},
    {"target-counted-on-record", "a power cut took the record of a member that had been told",
     target_counted_on_record},
    {"promotion-meets-a-primary", "two Primaries, connected to each other",
     promotion_meets_a_primary},
    {"mended-disk-of-a-primary", "a disk could not be attached to a Primary",
     mended_disk_of_a_primary},
    {"new-disk-of-a-primary", "the same with a disk that never held the volume",
     new_disk_of_a_primary},
    {"newer-than-the-source", "a resync's older block landed on a Primary's own write",
     newer_than_the_source},
    {"last-copy-is-lost-with-the-generation",
     "a write was acknowledged under a generation of nobody",
     last_copy_is_lost_with_the_generation},
    {"resync-meets-an-own-write", "two writes of one block were on their way to the disk",
     resync_meets_an_own_write},
    {"resync-overtakes-a-waiting-write",
     "a Primary's own write was lost under a resync's older one", resync_overtakes_a_waiting_write},
    {"last-disk-of-a-primary", "the last good disk was called Inconsistent",
     last_disk_of_a_primary},
    {"source-of-a-primary-is-lost", "the only good copy goes while a Primary takes from it",
     source_of_a_primary_is_lost},
    {"write-held-by-a-chunk", "the answer to a chunk cleared the mark of a newer write",
     write_held_by_a_chunk},
    {"disk-lost-at-a-full-journal", "a write failed though a peer had good data",
     disk_lost_at_a_full_journal},
};

}  // namespace

std::span<const Regression> diskless_regressions() { return table; }

}  // namespace replica::sim
