// SPDX-License-Identifier: Apache-2.0
// See shrink.hpp. Decisions do not depend on each other: the third tick of an operator does the
// same whether or not the second one did anything. So any part of the list can be left out and the
// rest run (delta debugging); a run takes some milliseconds.
#include "tests/sim/shrink.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace replica::sim {
namespace {

using Keys = std::vector<std::uint64_t>;

struct Trial {
    std::string what;  // empty: nothing was violated
    Keys made;         // sorted
};

Trial try_with(const Options& options, const Keys* only) {
    Options tried = options;
    tried.only = only;
    Trial trial;
    World world(tried);
    try {
        world.run();
    } catch (const Violation& violation) {
        trial.what = violation.what;
    }
    trial.made = world.decisions();
    std::sort(trial.made.begin(), trial.made.end());
    return trial;
}

Keys without(const Keys& keys, std::size_t begin, std::size_t end) {
    Keys rest(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(begin));
    rest.insert(rest.end(), keys.begin() + static_cast<std::ptrdiff_t>(end), keys.end());
    return rest;
}

class Shrinker {
  public:
    Shrinker(const Options& options, Trial first, double seconds)
        : options_(options),
          invariant_(invariant_of(first.what)),
          kept_(std::move(first.made)),
          deadline_(std::chrono::steady_clock::now() +
                    std::chrono::milliseconds(static_cast<long>(seconds * 1000))) {}

    // Leaves out ever smaller parts, until no single decision can be left out.
    void run() {
        std::size_t part = (kept_.size() + 1) / 2;
        while (part > 0 && !late()) {
            const std::size_t before = kept_.size();
            for (std::size_t end = kept_.size(); end > 0 && !late();) {
                const std::size_t begin = end > part ? end - part : 0;
                holds_without(begin, end);
                end = std::min(begin, kept_.size());
            }
            if (part == 1 && kept_.size() == before) break;
            part = part == 1 ? 1 : part / 2;
        }
    }
    const Keys& kept() const { return kept_; }
    std::size_t trials() const { return trials_; }
    bool late() const { return std::chrono::steady_clock::now() >= deadline_; }

  private:
    void holds_without(std::size_t begin, std::size_t end) {
        const Keys rest = without(kept_, begin, end);
        ++trials_;
        Trial trial = try_with(options_, &rest);
        if (trial.what.empty() || invariant_of(trial.what) != invariant_) return;
        kept_ = std::move(trial.made);  // what came after the violation is gone as well
    }

    Options options_;
    std::string invariant_;
    Keys kept_;
    std::size_t trials_ = 0;
    std::chrono::steady_clock::time_point deadline_;
};

}  // namespace

std::string invariant_of(const std::string& what) {
    const std::size_t at = what.find("I-");
    const std::string tail = at == std::string::npos ? what : what.substr(at);
    return tail.substr(0, tail.find(' '));
}

bool shrink(Options options, double seconds) {
    options.trace = options.tell = false;
    Trial first = try_with(options, nullptr);
    if (first.what.empty()) return false;
    const std::size_t at_first = first.made.size();
    std::printf("seed %llu: %s\n", static_cast<unsigned long long>(options.seed),
                first.what.c_str());
    Shrinker shrinker(options, std::move(first), seconds);
    shrinker.run();
    options.tell = true;
    const Trial last = try_with(options, &shrinker.kept());
    std::printf("  of %zu decisions %zu are left after %zu runs%s: %s\n", at_first,
                shrinker.kept().size(), shrinker.trials(),
                shrinker.late() ? " (the time was up)" : "", last.what.c_str());
    constexpr const char* names[] = {"feature", "application", "operator", "fault", "accident"};
    static_assert(std::size(names) == static_cast<std::size_t>(Actor::count_));
    for (const std::uint64_t key : shrinker.kept()) {
        std::printf("  %s %u\n", names[key >> 32], static_cast<unsigned>(key & 0xffffffffU));
    }
    return true;
}

// --- Decisions, as the world makes them
// ---------------------------------------------------------------------------------------

bool World::decide(std::uint64_t key) {
    const bool on = options_.only == nullptr ||
                    std::binary_search(options_.only->begin(), options_.only->end(), key);
    if (on) decisions_.push_back(key);
    return on;
}

World::Decision::Decision(World& world, Actor actor) : world_(world), outside_(world.random_) {
    const auto a = static_cast<std::size_t>(actor);
    const std::uint64_t key = std::uint64_t{a} << 32 | world.decided_[a]++;
    on_ = world.decide(key);
    world.random_ = Prng(Prng(world.options_.seed ^ key * 0x9e3779b97f4a7c15U).next());
}

// An accident: something that happens by itself, now and then.
bool World::accident(std::uint32_t per_million) {
    if (!random_.chance(per_million)) return false;
    const auto a = static_cast<std::size_t>(Actor::accident);
    return decide(std::uint64_t{a} << 32 | decided_[a]++);
}

// A feature of the world: some failures need it, most do not.
void World::leave_out_features() {
    const auto keeps = [&](bool drawn) {
        return drawn && decide(decided_[static_cast<std::size_t>(Actor::feature)]++);
    };
    swarm_.late = keeps(swarm_.late);
    swarm_.segments = keeps(swarm_.segments);
    if (!keeps(swarm_.slow_origin >= 0)) swarm_.slow_origin = -1;
    if (!keeps(swarm_.slow_message >= 0)) swarm_.slow_message = -1;
    if (!keeps(swarm_.slow_pair[0] >= 0)) swarm_.slow_pair = {-1, -1};
    if (!keeps(swarm_.ns_per_kib > 0)) swarm_.ns_per_kib = 0;
    if (!keeps(swarm_.resize)) swarm_.resize = false;
}

}  // namespace replica::sim
