// SPDX-License-Identifier: Apache-2.0
// Every interleaving of small scopes, breadth first: what the simulator meets by chance is here
// met for certain. Each deliberate mistake of the core must be found, with its shortest trace.
#include <cstdio>
#include <optional>
#include <unordered_set>

#include "tests/catch.hpp"
#include "tests/explore/world.hpp"

using namespace replica;
using namespace replica::explore;

namespace {

struct Outcome {
    std::string violation;
    std::vector<std::string> trace;
    std::size_t states = 0, transitions = 0, ends = 0, depth = 0;
    bool complete = true;  // no bound was met
};

struct Record {
    std::uint32_t parent;
    Event event;
};

std::vector<std::string> trace_of(const Scope& scope, const World& begin,
                                  const std::vector<Record>& records, std::uint32_t last) {
    std::vector<Event> path;
    for (std::uint32_t at = last; at != 0; at = records[at].parent)
        path.insert(path.begin(), records[at].event);
    std::vector<std::string> lines;
    World world = begin;
    for (const Event event : path) {
        lines.push_back(world.label(scope, event));
        world.apply(scope, event);
    }
    return lines;
}

Outcome explore(const Scope& scope, Mutant mutant) {
    Outcome out;
    const World begin(scope, mutant);
    REQUIRE(begin.violation() == "");
    std::unordered_set<std::uint64_t> seen{begin.hash()};
    std::vector<Record> records{{0, {}}};
    std::vector<std::pair<std::optional<World>, std::uint32_t>> level, next;
    level.emplace_back(begin, 0);
    while (!level.empty() && out.violation.empty()) {
        next.clear();
        for (auto& [world, id] : level) {
            const auto events = world->events(scope);
            for (const Event event : events) {
                World after = *world;
                after.apply(scope, event);
                after.check();
                ++out.transitions;
                const bool bad = !after.violation().empty();
                if (!bad && !seen.insert(after.hash()).second) continue;
                records.push_back({id, event});
                const auto number = static_cast<std::uint32_t>(records.size() - 1);
                if (!bad && !after.events(scope).empty()) {
                    next.emplace_back(std::move(after), number);
                    continue;
                }
                if (!bad) {
                    ++out.ends;
                    after.check_end();
                }
                if (after.violation().empty()) continue;
                out.violation = after.violation();
                out.trace = trace_of(scope, begin, records, number);
                break;
            }
            if (!out.violation.empty()) break;
            world.reset();  // frees what nobody shares
        }
        ++out.depth;
        level.swap(next);
        if (records.size() > scope.states_max) {
            out.complete = false;
            break;
        }
    }
    out.states = records.size();
    return out;
}

void print(const Scope& scope, const char* mutant, const Outcome& o) {
    std::printf("%-28s %-24s %7zu states %8zu transitions %6zu ends, depth %zu%s\n", scope.name,
                mutant, o.states, o.transitions, o.ends, o.depth, o.complete ? "" : " (bound met)");
    if (o.violation.empty()) return;
    for (const std::string& line : o.trace)
        std::printf("    %s\n", line.c_str());
    std::printf("    => %s\n", o.violation.c_str());
}

Scope overlapping_writes() {
    Scope s;
    s.name = "three overlapping writes";
    s.requests = {{IoKind::write, 0, 2}, {IoKind::write, 1, 2}, {IoKind::write, 0, 3}};
    return s;
}
Scope link_loss() {
    Scope s;
    s.name = "two writes and a link loss";
    s.requests = {{IoKind::write, 0, 1}, {IoKind::write, 1, 1}};
    s.link_loss = true;
    return s;
}
Scope one_log_slot() {
    Scope s;
    s.name = "two extents, one log slot";
    s.requests = {{IoKind::write, 0, 1}, {IoKind::write, blocks_per_extent, 1}};
    s.al_extents = 1;
    return s;
}
Scope flush_and_loss() {
    Scope s;
    s.name = "writes, flush and a link loss";
    s.requests = {{IoKind::write, 0, 1}, {IoKind::flush, 0, 0}, {IoKind::write, 0, 1}};
    s.link_loss = true;
    return s;
}
Scope crash_of_secondary() {
    Scope s;
    s.name = "writes, crash of the peer";
    s.requests = {{IoKind::write, 0, 1}, {IoKind::flush, 0, 0}, {IoKind::write, 1, 2}};
    s.kill_secondary = s.power_cut_secondary = true;
    return s;
}
Scope crash_of_primary() {
    Scope s;
    s.name = "writes, crash of the primary";
    s.requests = {{IoKind::write, 0, 1}, {IoKind::flush, 0, 0}, {IoKind::write, 1, 2}};
    s.kill_primary = true;
    return s;
}
Scope resync_and_write() {
    Scope s;
    s.name = "resync and a racing write";
    s.requests = {{IoKind::write, 0, 1}, {IoKind::write, 1, 1}};
    s.resync = true;
    return s;
}
Scope resync_and_loss() {
    Scope s = resync_and_write();
    s.name = "resync, write, link loss";
    s.requests.pop_back();
    s.link_loss = true;
    return s;
}
Scope overlap_and_loss() {
    Scope s = overlapping_writes();
    s.name = "overlap and a link loss";
    s.link_loss = true;
    return s;
}

void check_clean(const Scope& scope) {
    const Outcome o = explore(scope, Mutant::none);
    print(scope, "", o);
    CHECK(o.violation == "");
    CHECK(o.complete);
    CHECK(o.ends > 0);
}

void check_caught(const Scope& scope, Mutant mutant, const char* name) {
    const Outcome o = explore(scope, mutant);
    print(scope, name, o);
    CHECK(o.violation != "");
}

}  // namespace

TEST_CASE("no interleaving of a small scope breaks a promise") {
    check_clean(overlapping_writes());
    check_clean(link_loss());
    check_clean(one_log_slot());
    check_clean(flush_and_loss());
    check_clean(crash_of_secondary());
    check_clean(crash_of_primary());
    check_clean(resync_and_write());
    check_clean(resync_and_loss());
    check_clean(overlap_and_loss());
}

TEST_CASE("every deliberate mistake is found") {
    check_caught(overlapping_writes(), Mutant::ack_before_peer, "ack-before-peer");
    check_caught(crash_of_primary(), Mutant::ack_before_peer, "ack-before-peer");
    check_caught(overlapping_writes(), Mutant::no_overlap_hold, "no-overlap-hold");
    check_caught(one_log_slot(), Mutant::skip_activity_log, "skip-activity-log");
    check_caught(link_loss(), Mutant::clear_bit_on_completion, "clear-bit-on-completion");
    check_caught(link_loss(), Mutant::generation_after_ack, "generation-after-ack");
    check_caught(flush_and_loss(), Mutant::flush_local_only, "flush-local-only");
    check_caught(resync_and_loss(), Mutant::no_fence, "no-fence");
}
