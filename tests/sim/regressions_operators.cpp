// SPDX-License-Identifier: Apache-2.0
// Regressions (regressions.cpp) of what operators ask for at awkward moments, and of what nodes
// know about each other then.
#include "tests/sim/regressions.hpp"

namespace replica::sim {
namespace {

bool same_generation(const Scenario& s, int x, int y) {
    return uuid_equal(s.core(x).superblock().current_uuid, s.core(y).superblock().current_uuid);
}

void break_primary(Scenario& s) {
    s.break_disk(0);
    s.acknowledged(s.write(0, 1));
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.run_ms(500);
}

// c and b were equal when a, which c does not hear, was promoted. b has a's generation and its
// writes, and tells c so only when a is gone. b's flush takes a while, and c is told to become
// Primary meanwhile. b knows of newer data, and must not agree.
void promoted_beside_newer_data(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.run_ms(1'000);
    s.cut(0, 2);
    s.until("they have noticed", [&] { return !s.connected(0, 2) && !s.connected(2, 0); });
    s.run_ms(1'000);
    s.promote(0);
    s.acknowledged(s.write(0, 7));
    s.run_ms(500);
    s.hold_io(1, IoOrigin::local_flush);
    s.kill(0);
    s.until("b sees that a is gone", [&] { return !s.connected(1, 0); });
    s.expect(s.connected(2, 1), "c and b hear each other");
    s.command(2, CommandKind::promote);
    s.run_ms(1'000);
    s.expect(s.core(2).role() != Role::primary || same_generation(s, 1, 2),
             "c is not promoted by the agreement of a node that has newer data");
    s.release_io();
    s.finish();
}

// The same without any fault: b's operator opens a generation, and a's operator promotes a.
void promoted_beside_a_generation_by_hand(const Options& options) {
    Scenario s(options, {});
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.run_ms(1'000);
    s.command(1, CommandKind::new_current_uuid);
    s.command(0, CommandKind::promote);
    s.run_ms(3'000);
    s.expect(s.connected(0, 1) && s.connected(1, 0), "no link is lost");
    s.finish();
}

// b fills c when a Primary without a disk meets b again. b must not go on and admit c under the
// Primary's generation: the Primary would not hear of it, and acknowledge writes that c lacks.
void counted_in_beside_a_primary(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    break_primary(s);
    s.kill(2);
    s.acknowledged(s.write(0, 3));
    s.cut(0, 1);
    s.cut(0, 2);
    s.hold(2, 1, MessageType::resync_ack);
    s.start(2);
    s.until("b gives to c", [&] { return s.view(2, 1).resync_received_bytes > 0; });
    s.join(0, 1);
    s.until("a meets b again", [&] { return s.core(0).has_good_data(); });
    s.release_messages();
    s.run_ms(2'000);
    s.acknowledged(s.write(0, 9));
    s.run_ms(1'000);
    s.expect(s.core(0).in_sync().has(2) || s.core(2).disk() != DiskState::up_to_date,
             "c is not UpToDate in a generation whose Primary does not count it");
    s.finish();
}

// The same, to its end: c is promoted when the other two are gone.
void counted_in_beside_a_primary_and_promoted(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    break_primary(s);
    s.kill(2);
    s.acknowledged(s.write(0, 3));
    s.cut(0, 1);
    s.cut(0, 2);
    s.hold(2, 1, MessageType::resync_ack);
    s.start(2);
    s.until("b gives to c", [&] { return s.view(2, 1).resync_received_bytes > 0; });
    s.join(0, 1);
    s.until("a meets b again", [&] { return s.core(0).has_good_data(); });
    s.release_messages();
    s.run_ms(2'000);
    s.acknowledged(s.write(0, 9));
    s.run_ms(1'000);
    s.kill(0);
    s.kill(1);
    s.run_ms(3'000);
    s.command(2, CommandKind::promote);
    s.run_ms(1'000);
    if (s.core(2).role() == Role::primary) {
        s.acknowledged(s.write(2, 20));
        s.start(1);
        s.run_ms(5'000);
        s.expect(s.core(1).disk() == DiskState::up_to_date || !s.connected(1, 2),
                 "b, which has an acknowledged write that c lacks, is not filled from c");
    }
    s.start(0);
    s.start(1);
    s.finish();
}

// The last copy of a Primary without a disk is restarted before it has recorded the generation in
// which it is alone. It takes a generation when they meet, and must not stay Consistent.
void last_copy_is_started_anew(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    break_primary(s);
    s.hold(0, 1, MessageType::generation);
    s.kill(2);
    s.until("c is left behind", [&] { return !s.core(0).in_sync().has(2); });
    s.kill(1);
    s.run_ms(2'000);
    s.release_messages();
    s.start(1);
    s.until("they meet", [&] { return s.connected(0, 1) && s.connected(1, 0); });
    s.until("the Primary goes on", [&] { return s.core(0).has_good_data(); });
    s.acknowledged(s.write(0, 4));
    s.start(2);
    s.finish();
}

// Two nodes only: the disk of the Primary fails, and its peer is restarted.
void only_copy_is_started_anew(const Options& options) {
    Scenario s(options, {});
    s.hold(0, 1, MessageType::generation);
    s.break_disk(0);
    s.write(0, 1);
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.kill(1);
    s.run_ms(2'000);
    s.release_messages();
    s.start(1);
    s.until("they meet", [&] { return s.connected(0, 1) && s.connected(1, 0); });
    s.until("the Primary goes on", [&] { return s.core(0).has_good_data(); });
    s.acknowledged(s.write(0, 4));
    s.finish();
}

// The operator disconnects b, and connects it again, before b hears that it is the only copy.
void only_copy_leaves_before_it_knows(const Options& options) {
    Scenario s(options, {});
    s.hold(0, 1, MessageType::generation);
    s.break_disk(0);
    s.write(0, 1);
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.expect(s.ended(s.command(1, CommandKind::disconnect)) == Errc::ok, "b has left");
    s.release_messages();
    s.run_ms(1'000);
    s.command(1, CommandKind::connect);
    s.command(0, CommandKind::connect);
    s.until("they meet", [&] { return s.connected(0, 1) && s.connected(1, 0); });
    s.until("the Primary goes on", [&] { return s.core(0).has_good_data(); });
    s.acknowledged(s.write(0, 4));
    s.finish();
}

// The target's operator makes room and pauses, while `sync_done` is on its way to the target.
void room_at_a_paused_target_at_the_end(const Options& options) {
    Setup setup;
    setup.room_extents = 2;
    Scenario s(options, setup);
    s.kill(1);
    s.run_ms(1'000);
    s.acknowledged(s.write(0, 3));
    s.hold(0, 1, MessageType::sync_done);
    s.start(1);
    s.until("b is counted in", [&] { return s.core(0).in_sync().has(1); });
    const std::uint64_t generation = s.core(0).superblock().extension.generation_seq;
    s.command(1, CommandKind::pause_sync);
    s.room(1);
    s.run_ms(100);
    s.release_messages();
    s.run_ms(500);
    s.expect(s.core(0).superblock().extension.generation_seq == generation, "b is not expelled");
    s.command(1, CommandKind::resume_sync);
    s.finish();
}

// b tells of the room on its disk while a leaves c behind. b's state names the generation before,
// so neither side may judge by it. There are two commands, and no fault.
void room_beside_a_generation(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.room_extents = 2;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 3));
    s.run_ms(1'000);
    s.hold(0, 1, MessageType::generation);
    s.command(0, CommandKind::disconnect, 2);
    s.room(1);
    s.run_ms(20);
    s.release_messages();
    for (int ms = 0; ms < 200; ++ms) {
        s.run_ms(1);
        s.expect(s.core(1).disk() == DiskState::up_to_date, "b has what it had");
        s.expect(s.core(0).in_sync().has(1), "b is not expelled");
    }
    s.finish();
}

// The same, and then a is lost. b has everything, and can be promoted.
void room_beside_a_generation_and_a_crash(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.room_extents = 2;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 3));
    s.run_ms(1'000);
    s.hold(0, 1, MessageType::generation);
    s.command(0, CommandKind::disconnect, 2);
    s.room(1);
    s.run_ms(20);
    s.release_messages();
    s.run_ms(3);
    s.kill(0);
    s.run_ms(3'000);
    s.promote(1);
    s.acknowledged(s.read(1, 3));
    s.finish();
}

// Protocol A. b has not received what was acknowledged when a's disk fails. The disk is attached
// again, and b is lost and comes back. b must not fill a.
void last_copy_fills_the_disk_that_had_it(const Options& options) {
    Setup setup;
    setup.protocol = Protocol::a;
    Scenario s(options, setup);
    s.hold(0, 1, MessageType::write);
    s.acknowledged(s.write(0, 5));
    s.fail_io(0, IoOrigin::request);
    s.read(0, 60);
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.mend_io();
    s.attach(0);
    s.until(
        "it is back", [&] { return s.core(0).disk() == DiskState::inconsistent; }, 200);
    s.cut(0, 1);
    s.until("b is lost", [&] { return !s.connected(0, 1) && !s.connected(1, 0); });
    s.release_messages();
    s.join(0, 1);
    s.until("they meet", [&] { return s.connected(0, 1) && s.connected(1, 0); });
    s.run_ms(2'000);
    const auto seen = s.read(0, 5);
    s.run_ms(1'000);
    s.expect(!s.core(0).has_good_data(), "the Primary does not go on with what is left");
    s.expect(!s.answered(seen) || s.result(seen) != 0, "nothing is read");
}

// b is the only copy of a Primary without a disk. b's operator invalidates b while b hears c, which
// was left behind.
void invalidated_by_a_peer_that_is_behind(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    break_primary(s);
    s.cut(0, 2);
    s.until("c is left behind", [&] { return !s.core(0).in_sync().has(2); });
    s.acknowledged(s.write(0, 9));
    s.run_ms(2'000);
    s.expect(s.connected(1, 2), "b and c hear each other");
    const bool refused = s.ended(s.command(1, CommandKind::invalidate)) != Errc::ok;
    s.run_ms(1'000);
    const auto seen = s.read(0, 9);
    s.until("a read is answered", [&] { return s.answered(seen); });
    s.expect(s.result(seen) == 0, "the Primary has its data");
    s.expect(refused, "the command is refused: no peer has the data that it would discard");
    s.finish();
}

// Protocol A. a's own disk has failed, and b has not received what was acknowledged when b's disk
// is detached.
void last_copy_is_detached(const Options& options) {
    Setup setup;
    setup.protocol = Protocol::a;
    Scenario s(options, setup);
    s.hold(0, 1, MessageType::write);
    s.acknowledged(s.write(0, 5));
    s.break_disk(0);
    s.read(0, 60);
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.command(1, CommandKind::detach);
    s.run_ms(500);
    s.release_messages();
    s.run_ms(500);
    s.attach(1);
    s.run_ms(1'000);
    s.kill(1);
    s.run_ms(1'000);
    s.start(1);
    s.until("they meet", [&] { return s.connected(0, 1) && s.connected(1, 0); });
    s.run_ms(1'000);
    s.expect(!s.core(0).has_good_data(), "the Primary does not go on with what is left");
    const auto seen = s.read(0, 5);
    s.run_ms(1'000);
    s.expect(!s.answered(seen) || s.result(seen) != 0, "nothing is read from b");
}

// b and c have told each other their states when a, which c does not hear, is promoted. If both
// judged by these states, b would fill and admit c beside a Primary that does not know of it.
void resync_begun_beside_a_promotion(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    s.kill(2);
    s.until("c is left behind", [&] { return !s.core(0).in_sync().has(2); });
    s.acknowledged(s.write(0, 3));
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.run_ms(1'000);
    s.cut(0, 2);
    s.hold(2, 1, MessageType::state);
    s.start(2);
    s.until("b and c are connected", [&] { return s.connected(1, 2) && s.connected(2, 1); });
    s.run_ms(50);
    s.promote(0);
    s.release_messages();
    s.run_ms(3'000);
    s.acknowledged(s.write(0, 9));
    s.acknowledged(s.flush(0));
    s.run_ms(500);
    s.kill(0);
    s.kill(1);
    s.run_ms(3'000);
    s.command(2, CommandKind::promote);  // it must not be UpToDate
    s.run_ms(1'000);
    s.start(0);
    s.start(1);
    s.finish();
}

// When c was lost the first time, it lacked a write. It got that write long ago. When c becomes the
// last copy later, it has everything.
void lacked_once(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.protocol = Protocol::a;
    Scenario s(options, setup);
    s.hold(0, 2, MessageType::write);
    s.acknowledged(s.write(0, 5));
    s.fail_io(0, IoOrigin::request);
    s.read(0, 60);
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.mend_io();
    s.run_ms(50);
    s.cut(0, 2);
    s.until("c is lost", [&] { return !s.connected(0, 2) && !s.connected(2, 0); });
    s.release_messages();
    s.attach(0);
    s.until("a is complete", [&] { return s.core(0).disk() == DiskState::up_to_date; });
    s.join(0, 2);
    s.until("c is complete", [&] {
        return s.core(0).in_sync().has(2) && s.core(2).disk() == DiskState::up_to_date;
    });
    s.run_ms(2'000);
    s.fail_io(0, IoOrigin::request);
    s.read(0, 60);
    s.until("its disk is gone again", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.mend_io();
    s.run_ms(500);
    s.kill(1);
    s.until("b is left behind", [&] { return !s.core(0).in_sync().has(1); });
    s.acknowledged(s.write(0, 6));
    s.acknowledged(s.flush(0));
    s.cut(0, 2);
    s.until("c is lost again", [&] { return !s.connected(0, 2) && !s.connected(2, 0); });
    s.join(0, 2);
    s.until("c is the last copy", [&] { return s.core(0).has_good_data(); });
    s.acknowledged(s.read(0, 6));
    s.finish();
}

// The operator detaches the disk of a Primary before the only other member has heard that it is a
// member. Some node must still have usable data then.
void detach_at_the_end_of_a_resync(const Options& options) {
    Scenario s(options, {});
    s.kill(1);
    s.run_ms(1'000);
    s.acknowledged(s.write(0, 3));
    s.hold(0, 1, MessageType::sync_done);
    s.start(1);
    s.until("b is counted in", [&] { return s.core(0).in_sync().has(1); });
    s.run_ms(10);
    const auto token = s.command(0, CommandKind::detach);
    s.run_ms(100);
    s.release_messages();
    const bool refused = s.ended(token) != Errc::ok;
    s.run_ms(2'000);
    s.expect(refused || s.core(0).has_good_data(), "the Primary has data");
    s.acknowledged(s.read(0, 3));
    s.finish();
}

// a was Primary without a disk, and knows that c was left behind. a must not agree to c's
// promotion.
void promoted_beside_a_node_without_a_disk(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    break_primary(s);
    s.cut(0, 2);
    s.cut(1, 2);
    s.until("c is left behind", [&] { return !s.core(0).in_sync().has(2); });
    s.acknowledged(s.write(0, 9));
    s.acknowledged(s.flush(0));
    s.run_ms(1'000);
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.kill(1);
    s.join(0, 2);
    s.until("a and c are connected", [&] { return s.connected(0, 2) && s.connected(2, 0); });
    s.run_ms(1'000);
    s.expect(s.ended(s.command(2, CommandKind::promote)) != Errc::ok, "c is not promoted");
    s.finish();
}

// A write reaches b while b's disk is detached. b's answer that it failed comes late, when the disk
// is back.
void late_word_of_a_failed_write(const Options& options) {
    Scenario s(options, {});
    s.acknowledged(s.write(0, 4));  // its extent is in the log
    s.hold(1, 0, MessageType::write_ack);
    s.hold(0, 1, MessageType::write);
    const auto ticket = s.write(0, 5);
    s.run_ms(1);
    s.command(1, CommandKind::detach);
    s.until("it is detached", [&] { return s.core(1).disk() == DiskState::diskless; });
    s.acknowledged(ticket);
    s.release_messages_to(1);
    s.run_ms(5);
    s.attach(1);
    s.until("a knows of the disk", [&] { return s.view(0, 1).disk >= DiskState::inconsistent; });
    s.until("b is complete", [&] { return s.core(1).disk() == DiskState::up_to_date; });
    s.run_ms(20);
    s.release_messages();
    s.run_ms(3'000);
    s.expect(s.connected(0, 1) && s.core(0).in_sync().has(1), "b is a member again");
    s.expect(s.view(0, 1).disk == DiskState::up_to_date, "and a knows it");
    s.finish();
}

// The same, and b is being filled when the answer comes.
void late_word_of_a_failed_write_in_a_resync(const Options& options) {
    Setup setup;
    setup.chunk_blocks = 1;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 4));
    s.hold(1, 0, MessageType::write_ack);
    s.hold(0, 1, MessageType::write);
    const auto ticket = s.write(0, 5);
    s.run_ms(1);
    s.command(1, CommandKind::detach);
    s.until("it is detached", [&] { return s.core(1).disk() == DiskState::diskless; });
    s.acknowledged(ticket);
    for (std::uint64_t block = 0; block < 50; ++block)
        s.write(0, 2 * block);
    s.release_messages_to(1);
    s.run_ms(5);
    s.attach(1);
    s.until("b is a target",
            [&] { return s.view(1, 0).replication == ReplicationState::sync_target; });
    s.run_ms(1);
    s.release_messages();
    s.run_ms(5'000);
    s.expect(s.connected(0, 1) && s.core(0).in_sync().has(1), "b is a member again");
    s.finish();
}

// b has c as a peer, and a does not. c lacks what a writes as Primary. b has to mark these writes
// toward c, because it fills c later.
void peer_of_one_and_not_of_the_other(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 3));
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.run_ms(1'000);
    s.kill(0);
    s.leave_out(2);
    s.start(0);
    s.leave_out(-1);
    s.until("a is back", [&] {
        return s.core(0).disk() == DiskState::up_to_date && s.connected(0, 1) && s.connected(1, 2);
    });
    s.promote(0);
    s.acknowledged(s.write(0, 9));
    s.acknowledged(s.flush(0));
    s.run_ms(1'000);
    s.kill(0);
    s.run_ms(5'000);
    s.audit();
    s.start(0);
    s.finish();
}

// a is promoted without c while b tells of the room on its disk. b must not be filled from a again.
void room_beside_a_promotion(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.room_extents = 2;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 3));
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.run_ms(1'000);
    s.kill(2);
    s.until("c is gone", [&] { return !s.connected(0, 2) && !s.connected(1, 2); });
    s.run_ms(1'000);
    s.hold(0, 1, MessageType::generation);
    s.command(0, CommandKind::promote);
    s.until("it is recorded", [&] { return s.core(0).role() == Role::primary; });
    s.room(1);
    s.run_ms(20);
    s.release_messages();
    for (int ms = 0; ms < 200; ++ms) {
        s.run_ms(1);
        s.expect(s.core(1).disk() == DiskState::up_to_date, "b has what it had");
    }
    s.finish();
}

// a and b compare their states while a opens a generation that b does not get before it is lost. b
// comes back with the generation before. a must still know that its marks count from that, too.
void compared_while_a_generation_opens(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.room_extents = 2;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 3));
    s.run_ms(1'000);
    s.hold(1, 0, MessageType::state);
    s.room(0);
    s.run_ms(10);
    s.hold(0, 1, MessageType::generation);
    s.kill(2);
    s.until("c is left behind", [&] { return !s.core(0).in_sync().has(2); });
    s.release_messages_to(0);
    s.run_ms(10);
    s.cut(0, 1);
    s.until("b is lost", [&] { return !s.connected(0, 1) && !s.connected(1, 0); });
    s.release_messages();
    s.join(0, 1);
    std::uint64_t total = 0;
    s.until("b is complete", [&] {
        total = std::max(total, s.view(0, 1).resync_total_bits);
        return s.core(0).in_sync().has(1) && s.bits(0, 1) == 0;
    });
    s.expect(total < extent_blocks, "b gets no more than it lacks");
    s.finish();
}

// A Primary that is being filled detaches its disk again, between its state and that of its last
// copy, which has lost its cache. The verdict is put off, and the copy must not be used meanwhile.
void used_before_it_is_judged(const Options& options) {
    Setup setup;
    setup.chunk_blocks = 1;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    break_primary(s);
    s.replace_disk(0);
    s.attach(0);
    s.until("a is being filled",
            [&] { return s.view(0, 1).replication == ReplicationState::sync_target; });
    s.acknowledged(s.write(0, 200));
    s.power_cut(1);
    s.until("b is lost", [&] { return !s.connected(0, 1); });
    s.hold(1, 0, MessageType::state);
    s.start(1);
    s.until("they meet", [&] { return s.connected(0, 1) && s.connected(1, 0); });
    s.run_ms(10);
    s.command(0, CommandKind::detach);
    s.run_ms(10);
    s.release_messages();
    for (int turn = 0; turn < 100; ++turn) {
        bool used = false;
        s.until("a moment", [&] { return std::exchange(used, true); });
        if (s.core(0).has_good_data()) s.read(0, 200);
    }
    s.run_ms(1'000);
    s.expect(!s.core(0).has_good_data(), "the Primary does not go on with what is left");
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.finish();
}

// b's operator offers to discard b's data in favour of c, which is out of reach. The offer does not
// cover what a writes to b afterwards.
void offer_before_the_writes(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    s.cut(0, 2);
    s.cut(1, 2);
    s.until("c is alone", [&] { return !s.connected(0, 2) && !s.connected(1, 2); });
    s.command(1, CommandKind::disconnect, 2);
    s.expect(s.ended(s.command(1, CommandKind::connect, 2, false, true)) == Errc::ok, "offered");
    s.run_ms(1'000);
    s.acknowledged(s.write(0, 9));
    s.acknowledged(s.flush(0));
    s.run_ms(500);
    s.promote(2);
    s.acknowledged(s.write(2, 20));
    s.expect(s.ended(s.command(2, CommandKind::demote)) == Errc::ok, "c is demoted");
    s.kill(0);
    s.run_ms(2'000);
    s.join(1, 2);
    s.run_ms(5'000);
    s.promote(1);
    s.acknowledged(s.read(1, 9));
    s.expect(!s.connected(1, 2), "they keep away from each other");
    s.finish();
}

// The volume has grown. b and c get new disks, which have the old size, and c does not hear a. b
// takes a's size and keeps it.
void two_new_disks_after_a_growth(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.room_extents = 2;
    Scenario s(options, setup);
    for (int n = 0; n < 3; ++n)
        s.room(n);
    s.run_ms(1'000);
    s.expect(s.ended(s.command(0, CommandKind::resize)) == Errc::ok, "the volume has grown");
    s.acknowledged(s.write(0, 3));
    s.kill(1);
    s.kill(2);
    s.run_ms(1'000);
    s.replace_disk(1);
    s.replace_disk(2);
    s.cut(0, 2);
    s.start(1);
    s.start(2);
    s.until("b is complete", [&] { return s.core(1).disk() == DiskState::up_to_date; });
    s.run_ms(1'000);
    s.expect(s.core(0).in_sync().has(1) && s.connected(0, 1), "b is a member");
    s.finish();
}

// The operator pauses the resync while it waits for its turn at a busy block. Writes to that block
// do not wait for the end of the pause.
void pause_at_a_busy_block(const Options& options) {
    Scenario s(options, {});
    s.run_ms(1'000);
    s.command(1, CommandKind::disconnect);
    s.run_ms(500);
    s.acknowledged(s.write(0, 3));
    s.run_ms(1'000);
    s.hold_io(0, IoOrigin::request);
    const auto first = s.write(0, 3);
    s.run_ms(10);
    s.command(1, CommandKind::connect);
    s.until("b is filled",
            [&] { return s.view(0, 1).replication == ReplicationState::sync_source; });
    s.run_ms(30'000);  // pings come and go
    s.command(0, CommandKind::pause_sync);
    s.run_ms(10);
    s.release_io();
    s.acknowledged(first);
    s.acknowledged(s.write(0, 3));
    s.command(0, CommandKind::resume_sync);
    s.finish();
}

// b has no room in its log, and says so; then its disk hangs. The head of the journal is not
// stable at a, because the flush that b does not answer came too early for it.
void hung_after_it_asked(const Options& options) {
    Setup setup;
    setup.al_extents = 4;
    setup.al_extents_1 = 2;
    setup.idle_flush_ns = 600 * ns_per_s;
    Scenario s(options, setup);
    s.hold_io(0, IoOrigin::request);
    s.write(0, 1);
    s.write(0, 1 + extent_blocks);
    s.run_ms(100);
    s.hold_io(1, IoOrigin::peer_request);
    const auto last = s.write(0, 1 + 2 * extent_blocks);
    s.run_ms(100);
    s.release_io(3, 1, IoOrigin::peer_request);
    s.run_ms(100);
    s.acknowledged(last, 120'000);
}

// A Primary has no disk. Both copies' disks hang after both have asked for a trim.
void two_hang(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.al_extents = 2;
    setup.idle_flush_ns = 600 * ns_per_s;
    Scenario s(options, setup);
    break_primary(s);
    s.acknowledged(s.flush(0));
    s.run_ms(1'000);
    s.hold_io(1, IoOrigin::peer_request);
    s.hold_io(2, IoOrigin::peer_request);
    for (std::uint64_t i = 0; i < 4; ++i)
        s.write(0, 1 + i * extent_blocks);
    s.until(
        "a peer whose disk hangs is dropped",
        [&] { return !s.connected(0, 1) || !s.connected(0, 2); }, 120'000);
}

// b is the only copy of a Primary without a disk. c, which was left behind, invalidates it.
void invalidated_from_afar(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    break_primary(s);
    s.cut(0, 2);
    s.until("c is left behind", [&] { return !s.core(0).in_sync().has(2); });
    s.acknowledged(s.write(0, 9));
    s.run_ms(2'000);
    s.expect(s.connected(1, 2), "b and c hear each other");
    const bool refused = s.ended(s.command(2, CommandKind::invalidate_remote, 1)) != Errc::ok;
    s.run_ms(1'000);
    const auto seen = s.read(0, 9);
    s.until("a read is answered", [&] { return s.answered(seen); });
    s.expect(s.result(seen) == 0, "the Primary has its data");
    s.expect(refused, "no peer has the data that is to be given up");
    s.finish();
}

// b is complete, and tells of the room on its disk while a leaves c behind.
void complete_and_overtaken(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.room_extents = 2;
    Scenario s(options, setup);
    s.run_ms(1'000);
    s.command(1, CommandKind::disconnect);
    s.run_ms(1'000);
    s.acknowledged(s.write(0, 3));
    s.run_ms(1'000);
    s.hold(1, 0, MessageType::sync_done_ack);
    s.command(1, CommandKind::connect);
    s.until("b is complete", [&] { return s.core(1).disk() == DiskState::up_to_date; });
    s.run_ms(20);
    s.hold(0, 1, MessageType::generation);
    s.command(0, CommandKind::disconnect, 2);
    s.room(1);
    s.run_ms(50);
    s.release_messages();
    for (int ms = 0; ms < 200; ++ms) {
        s.run_ms(1);
        s.expect(s.core(1).disk() == DiskState::up_to_date, "b has what it had");
        s.expect(s.core(0).in_sync().has(1), "b is not expelled");
    }
    s.finish();
}

// b and c are both copies of a Primary without a disk. b may be filled from c.
void invalidated_by_a_copy(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    break_primary(s);
    s.acknowledged(s.write(0, 9));
    s.run_ms(2'000);
    s.expect(s.core(0).in_sync().has(1) && s.core(0).in_sync().has(2) && same_generation(s, 1, 2),
             "b and c are copies");
    s.expect(s.ended(s.command(1, CommandKind::invalidate, 2)) == Errc::ok,
             "c holds just what b holds");
}

// The Primary is gone. b and c have one generation; b's state waits for its flush, and c
// refuses b because it still remembers the generation before.
void refused_by_an_equal(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.idle_flush_ns = 600 * ns_per_s;
    Scenario s(options, setup);
    break_primary(s);
    s.acknowledged(s.write(0, 9));
    s.run_ms(500);
    s.expect(same_generation(s, 1, 2), "b and c have one generation");
    s.hold_io(1, IoOrigin::local_flush);
    s.kill(0);
    s.until("a is gone", [&] { return !s.connected(1, 0) && !s.connected(2, 0); });
    s.run_ms(10);
    s.expect(s.core(1).disk() == DiskState::up_to_date, "b is UpToDate");
    const auto token = s.command(1, CommandKind::promote);
    s.run_ms(50);
    s.release_io();
    s.expect(s.ended(token) == Errc::ok, "nobody has newer data than b");
    s.finish();
}

// Node a is promoted when b has been told that it is complete.
void promoted_at_the_end(const Options& options) {
    Setup setup;
    Scenario s(options, setup);
    s.kill(1);
    s.run_ms(1'000);
    s.acknowledged(s.write(0, 3));
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.hold(1, 0, MessageType::sync_done_ack);
    s.start(1);
    s.until("b is complete", [&] { return s.core(1).disk() == DiskState::up_to_date; });
    const auto token = s.command(0, CommandKind::promote);
    s.run_ms(100);
    s.release_messages();
    s.expect(s.ended(token) == Errc::ok, "a is promoted");
    s.expect(s.core(0).in_sync().has(1), "b is a member, and is not filled again");
    s.finish();
}

// b's operator offers its data to c; the offer is on its way when a writes to b.
void offer_on_its_way(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    s.cut(0, 2);
    s.cut(1, 2);
    s.until("c is alone", [&] { return !s.connected(0, 2) && !s.connected(1, 2); });
    s.command(1, CommandKind::disconnect, 2);
    s.promote(2);
    s.acknowledged(s.write(2, 20));
    s.hold(2, 1, MessageType::state);
    s.join(1, 2);
    s.expect(s.ended(s.command(1, CommandKind::connect, 2, false, true)) == Errc::ok, "offered");
    s.until("they meet", [&] { return s.connected(1, 2) && s.connected(2, 1); });
    s.run_ms(50);
    s.acknowledged(s.write(0, 9));
    s.acknowledged(s.flush(0));
    s.run_ms(500);
    s.kill(0);
    s.until("b sees that a is gone", [&] { return !s.connected(1, 0); });
    s.run_ms(50);
    s.release_messages();
    s.run_ms(5'000);
    s.expect(!s.connected(1, 2), "b does not give up what was written after the offer");
}

// The source's operator pauses before the last block. b's resize is answered all the same.
void resize_at_a_paused_end(const Options& options) {
    Setup setup;
    setup.room_extents = 2;
    Scenario s(options, setup);
    s.room(0);
    s.room(1);
    s.run_ms(1'000);
    s.command(1, CommandKind::disconnect);
    s.run_ms(1'000);
    s.acknowledged(s.write(0, 3));
    s.run_ms(1'000);
    s.hold(1, 0, MessageType::resync_ack);
    s.command(1, CommandKind::connect);
    s.until("b gets it", [&] { return s.view(1, 0).resync_received_bytes > 0; });
    s.run_ms(50);
    s.command(0, CommandKind::pause_sync);
    s.run_ms(50);
    s.release_messages();
    s.run_ms(1'000);
    s.ended(s.command(1, CommandKind::resize));
    s.command(0, CommandKind::resume_sync);
    s.finish();
}

// The disk of the last copy fails, loses its cache, and is attached again. The peer says that
// before its state tells the Primary what was lost: no write counts on that disk meanwhile.
void used_before_its_state(const Options& options) {
    Setup setup;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    break_primary(s);
    s.acknowledged(s.write(0, 9));
    s.fail_io(1, IoOrigin::peer_request);
    const auto flush = s.flush(0);
    s.until("the flush has failed", [&] { return s.answered(flush); });
    s.until("b has no disk", [&] { return s.core(1).disk() == DiskState::diskless; });
    s.mend_io();
    s.run_ms(100);
    s.hold(1, 0, MessageType::state);
    s.attach(1);
    s.until("b has its disk", [&] { return s.core(1).disk() >= DiskState::outdated; });
    s.run_ms(20);
    const auto ticket = s.write(0, 10);
    s.run_ms(100);
    s.expect(!s.answered(ticket) || s.result(ticket) != 0, "b's disk does not count yet");
    s.release_messages();
    s.run_ms(1'000);
    s.expect(!s.core(0).has_good_data(), "the Primary does not go on with what is left");
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.finish();
}

constexpr Regression table[] = {
    {"used-before-its-state", "a disk counted before its state was compared",
     used_before_its_state},
    {"pause-at-a-busy-block", "a pause made writes to a reserved block wait",
     pause_at_a_busy_block},
    {"hung-after-it-asked", "a peer that hung after it had asked for a trim was never given up",
     hung_after_it_asked},
    {"two-hang", "two peers that hung excused each other", two_hang},
    {"invalidated-from-afar", "a peer that was behind invalidated the only copy",
     invalidated_from_afar},
    {"complete-and-overtaken", "a complete target was expelled by a generation on its way",
     complete_and_overtaken},
    {"invalidated-by-a-copy", "a copy was not taken for one", invalidated_by_a_copy},
    {"refused-by-an-equal", "an equal node refused a promotion", refused_by_an_equal},
    {"promoted-at-the-end", "a promotion at the end of a resync cost a full one",
     promoted_at_the_end},
    {"offer-on-its-way", "an offer on its way lost later writes", offer_on_its_way},
    {"resize-at-a-paused-end", "a resize was not answered while the source was paused",
     resize_at_a_paused_end},
    {"two-new-disks-after-a-growth", "a new disk switched between two sizes forever",
     two_new_disks_after_a_growth},
    {"room-beside-a-promotion", "the same beside a promotion", room_beside_a_promotion},
    {"compared-meanwhile", "a comparison while a generation opens cost a full resync",
     compared_while_a_generation_opens},
    {"used-before-it-is-judged", "a last copy was used before it was judged",
     used_before_it_is_judged},
    {"offer-before-the-writes", "an old offer to discard lost acknowledged writes",
     offer_before_the_writes},
    {"peer-of-one-and-not-of-the-other",
     "no node marked what a node that the Primary does not know lacks",
     peer_of_one_and_not_of_the_other},
    {"late-word", "a late answer about an earlier disk was taken for the present one",
     late_word_of_a_failed_write},
    {"late-word-in-a-resync", "the same, and it stopped a resync",
     late_word_of_a_failed_write_in_a_resync},
    {"detach-at-the-end", "a detach at the end of a resync left nobody with usable data",
     detach_at_the_end_of_a_resync},
    {"promoted-beside-diskless",
     "a node without a disk agreed to a promotion of data that it knew to be behind",
     promoted_beside_a_node_without_a_disk},
    {"resync-beside-a-promotion", "a resync began beside a Primary that did not hear of it",
     resync_begun_beside_a_promotion},
    {"lacked-once", "a copy that had lacked a write once was refused forever", lacked_once},
    {"promoted-beside-newer-data", "a node with newer data agreed to a promotion",
     promoted_beside_newer_data},
    {"promoted-beside-new-uuid", "the same with a generation that an operator opened",
     promoted_beside_a_generation_by_hand},
    {"counted-in-beside-a-primary", "a node was admitted without its Primary",
     counted_in_beside_a_primary},
    {"counted-in-and-promoted", "the same, and it was promoted",
     counted_in_beside_a_primary_and_promoted},
    {"last-copy-is-started-anew", "the last copy stayed Consistent after a restart",
     last_copy_is_started_anew},
    {"only-copy-is-started-anew", "the same with two nodes", only_copy_is_started_anew},
    {"only-copy-leaves-early", "the only copy stayed Outdated", only_copy_leaves_before_it_knows},
    {"room-at-a-paused-target", "room and a pause at the end of a resync expelled the target",
     room_at_a_paused_target_at_the_end},
    {"room-beside-a-generation", "a state that a generation had overtaken was judged",
     room_beside_a_generation},
    {"room-beside-and-a-crash", "the same, and nobody could be promoted",
     room_beside_a_generation_and_a_crash},
    {"last-copy-fills-the-disk",
     "a copy that lacked what was acknowledged filled the disk that had it",
     last_copy_fills_the_disk_that_had_it},
    {"invalidated-by-one-behind", "an invalidation took data from a peer that was behind",
     invalidated_by_a_peer_that_is_behind},
    {"last-copy-is-detached", "a copy was detached before it had received what was acknowledged",
     last_copy_is_detached},
};

}  // namespace

std::span<const Regression> operator_regressions() { return table; }

}  // namespace replica::sim
