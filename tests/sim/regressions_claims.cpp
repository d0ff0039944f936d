// SPDX-License-Identifier: Apache-2.0
// Regressions (regressions.cpp) of two kinds: a node believed something about another node that it
// had not learnt on the current link, or two things waited for each other.
#include "tests/sim/regressions.hpp"

namespace replica::sim {
namespace {

// No Primary. c no longer hears b, and believes that b is as before. b comes back with a new disk,
// and a fills it. When c meets a again, what c says of b must not end that resync.
void word_about_a_replaced_disk(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.extents = 8;
    setup.chunks = 1;
    setup.chunk_blocks = 1;
    Scenario s(options, setup);
    for (std::uint64_t block = 0; block < 8; ++block)
        s.acknowledged(s.write(0, block * extent_blocks + 5));
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.run_ms(1'000);
    s.cut(1, 2);
    s.kill(1);
    s.replace_disk(1);
    s.start(1);
    s.until("a fills b", [&] { return s.view(0, 1).replication == ReplicationState::sync_source; });
    s.expect(s.connected(2, 1), "c believes in the b of before");
    s.command(0, CommandKind::disconnect, 2);
    s.command(0, CommandKind::connect, 2);
    s.until("a and c meet again", [&] { return s.connected(0, 2) && s.connected(2, 0); });
    s.run_ms(100);
    s.audit();
    s.expect(s.view(0, 1).replication == ReplicationState::sync_source, "a still fills b");
    s.until(
        "b is complete", [&] { return s.core(1).disk() == DiskState::up_to_date; }, 60'000);
    s.audit();
    s.finish();
}

// b's activity log is smaller than a's. The flush that would make room on b must not wait there
// for the write that needs the room.
void unequal_activity_logs(const Options& options) {
    Setup setup;
    setup.extents = 8;
    setup.al_extents = 7;
    setup.al_extents_1 = 2;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    const Uuid generation = s.core(0).superblock().current_uuid;
    std::array<std::uint64_t, 7> tickets{};
    for (std::uint64_t i = 0; i < tickets.size(); ++i)
        tickets[i] = s.write(0, i * extent_blocks);
    for (const std::uint64_t ticket : tickets)
        s.acknowledged(ticket, 1'000);
    s.expect(s.core(0).superblock().current_uuid == generation, "b is not expelled");
    s.finish();
}

// The same with a Primary that has no disk, and so no activity log of its own.
void diskless_primary_and_full_log(const Options& options) {
    Setup setup;
    setup.extents = 8;
    setup.al_extents = 2;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.break_disk(0);
    s.acknowledged(s.write(0, 1));
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    std::array<std::uint64_t, 7> tickets{};
    for (std::uint64_t i = 0; i < tickets.size(); ++i)
        tickets[i] = s.write(0, i * extent_blocks);
    for (const std::uint64_t ticket : tickets)
        s.acknowledged(ticket, 1'000);
    s.finish();
}

// And with a resync, whose blocks need room in the same log.
void resync_beside_a_full_log(const Options& options) {
    Setup setup;
    setup.extents = 8;
    setup.al_extents = 2;
    setup.chunk_blocks = 1;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.kill(1);
    s.run_ms(1'000);
    for (std::uint64_t i = 0; i < 64; ++i)
        s.acknowledged(s.write(0, (i % 8) * extent_blocks + 8 + i));
    s.start(1);
    s.until("a fills b", [&] { return s.view(0, 1).replication == ReplicationState::sync_source; });
    const std::uint64_t link_version = s.core(0).superblock().extension.generation_seq;
    for (int round = 0; round < 10; ++round) {
        std::array<std::uint64_t, 8> tickets{};
        for (std::uint64_t i = 0; i < tickets.size(); ++i)
            tickets[i] = s.write(0, i * extent_blocks + static_cast<std::uint64_t>(round));
        for (const std::uint64_t ticket : tickets)
            s.acknowledged(ticket, 1'000);
    }
    s.expect(s.core(0).superblock().extension.generation_seq == link_version, "b is not expelled");
    s.until("b is complete", [&] { return s.core(1).disk() == DiskState::up_to_date; });
    s.finish();
}

// b cannot record yet that it is Inconsistent, for example because a snapshot is taken first. The
// application goes on, and nothing reaches b's disk.
void target_before_its_label(const Options& options) {
    Scenario s(options, {});
    s.kill(1);
    s.run_ms(1'000);
    s.acknowledged(s.write(0, 3));
    s.hold(0, 1, MessageType::state);
    s.start(1);
    s.until("b has its disk", [&] { return s.core(1).disk() == DiskState::consistent; });
    s.run_ms(100);
    s.hold_io(1, IoOrigin::superblock);
    s.release_messages();
    s.until("b is to be filled", [&] { return is_target(s.view(1, 0).replication); });
    s.run_ms(100);
    s.acknowledged(s.write(0, 9, 1, true), 500);
    s.power_cut(1);
    s.release_io();
    s.start(1);
    s.run_ms(500);
    s.audit();
    s.finish();
}

// The last copy of a Primary without a disk comes back. Before it takes a write, its label must say
// that writes may be in flight: otherwise a power cut right after would not be counted.
void last_copy_without_its_mark(const Options& options) {
    Setup setup;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.break_disk(0);
    s.acknowledged(s.write(0, 1));
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.acknowledged(s.flush(0));
    s.cut(0, 1);
    s.until("the two have noticed", [&] { return !s.connected(0, 1) && !s.connected(1, 0); });
    s.run_ms(1'000);
    s.hold_io(1, IoOrigin::superblock);
    s.join(0, 1);
    s.until("b is back", [&] { return s.core(0).has_good_data(); });
    const auto ticket = s.write(0, 1);
    s.run_ms(300);
    s.expect(!s.answered(ticket), "nothing is acknowledged before the mark is on record");
    s.release_io();
    s.acknowledged(ticket);
    s.power_cut(1);
    s.run_ms(500);
    s.start(1);
    s.until("they meet", [&] { return s.connected(0, 1); });
    s.run_ms(2'000);
    s.expect(!s.core(0).has_good_data(), "the older value is not taken for the current one");
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.finish();
}

// A Primary gets its disk back while b holds writes that it has not flushed. The exchange of
// bitmaps says nothing about them.
void unflushed_at_the_bitmap_exchange(const Options& options) {
    Setup setup;
    setup.extents = 8;
    setup.al_extents = 2;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.break_disk(0);
    s.acknowledged(s.write(0, 1));
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.acknowledged(s.flush(0));
    s.acknowledged(s.write(0, 4));
    s.hold(1, 0, MessageType::state);
    s.attach(0);
    s.until("the disk is there", [&] { return s.core(0).disk() == DiskState::inconsistent; });
    s.run_ms(50);
    s.hold_io(1, IoOrigin::peer_request);
    s.flush(0);
    s.run_ms(50);
    s.hold_no_more();  // b's flush does not end
    s.release_messages();
    s.until("the disk is complete", [&] { return s.core(0).disk() == DiskState::up_to_date; });
    s.write(0, 2 * extent_blocks);
    s.write(0, 3 * extent_blocks);
    s.run_ms(100);
    s.power_cut(1);
    s.run_ms(2'000);
    s.start(1);
    s.run_ms(2'000);
    s.audit();
    s.finish();
}

// b's superblock write hangs while c is lost. So b never answers the generation without c, and is
// given up as well.
void member_that_never_answers(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    s.hold_io(1, IoOrigin::superblock);
    s.kill(2);
    s.until("c's loss is noticed", [&] { return !s.core(0).in_sync().has(2); });
    s.acknowledged(s.write(0, 6), 15'000);
    s.expect(!s.core(0).in_sync().has(1), "b is not counted on");
    s.release_io();
    s.finish();
}

// One write of b hangs while others are answered.
void one_write_hangs(const Options& options) {
    Setup setup;
    setup.journal = 512;
    Scenario s(options, setup);
    s.hold_io(1, IoOrigin::peer_request);
    const auto ticket = s.write(0, 6);
    s.run_ms(20);
    s.hold_no_more();
    for (std::uint64_t i = 0; i < 150 && !s.answered(ticket); ++i) {
        s.write(0, 10 + i % 50);
        s.run_ms(100);
    }
    s.expect(s.answered(ticket), "the write does not wait forever");
    s.release_io();
    s.finish();
}

// b asks to be Primary, and tells its state while it waits for the last answer. The peers that have
// agreed must not take that for the end of the attempt.
void state_told_while_asking(const Options& options) {
    Setup setup;
    setup.nodes = 4;
    Scenario s(options, setup);
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.run_ms(500);
    s.kill(0);
    s.run_ms(2'000);
    s.expect(s.ended(s.command(1, CommandKind::disconnect, 3)) == Errc::ok, "b leaves d");
    s.run_ms(500);
    s.hold(2, 1, MessageType::promote_reply);
    const auto promotion = s.command(1, CommandKind::promote);
    s.run_ms(100);
    s.command(1, CommandKind::connect, 3);
    s.until("b and d meet", [&] { return s.connected(1, 3) && s.connected(3, 1); });
    s.run_ms(200);
    s.release_messages();
    s.expect(s.ended(promotion) == Errc::ok, "b is promoted");
    s.acknowledged(s.write(1, 3));
    s.expect(s.core(1).in_sync().has(2), "c stays a member");
    s.expect(s.view(1, 2).connection == ConnectionState::connected, "c stays connected");
    s.finish();
}

// a reads from b, whose disk fails meanwhile: the read is done elsewhere, and b's late answer is no
// reason to give the link up.
void late_answer_to_a_read(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 2));
    s.break_disk(0);
    s.acknowledged(s.write(0, 1));
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.hold_io(1, IoOrigin::peer_read);
    const auto seen = s.read(0, 2);
    s.run_ms(50);
    s.expect(!s.answered(seen), "b was asked");
    s.break_disk(1);
    s.acknowledged(s.write(0, 3));
    s.acknowledged(seen);
    s.release_io();
    s.run_ms(100);
    s.expect(s.connected(0, 1) && s.connected(1, 0), "the link stands");
    s.mend_disk(0);
    s.mend_disk(1);
    s.finish();
}

// a disconnects from b and c in one step, so two generations are opened at once. c is told each as
// it was opened.
void two_generations_at_once(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 2));
    s.expect(s.ended(s.command(0, CommandKind::disconnect)) == Errc::ok, "a leaves both");
    s.until("both have noticed", [&] { return !s.connected(1, 0) && !s.connected(2, 0); });
    for (int n = 1; n < 3; ++n) {
        const std::string why = s.view(n, 0).why;
        s.expect(why.find("generation") == std::string::npos, "no complaint: " + why);
    }
    s.command(0, CommandKind::connect);
    s.finish();
}

// A promotion is asked for before the set is told.
void promote_before_told(const Options& options) {
    Scenario s(options, {});
    s.kill(1);
    s.run_ms(2'000);
    s.acknowledged(s.write(0, 3));
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.kill(0);
    s.run_ms(500);
    s.start(1);
    s.start_without_disk(0);
    s.until("both meet", [&] { return s.connected(0, 1) && s.connected(1, 0); });
    s.run_ms(300);
    s.hold_io(0, IoOrigin::local_flush);
    s.attach(0);
    s.until("a is UpToDate", [&] { return s.core(0).disk() == DiskState::up_to_date; });
    const auto p = s.command(0, CommandKind::promote);
    s.run_ms(50);
    s.expect(s.connected(1, 0), std::string("b keeps the link: ") + s.view(1, 0).why);
    s.release_io();
    s.ended(p);
    s.finish();
}

// An answer to an earlier flush is not the answer to a later one.
void answer_to_an_earlier_flush(const Options& options) {
    Setup setup;
    setup.protocol = Protocol::a;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 5));
    s.acknowledged(s.flush(0));
    s.run_ms(300);
    s.hold(1, 0, MessageType::flush_ack);
    const auto first = s.flush(0);
    s.run_ms(10);
    s.expect(!s.answered(first), "b's answer is on its way");
    s.expect(s.ended(s.command(1, CommandKind::detach)) == Errc::ok, "b is detached");
    s.acknowledged(first, 100);
    s.attach(1);
    s.until(
        "b is counted in",
        [&] { return s.core(0).in_sync().has(1) && s.core(1).disk() == DiskState::up_to_date; },
        600);
    s.hold(0, 1, MessageType::write);
    s.acknowledged(s.write(0, 5), 50);
    const auto second = s.flush(0);
    s.run_ms(5);
    s.expect(!s.answered(second), "the second flush waits for b");
    s.release_messages_to(0);
    s.run_ms(20);
    s.expect(!s.answered(second), "the second flush waits for its own answer");
    s.finish();
}

// A Primary does not go on with a copy that lacks what it acknowledged.
void only_copy_was_its_own(const Options& options) {
    Setup setup;
    setup.protocol = Protocol::a;
    Scenario s(options, setup);
    s.hold(0, 1, MessageType::write);
    s.acknowledged(s.write(0, 5));
    s.break_disk(0);
    const auto probe = s.read(0, 100);
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.cut(0, 1);
    s.until("b is lost", [&] { return !s.connected(0, 1); });
    s.release_messages();
    s.join(0, 1);
    s.until("b is back", [&] { return s.connected(0, 1) && s.connected(1, 0); });
    s.run_ms(1'000);
    (void)probe;
    const auto r = s.read(0, 5);
    s.run_ms(1'000);
    s.expect(!s.answered(r) || s.result(r) != 0, "an old value is not served as current");
}

// A generation reaches a target whose round was given up. The link stands.
void generation_after_a_round_that_was_given_up(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.room_extents = 4;
    Scenario s(options, setup);
    s.kill(1);
    s.run_ms(2'000);
    s.acknowledged(s.write(0, 3));
    s.hold(0, 1, MessageType::sync_done);
    s.start(1);
    s.until("b is counted in", [&] { return s.core(0).in_sync().has(1); });
    s.run_ms(50);
    s.hold(1, 0, MessageType::state);
    s.room(1);
    s.run_ms(60);
    s.kill(2);
    s.until("c is evicted", [&] { return !s.core(0).in_sync().has(2); });
    s.expect(s.connected(0, 1) && s.connected(1, 0), "the link stands");
    s.release_messages_to(1);
    s.run_ms(50);
    s.expect(s.connected(0, 1) && s.connected(1, 0),
             std::string("the link still stands: ") + s.view(1, 0).why);
    s.finish();
}

// A trim of an earlier reign comes late. It does not empty the journal of now.
void trim_of_an_earlier_reign(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    for (std::uint64_t i = 0; i < 5; ++i)
        s.acknowledged(s.write(0, 10 + i));
    s.hold(0, 1, MessageType::trim);
    s.acknowledged(s.flush(0));
    s.expect(s.ended(s.command(0, CommandKind::demote), 50) == Errc::ok, "a is demoted");
    s.expect(s.ended(s.command(0, CommandKind::promote), 100) == Errc::ok, "a is promoted again");
    s.hold(0, 2, MessageType::write);
    s.write(0, 7);
    s.run_ms(10);
    s.release_messages_to(1);
    s.run_ms(10);
    s.expect(s.connected(1, 0) && s.connected(0, 1), "the link stands");
    s.power_cut(0);
    s.until("b and c know", [&] { return !s.connected(1, 0) && !s.connected(2, 0); });
    s.run_ms(2'000);
    s.expect(s.bits(1, 2) + s.bits(2, 1) == 0, "they call themselves equal");
    s.audit();
    s.start(0);
    s.finish();
}

// b agrees to a promotion, forgets it by a new round, and agrees to another one.
void reply_to_an_agreement_that_was_forgotten(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.room_extents = 4;
    Scenario s(options, setup);
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.run_ms(500);
    s.cut(0, 2);
    s.until("a and c are apart", [&] { return !s.connected(0, 2) && !s.connected(2, 0); });
    s.run_ms(500);
    s.hold_io(1, IoOrigin::superblock);
    const auto mine = s.command(0, CommandKind::promote);
    s.run_ms(20);
    s.expect(s.view(1, 0).role == Role::primary, "b has agreed");
    s.hold(0, 1, MessageType::promote);
    s.room(0);
    s.until(
        "b has forgotten", [&] { return s.view(1, 0).role == Role::secondary; }, 300);
    s.run_ms(5);
    s.release_io();
    const auto theirs = s.command(2, CommandKind::promote);
    s.run_ms(60);
    s.expect(s.ended(theirs, 300) == Errc::ok, "c is promoted");
    s.release_messages();
    s.run_ms(3'000);
    const bool both = s.core(0).serves() && s.core(2).serves();
    s.expect(!both, "b let two nodes become Primary");
    s.ended(mine);
    s.finish();
}

// The source pauses while the last answer of a resync is on its way.
void pause_at_the_end_of_a_resync(const Options& options) {
    Scenario s(options, {});
    s.kill(1);
    s.run_ms(2'000);
    s.acknowledged(s.write(0, 3));
    s.hold(1, 0, MessageType::sync_done_ack);
    s.start(1);
    s.until("b is counted in", [&] { return s.core(0).in_sync().has(1); });
    s.run_ms(50);
    s.expect(s.core(1).disk() == DiskState::up_to_date, "b is UpToDate, its answer is on its way");
    s.expect(s.ended(s.command(0, CommandKind::pause_sync)) == Errc::ok, "a pauses");
    s.release_messages();
    s.run_ms(6'000);
    s.expect(s.connected(0, 1) && s.core(0).in_sync().has(1),
             std::string("the link stands and b is a member: ") + s.view(0, 1).why);
    s.command(0, CommandKind::resume_sync);
    s.finish();
}

// b's number is not told to the Primary that gave it.
void number_that_the_giver_does_not_know(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.room_extents = 4;
    Scenario s(options, setup);
    s.kill(2);
    s.until("c is evicted", [&] { return !s.core(0).in_sync().has(2); });
    s.run_ms(500);
    s.hold_io(1, IoOrigin::superblock);
    s.room(1);
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.until("b knows", [&] { return s.view(1, 0).role == Role::secondary; });
    s.command(1, CommandKind::promote);
    s.run_ms(50);
    s.release_io();
    s.finish();
}

// The trim of an earlier reign, and a last copy that loses its cache.
void trim_and_a_last_copy(const Options& options) {
    Setup setup;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    for (std::uint64_t i = 0; i < 5; ++i)
        s.acknowledged(s.write(0, 10 + i));
    s.hold(0, 1, MessageType::trim);
    s.acknowledged(s.flush(0));
    s.expect(s.ended(s.command(0, CommandKind::demote), 50) == Errc::ok, "a is demoted");
    s.expect(s.ended(s.command(0, CommandKind::promote), 100) == Errc::ok, "a is promoted again");
    s.break_disk(0);
    s.acknowledged(s.write(0, 7), 50);
    s.release_messages();
    s.run_ms(10);
    s.cut(0, 1);
    s.until("they are apart", [&] { return !s.connected(0, 1) && !s.connected(1, 0); });
    s.run_ms(1'000);
    s.power_cut(1);
    s.join(0, 1);
    s.start(1);
    s.until("both meet", [&] { return s.connected(0, 1) && s.connected(1, 0); });
    s.run_ms(1'000);
    const auto r = s.read(0, 7);
    s.run_ms(1'000);
    s.expect(s.answered(r), "a hears something");
}

// The trim of an earlier reign, and two crashes: an acknowledged write is not lost.
void trim_and_two_crashes(const Options& options) {
    Setup setup;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    for (std::uint64_t i = 0; i < 5; ++i)
        s.acknowledged(s.write(0, 10 + i));
    s.hold(0, 1, MessageType::trim);
    s.acknowledged(s.flush(0));
    s.expect(s.ended(s.command(0, CommandKind::demote), 50) == Errc::ok, "a is demoted");
    s.expect(s.ended(s.command(0, CommandKind::promote), 100) == Errc::ok, "a is promoted again");
    s.acknowledged(s.write(0, 7), 50);
    s.release_messages();
    s.run_ms(10);
    s.expect(s.connected(0, 1) && s.connected(1, 0), "the link stands");
    s.kill(0);
    s.until("b knows", [&] { return !s.connected(1, 0); });
    s.run_ms(1'000);
    s.power_cut(1);
    s.start(0);
    s.start(1);
    s.until("both meet", [&] { return s.connected(0, 1) && s.connected(1, 0); });
    s.run_ms(2'000);
    s.promote(0);
    s.acknowledged(s.read(0, 7));
    s.finish();
}

// A state from before the disk was detached is answered late.
void answer_about_a_disk_that_was_away(const Options& options) {
    Setup setup;
    setup.room_extents = 4;
    Scenario s(options, setup);
    s.hold(0, 1, MessageType::state);
    s.room(1);
    s.run_ms(30);
    s.expect(s.ended(s.command(1, CommandKind::detach), 100) == Errc::ok, "b is detached");
    s.until(
        "b is evicted", [&] { return !s.core(0).in_sync().has(1); }, 200);
    s.acknowledged(s.write(0, 7), 100);
    s.attach(1);
    s.until(
        "b has its disk", [&] { return s.core(1).disk() == DiskState::consistent; }, 300);
    s.run_ms(20);
    s.expect(s.connected(0, 1) && s.connected(1, 0), "the link stands");
    s.hold(1, 0, MessageType::state);
    s.release_messages_to(1);
    s.run_ms(5);
    s.power_cut(0);
    s.until("b knows", [&] { return !s.connected(1, 0); });
    s.run_ms(300);
    s.expect(s.ended(s.command(1, CommandKind::promote)) != Errc::ok,
             "b is not promoted without force");
    s.expect(s.core(1).disk() != DiskState::up_to_date,
             "b does not call itself UpToDate without the write");
    s.start(0);
    s.finish();
}

// The target pauses while it is told that it is done.
void pause_at_the_target_at_the_end(const Options& options) {
    Scenario s(options, {});
    s.kill(1);
    s.run_ms(2'000);
    s.acknowledged(s.write(0, 3));
    s.hold(0, 1, MessageType::sync_done);
    s.start(1);
    s.until("b is counted in", [&] { return s.core(0).in_sync().has(1); });
    s.run_ms(20);
    s.command(1, CommandKind::pause_sync);
    s.run_ms(20);
    s.release_messages();
    s.run_ms(3'000);
    s.command(1, CommandKind::resume_sync);
    s.run_ms(4'000);
    s.expect(s.connected(0, 1) && s.core(0).in_sync().has(1), "the link stands");
    s.finish();
}

// b's operator makes room on the disk while a admits b. b tells of the room when the resync has
// ended.
void room_at_the_end_of_a_resync(const Options& options) {
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
    s.room(1);
    s.run_ms(100);
    s.release_messages();
    s.until("b is complete", [&] { return s.core(1).disk() == DiskState::up_to_date; });
    s.run_ms(100);
    s.expect(s.core(0).superblock().extension.generation_seq == generation, "b is not expelled");
    s.expect(s.view(0, 1).room_bytes > 0, "a knows of the room");
    s.finish();
}

// b and c have marks toward each other, and do not hear each other. a, which is equal to both, is
// promoted. From then on b and c clear these marks only when a says that they need none.
void marks_from_before_a_promotion(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 3));
    s.cut(1, 2);
    s.until("they have noticed", [&] { return !s.connected(1, 2) && !s.connected(2, 1); });
    s.kill(0);
    s.until("they have marks", [&] { return s.bits(1, 2) > 0 && s.bits(2, 1) > 0; });
    s.start(0);
    s.until("a is equal to both", [&] {
        return s.core(0).disk() == DiskState::up_to_date &&
               s.core(1).disk() == DiskState::up_to_date &&
               s.core(2).disk() == DiskState::up_to_date && s.bits(0, 1) + s.bits(0, 2) == 0;
    });
    s.run_ms(1'000);
    s.promote(0);
    s.run_ms(100);
    s.join(1, 2);
    s.until("they meet", [&] { return s.connected(1, 2) && s.connected(2, 1); });
    s.run_ms(500);
    s.expect(s.bits(1, 2) == 0 && s.bits(2, 1) == 0, "no marks are left");
    s.finish();
}

// A Primary without a disk loses its three copies one after the other. The last copy had not heard
// that the second was lost. It still has everything that was acknowledged.
void copies_lost_in_a_row(const Options& options) {
    Setup setup;
    setup.nodes = 4;
    Scenario s(options, setup);
    s.break_disk(0);
    s.acknowledged(s.write(0, 1));
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.run_ms(1'000);
    for (int peer = 1; peer < 4; ++peer)
        s.cut(0, peer);
    s.until("all are lost",
            [&] { return !s.connected(0, 1) && !s.connected(0, 2) && !s.connected(0, 3); });
    for (int peer = 1; peer < 4; ++peer)
        s.join(0, peer);
    s.until("one is back", [&] { return s.core(0).has_good_data(); });
    s.acknowledged(s.write(0, 2));
    s.finish();
}

// The operator disconnects the only copy of a Primary without a disk, and connects it again.
void only_copy_is_disconnected(const Options& options) {
    Scenario s(options, {});
    s.break_disk(0);
    s.acknowledged(s.write(0, 1));
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    s.command(0, CommandKind::disconnect, 1);
    s.run_ms(1'000);
    s.command(0, CommandKind::connect, 1);
    s.until("b is back", [&] { return s.core(0).has_good_data(); });
    s.acknowledged(s.write(0, 2));
    s.finish();
}

// b is being filled and its activity log is full: writes of a wait there for a trim. Then a's disk
// is detached, and the resync is given up. b must not wait for a trim that never comes.
void trim_after_a_resync_that_ended(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.extents = 8;
    setup.al_extents = 7;
    setup.al_extents_1 = 2;
    setup.chunks = 1;
    setup.chunk_blocks = 1;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.kill(1);
    s.run_ms(1'000);
    for (std::uint64_t i = 0; i < 64; ++i)
        s.acknowledged(s.write(0, (i % 8) * extent_blocks + 8 + i));
    s.start(1);
    s.until("a fills b", [&] { return s.view(0, 1).replication == ReplicationState::sync_source; });
    std::array<std::uint64_t, 7> tickets{};
    for (std::uint64_t i = 0; i < tickets.size(); ++i)
        tickets[i] = s.write(0, i * extent_blocks);
    s.run_ms(1);
    s.command(0, CommandKind::detach);
    for (const std::uint64_t ticket : tickets)
        s.acknowledged(ticket, 1'000);
    s.run_ms(30'000);
    s.expect(s.connected(0, 1) && s.connected(0, 2), "the links stand");
    s.finish();
}

// Protocol B. b, a's only copy, fills a. a's own disk does not count yet. So a does not acknowledge
// a write that b has received and not written: b may be killed before it writes.
void received_by_the_source(const Options& options) {
    Setup setup;
    setup.protocol = Protocol::b;
    setup.extents = 8;
    setup.chunks = 1;
    setup.chunk_blocks = 1;
    setup.idle_flush_ns = 60 * ns_per_s;
    Scenario s(options, setup);
    s.break_disk(0);
    s.acknowledged(s.write(0, 1));
    s.until("its disk is gone", [&] { return s.core(0).disk() == DiskState::diskless; });
    for (std::uint64_t i = 0; i < 64; ++i)
        s.acknowledged(s.write(0, 8 + i));
    s.mend_disk(0);
    s.attach(0);
    s.until("b fills a", [&] { return s.view(0, 1).replication == ReplicationState::sync_target; });
    s.hold_io(1, IoOrigin::al);
    const auto ticket = s.write(0, 2 * extent_blocks);
    s.run_ms(500);
    s.expect(!s.answered(ticket), "nothing is acknowledged before b has written it");
    s.kill(1);
    s.release_io();
    s.run_ms(500);
    s.start(1);
    s.finish();
}

// No Primary. b fills a, a's answer is late, and a becomes equal to c meanwhile. The name that a
// gives to what all three hold reaches b too early, so b has to hear it again.
void name_before_the_answer(const Options& options) {
    Setup setup;
    setup.nodes = 3;
    setup.extents = 1;
    Scenario s(options, setup);
    s.acknowledged(s.write(0, 3));
    s.expect(s.ended(s.command(0, CommandKind::demote)) == Errc::ok, "a is demoted");
    s.run_ms(1'000);
    s.cut(0, 2);
    s.kill(0);
    s.replace_disk(0);
    s.run_ms(1'000);
    s.hold(0, 1, MessageType::sync_done_ack);
    s.start(0);
    s.until("a is complete", [&] { return s.core(0).disk() == DiskState::up_to_date; });
    s.join(0, 2);
    s.until(
        "a and c are equal",
        [&] { return s.connected(0, 2) && s.bits(2, 1) > 0 && s.bits(0, 2) + s.bits(2, 0) == 0; },
        400);
    s.run_ms(20);
    s.release_messages();
    s.run_ms(5'000);
    s.expect(s.bits(1, 2) == 0 && s.bits(2, 1) == 0, "no marks are left");
    s.finish();
}

constexpr Regression table[] = {
    {"name-before-the-answer", "a name that came during a resync was not heard",
     name_before_the_answer},
    {"received-by-the-source", "a Primary counted its own disk as a copy while it was being filled",
     received_by_the_source},
    {"trim-after-a-resync-that-ended",
     "a target whose source lost its disk waited for a trim that never came",
     trim_after_a_resync_that_ended},
    {"room-at-the-end-of-a-resync", "a target that told of its room was expelled at the end",
     room_at_the_end_of_a_resync},
    {"marks-from-before-a-promotion", "two members kept marks that no node told them to clear",
     marks_from_before_a_promotion},
    {"copies-lost-in-a-row", "a diskless Primary did not accept its last copy again",
     copies_lost_in_a_row},
    {"only-copy-is-disconnected", "a disconnect made the only copy Outdated",
     only_copy_is_disconnected},
    {"pause-at-the-target-at-the-end", "the same with a pause at the target",
     pause_at_the_target_at_the_end},
    {"answer-about-a-disk-that-was-away", "a verdict about a disk that was away made it UpToDate",
     answer_about_a_disk_that_was_away},
    {"number-that-the-giver-does-not-know",
     "a promotion under a set that its giver was not told cost a link",
     number_that_the_giver_does_not_know},
    {"trim-and-a-last-copy", "the trim of an earlier reign, and a last copy", trim_and_a_last_copy},
    {"trim-and-two-crashes", "the trim of an earlier reign lost an acknowledged write",
     trim_and_two_crashes},
    {"pause-at-the-end-of-a-resync", "a pause lost the last answer of a resync",
     pause_at_the_end_of_a_resync},
    {"trim-of-an-earlier-reign", "the trim of an earlier reign emptied a journal",
     trim_of_an_earlier_reign},
    {"reply-to-a-forgotten-agreement", "a node agreed to two promotions",
     reply_to_an_agreement_that_was_forgotten},
    {"promote-before-told", "a promotion was asked for before the set was told",
     promote_before_told},
    {"answer-to-an-earlier-flush", "a flush was answered by the answer to an earlier one",
     answer_to_an_earlier_flush},
    {"only-copy-was-its-own", "a Primary went on with a copy that lacks what it acknowledged",
     only_copy_was_its_own},
    {"generation-at-a-given-up-target", "a generation at a target cost the link",
     generation_after_a_round_that_was_given_up},
    {"word-about-a-replaced-disk", "a third node's stale word ended a resync",
     word_about_a_replaced_disk},
    {"unequal-activity-logs", "a flush waited for a write that waited for that flush",
     unequal_activity_logs},
    {"diskless-primary-and-full-log", "the same on the disk of a diskless Primary's peer",
     diskless_primary_and_full_log},
    {"resync-beside-a-full-log", "the same with a resync", resync_beside_a_full_log},
    {"target-before-its-label", "a target took writes before it was Inconsistent on record",
     target_before_its_label},
    {"last-copy-without-its-mark", "a power cut of the last copy was not counted",
     last_copy_without_its_mark},
    {"unflushed-at-the-bitmap-exchange", "a bitmap exchange called unflushed writes stable",
     unflushed_at_the_bitmap_exchange},
    {"member-that-never-answers", "a generation waited forever for a member's record",
     member_that_never_answers},
    {"one-write-hangs", "a write that hung was not noticed beside others", one_write_hangs},
    {"state-told-while-asking",
     "a state told by a node that asks to be Primary ended the agreement", state_told_while_asking},
    {"late-answer-to-a-read", "an answer to a read that was given up cost the link",
     late_answer_to_a_read},
    {"two-generations-at-once", "the first of two generations was told as the second",
     two_generations_at_once},
};

}  // namespace

std::span<const Regression> claims_regressions() { return table; }

}  // namespace replica::sim
