// SPDX-License-Identifier: Apache-2.0
// The simulator's command: runs seeds, prints what they exercised, and for a failure the one
// command that replays it. Every run may be repeated with the same result: --twice proves it.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/sim/scenario.hpp"
#include "tests/sim/shrink.hpp"
#include "tests/sim/world.hpp"

namespace {

using replica::Mutant;
using replica::mutant_names;
using replica::MutantName;
using namespace replica::sim;

struct NamedMutant {
    const char* name = "none";
    Mutant mutant = Mutant::none;
    ShellMutant shell = ShellMutant::none;
};
constexpr NamedMutant shell_mutants[] = {
    {"accept-damage", Mutant::none, ShellMutant::accept_damage},
    {"keep-torn-label", Mutant::none, ShellMutant::keep_torn_label},
    {"flush-does-nothing", Mutant::none, ShellMutant::flush_does_nothing},
    {"room-not-zeroed", Mutant::none, ShellMutant::room_not_zeroed},
};

std::vector<NamedMutant> all_mutants() {
    std::vector<NamedMutant> all;
    for (const MutantName& m : mutant_names)
        all.push_back({m.name, m.mutant, ShellMutant::none});
    all.insert(all.end(), std::begin(shell_mutants), std::end(shell_mutants));
    return all;
}

struct Settings {
    std::uint64_t first = 1;
    std::uint64_t count = 1;
    double seconds = 0;  // 0: no limit
    unsigned threads = 1;
    bool trace = false;
    bool twice = false;
    bool until_caught = false;
    bool keep_going = false;
    bool coverage = false;
    bool calm = false;
    bool shrink = false;
    bool of_commit = false;
    std::string commit;  // its hash
    NamedMutant mutant;
    bool mutated = false;
    bool regressions = false;
    std::string regression;  // empty: all
};

struct Totals {
    std::mutex mutex;
    Stats stats;
    std::uint64_t seeds = 0;
    std::uint64_t failures = 0;
    std::uint64_t first_failure = 0;
};

Options options_of(const Settings& s, std::uint64_t seed) {
    Options options;
    options.seed = seed;
    options.mutant = s.mutant.mutant;
    options.shell_mutant = s.mutant.shell;
    options.trace = s.trace;
    options.calm = s.calm;
    return options;
}

// Returns what was violated, or an empty string.
std::string run_seed(const Settings& s, std::uint64_t seed, Stats& stats, std::uint64_t& hash) {
    World world(options_of(s, seed));
    std::string what;
    try {
        world.run();
    } catch (const Violation& violation) {
        what = violation.what;
    }
    hash = world.hash();
    stats = world.stats();
    return what;
}

bool fails_without_mutant(const Settings& s, std::uint64_t seed, const std::string& what) {
    Settings honest = s;
    honest.mutant = NamedMutant{};
    Stats stats;
    std::uint64_t hash = 0;
    return invariant_of(run_seed(honest, seed, stats, hash)) == invariant_of(what);
}

void add(Stats& to, const Stats& from) {
    to.events += from.events;
    to.writes += from.writes;
    to.reads += from.reads;
    to.flushes += from.flushes;
    to.faults += from.faults;
    to.crashes += from.crashes;
    to.resyncs += from.resyncs;
    to.promotions += from.promotions;
    to.split_brains += from.split_brains;
    to.audits += from.audits;
    to.calm += from.calm;
    to.wait_ns_max = std::max(to.wait_ns_max, from.wait_ns_max);
    to.simulated_ns += from.simulated_ns;
    for (std::size_t i = 0; i < fault_kinds; ++i) {
        to.met[i] += from.met[i];
        for (std::size_t state = 0; state < protocol_states; ++state)
            to.met_in[i][state] += from.met_in[i][state];
    }
}

void worker(const Settings& s, std::atomic<std::uint64_t>& next, std::atomic<bool>& stop,
            std::chrono::steady_clock::time_point deadline, Totals& totals) {
    while (!stop) {
        const std::uint64_t i = next++;
        if (i >= s.count) return;
        if (s.seconds > 0 && std::chrono::steady_clock::now() >= deadline) return;
        const std::uint64_t seed = s.first + i;
        Stats stats;
        std::uint64_t hash = 0;
        std::string what = run_seed(s, seed, stats, hash);
        if (s.twice && what.empty()) {
            Stats again;
            std::uint64_t second = 0;
            run_seed(s, seed, again, second);
            if (second != hash) what = "I-L5 the same seed took another course the second time";
        }
        // A seed that fails without the mistake too says nothing about the mistake.
        if (s.until_caught && !what.empty() && fails_without_mutant(s, seed, what)) continue;
        const std::lock_guard lock(totals.mutex);
        if (!what.empty()) stats.wait_ns_max = 0;
        add(totals.stats, stats);
        ++totals.seeds;
        if (what.empty()) continue;
        if (totals.failures++ == 0 || seed < totals.first_failure) totals.first_failure = seed;
        if (!s.until_caught) {
            std::printf("seed %llu: %s\n  replay: replica_sim --seed %llu --trace%s%s%s\n",
                        static_cast<unsigned long long>(seed), what.c_str(),
                        static_cast<unsigned long long>(seed), s.calm ? " --calm" : "",
                        s.mutated ? " --mutant " : "", s.mutated ? s.mutant.name : "");
        }
        if (!s.keep_going) stop = true;
    }
}

[[noreturn]] void usage(const char* wrong) {
    std::fprintf(stderr,
                 "replica_sim: %s\n"
                 "usage: replica_sim [--seed N] [--seeds FIRST COUNT] [--random COUNT] "
                 "[--seconds S]\n"
                 "                   [--commit-seeds COUNT --commit HASH]\n"
                 "                   [--threads N] [--mutant NAME] [--until-caught] "
                 "[--keep-going]\n"
                 "                   [--twice] [--trace] [--coverage] [--calm] [--list-mutants]\n"
                 "       replica_sim --seed N --shrink [--seconds S]\n"
                 "       replica_sim --regressions | --regression NAME [--trace] | "
                 "--list-regressions\n",
                 wrong);
    std::exit(2);
}

bool set_switch(Settings& s, const std::string& arg) {
    constexpr std::pair<const char*, bool Settings::*> switches[] = {
        {"--until-caught", &Settings::until_caught},
        {"--keep-going", &Settings::keep_going},
        {"--coverage", &Settings::coverage},
        {"--calm", &Settings::calm},
        {"--shrink", &Settings::shrink},
        {"--twice", &Settings::twice},
        {"--trace", &Settings::trace},
        {"--regressions", &Settings::regressions},
    };
    for (const auto& [name, field] : switches) {
        if (arg == name) return s.*field = true;
    }
    return false;
}

// Twelve digits, like those of --random. Each commit has other seeds.
std::uint64_t first_seed_of(const std::string& commit) {
    std::uint64_t hash = 0xcbf29ce484222325U;
    for (const char c : commit)
        hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
    return replica::Prng(hash).next() % 1'000'000'000'000U;
}

Settings parse(int argc, char** argv) {
    Settings s;
    s.threads = std::max(1U, std::thread::hardware_concurrency());
    const auto number = [&](int& i) {
        if (i + 1 >= argc) usage("a number is missing");
        return std::strtoull(argv[++i], nullptr, 0);
    };
    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        if (set_switch(s, arg)) continue;
        if (arg == "--seed") {
            s.first = number(i);
            s.count = 1;
        } else if (arg == "--seeds") {
            s.first = number(i);
            s.count = number(i);
        } else if (arg == "--random") {
            s.first = static_cast<std::uint64_t>(
                          std::chrono::system_clock::now().time_since_epoch().count()) %
                      1'000'000'000'000U;
            s.count = number(i);
        } else if (arg == "--commit-seeds") {
            s.count = number(i);
            s.of_commit = true;
        } else if (arg == "--commit") {
            if (i + 1 >= argc) usage("a commit's hash is missing");
            s.commit = argv[++i];
        } else if (arg == "--seconds") {
            s.seconds = static_cast<double>(number(i));
        } else if (arg == "--threads") {
            s.threads = static_cast<unsigned>(number(i));
        } else if (arg == "--mutant") {
            if (i + 1 >= argc) usage("a mutant's name is missing");
            const std::string name = argv[++i];
            bool found = false;
            for (const NamedMutant& m : all_mutants()) {
                if (name != m.name) continue;
                s.mutant = m;
                found = true;
            }
            if (!found) usage("no such mutant; --list-mutants names them");
            s.mutated = s.mutant.mutant != Mutant::none || s.mutant.shell != ShellMutant::none;
        } else if (arg == "--regression") {
            if (i + 1 >= argc) usage("a regression's name is missing");
            s.regressions = true;
            s.regression = argv[++i];
        } else if (arg == "--list-regressions") {
            list_regressions();
            std::exit(0);
        } else if (arg == "--list-mutants") {
            for (const NamedMutant& m : all_mutants())
                std::printf("%s\n", m.name);
            std::exit(0);
        } else {
            usage(("unknown option " + arg).c_str());
        }
    }
    if (s.of_commit) {
        if (s.commit.empty()) usage("--commit-seeds needs --commit HASH");
        s.first = first_seed_of(s.commit);
    }
    return s;
}

}  // namespace

int main(int argc, char** argv) {
    const Settings s = parse(argc, argv);
    if (s.regressions) {
        Options options;
        options.seed = s.first;
        options.mutant = s.mutant.mutant;
        options.trace = s.trace;
        return run_regressions(options, s.regression) == 0 ? 0 : 1;
    }
    if (s.shrink) {
        if (shrink(options_of(s, s.first), s.seconds > 0 ? s.seconds : 120)) return 1;
        std::printf("the seed does not fail\n");
        return 0;
    }
    const auto begin = std::chrono::steady_clock::now();
    const auto deadline = begin + std::chrono::milliseconds(static_cast<long>(s.seconds * 1000));
    Totals totals;
    std::atomic<std::uint64_t> next{0};
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < s.threads; ++t) {
        threads.emplace_back(worker, std::cref(s), std::ref(next), std::ref(stop), deadline,
                             std::ref(totals));
    }
    for (std::thread& thread : threads)
        thread.join();
    const double took =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const Stats& t = totals.stats;
    const auto n = [](std::uint64_t value) { return static_cast<unsigned long long>(value); };
    std::printf("seeds from %llu: %llu in %.1f s (%.1f a second), simulated %.0f s\n", n(s.first),
                n(totals.seeds), took, static_cast<double>(totals.seeds) / took,
                static_cast<double>(t.simulated_ns) / 1e9);
    std::printf(
        "  %llu writes, %llu reads, %llu flushes, %llu events; %llu "
        "faults, %llu crashes\n",
        n(t.writes), n(t.reads), n(t.flushes), n(t.events), n(t.faults), n(t.crashes));
    std::printf("  %llu resyncs, %llu promotions, %llu split brains, %llu audits\n", n(t.resyncs),
                n(t.promotions), n(t.split_brains), n(t.audits));
    std::printf("  %llu seeds without a fault, the longest wait in them: %llu ms\n", n(t.calm),
                n(t.wait_ns_max / replica::ns_per_ms));
    if (s.coverage) print_coverage(t);
    if (s.until_caught) {
        std::printf("mutant %s: %s\n", s.mutant.name,
                    totals.failures > 0 ? "caught" : "NOT caught");
        return totals.failures > 0 ? 0 : 1;
    }
    std::printf("%llu failed\n", n(totals.failures));
    return totals.failures > 0 ? 1 : 0;
}
