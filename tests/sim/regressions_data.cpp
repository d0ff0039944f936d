// SPDX-License-Identifier: Apache-2.0
// Regressions (regressions.cpp) of the path of the data: what counts as a copy, and what waits for
// what.
#include "tests/sim/regressions.hpp"

namespace replica::sim {
namespace {

// b, the last copy of a Primary without a disk, fills c while that Primary is out of reach. The
// Primary comes back in the middle. It does not count c as a member and sends it nothing, so b must
// not admit c.
void filled_beside_a_primary(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.chunks = 1;
    setup.chunk_blocks = 1;
    Scenario s(options, setup);
    s.break_disk(0);
    s.acknowledged(s.write(0, 1));
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.run_ms(500);
    s.kill(2);
    for (std::uint64_t block = 0; block < 64; ++block)
        s.acknowledged(s.write(0, block * 3));
    s.cut(0, 1);
    s.cut(0, 2);
    s.until("b has noticed", [&] { return !s.connected(1, 0) && !s.connected(0, 1); });
    s.start(2);
    s.until("b fills c", [&] { return s.view(1, 2).replication == ReplicationState::sync_source; });
    s.hold(2, 1, MessageType::resync_ack);
    s.run_ms(20);
    s.join(0, 1);
    s.until("b is met again", [&] { return s.core(0).has_good_data(); });
    s.run_ms(100);
    s.release_messages();
    s.run_ms(5'000);
    s.acknowledged(s.write(0, 700));
    s.audit();
    const bool named = s.core(2).in_sync().has(2);
    const bool good = s.core(2).disk() == DiskState::up_to_date;
    const bool counted = s.core(0).in_sync().has(2);
    s.expect(counted || !(good && named), "c is not UpToDate where the Primary does not count it");
    s.finish();
}

// The same, and its consequence: a write that was acknowledged is lost.
void filled_beside_a_primary_and_promoted(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.chunks = 1;
    setup.chunk_blocks = 1;
    Scenario s(options, setup);
    s.break_disk(0);
    s.acknowledged(s.write(0, 1));
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.run_ms(500);
    s.kill(2);
    for (std::uint64_t block = 0; block < 64; ++block)
        s.acknowledged(s.write(0, block * 3));
    s.cut(0, 1);
    s.cut(0, 2);
    s.until("b has noticed", [&] { return !s.connected(1, 0) && !s.connected(0, 1); });
    s.start(2);
    s.until("b fills c", [&] { return s.view(1, 2).replication == ReplicationState::sync_source; });
    s.hold(2, 1, MessageType::resync_ack);
    s.run_ms(20);
    s.join(0, 1);
    s.until("b is met again", [&] { return s.core(0).has_good_data(); });
    s.run_ms(100);
    s.hold(2, 1, MessageType::sync_done_ack);
    s.release_messages();
    s.run_ms(5'000);
    const auto ticket = s.write(0, 700);
    s.acknowledged(ticket);
    s.acknowledged(s.flush(0));
    s.run_ms(1'000);
    s.audit();
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.kill(1);
    s.kill(0);
    s.run_ms(2'000);
    if (s.ended(s.command(2, CommandKind::promote)) == Errc::ok) {
        s.acknowledged(s.read(2, 700));
        s.start(1);
        s.start(0);
    }
    s.finish();
}

// Protocol B. The disk of a Primary is not a copy while it is being filled: the peer has to have
// written, and not only received, what the Primary acknowledges.
void received_beside_a_target(const Options& options) {
    Setup setup;
    setup.protocol = Protocol::b;
    setup.extents = 8;
    setup.al_extents = 2;
    setup.chunks = 1;
    setup.chunk_blocks = 1;
    Scenario s(options, setup);
    s.break_disk(0);
    s.acknowledged(s.write(0, 1));
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    for (std::uint64_t block = 0; block < 64; ++block)
        s.acknowledged(s.write(0, block * 3));
    s.hold(1, 0, MessageType::resync_data);
    s.attach(0);
    s.until("a is filled", [&] { return is_target(s.view(0, 1).replication); });
    s.run_ms(200);
    s.expect(s.core(0).disk() == DiskState::inconsistent, "a is not complete");
    s.hold_io(1, IoOrigin::al);
    const auto ticket = s.write(0, 5 * extent_blocks + 5);
    s.run_ms(500);
    const bool acknowledged = s.answered(ticket) && s.result(ticket) == 0;
    s.kill(1);
    s.release_io();
    s.release_messages();
    s.run_ms(1'000);
    s.start(1);
    s.until("b is back", [&] { return s.connected(0, 1); });
    s.run_ms(5'000);
    if (s.core(0).has_good_data()) s.acknowledged(s.read(0, 5 * extent_blocks + 5));
    s.expect(!acknowledged, "nothing is acknowledged that no copy has written");
    s.finish();
}

// Protocol B. The disk fails a write that the peer has only received.
void received_and_failed_here(const Options& options) {
    Setup setup;
    setup.protocol = Protocol::b;
    setup.extents = 8;
    setup.al_extents = 2;
    Scenario s(options, setup);
    s.hold_io(1, IoOrigin::al);
    s.fail_io(0, IoOrigin::request);
    const auto ticket = s.write(0, 5 * extent_blocks + 5);
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.run_ms(500);
    const bool acknowledged = s.answered(ticket) && s.result(ticket) == 0;
    s.kill(1);
    s.release_io();
    s.run_ms(1'000);
    s.start(1);
    s.until("b is back", [&] { return s.connected(0, 1); });
    s.run_ms(2'000);
    s.expect(!acknowledged, "nothing is acknowledged that no copy has written");
    s.finish();
}

// Protocol A. The copy of a Primary whose disk is being filled never wrote what the Primary's disk
// had when it was good. The copy is lost, and comes back without those writes.
void unanswered_by_the_source(const Options& options) {
    Setup setup;
    setup.protocol = Protocol::a;
    setup.extents = 8;
    setup.al_extents = 2;
    Scenario s(options, setup);
    s.hold_io(1, IoOrigin::al);
    s.acknowledged(s.write(0, 5 * extent_blocks + 5));
    s.break_disk(0);
    s.write(0, 1);
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.hold(1, 0, MessageType::resync_data);
    s.attach(0);
    s.until("a is filled", [&] { return is_target(s.view(0, 1).replication); });
    s.run_ms(100);
    s.kill(1);
    s.release_io();
    s.release_messages();
    s.run_ms(1'000);
    s.start(1);
    s.until("b is back", [&] { return s.connected(0, 1); });
    s.run_ms(5'000);
    if (s.core(0).has_good_data()) s.acknowledged(s.read(0, 5 * extent_blocks + 5));
    s.finish();
}

// pass_on: with one bad sector in the last copy, the Primary loses that sector and nothing else.
void pass_on_for_a_peers_read(const Options& options) {
    Setup setup;
    setup.on_io_error = OnIoError::pass_on;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 3));
    s.acknowledged(s.write(0, 9));
    s.expect(s.ended(s.command(0, CommandKind::detach)) == Errc::ok, "a's disk is detached");
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.fail_io(1, IoOrigin::peer_read);
    const auto bad = s.read(0, 3);
    s.until("it is answered", [&] { return s.answered(bad); });
    s.mend_io();
    s.run_ms(500);
    s.expect(s.core(1).disk() == DiskState::up_to_date, "b keeps its disk");
    s.acknowledged(s.read(0, 9));
    s.finish();
}

// The same with a resync that finds the bad sector.
void pass_on_for_a_resync(const Options& options) {
    Setup setup;
    setup.on_io_error = OnIoError::pass_on;
    Scenario s(options, setup);
    s.kill(1);
    s.run_ms(1'000);
    s.acknowledged(s.write(0, 3));
    s.acknowledged(s.write(0, 9));
    s.fail_io(0, IoOrigin::resync);
    s.start(1);
    s.run_ms(2'000);
    s.mend_io();
    s.expect(s.core(0).disk() == DiskState::up_to_date, "the only copy is not given up");
    s.acknowledged(s.read(0, 9));
    s.finish();
}

// Writes never stop in one region. They reach the target, and its resync ends all the same.
void busy_region(const Options& options) {
    Setup setup;
    setup.chunk_blocks = 16;
    Scenario s(options, setup);
    s.kill(1);
    s.run_ms(1'000);
    for (std::uint64_t block = 0; block < 16; ++block)
        s.acknowledged(s.write(0, block));
    std::array<std::uint64_t, 4> tickets{};
    std::uint64_t next = 0, done = 0;
    const auto again = [&] { return s.write(0, 2 * (next++ % 4)); };
    for (std::uint64_t& ticket : tickets)
        ticket = again();
    s.start(1);
    while (s.core(1).disk() != DiskState::up_to_date && done < 50'000) {
        s.until("a write is answered", [&] {
            for (const std::uint64_t ticket : tickets) {
                if (s.answered(ticket)) return true;
            }
            return false;
        });
        for (std::uint64_t& ticket : tickets) {
            if (!s.answered(ticket)) continue;
            s.acknowledged(ticket);
            ++done;
            ticket = again();
        }
    }
    s.expect(s.view(0, 1).replication == ReplicationState::sync_source || done < 50'000,
             "the resync has begun");
    s.expect(s.core(1).disk() == DiskState::up_to_date, "b is complete after 50,000 writes");
    s.finish();
}

// A Primary's disk is filled while the application's writes need more extents than its log has.
// The resync needs room in the same log.
void log_full_of_the_applications(const Options& options) {
    Setup setup;
    setup.extents = 64;
    setup.al_extents = 8;
    setup.chunk_blocks = 1;
    Scenario s(options, setup);
    s.break_disk(0);
    s.acknowledged(s.write(0, 1));
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    for (std::uint64_t i = 0; i < 8; ++i)
        s.acknowledged(s.write(0, (48 + i) * extent_blocks + 40));
    std::uint64_t next = 0, done = 0;
    std::array<std::uint64_t, 14> tickets{};
    const auto again = [&] {
        const std::uint64_t n = next++;
        return s.write(0, (n % 48) * extent_blocks + n / 48 % 64);
    };
    s.hold(1, 0, MessageType::resync_data);
    s.attach(0);
    s.until("a is filled", [&] { return is_target(s.view(0, 1).replication); });
    for (std::uint64_t& ticket : tickets)
        ticket = again();
    s.run_ms(50);
    s.release_messages();
    while (s.core(0).disk() != DiskState::up_to_date && done < 100'000) {
        s.until("a write is answered", [&] {
            for (const std::uint64_t ticket : tickets) {
                if (s.answered(ticket)) return true;
            }
            return false;
        });
        for (std::uint64_t& ticket : tickets) {
            if (!s.answered(ticket)) continue;
            s.acknowledged(ticket);
            ++done;
            ticket = again();
        }
    }
    s.expect(s.core(0).disk() == DiskState::up_to_date, "a is complete after 100,000 writes");
    s.finish();
}

// The last copy still has reads of a lost connection in its kernel. A new read is served, or waits
// for a place. It must not fail.
void reads_of_a_lost_link(const Options& options) {
    Scenario s(options, {});
    for (std::uint64_t block = 0; block < 20; ++block)
        s.acknowledged(s.write(0, block));
    s.expect(s.ended(s.command(0, CommandKind::detach)) == Errc::ok, "a's disk is detached");
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.hold_io(1, IoOrigin::peer_read);
    for (std::uint64_t block = 0; block < 16; ++block)
        s.read(0, block);
    s.run_ms(200);
    s.hold_no_more();
    s.cut(0, 1);
    s.until("both have noticed", [&] { return !s.connected(0, 1) && !s.connected(1, 0); });
    s.join(0, 1);
    s.until("b is back", [&] { return s.core(0).has_good_data(); });
    const auto ticket = s.read(0, 18);
    s.run_ms(1'000);
    s.release_io();
    s.until("it is answered", [&] { return s.answered(ticket); });
    s.expect(s.result(ticket) == 0, "a read succeeds");
    s.finish();
}

// b's disk is detached and attached again. b's answer to a write of before the detach comes late,
// on the other stream. It says nothing about the disk that is being filled now.
void late_answer_of_an_earlier_disk(const Options& options) {
    Setup setup;
    setup.extents = 8;
    setup.al_extents = 2;
    setup.chunks = 1;
    setup.chunk_blocks = 1;
    Scenario s(options, setup);
    for (std::uint64_t block = 0; block < 32; ++block)
        s.acknowledged(s.write(0, block * 2));
    s.hold_io(1, IoOrigin::al);
    const auto ticket = s.write(0, 5 * extent_blocks + 5);
    s.run_ms(50);
    s.hold(1, 0, MessageType::write_ack);
    s.command(1, CommandKind::detach);
    s.run_ms(5);
    s.release_io();
    s.until("b has no disk", [&] { return s.core(1).disk() == DiskState::diskless; });
    s.attach(1);
    s.until("a fills b", [&] { return is_source(s.view(0, 1).replication); });
    s.run_ms(20);
    s.release_messages();
    s.acknowledged(ticket);
    s.until(
        "b is complete", [&] { return s.core(1).disk() == DiskState::up_to_date; }, 60'000);
    s.finish();
}

// Nothing has failed since the two came back from a power cut. A round of states, here for a larger
// volume, must not fill one of them for a crash mark that stayed: it would leave the set meanwhile.
void crash_mark_that_stays(const Options& options) {
    Setup setup;
    setup.extents = 8;
    setup.room_extents = 1;
    setup.al_extents = 2;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 3));
    s.power_cut(1);
    s.power_cut(0);
    s.run_ms(500);
    s.start(0);
    s.start(1);
    s.until("both are UpToDate", [&] {
        return s.core(0).disk() == DiskState::up_to_date &&
               s.core(1).disk() == DiskState::up_to_date;
    });
    s.run_ms(2'000);
    s.promote(0);
    s.run_ms(1'000);
    const Uuid generation = s.core(0).superblock().current_uuid;
    s.room(0);
    s.run_ms(3'000);
    s.expect(s.core(0).superblock().current_uuid == generation, "b was not expelled");
    s.finish();
}

// Protocol A. The last copy of a Primary without a disk is detached by hand before it has written
// what the Primary's own disk had, and attached again.
void copy_detached_before_it_wrote(const Options& options) {
    Setup setup;
    setup.protocol = Protocol::a;
    setup.extents = 8;
    setup.al_extents = 2;
    Scenario s(options, setup);
    s.hold_io(1, IoOrigin::al);
    s.acknowledged(s.write(0, 5 * extent_blocks + 5));
    s.break_disk(0);
    s.write(0, 1);
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.run_ms(100);
    const auto token = s.command(1, CommandKind::detach);
    s.release_io();
    s.expect(s.ended(token) == Errc::ok, "b's disk is detached");
    s.run_ms(500);
    s.attach(1);
    s.run_ms(3'000);
    if (s.core(0).has_good_data()) s.acknowledged(s.read(0, 5 * extent_blocks + 5));
    s.finish();
}

// b's log has few slots, and a's own disk takes long to flush. b must not be expelled for that.
void slow_flush_here(const Options& options) {
    Setup setup;
    setup.extents = 8;
    setup.al_extents = 7;
    setup.al_extents_1 = 2;
    Scenario s(options, setup);
    const Uuid generation = s.core(0).superblock().current_uuid;
    s.hold_io(0, IoOrigin::epoch_flush);
    for (std::uint64_t i = 0; i < 7; ++i)
        s.write(0, i * extent_blocks);
    s.run_ms(14'000);
    s.release_io();
    s.run_ms(1'000);
    s.expect(s.core(0).superblock().current_uuid == generation, "b is not expelled");
    s.finish();
}

// A Primary without a disk has two copies. One write hangs on b. c needs room in its log. A trim
// would make that room, and the trim waits for b. c is as good as before, and goes on alone.
void one_copy_hangs_the_other_waits(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.extents = 8;
    setup.al_extents = 3;
    Scenario s(options, setup);
    s.break_disk(0);
    s.acknowledged(s.write(0, 1));
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.run_ms(1'000);
    s.hold_io(1, IoOrigin::peer_request);
    std::array<std::uint64_t, 6> tickets{};
    tickets[0] = s.write(0, extent_blocks);
    s.run_ms(20);
    s.hold_no_more();
    for (std::uint64_t i = 1; i < tickets.size(); ++i)
        tickets[i] = s.write(0, (i + 1) * extent_blocks);
    for (int i = 0; i < 160; ++i) {
        s.read(0, 300);
        s.run_ms(100);
    }
    for (const std::uint64_t ticket : tickets)
        s.acknowledged(ticket);
    s.expect(s.core(0).in_sync().has(2), "c is a member");
    s.release_io();
    s.finish();
}

// One write hangs on c, so no trim comes, and b waits for room in its smaller log. Meanwhile b must
// not ask for a trim again and again, and a must not flush again and again.
void asking_without_end(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.extents = 8;
    setup.al_extents = 7;
    setup.al_extents_1 = 2;
    Scenario s(options, setup);
    s.hold_io(2, IoOrigin::peer_request);
    s.write(0, extent_blocks);
    s.run_ms(20);
    s.hold_no_more();
    for (std::uint64_t i = 1; i < 6; ++i)
        s.write(0, (i + 1) * extent_blocks);
    std::uint64_t events = 0;
    s.until("c is given up", [&] {
        ++events;
        return !s.core(0).in_sync().has(2);
    });
    s.expect(events < 50'000, "b and a do not ask and flush without end");
    s.release_io();
    s.finish();
}

// b is complete and has been told so. Its answer is on the way when a's disk fails. b is the only
// copy that is left, and a good one.
void disk_fails_at_the_end_of_a_resync(const Options& options) {
    Scenario s(options, {});
    s.kill(1);
    s.run_ms(1'000);
    s.acknowledged(s.write(0, 3));
    s.hold(1, 0, MessageType::sync_done_ack);
    s.start(1);
    s.until("b is complete", [&] { return s.core(1).disk() == DiskState::up_to_date; });
    s.run_ms(50);
    s.expect(s.core(0).in_sync().has(1), "b is counted in");
    s.break_disk(0);
    s.write(0, 5);
    s.run_ms(100);
    s.release_messages();
    s.run_ms(5'000);
    s.expect(s.core(0).has_good_data(), "a goes on with b");
    s.acknowledged(s.read(0, 3));
    s.finish();
}

// A round of states interrupts a resync. The writes that the target got before are stable on a by
// then, and a has dropped them from its journal. No trim tells the target, whose log is full of
// these writes. The application is idle.
void trim_that_is_never_told(const Options& options) {
    Setup setup;
    setup.extents = 8;
    setup.room_extents = 1;
    setup.al_extents = 7;
    setup.al_extents_1 = 2;
    setup.chunks = 1;
    setup.chunk_blocks = 1;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.kill(1);
    s.run_ms(1'000);
    for (std::uint64_t i = 0; i < 320; ++i)
        s.acknowledged(s.write(0, i % 8 * extent_blocks + 2 * i / 8));
    s.acknowledged(s.flush(0));
    s.start(1);
    s.until("a fills b", [&] { return s.view(0, 1).replication == ReplicationState::sync_source; });
    s.command(0, CommandKind::pause_sync);
    s.run_ms(50);
    s.acknowledged(s.write(0, 1 * extent_blocks + 900));
    s.acknowledged(s.write(0, 2 * extent_blocks + 900));
    s.hold(1, 0, MessageType::state);
    s.room(0);
    s.until("the resync is interrupted",
            [&] { return s.view(0, 1).replication == ReplicationState::established; });
    s.run_ms(50);
    s.acknowledged(s.flush(0));
    s.run_ms(50);
    s.release_messages();
    s.run_ms(500);
    s.command(0, CommandKind::resume_sync);
    s.until(
        "b is complete", [&] { return s.core(1).disk() == DiskState::up_to_date; }, 3'000);
    s.finish();
}

// A Primary with a disk of its own. One write hangs on c, and b, with the smaller log, waits for
// the trim that waits for c. Only c is given up.
void one_peer_hangs_the_other_waits(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.extents = 8;
    setup.al_extents = 7;
    setup.al_extents_1 = 2;
    Scenario s(options, setup);
    s.hold_io(2, IoOrigin::peer_request);
    s.write(0, extent_blocks);
    s.run_ms(20);
    s.hold_no_more();
    for (std::uint64_t i = 1; i < 6; ++i)
        s.write(0, (i + 1) * extent_blocks);
    s.until("c is given up", [&] { return !s.core(0).in_sync().has(2); });
    s.run_ms(10);
    s.expect(s.core(0).in_sync().has(1), "b is a member");
    s.release_io();
    s.finish();
}

constexpr Regression table[] = {
    {"one-peer-hangs", "a peer that hangs caused the loss of the other one",
     one_peer_hangs_the_other_waits},
    {"trim-never-told", "a target's log stayed full of writes whose trim it never got",
     trim_that_is_never_told},
    {"disk-fails-at-the-end", "a complete target was expelled because the source's disk failed",
     disk_fails_at_the_end_of_a_resync},
    {"asking-without-end", "a full log led to requests for a trim and to flushes without end",
     asking_without_end},
    {"copy-detached", "a copy was detached before it wrote, and taken back as current",
     copy_detached_before_it_wrote},
    {"slow-flush-here", "a healthy peer was expelled for the Primary's own slow flush",
     slow_flush_here},
    {"one-hangs", "a copy that hangs caused the loss of the other one",
     one_copy_hangs_the_other_waits},
    {"late-answer", "an answer about an earlier disk stopped a resync",
     late_answer_of_an_earlier_disk},
    {"crash-mark", "a round of states expelled a member that lacks nothing", crash_mark_that_stays},
    {"filled-beside-a-primary", "a secondary admitted a target while it saw a diskless Primary",
     filled_beside_a_primary},
    {"filled-and-promoted", "the same, and an acknowledged write was lost",
     filled_beside_a_primary_and_promoted},
    {"received-beside-a-target", "protocol B counted a received write as a written one",
     received_beside_a_target},
    {"received-and-failed-here", "the same, and the own disk fails", received_and_failed_here},
    {"unanswered-by-the-source", "a target's only copy came back without what was acknowledged",
     unanswered_by_the_source},
    {"pass-on-peer-read", "a peer's failed read detached the disk in spite of pass_on",
     pass_on_for_a_peers_read},
    {"pass-on-resync", "a resync's failed read detached the disk in spite of pass_on",
     pass_on_for_a_resync},
    {"busy-region", "a busy region was never resynced", busy_region},
    {"log-full", "a resync starved beside the application's writes", log_full_of_the_applications},
    {"reads-of-a-lost-link", "reads of a lost link made later ones fail", reads_of_a_lost_link},
};

}  // namespace

std::span<const Regression> data_regressions() { return table; }

}  // namespace replica::sim
