// SPDX-License-Identifier: Apache-2.0
// The handshake's decision over its whole input space (I-Q7): whatever two nodes say about
// themselves, both reach mirror-image verdicts, nobody overwrites data that could be needed, and
// the newer side is the source. The oracle here speaks of what a node knows of the other's
// generation, not of the order in which the decision looks at it.
#include <array>
#include <cstdio>
#include <string>
#include <vector>

#include "engine/core/generation.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

constexpr Uuid u1 = 0x1110, u2 = 0x2220, u3 = 0x3330, u4 = 0x4440;
constexpr Uuid letters[] = {u1, u2, u3, u4};

bool flag(const StatePayload& s, std::uint16_t f) { return (s.flags & f) != 0; }
DiskState disk(const StatePayload& s) { return static_cast<DiskState>(s.disk); }
bool primary(const StatePayload& s) { return s.role == static_cast<std::uint8_t>(Role::primary); }
bool consistent(const StatePayload& s) {
    return disk(s) == DiskState::outdated || disk(s) == DiskState::consistent ||
           disk(s) == DiskState::up_to_date;
}
bool with_disk(const StatePayload& s) { return s.disk >= 4; }
bool created(const StatePayload& s) { return uuid_equal(s.current_uuid, uuid_just_created); }
// The lowest node id that could align the others, or -1. The pairs here have the ids 1 and 2.
int leader(const StatePayload& s) { return int{s.after_sb[3]} - 1; }
bool is_source(Verdict v) { return v == Verdict::source_bitmap || v == Verdict::source_full; }
bool is_target(Verdict v) { return v == Verdict::target_bitmap || v == Verdict::target_full; }
bool by_bitmap(Verdict v) { return v == Verdict::source_bitmap || v == Verdict::target_bitmap; }

Verdict mirror(Verdict v) {
    switch (v) {
        case Verdict::source_bitmap:
            return Verdict::target_bitmap;
        case Verdict::source_full:
            return Verdict::target_full;
        case Verdict::target_bitmap:
            return Verdict::source_bitmap;
        case Verdict::target_full:
            return Verdict::source_full;
        case Verdict::no_sync:
        case Verdict::no_data:
        case Verdict::deferred:
        case Verdict::split_brain:
        case Verdict::unrelated:
            break;
    }
    return v;
}

// The generations that a state names, as bits over `letters`.
unsigned letter(Uuid uuid) {
    for (unsigned i = 0; i < 4; ++i) {
        if (uuid_equal(letters[i], uuid)) return 1U << i;
    }
    return 0;
}
struct Known {
    unsigned current = 0;
    unsigned bases = 0;  // where the bits toward the peer start
    unsigned past = 0;   // history
    unsigned all() const { return current | bases | past; }
};
Known known(const StatePayload& s) {
    Known k;
    k.current = letter(s.current_uuid);
    k.bases = letter(s.bitmap_uuid) | letter(s.admitting_uuid);
    for (const Uuid uuid : s.history)
        k.past |= letter(uuid);
    return k;
}

std::string text(const StatePayload& s) {
    const auto name = [](Uuid u) {
        const unsigned l = letter(u);
        return l != 0                  ? std::string("U") + char('1' + __builtin_ctz(l))
               : uuid_equal(u, 4U)     ? std::string("new")
               : uuid_identity(u) == 0 ? std::string("-")
                                       : std::string("?");
    };
    std::string out = std::string(name_of(static_cast<Role>(s.role))) + "/" + name_of(disk(s)) +
                      " current " + name(s.current_uuid) + " bitmap " + name(s.bitmap_uuid) +
                      " admitting " + name(s.admitting_uuid) + " history";
    for (const Uuid u : s.history) {
        if (u != uuid_none) out += " " + name(u);
    }
    return out + " flags " + std::to_string(s.flags) + " bits " + std::to_string(s.bits) + " seq " +
           std::to_string(s.last_seq);
}

// What must hold of one verdict of `a` about `b`; null if all does.
const char* wrong(const StatePayload& a, const StatePayload& b, const Decision& d) {
    const Verdict v = d.verdict;
    const StatePayload& source = is_source(v) ? a : b;
    const StatePayload& target = is_source(v) ? b : a;
    const Known ka = known(a), kb = known(b);
    const bool same = ka.current != 0 && ka.current == kb.current;
    const bool moves = is_source(v) || is_target(v);
    if (!with_disk(a) || !with_disk(b)) {
        return v == Verdict::no_data ? nullptr : "a verdict about a disk that is not there";
    }
    if (moves) {
        const Known ks = known(source), kt = known(target);
        if (!consistent(source)) return "a source without consistent data";
        if (primary(target) && disk(target) == DiskState::up_to_date) {
            return "an UpToDate primary as target";
        }
        if (created(source)) return "a source that never had data";
        if (!created(target) && (ks.all() & kt.all()) == 0) return "unrelated data is synced";
        // Half-written data of the same volume is given up, unless a primary stands on it: whole,
        // or by its own bits if they start at the source's generation.
        const bool half = !consistent(target) && !primary(target);
        const bool back = half && (ks.current & kt.bases) != 0;
        const bool given_up = half && (!by_bitmap(v) || back);
        if (!same && !created(target) && !given_up && (kt.current & (ks.bases | ks.past)) == 0) {
            return "a source that does not know the target's generation as past";
        }
        if (by_bitmap(v) && !same && (kt.current & ks.bases) == 0 && !back) {
            return "a bitmap that does not start at the target's generation";
        }
        if (by_bitmap(v) != d.bitmap_covers) return "verdict and bitmap_covers disagree";
        // Where each side calls the other's generation past, one of them has the bits to prove it.
        const bool target_newer = ((kt.bases | kt.past) & ks.current) != 0;
        if (!same && !created(target) && target_newer && !half)
            return "from the smaller history to the larger";
    }
    // What a crash may have changed is marked; who went through more than the other takes part in a
    // resync all the same, and is like the other then.
    const auto crash = [](const StatePayload& s) {
        return s.flags & (state_flag::crashed | state_flag::crashed_power);
    };
    const bool flags = ((a.flags | b.flags) & state_flag::full_sync) != 0 || crash(a) != crash(b);
    if (v == Verdict::no_sync &&
        (!same || !consistent(a) || !consistent(b) || flags || a.bits != 0 || b.bits != 0)) {
        return "no resync where blocks may differ";
    }
    if (v == Verdict::unrelated && (ka.all() & kb.all()) != 0) return "related data is unrelated";
    const bool sees = flag(a, state_flag::sees_primary) || flag(b, state_flag::sees_primary);
    const bool led = same && !primary(a) && !primary(b) && (leader(a) == 0 || leader(b) == 0);
    if (v == Verdict::deferred && !led) {
        return !sees || primary(a) || primary(b) ? "deferred to nobody" : nullptr;
    }
    // Progress: where one side is ahead and may be copied from, it is.
    const bool a_ahead = (kb.current & (ka.bases | ka.past)) != 0 && !created(a) && !created(b);
    const bool b_ahead = (ka.current & (kb.bases | kb.past)) != 0 && !created(a) && !created(b);
    if (!same && a_ahead != b_ahead) {
        const StatePayload& newer = a_ahead ? a : b;
        const StatePayload& older = a_ahead ? b : a;
        const bool may =
            consistent(newer) && !(primary(older) && disk(older) == DiskState::up_to_date);
        if (may && !(a_ahead ? is_source(v) : is_target(v))) return "the newer side is no source";
    }
    if (!same && a_ahead && b_ahead && v != Verdict::split_brain &&
        !(moves && !consistent(target) && !primary(target))) {
        return "each claims to be newer, and one is believed";
    }
    return nullptr;
}

struct Tally {
    std::uint64_t pairs = 0;
    std::array<std::uint64_t, 9> verdicts{};
};

void check_pair(StatePayload a, StatePayload b, Tally& tally) {
    // Each is a member of the other's set where that matters for who fills whom; see "a primary is
    // filled by a member of its set only".
    const bool differ = !uuid_equal(a.current_uuid, b.current_uuid);
    for (StatePayload* s : {&a, &b}) {
        const bool behind = disk(*s) != DiskState::up_to_date && differ;
        if (primary(*s) && (!consistent(*s) || behind)) s->in_sync = ~0U;
    }
    const Decision ab = decide(a, 1, b, 2);
    const Decision ba = decide(b, 2, a, 1);
    ++tally.pairs;
    ++tally.verdicts[static_cast<std::size_t>(ab.verdict)];
    const char* what = nullptr;
    if (ba.verdict != mirror(ab.verdict) || ab.bitmap_covers != ba.bitmap_covers) {
        what = "the two sides disagree";
    } else {
        what = wrong(a, b, ab);
    }
    if (what == nullptr) return;
    FAIL(what << ": " << name_of(ab.verdict) << " / " << name_of(ba.verdict) << "\n  a: " << text(a)
              << "\n  b: " << text(b));
}

// Hands out letters in the order of their first use: lineages that differ in names only are one.
struct Canonical {
    unsigned next = 0;
    bool fits(int value) {  // < 0: none or just created
        if (value < 0) return true;
        if (static_cast<unsigned>(value) > next) return false;
        next += static_cast<unsigned>(value) == next ? 1 : 0;
        return true;
    }
};

// Values -2 (just created), -1 (none), 0..3.
Uuid uuid_of(int value, Uuid primary_bit) {
    return value == -2 ? uuid_just_created : value == -1 ? uuid_none : letters[value] | primary_bit;
}

struct Attribute {
    Role role;
    DiskState disk;
};
constexpr Attribute attributes[] = {
    {Role::secondary, DiskState::up_to_date},   {Role::primary, DiskState::up_to_date},
    {Role::secondary, DiskState::inconsistent}, {Role::secondary, DiskState::outdated},
    {Role::primary, DiskState::inconsistent},
};

void set_history(StatePayload& s, unsigned mask) {
    s.history = {};
    for (unsigned i = 0, n = 0; i < 4; ++i) {
        if ((mask >> i & 1U) != 0) s.history[n++] = letters[i];
    }
}

// All histories and attributes of one choice of current, bitmap and admitting ids.
void check_histories(StatePayload a, StatePayload b, Tally& tally) {
    for (unsigned ha = 0; ha < 16; ++ha) {
        set_history(a, ha);
        for (unsigned hb = 0; hb < 16; ++hb) {
            set_history(b, hb);
            for (const Attribute& x : attributes) {
                for (const Attribute& y : attributes) {
                    a.role = static_cast<std::uint8_t>(x.role);
                    a.disk = static_cast<std::uint8_t>(x.disk);
                    b.role = static_cast<std::uint8_t>(y.role);
                    b.disk = static_cast<std::uint8_t>(y.disk);
                    check_pair(a, b, tally);
                }
            }
        }
    }
}

StatePayload state(Role role, DiskState d, Uuid current, std::initializer_list<Uuid> history = {},
                   Uuid bitmap = uuid_none) {
    StatePayload s;
    s.role = static_cast<std::uint8_t>(role);
    s.disk = static_cast<std::uint8_t>(d);
    s.current_uuid = current;
    s.bitmap_uuid = bitmap;
    std::copy(history.begin(), history.end(), s.history.begin());
    return s;
}
StatePayload good(Uuid current, std::initializer_list<Uuid> history = {}, Uuid bitmap = uuid_none) {
    return state(Role::secondary, DiskState::up_to_date, current, history, bitmap);
}

Verdict verdict(const StatePayload& a, const StatePayload& b) {
    const Decision d = decide(a, 0, b, 1);
    CHECK(decide(b, 1, a, 0).verdict == mirror(d.verdict));
    return d.verdict;
}

}  // namespace

TEST_CASE("decide over all lineages of four generations") {
    Tally tally;
    // The first side's ids are given without, the second's with the primary's bit: it means
    // nothing here.
    for (int ca = -2; ca < 1; ++ca) {
        for (int cb = -2; cb < 2; ++cb) {
            // Creating the metadata writes an id, and so does whatever follows: at most one side
            // can be without, by a damaged label.
            if (ca < 0 && cb < 0 && ca + cb != -4) continue;
            for (int ma = -1; ma < 3; ++ma) {
                for (int mb = -1; mb < 4; ++mb) {
                    for (int aa = -1; aa < 4; ++aa) {
                        for (int ab = -1; ab < 4; ++ab) {
                            Canonical names;
                            if (!names.fits(ca) || !names.fits(cb) || !names.fits(ma) ||
                                !names.fits(mb) || !names.fits(aa) || !names.fits(ab))
                                continue;
                            StatePayload a, b;
                            a.current_uuid = uuid_of(ca, 0);
                            a.bitmap_uuid = uuid_of(ma, 0);
                            a.admitting_uuid = uuid_of(aa, 0);
                            b.current_uuid = uuid_of(cb, uuid_primary_bit);
                            b.bitmap_uuid = uuid_of(mb, uuid_primary_bit);
                            b.admitting_uuid = uuid_of(ab, uuid_primary_bit);
                            check_histories(a, b, tally);
                        }
                    }
                }
            }
        }
    }
    std::printf("lineages: %llu pairs\n", static_cast<unsigned long long>(tally.pairs));
    for (const Verdict v :
         {Verdict::no_sync, Verdict::source_bitmap, Verdict::source_full, Verdict::target_bitmap,
          Verdict::target_full, Verdict::no_data, Verdict::split_brain, Verdict::unrelated}) {
        INFO(name_of(v));
        CHECK(tally.verdicts[static_cast<std::size_t>(v)] > 0);
    }
}

TEST_CASE("decide over all states of one generation") {
    std::vector<StatePayload> states;
    for (const Role role : {Role::primary, Role::secondary}) {
        for (std::uint8_t d = 0; d <= 8; ++d) {
            for (unsigned f = 0; f < 48; ++f) {
                for (unsigned v = 0; v < 4; ++v) {
                    StatePayload s = state(role, static_cast<DiskState>(d), u1);
                    const unsigned crash[] = {0, state_flag::crashed,
                                              state_flag::crashed | state_flag::crashed_power};
                    unsigned flags = crash[f % 3];
                    if ((f / 3 & 1U) != 0) flags |= state_flag::was_primary;
                    if ((f / 3 & 2U) != 0) flags |= state_flag::sees_primary;
                    if ((f / 3 & 4U) != 0) flags |= state_flag::full_sync;
                    if ((f / 3 & 8U) != 0) flags |= state_flag::always_sync;
                    s.flags = static_cast<std::uint16_t>(flags);
                    s.bits = v & 1U;
                    s.last_seq = v >> 1;
                    states.push_back(s);
                }
            }
        }
    }
    Tally tally;
    for (std::size_t i = 0; i < states.size(); ++i) {
        for (std::size_t j = i; j < states.size(); ++j)
            check_pair(states[i], states[j], tally);
    }
    std::printf("one generation: %llu pairs\n", static_cast<unsigned long long>(tally.pairs));
    CHECK(tally.verdicts[static_cast<std::size_t>(Verdict::deferred)] > 0);
    CHECK(tally.verdicts[static_cast<std::size_t>(Verdict::no_sync)] > 0);
}

TEST_CASE("a primary is filled by a member of its set only") {
    StatePayload half = state(Role::primary, DiskState::inconsistent, u1);
    const StatePayload newer = state(Role::secondary, DiskState::up_to_date, u2, {u1}, u1);
    CHECK(decide(half, 1, newer, 2).verdict == Verdict::no_data);
    CHECK(decide(newer, 2, half, 1).verdict == Verdict::no_data);
    half.in_sync = NodeMask::of(2).bits;
    CHECK(is_target(decide(half, 1, newer, 2).verdict));
    CHECK(is_source(decide(newer, 2, half, 1).verdict));
}

TEST_CASE("every disk, role and crash flag under every kind of lineage") {
    struct Pair {
        StatePayload a, b;
    };
    const Pair kinds[] = {
        {good(u1), good(u2)},
        {good(u2, {u1}, u1), good(u1)},
        {good(u2, {u1}), good(u1)},
        {good(u2, {u1}, u1), good(u3, {u1}, u1)},
        {good(u2, {u1}), good(u3, {u1})},
        {good(u2, {}, u3), good(u3, {}, u2)},
        {good(uuid_just_created), good(u1)},
        {good(uuid_just_created), good(uuid_just_created)},
    };
    Tally tally;
    for (const Pair& kind : kinds) {
        for (unsigned x = 0; x < 216; ++x) {
            for (unsigned y = 0; y < 216; ++y) {
                const auto dress = [](StatePayload s, unsigned v) {
                    s.disk = static_cast<std::uint8_t>(v % 9);
                    s.role = static_cast<std::uint8_t>(1 + v / 9 % 2);
                    const unsigned crash = v / 18 % 3;
                    s.flags = static_cast<std::uint16_t>(
                        (crash > 0 ? state_flag::crashed : 0U) |
                        (crash > 1 ? state_flag::crashed_power : 0U) |
                        ((v / 54 & 1U) != 0 ? state_flag::sees_primary : 0U));
                    s.bits = v / 108;
                    return s;
                };
                check_pair(dress(kind.a, x), dress(kind.b, y), tally);
            }
        }
    }
    CHECK(tally.pairs == 8ULL * 216 * 216);
}

TEST_CASE("a split brain is resolved the same way on both sides, or not at all") {
    std::vector<StatePayload> sides;
    for (unsigned v = 0; v < 48; ++v) {
        StatePayload s = state((v & 1U) != 0 ? Role::primary : Role::secondary,
                               (v & 2U) != 0 ? DiskState::up_to_date : DiskState::inconsistent, u2);
        s.promoted_at = 1 + (v >> 2 & 1U);
        if ((v >> 3 & 1U) != 0) s.flags = state_flag::discard_my_data;
        s.bits = std::array<std::uint64_t, 3>{0, 1, 5}[v / 16];
        sides.push_back(s);
    }
    std::uint64_t resolved = 0, kept = 0;
    const auto policy = [](StatePayload& s, unsigned p) {
        s.after_sb = {static_cast<std::uint8_t>(p % 8), static_cast<std::uint8_t>(p / 8 % 5),
                      static_cast<std::uint8_t>(p / 40 % 3), 0};  // one value each is unknown
    };
    for (StatePayload a : sides) {
        for (StatePayload b : sides) {
            for (unsigned pa = 0; pa < 120; ++pa) {
                policy(a, pa);
                for (unsigned pb = pa % 2; pb < 120; pb += 2) {
                    policy(b, pb);
                    const Decision d{Verdict::split_brain, pa / 2 % 2 == 0, ""};
                    const Verdict ab = resolve_split_brain(d, a, b);
                    const Verdict ba = resolve_split_brain(d, b, a);
                    const bool moves = is_source(ab) || is_target(ab);
                    const StatePayload& source = is_source(ab) ? a : b;
                    const StatePayload& victim = is_source(ab) ? b : a;
                    const bool a_gives = flag(a, state_flag::discard_my_data);
                    const bool b_gives = flag(b, state_flag::discard_my_data);
                    const bool ok =
                        ba == mirror(ab) && (moves || ab == Verdict::split_brain) &&
                        (!moves || (consistent(source) && !primary(victim) &&
                                    by_bitmap(ab) == d.bitmap_covers)) &&
                        (!moves || a_gives == b_gives || flag(victim, state_flag::discard_my_data));
                    if (!ok) {
                        FAIL(name_of(ab) << " / " << name_of(ba) << " policies " << pa << " " << pb
                                         << "\n  a: " << text(a) << "\n  b: " << text(b));
                    }
                    ++(moves ? resolved : kept);
                }
            }
        }
    }
    std::printf("resolutions: %llu, left apart %llu\n", static_cast<unsigned long long>(resolved),
                static_cast<unsigned long long>(kept));
    CHECK(resolved > 100'000);
    CHECK(kept > 100'000);
}

TEST_CASE("the first connection of two disks") {
    // Nobody knows which of two new disks is to be copied: the operator says so.
    CHECK(verdict(good(uuid_just_created), good(uuid_just_created)) == Verdict::no_data);
    // A new disk takes everything from one with data.
    CHECK(verdict(good(u1), good(uuid_just_created)) == Verdict::source_full);
    // Two volumes that never met are not mixed.
    CHECK(verdict(good(u1), good(u2)) == Verdict::unrelated);
    // A diskless node takes no part.
    CHECK(verdict(good(u1), state(Role::primary, DiskState::diskless, u1)) == Verdict::no_data);
}

TEST_CASE("a node that was away") {
    // It comes back to the primary that wrote since: the bits cover the difference.
    const StatePayload p = state(Role::primary, DiskState::up_to_date, u2, {u1}, u1);
    CHECK(verdict(p, good(u1)) == Verdict::source_bitmap);
    // It was away for longer than the bits reach.
    CHECK(verdict(state(Role::primary, DiskState::up_to_date, u3, {u2, u1}, u2), good(u1)) ==
          Verdict::source_full);
    // The bits were being handed over when the connection broke: both bases are good.
    StatePayload admitting = p;
    admitting.current_uuid = u4;
    admitting.bitmap_uuid = u1;
    admitting.admitting_uuid = u2;
    CHECK(verdict(admitting, good(u1)) == Verdict::source_bitmap);
    CHECK(verdict(admitting, good(u2)) == Verdict::source_bitmap);
    // Its resync broke off: the source goes on.
    CHECK(verdict(p, state(Role::secondary, DiskState::inconsistent, u1)) ==
          Verdict::source_bitmap);
    // It was the newer one, but only half a copy: it takes what the other has. Its bits say where.
    CHECK(verdict(state(Role::secondary, DiskState::inconsistent, u2, {u1}, u1), good(u1)) ==
          Verdict::target_bitmap);
    CHECK(verdict(state(Role::secondary, DiskState::inconsistent, u3, {u2, u1}, u2), good(u1)) ==
          Verdict::target_full);
    // Unless a primary stands on it, or the other has nothing better.
    CHECK(verdict(state(Role::primary, DiskState::inconsistent, u2, {u1}, u1), good(u1)) ==
          Verdict::no_data);
    CHECK(verdict(state(Role::secondary, DiskState::inconsistent, u2, {u1}, u1),
                  state(Role::secondary, DiskState::inconsistent, u1)) == Verdict::no_data);
}

TEST_CASE("a crash within one generation") {
    StatePayload crashed = good(u1), calm = good(u1);
    CHECK(verdict(calm, good(u1)) == Verdict::no_sync);
    crashed.flags = state_flag::crashed | state_flag::was_primary;
    // What the crashed primary had in flight is aligned to the survivor.
    CHECK(verdict(calm, crashed) == Verdict::source_bitmap);
    // The survivor became primary meanwhile, without a write of its own.
    calm.role = static_cast<std::uint8_t>(Role::primary);
    CHECK(verdict(crashed, calm) == Verdict::target_bitmap);
    // With protocol A only the crashed primary is sure to hold what it acknowledged.
    calm.role = static_cast<std::uint8_t>(Role::secondary);
    calm.flags = state_flag::always_sync;
    CHECK(verdict(crashed, calm) == Verdict::source_bitmap);
    // A disk whose cache was lost is the worse source, whoever was primary.
    crashed.flags |= state_flag::crashed_power;
    StatePayload process = good(u1);
    process.flags = state_flag::crashed;
    CHECK(verdict(process, crashed) == Verdict::source_bitmap);
    // Two that went through the same, with nothing marked, have nothing to tell each other.
    CHECK(verdict(process, process) == Verdict::no_sync);
    // Secondaries leave it to the primary that they see.
    process.flags |= state_flag::sees_primary;
    CHECK(verdict(process, crashed) == Verdict::deferred);
}

TEST_CASE("both sides wrote") {
    const StatePayload a = good(u2, {u1}, u1), b = good(u3, {u1}, u1);
    CHECK(verdict(a, b) == Verdict::split_brain);
    CHECK(decide(a, 0, b, 1).bitmap_covers);
    // The common ancestor is older than the bits: the victim takes everything.
    const Decision old = decide(good(u2, {u4, u1}, u4), 0, b, 1);
    CHECK(old.verdict == Verdict::split_brain);
    CHECK_FALSE(old.bitmap_covers);
    // An older node was promoted by force and runs: it is not overwritten.
    CHECK(verdict(good(u2, {u1}, u1), state(Role::primary, DiskState::up_to_date, u1)) ==
          Verdict::split_brain);
    // The operator names the victim.
    StatePayload victim = b;
    victim.flags = state_flag::discard_my_data;
    CHECK(resolve_split_brain(decide(a, 0, victim, 1), a, victim) == Verdict::source_bitmap);
    CHECK(resolve_split_brain(decide(victim, 1, a, 0), victim, a) == Verdict::target_bitmap);
    CHECK(resolve_split_brain(old, good(u2), victim) == Verdict::source_full);
    // But not a primary, and not if both sides are offered.
    StatePayload running = victim;
    running.role = static_cast<std::uint8_t>(Role::primary);
    CHECK(resolve_split_brain(decide(a, 0, running, 1), a, running) == Verdict::split_brain);
    StatePayload other = a;
    other.flags = state_flag::discard_my_data;
    CHECK(resolve_split_brain(decide(other, 0, victim, 1), other, victim) == Verdict::split_brain);
}

TEST_CASE("policies name the victim of a split brain") {
    StatePayload a = good(u2, {u1}, u1), b = good(u3, {u1}, u1);
    a.promoted_at = 100, b.promoted_at = 200;
    a.bits = 0, b.bits = 7;
    const auto resolve = [&](AfterSb0Pri zero, AfterSb1Pri one = AfterSb1Pri::disconnect,
                             AfterSb2Pri two = AfterSb2Pri::disconnect) {
        a.after_sb = b.after_sb = {static_cast<std::uint8_t>(zero), static_cast<std::uint8_t>(one),
                                   static_cast<std::uint8_t>(two), 0};
        return resolve_split_brain(decide(a, 0, b, 1), a, b);
    };
    CHECK(resolve(AfterSb0Pri::disconnect) == Verdict::split_brain);
    CHECK(resolve(AfterSb0Pri::discard_younger_primary) == Verdict::source_bitmap);
    CHECK(resolve(AfterSb0Pri::discard_older_primary) == Verdict::target_bitmap);
    CHECK(resolve(AfterSb0Pri::discard_zero_changes) == Verdict::target_bitmap);
    CHECK(resolve(AfterSb0Pri::discard_least_changes) == Verdict::target_bitmap);
    // Both would discard their own: no common victim.
    CHECK(resolve(AfterSb0Pri::discard_local) == Verdict::split_brain);
    a.role = static_cast<std::uint8_t>(Role::primary);
    CHECK(resolve(AfterSb0Pri::discard_older_primary) == Verdict::split_brain);
    CHECK(resolve(AfterSb0Pri::disconnect, AfterSb1Pri::discard_secondary) ==
          Verdict::source_bitmap);
    CHECK(resolve(AfterSb0Pri::discard_younger_primary, AfterSb1Pri::consensus) ==
          Verdict::source_bitmap);
    CHECK(resolve(AfterSb0Pri::discard_older_primary, AfterSb1Pri::consensus) ==
          Verdict::split_brain);
    // The policy names the primary, which can not change its data.
    CHECK(resolve(AfterSb0Pri::discard_older_primary, AfterSb1Pri::violently_as0p) ==
          Verdict::split_brain);
}

TEST_CASE("history keeps the newest, once") {
    std::array<Uuid, history_uuids_max> history{};
    push_history(history, uuid_none);
    push_history(history, uuid_just_created | uuid_primary_bit);
    CHECK(history[0] == uuid_none);
    for (Uuid i = 1; i <= history_uuids_max; ++i)
        push_history(history, i * 16 | uuid_primary_bit);
    CHECK(history[0] == history_uuids_max * 16);
    CHECK(history.back() == 16);
    const auto before = history;
    push_history(history, 5 * 16);
    CHECK(history == before);
    push_history(history, 0x9990);
    CHECK(history[0] == 0x9990);
    CHECK(in_history(history, 0x9991));
    CHECK_FALSE(in_history(history, 16));
    CHECK_FALSE(in_history(history, uuid_none));
}
