// SPDX-License-Identifier: Apache-2.0
#include "engine/core/generation.hpp"

#include <algorithm>

namespace replica {
namespace {

bool meaningful(Uuid uuid) {
    return uuid_identity(uuid) != uuid_none && uuid_identity(uuid) != uuid_just_created;
}
bool same(Uuid a, Uuid b) { return meaningful(a) && uuid_equal(a, b); }
bool has(const StatePayload& s, std::uint16_t flag) { return (s.flags & flag) != 0; }
DiskState disk(const StatePayload& s) { return static_cast<DiskState>(s.disk); }
bool is_primary(const StatePayload& s) { return static_cast<Role>(s.role) == Role::primary; }
bool just_created(const StatePayload& s) {
    return uuid_identity(s.current_uuid) == uuid_just_created;
}
// Data that another node could take: not the half-written target of a resync.
bool usable(const StatePayload& s) {
    return disk(s) >= DiskState::outdated && disk(s) != DiskState::unknown;
}
bool has_disk(const StatePayload& s) { return disk(s) >= DiskState::inconsistent; }

// Do my bits toward the peer start from the generation that the peer carries?
bool bits_start_at(const StatePayload& mine, Uuid their_current) {
    return same(mine.bitmap_uuid, their_current) || same(mine.admitting_uuid, their_current);
}

int crash_rank(const StatePayload& s) {
    return has(s, state_flag::crashed_power) ? 2 : has(s, state_flag::crashed) ? 1 : 0;
}

// Equal generations that may differ in some blocks: the side that cannot miss an acknowledged
// write. Returns > 0 if I am the better source, < 0 if the peer is. Never 0.
int better_source(const StatePayload& mine, NodeId my_id, const StatePayload& theirs,
                  NodeId their_id) {
    const auto prefer = [](auto a, auto b) { return a > b ? 1 : a < b ? -1 : 0; };
    if (int r = prefer(is_primary(mine), is_primary(theirs)); r != 0) return r;
    // With protocols A and B only the primary is sure to have what it acknowledged (R26).
    const bool weak = has(mine, state_flag::always_sync) || has(theirs, state_flag::always_sync);
    const int was_primary =
        prefer(has(mine, state_flag::was_primary), has(theirs, state_flag::was_primary));
    if (weak && was_primary != 0) return was_primary;
    // With C every member of the in-sync set has it, unless its cache was lost.
    if (int r = prefer(crash_rank(theirs), crash_rank(mine)); r != 0) return r;
    if (int r = prefer(mine.disk, theirs.disk); r != 0) return r;
    if (was_primary != 0) return was_primary;
    if (int r = prefer(mine.last_seq, theirs.last_seq); r != 0) return r;
    return their_id > my_id ? 1 : -1;
}

Decision equal_generations(const StatePayload& mine, NodeId my_id, const StatePayload& theirs,
                           NodeId their_id) {
    if (!usable(mine) && !usable(theirs)) {
        return {Verdict::no_data, false, "neither side has consistent data"};
    }
    if (usable(mine) != usable(theirs)) {
        return usable(mine) ? Decision{Verdict::source_bitmap, true, "the peer is Inconsistent"}
                            : Decision{Verdict::target_bitmap, true, "this node is Inconsistent"};
    }
    if (mine.content != 0 && mine.content == theirs.content) {
        return {Verdict::no_sync, true, "same content, as a third node has found"};
    }
    const bool full = has(mine, state_flag::full_sync) || has(theirs, state_flag::full_sync);
    // A target takes over what its source lost, so the next round finds the two alike. A member of
    // a primary's set has been compared since the crash, so what either side lost is settled.
    const bool member = (is_primary(mine) && NodeMask{mine.in_sync}.has(their_id)) ||
                        (is_primary(theirs) && NodeMask{theirs.in_sync}.has(my_id));
    const bool crashed = crash_rank(mine) != crash_rank(theirs) && !member;
    if (!full && !crashed && mine.bits + theirs.bits == 0) {
        return {Verdict::no_sync, true, "same generation, nothing out of sync"};
    }
    // Without a primary everybody aligns with one: else three nodes would go on in a circle, each
    // resync marking blocks toward the third. after_sb[3]: the lowest usable id that a side sees,
    // + 1.
    const auto sees_lower = [&](const StatePayload& s) {
        return s.after_sb[3] != 0 && s.after_sb[3] - 1 < std::min(my_id, their_id);
    };
    if (!is_primary(mine) && !is_primary(theirs) && (sees_lower(mine) || sees_lower(theirs))) {
        return {Verdict::deferred, false, "a node with a lower id aligns both sides"};
    }
    if (better_source(mine, my_id, theirs, their_id) > 0) {
        return {Verdict::source_bitmap, true, "same generation, blocks to align"};
    }
    return {Verdict::target_bitmap, true, "same generation, blocks to align"};
}

Decision one_sided(bool i_am_source, bool bitmap, const StatePayload& source,
                   const StatePayload& target, const char* why) {
    if (!usable(source)) {
        // Half-written, it is nobody's data any more, whatever it is called.
        if (!usable(target) || is_primary(source) || just_created(target)) {
            return {Verdict::no_data, false, "the newer side is Inconsistent"};
        }
        return one_sided(!i_am_source, bitmap, target, source,
                         "the newer side holds nothing but a resync that did not end");
    }
    // A primary with good data never becomes a target: it acknowledged what it has.
    if (is_primary(target) && disk(target) == DiskState::up_to_date) {
        return {Verdict::split_brain, bitmap, "the older side is an UpToDate primary"};
    }
    if (i_am_source) return {bitmap ? Verdict::source_bitmap : Verdict::source_full, bitmap, why};
    return {bitmap ? Verdict::target_bitmap : Verdict::target_full, bitmap, why};
}

bool any_common_ancestor(const StatePayload& a, const StatePayload& b) {
    const auto known = [](const StatePayload& s, Uuid uuid) {
        return same(s.bitmap_uuid, uuid) || same(s.admitting_uuid, uuid) ||
               in_history(s.history, uuid);
    };
    return std::any_of(b.history.begin(), b.history.end(), [&](Uuid u) { return known(a, u); }) ||
           known(a, b.bitmap_uuid) || known(a, b.admitting_uuid);
}

}  // namespace

const char* name_of(Verdict verdict) {
    switch (verdict) {
        case Verdict::no_sync:
            return "no-sync";
        case Verdict::source_bitmap:
            return "source-bitmap";
        case Verdict::source_full:
            return "source-full";
        case Verdict::target_bitmap:
            return "target-bitmap";
        case Verdict::target_full:
            return "target-full";
        case Verdict::no_data:
            return "no-data";
        case Verdict::deferred:
            return "deferred";
        case Verdict::split_brain:
            return "split-brain";
        case Verdict::unrelated:
            return "unrelated";
    }
    return "?";
}

bool in_history(const std::array<Uuid, history_uuids_max>& history, Uuid uuid) {
    return meaningful(uuid) &&
           std::any_of(history.begin(), history.end(), [&](Uuid u) { return uuid_equal(u, uuid); });
}

void push_history(std::array<Uuid, history_uuids_max>& history, Uuid uuid) {
    if (!meaningful(uuid) || in_history(history, uuid)) return;
    std::copy_backward(history.begin(), history.end() - 1, history.end());
    history[0] = uuid_identity(uuid);
}

static Decision compare(const StatePayload& mine, NodeId my_id, const StatePayload& theirs,
                        NodeId their_id) {
    if (!has_disk(mine) || !has_disk(theirs))
        return {Verdict::no_data, false, "a side is diskless"};
    const bool primary_here = is_primary(mine) || is_primary(theirs);
    if (!primary_here &&
        (has(mine, state_flag::sees_primary) || has(theirs, state_flag::sees_primary))) {
        return {Verdict::deferred, false, "the primary decides"};
    }
    if (just_created(mine) && just_created(theirs)) {
        return {Verdict::no_data, false, "both sides are just created"};
    }
    if (just_created(mine))
        return one_sided(false, false, theirs, mine, "this node is just created");
    if (just_created(theirs))
        return one_sided(true, false, mine, theirs, "the peer is just created");
    if (uuid_equal(mine.current_uuid, theirs.current_uuid)) {
        if (is_primary(mine) && is_primary(theirs)) {
            return {Verdict::split_brain, true, "both sides are primary"};
        }
        return equal_generations(mine, my_id, theirs, their_id);
    }
    const bool i_track = bits_start_at(mine, theirs.current_uuid);
    const bool they_track = bits_start_at(theirs, mine.current_uuid);
    const char* newer = "a newer generation exists";
    const bool peer_past = in_history(mine.history, theirs.current_uuid);
    const bool self_past = in_history(theirs.history, mine.current_uuid);
    if ((i_track || peer_past) && (they_track || self_past)) {
        return {Verdict::split_brain, i_track && they_track,
                "each side calls the other's data past"};
    }
    if (i_track && they_track) return {Verdict::split_brain, true, "each side followed the other"};
    if (i_track) return one_sided(true, true, mine, theirs, newer);
    if (they_track) return one_sided(false, true, theirs, mine, newer);
    const bool peer_behind = in_history(mine.history, theirs.current_uuid);
    const bool self_behind = in_history(theirs.history, mine.current_uuid);
    if (peer_behind && !self_behind) return one_sided(true, false, mine, theirs, newer);
    if (self_behind && !peer_behind) return one_sided(false, false, theirs, mine, newer);
    // Half-written data is given up to whoever has good data of the same volume.
    const StatePayload& half = usable(mine) ? theirs : mine;
    const bool one_volume =
        mine.volume_id == theirs.volume_id && mine.volume_id != std::array<std::uint8_t, 16>{};
    if (usable(mine) != usable(theirs) && !is_primary(half) &&
        (one_volume || peer_behind || any_common_ancestor(mine, theirs))) {
        const char* why = "one side holds nothing but a resync that did not end";
        return usable(mine) ? one_sided(true, false, mine, theirs, why)
                            : one_sided(false, false, theirs, mine, why);
    }
    const auto base_equal = [&](Uuid u) {
        return same(u, theirs.bitmap_uuid) || same(u, theirs.admitting_uuid);
    };
    if (base_equal(mine.bitmap_uuid) || base_equal(mine.admitting_uuid)) {
        return {Verdict::split_brain, true, "both sides wrote since they were equal"};
    }
    if (peer_behind || any_common_ancestor(mine, theirs)) {
        return {Verdict::split_brain, false, "both sides wrote since a common ancestor"};
    }
    return {Verdict::unrelated, false, "the data sets have no common ancestor"};
}

// A primary is filled by a member of its set only: nobody else is sure to have what it
// acknowledged, whatever its generation is called.
Decision decide(const StatePayload& mine, NodeId my_id, const StatePayload& theirs,
                NodeId their_id) {
    const Decision d = compare(mine, my_id, theirs, their_id);
    const bool fills_me = d.verdict == Verdict::target_bitmap || d.verdict == Verdict::target_full;
    const bool fills_it = d.verdict == Verdict::source_bitmap || d.verdict == Verdict::source_full;
    if ((fills_me && is_primary(mine) && !NodeMask{mine.in_sync}.has(their_id)) ||
        (fills_it && is_primary(theirs) && !NodeMask{theirs.in_sync}.has(my_id))) {
        return {Verdict::no_data, false, "the primary waits for a copy of its own set"};
    }
    return d;
}

namespace {

// > 0: I stay, the peer is the victim. < 0: the other way round. 0: disconnect.
int resolve_0pri(const StatePayload& mine, const StatePayload& theirs, AfterSb0Pri policy) {
    const auto less = [](std::uint64_t a, std::uint64_t b) { return a < b ? 1 : a > b ? -1 : 0; };
    switch (policy) {
        case AfterSb0Pri::disconnect:
            return 0;
        case AfterSb0Pri::discard_younger_primary:
            return less(mine.promoted_at, theirs.promoted_at);
        case AfterSb0Pri::discard_older_primary:
            return less(theirs.promoted_at, mine.promoted_at);
        case AfterSb0Pri::discard_zero_changes:
            if (mine.bits == 0 && theirs.bits != 0) return -1;
            return theirs.bits == 0 && mine.bits != 0 ? 1 : 0;
        case AfterSb0Pri::discard_least_changes:
            return less(theirs.bits, mine.bits);
        case AfterSb0Pri::discard_local:
            return -1;
        case AfterSb0Pri::discard_remote:
            return 1;
    }
    return 0;
}

// What the policies of `owner` want, seen from `owner`.
int resolve_by_policy(const StatePayload& owner, const StatePayload& other) {
    const auto zero = static_cast<AfterSb0Pri>(owner.after_sb[0]);
    const int primaries = int{is_primary(owner)} + int{is_primary(other)};
    const int as_0pri = resolve_0pri(owner, other, zero);
    if (primaries == 0) return as_0pri;
    if (primaries == 2) {
        const auto two = static_cast<AfterSb2Pri>(owner.after_sb[2]);
        return two == AfterSb2Pri::violently_as0p ? as_0pri : 0;
    }
    const int keep_primary = is_primary(owner) ? 1 : -1;
    switch (static_cast<AfterSb1Pri>(owner.after_sb[1])) {
        case AfterSb1Pri::disconnect:
            return 0;
        case AfterSb1Pri::consensus:
            return as_0pri == keep_primary ? as_0pri : 0;
        case AfterSb1Pri::violently_as0p:
            return as_0pri;
        case AfterSb1Pri::discard_secondary:
            return keep_primary;
    }
    return 0;
}

}  // namespace

Verdict resolve_split_brain(const Decision& decision, const StatePayload& mine,
                            const StatePayload& theirs) {
    const bool discard_mine = has(mine, state_flag::discard_my_data);
    const bool discard_theirs = has(theirs, state_flag::discard_my_data);
    int keep = 0;
    if (discard_mine != discard_theirs) {
        keep = discard_theirs ? 1 : -1;
    } else {
        keep = resolve_by_policy(mine, theirs);
        if (keep != -resolve_by_policy(theirs, mine)) keep = 0;
    }
    // A primary cannot change its data under the application, and a victim's peer must have data.
    if (keep > 0 && (is_primary(theirs) || !usable(mine))) return Verdict::split_brain;
    if (keep < 0 && (is_primary(mine) || !usable(theirs))) return Verdict::split_brain;
    if (keep == 0) return Verdict::split_brain;
    if (decision.bitmap_covers) return keep > 0 ? Verdict::source_bitmap : Verdict::target_bitmap;
    return keep > 0 ? Verdict::source_full : Verdict::target_full;
}

}  // namespace replica
