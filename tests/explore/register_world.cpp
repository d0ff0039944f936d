// SPDX-License-Identifier: Apache-2.0
// The protocol of docs/membership.md over InSyncRegister. register_check.cpp has the checks.
#include "tests/explore/register_world.hpp"

#include <algorithm>

namespace replica::explore {

namespace {

constexpr Uuid uuid_of(std::size_t index) { return 2 * (index + 8); }
constexpr std::size_t index_of(Uuid uuid) { return uuid / 2 - 8; }

}  // namespace

RegisterWorld::RegisterWorld(const RegisterScope& scope, Misuse misuse)
    : misuse_(misuse),
      nodes_(scope.nodes),
      losses_(scope.losses),
      crashes_(scope.crashes),
      promotions_(scope.promotions),
      admissions_(scope.admissions),
      writes_(scope.writes),
      pairs_(scope.pairs),
      demotions_(scope.demotions),
      await_target_(scope.await_target) {
    begin(scope);
}

void RegisterWorld::begin(const RegisterScope& scope) {
    using Begin = RegisterScope::Begin;
    const NodeMask all{(1U << nodes_) - 1};
    line_ = {1};
    const InSyncSet first{uuid_of(0), uuid_none, {1, 0}, all, -1};
    InSyncSet current = first;
    const std::int8_t primary = scope.with_primary ? 0 : -1;
    if (scope.begin == Begin::one_behind)
        current = without(first, NodeMask::of(2), open_generation(first.generation), primary);
    if (scope.begin == Begin::one_alone)
        current = without(first, all.without(NodeMask::of(0)), open_generation(first.generation),
                          primary);
    if (scope.begin == Begin::two_fill || scope.begin == Begin::forked)
        current = without(first, NodeMask{12}, open_generation(first.generation), -1);
    current.primary = primary;
    forked_ = scope.begin == Begin::forked;
    for (unsigned n = 0; n < nodes_; ++n) {
        Node& node = node_[n];
        InSyncSet own = current.members.has(static_cast<NodeId>(n)) ? current : first;
        // Nodes 0 and 1 were {0, 1}, could not see each other, and each filled another one.
        if (forked_) own = changed(current, NodeMask{n % 2 == 0 ? 7U : 11U});
        node.reg.load(own, 0);
        node.disk.set = own;
    }
    if (scope.with_primary) {
        node_[0].primary = true;
        promotion_[0] = ++promoted_;
    }
    for (unsigned a = 0; a < nodes_; ++a)
        for (unsigned b = a + 1; b < nodes_; ++b) {
            const bool same = node_[a].reg.value() == node_[b].reg.value();
            const bool apart = scope.begin == Begin::one_alone || scope.begin == Begin::two_fill;
            if (same && !apart) join_up(a, b);
        }
}

void RegisterWorld::join_up(unsigned a, unsigned b) {
    for (const auto& [n, peer] : {std::pair{a, b}, std::pair{b, a}}) {
        node_[n].link[peer].phase = Phase::established;
        node_[n].link[peer].equal = true;
        if (node_[peer].primary) node_[n].sees = static_cast<std::int8_t>(peer);
    }
}

bool RegisterWorld::in_line(Uuid ancestor, Uuid generation) const {
    return ((line_[index_of(generation)] >> index_of(ancestor)) & 1U) != 0;
}

bool RegisterWorld::diverged(const InSyncSet& a, const InSyncSet& b) const {
    return !in_line(a.generation, b.generation) && !in_line(b.generation, a.generation);
}

Uuid RegisterWorld::open_generation(Uuid parent) {
    line_.push_back(line_[index_of(parent)] | 1U << line_.size());
    return uuid_of(line_.size() - 1);
}

void RegisterWorld::send(unsigned from, unsigned to, const Message& message) {
    if (!cut_[from][to] && node_[from].link[to].phase != Phase::down)
        queue_[from][to].push_back(message);
}

// --- the register and the label ---

void RegisterWorld::save(unsigned n) {
    Node& node = node_[n];
    if (node.writing) {
        node.dirty = true;
        return;
    }
    node.writing = Label{node.reg.value(), node.inconsistent};
    node.writing_version = node.version;
}

void RegisterWorld::take(unsigned n, const InSyncSet& set) {
    node_[n].reg.load(set, ++node_[n].version);
    save(n);
}

void RegisterWorld::propose(unsigned n, const InSyncSet& next, NodeMask others) {
    Node& node = node_[n];
    node.reg.propose(next, others, ++node.version);
    save(n);
    Message message{.say = Say::propose};
    message.set = next;
    for (unsigned peer = 0; peer < nodes_; ++peer)
        if (others.has(static_cast<NodeId>(peer))) send(n, peer, message);
}

NodeMask RegisterWorld::equal_members(unsigned n, NodeMask members) const {
    NodeMask equal;
    for (unsigned peer = 0; peer < nodes_; ++peer)
        if (peer != n && members.has(static_cast<NodeId>(peer)) && node_[n].link[peer].equal)
            equal.add(static_cast<NodeId>(peer));
    return equal;
}

// --- links ---

void RegisterWorld::drop(unsigned n, unsigned peer) {
    if (node_[n].link[peer].phase != Phase::down) lost(n, peer);
}

void RegisterWorld::lost(unsigned n, unsigned peer) {
    Node& node = node_[n];
    const auto id = static_cast<NodeId>(peer);
    node.link[peer] = Link{};
    queue_[n][peer].clear();
    queue_[peer][n].clear();
    cut_[n][peer] = cut_[peer][n] = node_[peer].link[n].phase != Phase::down;
    node.pending_awaited.remove(id);
    if (node.admitting == static_cast<int>(peer)) node.admitting = -1;
    node.reg.excuse(id);
    const bool generation = misuse_ != Misuse::lose_without_generation;
    if (node.primary && node.reg.members().has(id) && generation) {
        const InSyncSet next =
            without(node.reg.value(), NodeMask::of(id),
                    open_generation(node.reg.value().generation), static_cast<std::int32_t>(n));
        propose(n, next, equal_members(n, next.members));
    }
    if (node.sees == static_cast<int>(peer)) lost_primary(n);
    if (node.asking) {
        node.asked.remove(id);
        node.agreed.remove(id);
        if (node.asked.empty()) decide(n);
    }
}

// The secondaries left the comparison to the primary. Now they have to do it themselves.
void RegisterWorld::lost_primary(unsigned n) {
    node_[n].sees = -1;
    for (unsigned peer = 0; peer < nodes_; ++peer)
        drop(n, peer);
}

// A new round where the last one ended in nothing.
void RegisterWorld::drop_idle(unsigned n) {
    for (unsigned peer = 0; peer < nodes_; ++peer) {
        const Link& link = node_[n].link[peer];
        if (!link.equal && !link.target && !link.source) drop(n, peer);
    }
}

void RegisterWorld::connect(unsigned a, unsigned b) {
    for (const auto& [n, peer] : {std::pair{a, b}, std::pair{b, a}}) {
        const Node& node = node_[n];
        Message message{.say = Say::state};
        message.set = node.reg.value();
        message.data = node.data;
        message.sees = node.sees;
        message.primary = node.primary;
        message.inconsistent = node.inconsistent;
        node_[n].link[peer].phase = Phase::greeting;
        node_[n].link[peer].stated = message;
        queue_[n][peer].push_back(message);
    }
}

void RegisterWorld::crash(unsigned n) {
    Node after;
    after.up = false;
    after.disk = node_[n].disk;
    after.data = node_[n].data;
    after.version = node_[n].version;
    node_[n] = after;
    for (unsigned peer = 0; peer < nodes_; ++peer) {
        queue_[n][peer].clear();
        queue_[peer][n].clear();
        cut_[n][peer] = cut_[peer][n] = node_[peer].link[n].phase != Phase::down;
    }
}

void RegisterWorld::restart(unsigned n) {
    Node& node = node_[n];
    node.up = true;
    node.inconsistent = node.disk.inconsistent;
    node.reg.load(node.disk.set, 0);
}

// --- handshake ---

void RegisterWorld::on_state(unsigned n, unsigned peer, const Message& theirs) {
    Node& node = node_[n];
    Link& link = node.link[peer];
    const Message mine = link.stated;
    // The state that this node sent counts only while it is still true.
    const bool true_still = mine.set == node.reg.value() && mine.data == node.data &&
                            mine.sees == node.sees && mine.primary == node.primary &&
                            mine.inconsistent == node.inconsistent && !node.asking;
    const bool other_primary = theirs.primary && (mine.primary || mine.sees >= 0);
    if (!true_still || other_primary || diverged(mine.set, theirs.set)) return drop(n, peer);
    link.phase = Phase::established;
    if (theirs.primary) node.sees = static_cast<std::int8_t>(peer);
    if (!mine.primary && !theirs.primary && (mine.sees >= 0 || theirs.sees >= 0)) return;
    if (mine.set.generation == theirs.set.generation) return compare_same(n, peer, mine, theirs);
    if (in_line(mine.set.generation, theirs.set.generation)) {
        if (mine.primary) return drop(n, peer);
        if (!theirs.inconsistent) become_target(n, peer, theirs);
    } else if (!mine.inconsistent) {
        link.target = true;
    }
}

void RegisterWorld::compare_same(unsigned n, unsigned peer, const Message& mine,
                                 const Message& theirs) {
    InSyncSet both = joined(mine.set, theirs.set);
    if (misuse_ == Misuse::take_older_value && theirs.set.number < mine.set.number)
        both = theirs.set;
    if (misuse_ == Misuse::join_without_number)
        both.number = std::max(mine.set.number, theirs.set.number);
    Link& link = node_[n].link[peer];
    link.equal = !mine.inconsistent && !theirs.inconsistent;
    link.target = !mine.inconsistent && theirs.inconsistent;
    if (!(both == mine.set)) {
        if (mine.primary)
            learn(n, both);
        else
            take(n, both);
    }
    if (mine.inconsistent && !theirs.inconsistent) return become_target(n, peer, theirs);
    const bool better = theirs.primary || (!mine.primary && theirs.data > mine.data);
    if (!link.equal || !better) return;
    check_given_up(n, theirs.data);
    node_[n].data = theirs.data;
}

// A primary hears of members that it did not count: a secondary that could not see it counted them.
// It proposes what it learnt like any other value, under a number of its own.
void RegisterWorld::learn(unsigned n, const InSyncSet& both) {
    const NodeMask equal = equal_members(n, both.members);
    const NodeMask absent = both.members.without(equal | NodeMask::of(static_cast<NodeId>(n)));
    const auto primary = static_cast<std::int32_t>(n);
    InSyncSet next = changed(both, both.members);
    if (!absent.empty()) next = without(both, absent, open_generation(both.generation), primary);
    next.primary = primary;
    propose(n, next, equal);
}

void RegisterWorld::become_target(unsigned n, unsigned peer, const Message& theirs) {
    Node& node = node_[n];
    if (!node.inconsistent) check_given_up(n, theirs.data);
    for (unsigned other = 0; other < nodes_; ++other)
        if (node.link[other].source) drop(n, other);  // one source at a time
    node.link[peer].source = true;
    node.inconsistent = node.disk.inconsistent = true;
    if (node.writing) node.writing->inconsistent = true;
}

// --- admission ---

void RegisterWorld::admit(unsigned source, unsigned target) {
    Node& node = node_[source];
    const auto id = static_cast<NodeId>(target);
    node.admitting = static_cast<std::int8_t>(target);
    if (node.reg.members().has(id)) return;
    --admissions_;
    const InSyncSet next = changed(node.reg.value(), node.reg.members() | NodeMask::of(id));
    propose(source, next, node.primary ? equal_members(source, next.members) : NodeMask{});
}

void RegisterWorld::on_sync_done(unsigned n, unsigned peer, const Message& message) {
    Node& node = node_[n];
    Link& link = node.link[peer];
    if (!link.source) return refuse(n, peer);
    node.data = message.data;
    node.inconsistent = false;
    take(n, message.set);
    link.source = false;
    link.equal = link.owes_value = true;
    link.owed = message.set.number;
    drop_idle(n);
}

void RegisterWorld::on_propose(unsigned n, unsigned peer, const Message& message) {
    Node& node = node_[n];
    if (node.sees != static_cast<int>(peer) ||
        !node.reg.follows(message.set, static_cast<NodeId>(n)))
        return refuse(n, peer);
    take(n, message.set);
    node.link[peer].owes_value = true;
    node.link[peer].owed = message.set.number;
}

void RegisterWorld::on_recorded(unsigned n, unsigned peer, const Message& message) {
    Node& node = node_[n];
    SetNumber number = message.set.number;
    if (misuse_ == Misuse::count_stale_answer) number = node.reg.number();
    node.reg.recorded_by(static_cast<NodeId>(peer), number);
    if (number == node.reg.number()) node.link[peer].told = false;
}

// --- promotion ---

void RegisterWorld::ask(unsigned n) {
    Node& node = node_[n];
    --promotions_;
    node.asking = true;
    node.other_number = false;
    node.ballot = ++ballots_;
    node.best = node.reg.value();
    node.asked = node.agreed = NodeMask{};
    Message message{.say = Say::promote, .id = node.ballot};
    for (unsigned peer = 0; peer < nodes_; ++peer) {
        if (node.link[peer].phase != Phase::established) continue;
        node.asked.add(static_cast<NodeId>(peer));
        send(n, peer, message);
    }
    if (node.asked.empty()) decide(n);
}

void RegisterWorld::give_up(unsigned n) {
    Node& node = node_[n];
    node.asking = false;
    for (unsigned peer = 0; peer < nodes_; ++peer)
        if (node.link[peer].phase == Phase::established)
            send(n, peer, Message{.say = Say::cancel, .id = node.ballot});
}

void RegisterWorld::demote(unsigned n) {
    --demotions_;
    node_[n].primary = false;
    for (unsigned peer = 0; peer < nodes_; ++peer)
        if (node_[n].link[peer].phase == Phase::established)
            send(n, peer, Message{.say = Say::cancel, .id = node_[n].ballot});
}

// A message that the protocol does not allow here. The node does not guess what was meant.
void RegisterWorld::refuse(unsigned n, unsigned peer) {
    fail("(f) a node refuses what another one said in good faith");
    drop(n, peer);
}

void RegisterWorld::on_promote(unsigned n, unsigned peer, const Message& message) {
    Node& node = node_[n];
    const bool other = node.sees >= 0 && node.sees != static_cast<int>(peer);
    if (node.primary || other || (node.asking && n < peer)) {
        send(n, peer, Message{.say = Say::promote_reply, .id = message.id, .refused = true});
        return;
    }
    if (node.asking) give_up(n);
    node.sees = static_cast<std::int8_t>(peer);
    node.link[peer].owes_promise = true;
    node.link[peer].ballot = message.id;
}

void RegisterWorld::on_promote_reply(unsigned n, unsigned peer, const Message& message) {
    Node& node = node_[n];
    if (!node.asking || message.id != node.ballot) return;
    if (message.refused) return give_up(n);
    const auto id = static_cast<NodeId>(peer);
    node.asked.remove(id);
    const bool same = message.set.generation == node.best.generation;
    if (same && message.equal && node.link[peer].equal) node.agreed.add(id);
    if (same && message.set.number != node.reg.number()) node.other_number = true;
    if (same) node.best = joined(node.best, message.set);
    if (node.asked.empty()) decide(n);
}

void RegisterWorld::decide(unsigned n) {
    Node& node = node_[n];
    node.asking = false;
    node.primary = true;
    promotion_[n] = ++promoted_;
    const NodeMask here = node.agreed | NodeMask::of(static_cast<NodeId>(n));
    const NodeMask absent = node.best.members.without(here);
    const bool keep = absent.empty() || misuse_ == Misuse::promote_without_generation;
    const bool other = node.other_number && misuse_ != Misuse::keep_other_number &&
                       misuse_ != Misuse::keep_and_obey;
    if (keep && !other) {
        node.reg.note_primary(static_cast<std::int32_t>(n));
    } else if (keep) {
        InSyncSet next = changed(node.best, node.best.members);
        next.primary = static_cast<std::int32_t>(n);
        propose(n, next, node.agreed);
    } else {
        const InSyncSet next = without(node.best, absent, open_generation(node.best.generation),
                                       static_cast<std::int32_t>(n));
        propose(n, next, node.agreed & next.members);
    }
    for (unsigned peer = 0; peer < nodes_; ++peer)
        if (!node.reg.members().has(static_cast<NodeId>(peer))) node.link[peer].equal = false;
    drop_idle(n);
}

// --- writes ---

void RegisterWorld::write(unsigned n) {
    Node& node = node_[n];
    --writes_;
    node.pending = static_cast<std::uint8_t>(1U << writes_);
    node.data |= node.pending;
    node.pending_awaited = equal_members(n, node.reg.members());
    Message message{.say = Say::write, .id = node.pending};
    message.set = node.reg.value();
    for (unsigned peer = 0; peer < nodes_; ++peer)
        if (node.pending_awaited.has(static_cast<NodeId>(peer))) send(n, peer, message);
}

void RegisterWorld::on_write(unsigned n, unsigned peer, const Message& message) {
    Node& node = node_[n];
    const bool same = message.set.number == node.reg.number() &&
                      message.set.generation == node.reg.value().generation;
    if (node.sees != static_cast<int>(peer) || (!same && misuse_ != Misuse::keep_and_obey))
        return refuse(n, peer);
    node.data |= message.id;
    send(n, peer, Message{.say = Say::written, .id = message.id});
}

void RegisterWorld::on_written(unsigned n, unsigned peer, const Message& message) {
    Node& node = node_[n];
    if (node.pending == message.id) node.pending_awaited.remove(static_cast<NodeId>(peer));
}

// --- one step ---

// What has become possible.
void RegisterWorld::settle(unsigned n) {
    Node& node = node_[n];
    if (!node.up) return;
    const bool recorded = node.reg.is_recorded_here();
    if (node.admitting >= 0 && (node.reg.in_force() || misuse_ == Misuse::tell_target_early)) {
        const auto target = static_cast<unsigned>(node.admitting);
        node.admitting = -1;
        node.link[target].target = false;
        node.link[target].equal = node.link[target].told = true;
        Message message{.say = Say::sync_done, .data = node.data};
        message.set = node.reg.value();
        send(n, target, message);
        if (await_target_) node.reg.await(static_cast<NodeId>(target));
    }
    for (unsigned peer = 0; peer < nodes_; ++peer) {
        Link& link = node.link[peer];
        if (link.owes_value && (recorded || misuse_ == Misuse::answer_before_recorded)) {
            link.owes_value = false;
            Message message{.say = Say::recorded};
            message.set.number = link.owed;
            send(n, peer, message);
        }
        if (link.owes_promise && recorded && node.admitting < 0) {
            link.owes_promise = false;
            Message message{.say = Say::promote_reply, .id = link.ballot};
            message.set = node.reg.value();
            message.equal = link.equal && !node.inconsistent;
            send(n, peer, message);
        }
    }
    const bool may = node.reg.in_force() || misuse_ == Misuse::acknowledge_before_in_force;
    if (node.primary && node.pending != 0 && node.pending_awaited.empty() && may) acknowledge(n);
}

void RegisterWorld::settle_all() {
    for (unsigned n = 0; n < nodes_; ++n)
        settle(n);
}

void RegisterWorld::deliver(unsigned from, unsigned to) {
    const Message message = queue_[from][to].front();
    queue_[from][to].erase(queue_[from][to].begin());
    switch (message.say) {
        case Say::state:
            return on_state(to, from, message);
        case Say::propose:
            return on_propose(to, from, message);
        case Say::recorded:
            return on_recorded(to, from, message);
        case Say::sync_done:
            return on_sync_done(to, from, message);
        case Say::promote:
            return on_promote(to, from, message);
        case Say::promote_reply:
            return on_promote_reply(to, from, message);
        case Say::write:
            return on_write(to, from, message);
        case Say::written:
            return on_written(to, from, message);
        case Say::cancel:
            break;
    }
    Node& node = node_[to];
    if (node.sees != static_cast<int>(from)) return;
    node.sees = -1;
    node.link[from].owes_promise = false;
    drop_idle(to);
}

void RegisterWorld::apply(RegisterEvent event) {
    Node& node = node_[event.node];
    switch (event.act) {
        case Act::deliver:
            deliver(event.node, event.peer);
            break;
        case Act::record:
            node.disk = *node.writing;
            node.reg.recorded_here(node.writing_version);
            node.writing.reset();
            if (node.dirty) save(event.node);
            node.dirty = false;
            break;
        case Act::cut:
            --losses_;
            cut_[event.node][event.peer] = cut_[event.peer][event.node] = true;
            queue_[event.node][event.peer].clear();
            queue_[event.peer][event.node].clear();
            break;
        case Act::notice:
            lost(event.node, event.peer);
            break;
        case Act::crash:
            --crashes_;
            crash(event.node);
            break;
        case Act::demote:
            demote(event.node);
            break;
        case Act::restart:
            restart(event.node);
            break;
        case Act::write:
            write(event.node);
            break;
        case Act::admit:
            admit(event.node, event.peer);
            break;
        case Act::promote:
            ask(event.node);
            break;
        case Act::connect:
            connect(event.node, event.peer);
            break;
    }
    settle_all();
}

}  // namespace replica::explore
