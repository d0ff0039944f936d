// SPDX-License-Identifier: Apache-2.0
// Regressions (regressions.cpp) of two kinds: a node believed something about another that it had
// not learnt on the current link, or two things waited for each other.
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
    s.expect(s.answered(ticket), "the write does not wait for ever");
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

constexpr Regression table[] = {
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
    {"member-that-never-answers", "a generation waited for ever for a member's record",
     member_that_never_answers},
    {"one-write-hangs", "a write that hung was not noticed beside others", one_write_hangs},
    {"state-told-while-asking", "a state told by who asks to be Primary ended the agreement",
     state_told_while_asking},
    {"late-answer-to-a-read", "an answer to a read that was given up cost the link",
     late_answer_to_a_read},
    {"two-generations-at-once", "the first of two generations was told as the second",
     two_generations_at_once},
};

}  // namespace

std::span<const Regression> claims_regressions() { return table; }

}  // namespace replica::sim
