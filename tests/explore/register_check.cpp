// SPDX-License-Identifier: Apache-2.0
// What may happen next in a world of registers, what must hold in each state, and the state's hash.
#include <algorithm>

#include "tests/explore/register_world.hpp"

namespace replica::explore {

bool RegisterWorld::is_fault(Act act) {
    return act == Act::cut || act == Act::crash || act == Act::promote || act == Act::write ||
           act == Act::demote;
}

// --- what may happen next ---

bool RegisterWorld::may_connect(unsigned a, unsigned b) const {
    if (cut_[a][b] || ((pairs_ >> (4 * b + a)) & 1U) == 0) return false;
    for (const auto& [n, peer] : {std::pair{a, b}, std::pair{b, a}}) {
        const Node &node = node_[n], &other = node_[peer];
        if (!node.up || node.link[peer].phase != Phase::down) return false;
        if (!node.reg.is_recorded_here() || node.asking || node.admitting >= 0) return false;
        if (node.primary && (other.primary || other.sees >= 0 || !node.reg.in_force()))
            return false;
        // A primary of data that others have left behind stays alone: a split brain.
        const Uuid own = node.reg.value().generation, theirs = other.reg.value().generation;
        if (node.primary && own != theirs && in_line(own, theirs)) return false;
        for (const Link& link : node.link)
            if ((link.source && !other.primary) || link.owes_promise) return false;
    }
    return !diverged(node_[a].reg.value(), node_[b].reg.value());
}

bool RegisterWorld::may_admit(unsigned source, unsigned target) const {
    const Node& node = node_[source];
    const Link& link = node.link[target];
    if (!link.target || node.admitting >= 0 || node.asking || node.inconsistent) return false;
    // A resync is one step here, but the target takes part: it has recorded that it is one.
    if (cut_[source][target] || !node_[target].link[source].source) return false;
    if (!node.primary && (node.sees >= 0 || !node.reg.is_recorded_here())) return false;
    return node.reg.members().has(static_cast<NodeId>(target)) || admissions_ > 0;
}

bool RegisterWorld::may_promote(unsigned n) const {
    const Node& node = node_[n];
    return promotions_ > 0 && node.up && !node.primary && !node.asking && node.sees < 0 &&
           !node.inconsistent && node.admitting < 0 && node.reg.is_recorded_here();
}

std::vector<RegisterEvent> RegisterWorld::events(const RegisterScope&) const {
    std::vector<RegisterEvent> all;
    for (std::uint8_t n = 0; n < nodes_; ++n) {
        const Node& node = node_[n];
        if (node.writing) all.push_back({Act::record, n, 0});
        if (!node.up) all.push_back({Act::restart, n, 0});
        if (node.up && crashes_ > 0) all.push_back({Act::crash, n, 0});
        if (node.primary && node.pending == 0 && writes_ > 0) all.push_back({Act::write, n, 0});
        if (node.primary && node.pending == 0 && node.reg.in_force() && demotions_ > 0)
            all.push_back({Act::demote, n, 0});
        if (may_promote(n)) all.push_back({Act::promote, n, 0});
        for (std::uint8_t peer = 0; peer < nodes_; ++peer) {
            if (peer == n) continue;
            if (!queue_[n][peer].empty()) all.push_back({Act::deliver, n, peer});
            const bool up = node.link[peer].phase != Phase::down;
            if (up && cut_[n][peer]) all.push_back({Act::notice, n, peer});
            if (up && !cut_[n][peer] && losses_ > 0 && n < peer) all.push_back({Act::cut, n, peer});
            if (n < peer && may_connect(n, peer)) all.push_back({Act::connect, n, peer});
            if (may_admit(n, peer)) all.push_back({Act::admit, n, peer});
        }
    }
    return all;
}

// --- what has to hold ---

void RegisterWorld::fail(const std::string& what) {
    if (violation_.empty()) violation_ = what;
}

// (a) and (c), at the moment at which the application is told.
void RegisterWorld::acknowledge(unsigned n) {
    Node& node = node_[n];
    const InSyncSet& value = node.reg.value();
    for (unsigned m = 0; m < nodes_; ++m) {
        if (m == n || !value.members.has(static_cast<NodeId>(m))) continue;
        const InSyncSet& there = node_[m].disk.set;
        const bool same = there.generation == value.generation;
        // A target that is being told claims nothing until its label has the value.
        if (!await_target_ && node.link[m].told && (node_[m].disk.inconsistent || !same)) continue;
        const bool has = same ? there.number > value.number ||
                                    (there.number == value.number && there.members == value.members)
                              : in_line(value.generation, there.generation);
        if (!has) fail("(a) acknowledged, and a member has not recorded the value");
    }
    for (const Acknowledged& ack : acks_)
        if (ack.generation == value.generation && ack.promotion > promotion_[n])
            fail("(c) two primaries acknowledge under one generation");
    acks_.push_back({node.pending, promotion_[n], value.generation});
    node.pending = 0;
}

// A node gives up data that it claimed for a peer's data, and reports no split brain.
void RegisterWorld::check_given_up(unsigned n, std::uint8_t data) {
    for (const Acknowledged& ack : acks_)
        if (in_line(ack.generation, node_[n].reg.value().generation) &&
            (node_[n].data & ack.write & ~data) != 0)
            fail("(c) an acknowledged write is given up, and no split brain was seen");
}

void RegisterWorld::check() {
    std::vector<InSyncSet> values;
    for (unsigned n = 0; n < nodes_; ++n) {
        const Node& node = node_[n];
        std::vector<std::pair<InSyncSet, bool>> own{{node.disk.set, node.disk.inconsistent}};
        if (node.up) own.emplace_back(node.reg.value(), node.inconsistent);
        for (const auto& [set, inconsistent] : own) {
            values.push_back(set);
            if (!set.members.has(static_cast<NodeId>(n)))
                fail("(d) a node holds a value that leaves it out");
            for (const Acknowledged& ack : acks_)
                if (!inconsistent && in_line(ack.generation, set.generation) &&
                    (node.data & ack.write) == 0)
                    fail("(d) a member of the generation lacks what was acknowledged in it");
        }
        for (const auto& queue : queue_[n])
            for (const Message& message : queue)
                if (message.say == Say::propose || message.say == Say::sync_done)
                    values.push_back(message.set);
    }
    if (forked_) return;
    for (const InSyncSet& a : values)
        for (const InSyncSet& b : values) {
            if (a.generation != b.generation) continue;
            if (a.number == b.number && !(a.members == b.members))
                fail("(b) one number stands for two sets");
            if (a.number < b.number && !a.members.without(b.members).empty())
                fail("(b) a generation has lost a member");
        }
}

bool RegisterWorld::settled() const {
    for (unsigned a = 0; a < nodes_; ++a) {
        const Node& node = node_[a];
        if (!node.up || !node.reg.in_force() || node.writing || node.asking) return false;
        if (node.admitting >= 0) return false;
        for (unsigned b = 0; b < nodes_; ++b) {
            if (a == b) continue;
            const Link& link = node.link[b];
            if (cut_[a][b] || !queue_[a][b].empty() || link.owes_value || link.owes_promise ||
                link.phase == Phase::greeting || may_connect(a, b) || may_admit(a, b))
                return false;
        }
    }
    return true;
}

bool RegisterWorld::split() const {
    for (const Acknowledged& a : acks_)
        for (const Acknowledged& b : acks_)
            if (!in_line(a.generation, b.generation) && !in_line(b.generation, a.generation))
                return true;
    return false;
}

// --- hash, words ---

namespace {

struct Hasher {
    std::uint64_t value = 0x9e3779b97f4a7c15U;
    void add(std::uint64_t word) {
        value ^= word + 0x9e3779b97f4a7c15U + (value << 6) + (value >> 2);
        value *= 0xff51afd7ed558ccdU;
        value ^= value >> 32;
    }
    void add(const InSyncSet& set) {
        add(set.generation << 32 | set.number.generation << 16 | set.number.change << 8 |
            set.members.bits << 3 | static_cast<std::uint64_t>(set.primary + 1));
    }
};

}  // namespace

std::uint64_t RegisterWorld::hash() const {
    Hasher h;
    h.add(losses_ | crashes_ << 4 | promotions_ << 8 | admissions_ << 12 | writes_ << 16 |
          demotions_ << 20);
    for (const std::uint32_t line : line_)
        h.add(line);
    for (const Acknowledged& ack : acks_)
        h.add(ack.write | std::uint64_t{ack.promotion} << 8 | ack.generation << 16);
    const auto add_message = [&h](const Message& m) {
        h.add(static_cast<std::uint64_t>(m.say) | std::uint64_t{m.id} << 8 |
              std::uint64_t{m.data} << 16 | static_cast<std::uint64_t>(m.sees + 1) << 24 |
              std::uint64_t{m.primary} << 32 | std::uint64_t{m.inconsistent} << 33 |
              std::uint64_t{m.refused} << 34 | std::uint64_t{m.equal} << 35);
        h.add(m.set);
    };
    for (unsigned n = 0; n < nodes_; ++n) {
        const Node& node = node_[n];
        h.add(std::uint64_t{node.up} | std::uint64_t{node.primary} << 1 |
              std::uint64_t{node.inconsistent} << 2 | std::uint64_t{node.dirty} << 3 |
              std::uint64_t{node.asking} << 4 | std::uint64_t{node.other_number} << 5 |
              static_cast<std::uint64_t>(node.sees + 1) << 8 |
              static_cast<std::uint64_t>(node.admitting + 1) << 12 |
              std::uint64_t{node.data} << 16 | std::uint64_t{node.pending} << 24 |
              std::uint64_t{node.ballot} << 32 | std::uint64_t{promotion_[n]} << 40);
        h.add(node.pending_awaited.bits | node.asked.bits << 8 | node.agreed.bits << 16 |
              node.reg.awaited().bits << 24);
        h.add(std::uint64_t{node.reg.is_recorded_here()} |
              std::uint64_t{node.disk.inconsistent} << 1 |
              std::uint64_t{node.writing.has_value()} << 2 |
              std::uint64_t{node.writing && node.writing->inconsistent} << 3);
        h.add(node.reg.value());
        h.add(node.disk.set);
        if (node.writing) h.add(node.writing->set);
        if (node.asking) h.add(node.best);
        for (unsigned peer = 0; peer < nodes_; ++peer) {
            const Link& link = node.link[peer];
            h.add(static_cast<std::uint64_t>(link.phase) | std::uint64_t{link.equal} << 2 |
                  std::uint64_t{link.target} << 3 | std::uint64_t{link.source} << 4 |
                  std::uint64_t{link.told} << 5 | std::uint64_t{link.owes_value} << 6 |
                  std::uint64_t{link.owes_promise} << 7 | std::uint64_t{cut_[n][peer]} << 8 |
                  std::uint64_t{link.ballot} << 16 | queue_[n][peer].size() << 24);
            if (link.owes_value) h.add(link.owed.generation << 16 | link.owed.change);
            if (link.phase == Phase::greeting) add_message(link.stated);
            for (const Message& message : queue_[n][peer])
                add_message(message);
        }
    }
    return h.value;
}

// "0P g2.3.1{01}~ d5": node 0 is Primary in generation 2, number 3.1, members 0 and 1, not in
// force; it holds the writes 1 and 4. I: its data is Inconsistent.
std::string RegisterWorld::describe() const {
    std::string text;
    for (unsigned n = 0; n < nodes_; ++n) {
        const Node& node = node_[n];
        const InSyncSet& set = node.up ? node.reg.value() : node.disk.set;
        text += n == 0 ? "" : "  ";
        text += std::to_string(n) +
                (!node.up       ? "down"
                 : node.primary ? "P"
                                : "s") +
                " g" + std::to_string(set.generation / 2 - 8) + "." +
                std::to_string(set.number.generation) + "." + std::to_string(set.number.change) +
                "{";
        for (unsigned m = 0; m < nodes_; ++m)
            if (set.members.has(static_cast<NodeId>(m))) text += std::to_string(m);
        text += "}";
        text += node.inconsistent ? "I" : "";
        text += node.reg.in_force() ? "" : "~";
        text += " d" + std::to_string(node.data);
    }
    return text;
}

}  // namespace replica::explore
