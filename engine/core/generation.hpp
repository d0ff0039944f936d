// SPDX-License-Identifier: Apache-2.0
// The handshake's decision: who, if anybody, becomes the source of a resync, and whether the bitmap
// covers the difference. A pure function of what both ends sent, so that both reach mirror-image
// verdicts (I-Q6, I-Q7). Tested over its whole input space: tests/core/generation_test.cpp.
#pragma once

#include <cstdint>

#include "engine/core/policy.hpp"
#include "engine/core/types.hpp"
#include "engine/format/superblock.hpp"
#include "engine/format/wire.hpp"

namespace replica {

enum class Verdict : std::uint8_t {
    no_sync,        // equal, or nothing that a resync could improve
    source_bitmap,  // I am source; the union of both slots covers the difference
    source_full,    // I am source; everything is sent
    target_bitmap,
    target_full,
    no_data,      // neither side has data that the other could take
    deferred,     // a primary elsewhere decides for both of us
    split_brain,  // both wrote since the common ancestor; nobody becomes a target by itself
    unrelated,    // no common ancestor
};
const char* name_of(Verdict verdict);

// A verdict, and for split_brain whether the slots of both sides go back to the common ancestor
// (then the victim's resync moves the union of both changed sets; else everything).
struct Decision {
    Verdict verdict = Verdict::no_sync;
    bool bitmap_covers = false;
    const char* why = "";  // for the log and the status, static
};

// decide(mine, theirs) and decide(theirs, mine) mirror each other, given the ids the same way
// round.
Decision decide(const StatePayload& mine, NodeId my_id, const StatePayload& theirs,
                NodeId their_id);

// Applies DRBD's after-sb policies and discard_my_data to a split brain. Returns source_*, target_*
// or split_brain (disconnect). The policies are part of the states, so that both ends know both:
// where they do not name the same victim, nobody is one.
Verdict resolve_split_brain(const Decision& decision, const StatePayload& mine,
                            const StatePayload& theirs);

// History, newest first: puts `uuid` in front unless it is none, just created, or in it already.
void push_history(std::array<Uuid, history_uuids_max>& history, Uuid uuid);
bool in_history(const std::array<Uuid, history_uuids_max>& history, Uuid uuid);

}  // namespace replica
