// SPDX-License-Identifier: Apache-2.0
// What the simulator found once, as scripts. A seed means something else after each change of the
// simulator; the order of events that led to a fault does not. Each script fails if its fix in the
// core is undone (docs/testing.md says how that was tried). A new finding gets a script here.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <utility>
#include <vector>

#include "tests/sim/regressions.hpp"

namespace replica::sim {
namespace {

// a: primary; what b holds of the old primary's write is still on its way to b's disk when b, now
// primary itself, writes to the same block.
void old_write_in_flight(const Options& options) {
    Scenario s(options, {});
    s.hold_io(1, IoOrigin::peer_request);
    s.write(0, 5);
    s.run_ms(20);
    s.kill(0);
    s.run_ms(1'000);
    const auto promotion = s.command(1, CommandKind::promote);
    s.run_ms(500);  // it may wait for that I/O, and the write has to if it does not
    const bool early = s.core(1).role() == Role::primary && !s.core(1).suspended();
    auto newer = early ? s.write(1, 5) : 0;
    s.run_ms(200);
    s.release_io();
    s.expect(s.ended(promotion) == Errc::ok, "b is promoted");
    if (!early) newer = s.write(1, 5);
    s.acknowledged(newer);
    s.acknowledged(s.read(1, 5));
    s.finish();
}

// Secondaries that lost their primary align, and what they held in a cache only loses its marks.
void unflushed_behind_cleared_bits(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 7));
    s.kill(0);
    s.until("both see that it is gone", [&] { return !s.connected(1, 0) && !s.connected(2, 0); });
    s.run_ms(2'000);
    s.expect(s.bits(1, 2) == 0 && s.bits(2, 1) == 0, "the two are aligned");
    s.power_cut(1);
    s.run_ms(2'000);
    s.start(1);
    s.until("they meet again", [&] { return s.connected(1, 2) && s.connected(2, 1); });
    s.run_ms(2'000);
    s.audit();
    s.finish();
}

// A disk that was invalidated is no member of the in-sync set, and no reason to let the last good
// one be detached.
void invalidated_member(const Options& options) {
    Scenario s(options, {});
    s.acknowledged(s.write(0, 3));
    s.command(1, CommandKind::pause_sync);
    s.expect(s.ended(s.command(1, CommandKind::invalidate)) == Errc::ok, "b is invalidated");
    s.run_ms(500);
    s.expect(s.core(1).disk() == DiskState::inconsistent, "its resync is paused");
    s.expect(!s.core(0).in_sync().has(1), "it is not counted on");
    s.expect(s.ended(s.command(0, CommandKind::detach)) == Errc::state,
             "the last good disk stays attached");
    s.command(1, CommandKind::resume_sync);
    s.finish();
}

// Without a disk of its own a primary does not acknowledge what a peer only received.
void diskless_primary_and_receipt(const Options& options) {
    Setup setup;
    setup.protocol = Protocol::b;
    Scenario s(options, setup);
    s.break_disk(0);
    s.acknowledged(s.write(0, 1));
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.hold_io(1, IoOrigin::peer_request);
    const auto ticket = s.write(0, 2);
    s.run_ms(500);
    s.expect(!s.answered(ticket), "a write that no disk has is not acknowledged");
    s.release_io();
    s.acknowledged(ticket);
    s.finish();
}

// Three secondaries, each with marks toward each other: one aligns them all.
void circle_of_secondaries(const Options& options) {
    Setup setup;
    setup.nodes = 4;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.hold(0, 3, MessageType::write);
    for (std::uint64_t block = 0; block < 4; ++block)
        s.write(0, block * 40);
    s.run_ms(50);
    s.kill(0);
    s.release_messages();
    s.until(
        "the three are aligned",
        [&] {
            for (int n = 1; n < 4; ++n) {
                for (int p = 1; p < 4; ++p) {
                    if (n != p && (!s.connected(n, p) || s.connected(n, 0) || s.bits(n, p) != 0))
                        return false;
                }
            }
            return true;
        },
        15'000);
    s.audit();
    s.finish();
}

// The source of a resync among secondaries can not vouch for a third node that it did not see.
void word_for_a_third_node(const Options& options) {
    Setup setup;
    setup.nodes = 4;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.hold(0, 3, MessageType::write);
    s.cut(1, 3);
    s.cut(2, 3);
    s.write(0, 9);
    s.run_ms(50);
    s.kill(0);
    s.until("two are aligned", [&] {
        return s.connected(1, 2) && !s.connected(1, 0) && !s.connected(2, 0) && s.bits(1, 2) == 0 &&
               s.bits(2, 1) == 0;
    });
    s.run_ms(3'000);
    s.kill(1);
    s.join(2, 3);
    s.until("the third is met", [&] { return s.connected(2, 3) && s.connected(3, 2); });
    s.run_ms(2'000);
    s.audit();
    s.finish();
}

// Writes to more extents than the activity log has slots: the flush that frees one starts at once.
void starving_activity_log(const Options& options) {
    Setup setup;
    setup.al_extents = 2;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    for (std::uint64_t i = 0; i < 12; ++i)
        s.acknowledged(s.write(0, (i % 4) * extent_blocks + i), 100);
    s.finish();
}

// The flush goes out while the writes that hold the slots are still on their way to the disk: it is
// too early for them, and one has to follow when they end.
void flush_that_came_too_early(const Options& options) {
    Setup setup;
    setup.al_extents = 2;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 0));
    s.acknowledged(s.write(0, extent_blocks));
    s.acknowledged(s.flush(0));
    s.run_ms(50);
    s.hold_io(0, IoOrigin::request);
    s.write(0, 1);
    s.write(0, extent_blocks + 1);
    s.run_ms(20);
    const auto third = s.write(0, 2 * extent_blocks);
    s.run_ms(200);
    s.release_io();
    s.acknowledged(third, 200);
    s.finish();
}

// A target of a resync got new writes, acknowledged and not flushed, and loses power: they are
// marked although it is no member.
void abandoned_target(const Options& options) {
    Setup setup;
    setup.idle_flush_ns = 60 * ns_per_s;
    setup.extents = 16;
    setup.al_extents = 2;
    setup.chunk_blocks = 1;
    Scenario s(options, setup);
    s.kill(1);
    s.run_ms(1'000);
    for (std::uint64_t i = 0; i < 40; ++i)
        s.acknowledged(s.write(0, 2 * i));
    s.hold(1, 0, MessageType::resync_ack);
    s.start(1);
    s.until("it is being resynced",
            [&] { return s.view(0, 1).replication == ReplicationState::sync_source; });
    s.run_ms(50);
    const std::uint64_t block = 9 * extent_blocks + 1;  // not in the log of its crash
    const auto ticket = s.write(0, block);
    s.run_ms(50);
    s.expect(s.core(1).disk() == DiskState::inconsistent, "the resync is not over");
    s.cut(0, 1);
    s.power_cut(1);
    s.run_ms(2'000);
    s.expect(s.answered(ticket), "the write is acknowledged");
    const auto slot = static_cast<unsigned>(s.core(0).superblock().peers[1].bitmap_index);
    s.expect(s.core(0).bitmap()->any_in_bytes(slot, block * block_bytes, block_bytes),
             "a write that the target may have lost is marked");
    s.release_messages();
    s.release_io();
    s.join(0, 1);
    s.start(1);
    s.finish();
}

// Detached while a transaction of the activity log waits for a bitmap page.
void detach_during_transaction(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.al_extents = 2;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.kill(2);
    s.run_ms(1'000);
    s.acknowledged(s.write(0, 1));
    s.acknowledged(s.write(0, extent_blocks + 1));
    s.acknowledged(s.flush(0));
    s.hold_io(1, IoOrigin::bitmap_page);
    s.hold_io(0, IoOrigin::request);
    s.write(0, 2 * extent_blocks + 1);
    s.run_ms(100);
    const auto token = s.command(1, CommandKind::detach);
    s.run_ms(200);
    s.release_io();
    s.expect(s.ended(token, 5'000) == Errc::ok, "the detach ends");
    s.finish();
}

// A node that sent its state as good data, and was made a target by a primary before the answer
// came, is no source.
void half_written_source(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.idle_flush_ns = 60 * ns_per_s;
    setup.chunk_blocks = 1;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 11));
    s.cut(0, 1);
    s.cut(0, 2);
    s.power_cut(1);
    s.power_cut(2);
    s.run_ms(2'000);
    for (std::uint64_t block = 0; block < 20; ++block)
        s.acknowledged(s.write(0, 2 * block));
    s.hold(2, 1, MessageType::state);
    s.start(1);
    s.start(2);
    s.until("the two meet", [&] { return s.connected(1, 2); });
    s.run_ms(100);
    s.hold_io(1, IoOrigin::peer_request);
    s.join(0, 1);
    s.until("b is a target", [&] { return s.core(1).disk() == DiskState::inconsistent; });
    s.run_ms(20);
    s.release_messages();
    s.run_ms(100);
    s.expect(s.view(1, 2).replication != ReplicationState::sync_source &&
                 s.view(1, 2).replication != ReplicationState::bitmap_source,
             "half-written data is no source");
    s.finish();
}

// The disk fails while a promotion is being recorded: it ends as Secondary.
void promotion_not_recorded(const Options& options) {
    Scenario s(options, {});
    s.acknowledged(s.write(0, 1));
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.run_ms(500);
    s.cut(0, 1);
    s.run_ms(3'000);
    s.hold_io(0, IoOrigin::superblock);
    const auto token = s.command(0, CommandKind::promote);
    s.run_ms(100);
    s.break_disk(0);
    s.release_io();
    s.expect(s.ended(token) == Errc::io, "the promotion fails");
    s.expect(s.core(0).role() == Role::secondary, "it is Secondary");
    s.finish();
}

// A full resync that is cut goes on from its bits.
void full_resync_resumes(const Options& options) {
    Setup setup;
    setup.chunk_blocks = 16;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 1));
    s.command(1, CommandKind::pause_sync);
    s.command(1, CommandKind::invalidate);
    s.run_ms(500);
    const std::uint64_t all = s.bits(0, 1);
    s.expect(all == 4 * extent_blocks, "everything is to be sent");
    s.command(1, CommandKind::resume_sync);
    s.until("half of it is there", [&] { return s.bits(0, 1) < all / 2; });
    s.cut(0, 1);
    s.run_ms(2'000);
    s.join(0, 1);
    s.until("it goes on",
            [&] { return s.view(0, 1).replication == ReplicationState::sync_source; });
    s.expect(s.view(0, 1).resync_total_bits < all * 3 / 4, "it does not begin again");
    s.finish();
}

// An offer to discard is for the handshake that it begins: made by a primary, or to a peer that is
// connected, it would wait for the next split brain.
void stale_offer_to_discard(const Options& options) {
    Scenario s(options, {});
    s.expect(s.ended(s.command(0, CommandKind::connect, 1, false, true)) == Errc::state,
             "a primary's data is not offered");
    s.expect(s.ended(s.command(1, CommandKind::connect, 0, false, true)) == Errc::state,
             "nothing is offered to a connected peer");
    s.finish();
}

// The same for a disk that never held the volume: both sides name the blank state.
void new_disk_resumes(const Options& options) {
    Setup setup;
    setup.extents = 16;
    setup.al_extents = 2;
    Scenario s(options, setup);
    s.kill(1);
    s.run_ms(1'000);
    s.acknowledged(s.write(0, 1));
    s.replace_disk(1);
    s.start(1);
    s.until("half of it is there", [&] {
        return s.view(0, 1).replication == ReplicationState::sync_source &&
               s.bits(0, 1) < 8 * extent_blocks;
    });
    s.cut(0, 1);
    s.run_ms(2'000);
    s.join(0, 1);
    s.until("it goes on",
            [&] { return s.view(0, 1).replication == ReplicationState::sync_source; });
    s.expect(s.view(0, 1).resync_total_bits < 12 * extent_blocks, "it does not begin again");
    s.finish();
}

// The offer to discard data is for one split brain, not for all that follow.
void discard_offer_holds_once(const Options& options) {
    Scenario s(options, {});
    const auto split = [&] {
        s.cut(0, 1);
        s.run_ms(2'500);
        s.promote(1);
        s.acknowledged(s.write(0, 1));
        s.acknowledged(s.write(1, 2));
        s.expect(s.ended(s.command(1, CommandKind::demote)) == Errc::ok, "b is demoted");
        s.join(0, 1);
        s.until("they keep away from each other", [&] {
            return s.view(0, 1).connection == ConnectionState::standalone ||
                   s.view(1, 0).connection == ConnectionState::standalone;
        });
        s.run_ms(1'000);
        s.expect(s.core(1).disk() == DiskState::up_to_date, "nobody was made a victim");
    };
    split();
    s.command(1, CommandKind::connect, 0, false, true);
    s.command(0, CommandKind::connect, 1);
    s.until("b takes a's data",
            [&] { return s.connected(0, 1) && s.core(0).in_sync().has(1) && s.bits(0, 1) == 0; });
    s.run_ms(1'000);
    split();  // without an offer nobody becomes a victim
    s.finish();
}

// What a crash did to a cache stays true when the process is killed once more before anybody was
// met.
void power_cut_then_kill(const Options& options) {
    Setup setup;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 6));
    s.power_cut(0);
    s.kill(1);
    s.run_ms(1'000);
    s.start(0);
    s.run_ms(1'000);
    s.kill(0);
    s.run_ms(100);
    s.start(0);
    s.start(1);
    s.until("they agree", [&] {
        return s.connected(0, 1) && s.core(0).disk() == DiskState::up_to_date &&
               s.core(1).disk() == DiskState::up_to_date && s.bits(0, 1) == 0;
    });
    s.promote(1);
    s.finish();
}

// A member is lost in the middle of the generation that the loss of another one opened; `hold`
// says which message of the two never arrives.
void lost_around_the_generation(const Options& options, const std::function<void(Scenario&)>& hold,
                                std::uint64_t ms_between) {
    Setup setup;
    setup.nodes = 3;
    setup.extents = 16;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 1));
    hold(s);
    s.kill(2);
    s.run_ms(ms_between);
    s.kill(1);
    s.release_messages();
    s.run_ms(500);
    s.acknowledged(s.write(0, 2));
    s.start(1);
    std::uint64_t sent = 0;
    s.until("b is in sync again", [&] {
        sent = std::max(sent, s.view(0, 1).resync_total_bits);
        return s.core(0).in_sync().has(1) && s.core(1).disk() == DiskState::up_to_date;
    });
    s.expect(sent <= extent_blocks * 4, "it takes no more than its activity log covers");
    s.finish();
}

// Before it was told: what it lacks is still known, and it is no split brain.
void lost_before_the_generation(const Options& options) {
    lost_around_the_generation(
        options, [](Scenario& s) { s.hold(0, 1, MessageType::generation); }, 50);
}

// When it has recorded the generation, and before its answer is there.
void lost_after_the_generation(const Options& options) {
    lost_around_the_generation(
        options, [](Scenario& s) { s.hold(1, 0, MessageType::generation_ack); }, 100);
}

// What is stable everywhere, now that a member is gone, stays in the journals of the others until
// they have the generation that says who is gone: they mark from it what that one lacks.
void trim_behind_the_generation(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.hold(0, 1, MessageType::write);
    s.hold(0, 2, MessageType::generation);
    s.write(0, 2 * extent_blocks + 5);  // an extent that was not written before
    s.flush(0);
    s.run_ms(200);
    s.kill(1);
    s.run_ms(200);
    s.kill(0);
    s.release_messages();
    s.until("c sees that both are gone", [&] { return !s.connected(2, 0) && !s.connected(2, 1); });
    s.expect(s.bits(2, 1) > 0, "what b lacks is marked");
    s.start(1);
    s.until("the two are aligned",
            [&] { return s.connected(1, 2) && s.bits(1, 2) == 0 && s.bits(2, 1) == 0; });
    s.run_ms(1'000);
    s.audit();
    s.finish();
}

// b was brought up to date by c alone. When c then takes its data from a, who never heard of that,
// b carries the same generation still: a promotion without it has to open another one.
void counted_in_by_another(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    s.kill(1);
    s.run_ms(500);
    s.acknowledged(s.write(0, 1));
    s.acknowledged(s.flush(0));
    s.kill(0);
    s.start(1);
    s.until("c counts b in", [&] { return s.core(2).in_sync().has(1) && s.bits(2, 1) == 0; });
    s.run_ms(1'000);
    s.cut(1, 0);
    s.cut(1, 2);
    s.start(0);
    s.until("a and c are aligned",
            [&] { return s.connected(0, 2) && s.bits(0, 2) == 0 && s.bits(2, 0) == 0; });
    s.run_ms(2'000);
    const Uuid before = s.core(1).superblock().current_uuid;
    s.promote(2);
    s.acknowledged(s.write(2, 2));
    s.acknowledged(s.flush(2));
    s.expect(!uuid_equal(s.core(2).superblock().current_uuid, before), "b is left behind by name");
    s.promote(1);  // with quorum off this is a split brain, and it is seen
    s.finish();
}

// A value that was read is one that every member has.
void read_waits_for_the_write(const Options& options) {
    Scenario s(options, {});
    s.acknowledged(s.write(0, 4));
    s.hold(0, 1, MessageType::write);
    s.write(0, 4);
    s.run_ms(50);
    const auto seen = s.read(0, 4);
    s.run_ms(200);
    s.expect(!s.answered(seen), "a read waits for the write to its blocks");
    s.release_messages();
    s.acknowledged(seen);
    s.finish();
}

// With protocol B the primary's disk may be the only one that has what was acknowledged: it is not
// detached before a peer has it too.
void detach_waits_for_the_peer(const Options& options) {
    Setup setup;
    setup.protocol = Protocol::b;
    Scenario s(options, setup);
    s.hold_io(1, IoOrigin::peer_request);
    s.acknowledged(s.write(0, 5));
    const auto token = s.command(0, CommandKind::detach);
    s.run_ms(500);
    s.expect(s.core(0).disk() == DiskState::up_to_date, "the disk stays while b has not written");
    s.release_io();
    s.expect(s.ended(token) == Errc::ok, "then it is detached");
    s.expect(s.core(0).disk() == DiskState::diskless, "it is Diskless");
    s.acknowledged(s.read(0, 5));
    s.finish();
}

// A write that failed here and that a peer has would leave the two different if the error were
// passed on: the disk is given up instead. Where nobody else has it, the application hears of it.
void pass_on_where_nobody_else_wrote(const Options& options) {
    Setup setup;
    setup.on_io_error = OnIoError::pass_on;
    Scenario s(options, setup);
    s.kill(1);
    s.run_ms(2'000);
    s.fail_io(0, IoOrigin::request);
    const auto alone = s.write(0, 1);
    s.until("it is answered", [&] { return s.answered(alone); });
    s.expect(s.result(alone) == EIO, "the error is passed on");
    s.expect(s.core(0).disk() == DiskState::up_to_date, "and the disk stays");
    s.mend_io();
    s.start(1);
    s.until("b is in sync again", [&] { return s.core(0).in_sync().has(1); });
    s.run_ms(1'000);
    s.fail_io(0, IoOrigin::request);
    s.acknowledged(s.write(0, 2));
    s.expect(s.core(0).disk() <= DiskState::failed, "the disk that missed it is given up");
    s.mend_io();
    s.finish();
}

// What has arrived is written although its connection is over: with protocol B it is acknowledged,
// and the disk of its primary may be gone since.
void received_write_of_a_lost_link(const Options& options) {
    Setup setup;
    setup.protocol = Protocol::b;
    Scenario s(options, setup);
    const std::uint64_t block = 3 * extent_blocks;  // its extent has to be logged first
    s.hold_io(1, IoOrigin::al);
    s.acknowledged(s.write(0, block));
    s.break_disk(0);
    s.acknowledged(s.read(0, 1));
    s.expect(s.core(0).disk() <= DiskState::failed, "a lives on b's disk");
    s.cut(0, 1);
    s.run_ms(2'000);
    s.join(0, 1);
    s.run_ms(500);
    s.release_io();
    s.acknowledged(s.read(0, block));
    s.finish();
}

// Who dials has seen the peer end, and its next attempt is seconds away: the peer says that it is
// there again.
void listener_comes_back(const Options& options) {
    Scenario s(options, {});
    for (const unsigned away_ms : {300U, 1'100U, 1'900U, 3'000U, 4'500U}) {
        s.kill(1);
        s.run_ms(away_ms);
        s.start(1);
        s.run_ms(150);
        s.expect(s.connected(0, 1), "connected at once");
        s.until("b is back", [&] { return s.core(0).in_sync().has(1); });
        s.run_ms(500);
    }
    s.finish();
}

// Whoever waits for the peer to be in sync after `invalidate-remote` waits for the resync.
void invalidation_is_seen(const Options& options) {
    Scenario s(options, {});
    s.hold(0, 1, MessageType::invalidate);
    auto token = s.command(0, CommandKind::invalidate_remote, 1);
    s.run_ms(100);
    s.expect(s.ended(s.command(0, CommandKind::invalidate_remote, 1)) == Errc::busy,
             "one at a time");
    s.release_messages();
    s.expect(s.ended(token) == Errc::ok, "it has happened");
    s.expect(s.view(0, 1).disk != DiskState::up_to_date, "and is known here");
    s.until("the resync has ended",
            [&] { return s.view(0, 1).disk == DiskState::up_to_date && s.bits(0, 1) == 0; });

    s.hold(0, 1, MessageType::invalidate);
    token = s.command(0, CommandKind::invalidate_remote, 1);
    s.run_ms(10);
    s.kill(1);
    s.release_messages();
    s.expect(s.ended(token) == Errc::state, "the peer was lost");
    s.start(1);
    s.until("b is back", [&] { return s.core(0).in_sync().has(1); });

    s.until("nothing goes on", [&] {
        return s.view(0, 1).replication == ReplicationState::established && s.bits(0, 1) == 0;
    });
    s.run_ms(1'000);

    // Its disk is detached while the word is on its way.
    s.hold(0, 1, MessageType::invalidate);
    token = s.command(0, CommandKind::invalidate_remote, 1);
    s.run_ms(10);
    s.command(1, CommandKind::detach);
    s.until("b has no disk", [&] { return s.view(0, 1).disk == DiskState::diskless; });
    s.release_messages();
    s.expect(s.ended(token) == Errc::state, "refused");
    s.until("its disk is let go", [&] { return s.core(1).disk() == DiskState::diskless; });
    s.attach(1);
    s.run_ms(500);
    s.finish();
}

constexpr Regression table[] = {
    {"old-write-in-flight", "an old primary's write landed on a new one's", old_write_in_flight},
    {"unflushed-behind-cleared-bits", "marks were cleared before their data was stable",
     unflushed_behind_cleared_bits},
    {"invalidated-member", "an invalidated disk was counted on", invalidated_member},
    {"diskless-primary-and-receipt", "a primary without disk acknowledged by receipt",
     diskless_primary_and_receipt},
    {"circle-of-secondaries", "three secondaries aligned each other without end",
     circle_of_secondaries},
    {"word-for-a-third-node", "a source vouched for a node that it had not seen",
     word_for_a_third_node},
    {"starving-activity-log", "starving writes waited for the next timer", starving_activity_log},
    {"flush-that-came-too-early", "no second flush followed one that was too early",
     flush_that_came_too_early},
    {"abandoned-target", "writes to a given-up target left the journal unmarked", abandoned_target},
    {"detach-during-transaction", "a detach waited for a transaction that nobody wrote",
     detach_during_transaction},
    {"half-written-source", "a node that became a target went on as source", half_written_source},
    {"promotion-not-recorded", "a promotion that failed left a Primary", promotion_not_recorded},
    {"full-resync-resumes", "a full resync began again after each cut", full_resync_resumes},
    {"stale-offer-to-discard", "an offer to discard outlived its handshake",
     stale_offer_to_discard},
    {"new-disk-resumes", "the same with a new disk, which has no label", new_disk_resumes},
    {"discard-offer-holds-once", "an old offer lost the next split brain",
     discard_offer_holds_once},
    {"power-cut-then-kill", "a second crash hid that a cache was lost", power_cut_then_kill},
    {"lost-before-the-generation", "a member lost in the middle of a change was unknown",
     lost_before_the_generation},
    {"lost-after-the-generation", "the same, with the change on its disk",
     lost_after_the_generation},
    {"trim-behind-the-generation", "a trim came before the generation that marks by the journal",
     trim_behind_the_generation},
    {"counted-in-by-another", "a generation went on without one of those that carry it",
     counted_in_by_another},
    {"detach-waits-for-the-peer", "a detach took the only disk with what protocol B acknowledged",
     detach_waits_for_the_peer},
    {"pass-on-where-nobody-else-wrote", "a passed on error left two disks different",
     pass_on_where_nobody_else_wrote},
    {"received-write-of-a-lost-link", "an acknowledged write was dropped with its connection",
     received_write_of_a_lost_link},
    {"listener-comes-back", "a link waited for the next attempt of who dials", listener_comes_back},
    {"invalidation-is-seen", "an invalidation ended before the peer knew", invalidation_is_seen},
    {"read-waits-for-the-write", "a value that was read vanished at a failover",
     read_waits_for_the_write},
};

std::vector<Regression> all() {
    std::vector<Regression> every(std::begin(table), std::end(table));
    for (const auto more :
         {diskless_regressions(), claims_regressions(), data_regressions(), operator_regressions()})
        every.insert(every.end(), more.begin(), more.end());
    return every;
}

}  // namespace

void list_regressions() {
    for (const Regression& r : all())
        std::printf("%-32s %s\n", r.name, r.found);
}

int run_regressions(const Options& options, const std::string& name) {
    int failed = 0;
    for (const Regression& r : all()) {
        if (!name.empty() && name != r.name) continue;
        try {
            r.run(options);
            std::printf("%-32s ok\n", r.name);
        } catch (const Violation& violation) {
            ++failed;
            std::printf("%-32s FAILED: %s\n", r.name, violation.what.c_str());
        }
    }
    return failed;
}

}  // namespace replica::sim
