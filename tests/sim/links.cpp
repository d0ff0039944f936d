// SPDX-License-Identifier: Apache-2.0
// The reasons for which links are lost, and what must never happen in a seed without faults. First
// rule: honest nodes never cause a protocol error, whatever fails around them. Second rule: if
// nothing fails, no link is lost, nothing times out, no member is expelled, there is no error, and
// each request is answered soon.
#include <algorithm>
#include <array>
#include <bit>
#include <string_view>

#include "tests/sim/world.hpp"

namespace replica::sim {
namespace {

// The reasons for which a link may end although no node broke the protocol. Every other reason is a
// protocol error: add a new reason here, unless it is one.
constexpr std::array<std::string_view, 14> innocent = {
    "the connection broke",
    "the peer connected anew",
    "the network changed: connecting anew",
    "the peer did not answer the hello",
    "the peer did not answer in time",
    "the peer did not answer a ping",
    "disconnected by the operator",
    "the peer disconnected",
    "the peer is StandAlone: connect it there",
    "the node that was dialled is StandAlone: connect there, too",
    "a node with this id is connected already: if it was not just restarted, two nodes have the "
    "same id",
    "the node with the lower id dials",
    "the disks hold different volumes: to fill one from the other, make it anew (create --force)",
    "",
};

constexpr std::array<std::string_view, 3> timeouts = {
    "the peer did not answer the hello",
    "the peer did not answer in time",
    "the peer did not answer a ping",
};

template <std::size_t N>
bool is_one_of(std::string_view text, const std::array<std::string_view, N>& texts) {
    return std::find(texts.begin(), texts.end(), text) != texts.end();
}

}  // namespace

// The core's protocol_error() closes a link that is up, not gracefully, and logs the reason as an
// error. Before a link is up, only the view shows the reason.
void World::judge_lost_link(int n, std::span<const Effect> effects, std::size_t at) {
    const Effect& close = effects[at];
    const auto peer = static_cast<NodeId>(close.peer);
    const Effect* said = nullptr;
    for (std::size_t i = at + 1; i < effects.size() && said == nullptr; ++i) {
        if (effects[i].kind == EffectKind::close_link) break;
        if (effects[i].kind == EffectKind::notice && effects[i].peer == close.peer)
            said = &effects[i];
    }
    const std::string_view view = nodes_[static_cast<std::size_t>(n)].core->view(peer).why;
    const std::string_view why = said != nullptr ? std::string_view(said->text) : view;
    const bool up = said != nullptr;
    const bool error = up ? said->level <= 3 : !is_one_of(why, innocent);
    const std::string who = "n" + std::to_string(n) + " toward n" + std::to_string(close.peer);
    if (error && !close.graceful && !deceived(n, close.peer))
        fail("I-P1 a protocol error between honest nodes: " + who + ": " + std::string(why));
    if (!calm()) return;
    if (is_one_of(why, timeouts))
        fail("I-L2 nothing is wrong, and yet: " + who + ": " + std::string(why));
    if (undisturbed())
        fail("I-L3 a link is lost without a fault: " + who + ": " + std::string(why));
}

// What one step of a core says, before it is performed.
void World::judge_effects(int n, std::span<const Effect> effects) {
    for (std::size_t i = 0; i < effects.size(); ++i) {
        const Effect& e = effects[i];
        if (e.kind == EffectKind::close_link) judge_lost_link(n, effects, i);
        if (!undisturbed()) continue;
        const bool forced = e.kind == EffectKind::notice &&
                            std::string_view(e.text).starts_with("promoted by force");
        if (e.kind == EffectKind::notice && e.level <= 4 && !forced)
            fail("I-L3 a complaint without a fault: n" + std::to_string(n) + ": " + e.text);
        if (e.kind == EffectKind::complete && e.error != 0)
            fail("I-L3 error " + std::to_string(e.error) + " without a fault: n" +
                 std::to_string(n));
    }
}

// No member leaves the set, and only the promotion that made the volume opens a generation.
void World::judge_members(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    const Core& core = *node.core;
    if (!undisturbed() || core.role() != Role::primary) return;
    const NodeMask now = core.in_sync();
    const NodeMask gone = node.members_seen.without(now);
    if (!gone.empty())
        fail("I-L3 expelled without a fault: n" + std::to_string(std::countr_zero(gone.bits)));
    node.members_seen = now;
    const Uuid generation = core.superblock().current_uuid;
    if (!core.serves() || uuid_identity(generation) == node.generation_seen) return;
    if (node.generation_seen != 0) fail("I-L3 a new generation without a fault");
    node.generation_seen = uuid_identity(generation);
}

// If nothing fails a request takes moments: some round trips, some flushes, a chunk of a resync.
void World::judge_waiting() {
    if (!calm() || operated_) return;
    for (std::size_t n = 0; n < nodes_.size(); ++n) {
        for (const AppRequest& r : nodes_[n].requests) {
            if (!r.used) continue;
            stats_.wait_ns_max = std::max(stats_.wait_ns_max, now_ - r.submitted_at);
            if (now_ - r.submitted_at > answer_bound_ns)
                fail("I-L4 a request waits for more than " +
                     std::to_string(answer_bound_ns / ns_per_ms) + " ms without a fault: n" +
                     std::to_string(n) + ", sector " + std::to_string(r.sector));
        }
    }
}

}  // namespace replica::sim
