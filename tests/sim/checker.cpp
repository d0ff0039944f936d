// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/checker.hpp"

#include <algorithm>

namespace replica::sim {
namespace {

std::string describe(const char* what, std::uint64_t sector, std::uint64_t wanted, Stamp found) {
    return std::string(what) + ": sector " + std::to_string(sector) + " must hold write " +
           std::to_string(wanted) + " or a later one, holds " + std::to_string(found);
}

}  // namespace

void Checker::generation(Uuid uuid, Uuid parent) {
    const Uuid id = uuid_identity(uuid);
    if (models_.count(id) != 0) return;
    Model model;
    const auto from = models_.find(uuid_identity(parent));
    if (from != models_.end()) model = from->second;
    model.parent = uuid_identity(parent);
    model.answered = false;
    models_[id] = model;
}

bool Checker::descends(Uuid generation, Uuid ancestor) const {
    Uuid at = uuid_identity(generation);
    const Uuid wanted = uuid_identity(ancestor);
    if (at == wanted || (at == descendant_ && wanted == ancestor_)) return true;
    for (int depth = 0; depth < 10'000; ++depth) {
        if (at == wanted) {
            descendant_ = uuid_identity(generation);
            ancestor_ = wanted;
            return true;
        }
        const auto found = models_.find(at);
        if (found == models_.end()) return false;
        at = found->second.parent;
    }
    return false;
}

// This includes writes in a generation that was opened, was never recorded and acknowledged
// nothing: the disk has the write, and its label still names the generation before.
bool Checker::may_hold(Uuid generation, Uuid written_in) const {
    Uuid at = uuid_identity(written_in);
    while (!descends(generation, at)) {
        const auto found = models_.find(at);
        if (found == models_.end() || found->second.answered) return false;
        at = found->second.parent;
    }
    return true;
}

void Checker::adopted(Uuid generation, const SimDisk& disk, std::uint64_t sectors) {
    Model& m = models_.at(uuid_identity(generation));
    m.acked.clear();
    m.flushed.clear();
    m.pending.clear();
    for (std::uint64_t s = disk.next_used(0, sectors); s < sectors;
         s = disk.next_used(s + 1, sectors)) {
        if (disk.visible(s) != 0) m.base[s] = disk.visible(s);
    }
}

void Checker::adopted_losses(Uuid generation, const SimDisk& disk) {
    Model& m = models_.at(uuid_identity(generation));
    for (auto& [sector, id] : m.acked) {
        if (!fits(disk.visible(sector), sector, id, generation)) {
            const auto flushed = m.flushed.find(sector);
            id = flushed == m.flushed.end() ? 0 : flushed->second;
            m.pending.erase(sector);
        }
    }
}

bool Checker::fits(Stamp value, std::uint64_t sector, std::uint64_t bound, Uuid generation) const {
    if (bound == 0) {
        const auto m = models_.find(uuid_identity(generation));
        if (m != models_.end()) {
            const auto base = m->second.base.find(sector);
            if (base != m->second.base.end() && base->second == value) return true;
        }
    }
    if (value == 0) {
        if (bound == 0) return true;
        const auto zeroes = zeroes_.find(sector);
        if (zeroes == zeroes_.end()) return false;
        return std::any_of(zeroes->second.begin(), zeroes->second.end(), [&](std::uint64_t id) {
            return id >= bound && may_hold(generation, writes_[id].generation);
        });
    }
    const Write* const found = write_of(value);
    if (found == nullptr || value < bound) return false;
    const Write& w = *found;
    return sector >= w.sector && sector < w.sector + w.sectors && !w.zero &&
           may_hold(generation, w.generation);
}

void Checker::submitted(std::uint64_t id, Uuid generation, std::uint64_t sector,
                        std::uint32_t sectors, bool zero) {
    if (id >= writes_.size()) writes_.resize(id + 1);
    writes_[id] = {uuid_identity(generation), sector, sectors, zero};
    if (!zero) return;
    for (std::uint32_t i = 0; i < sectors; ++i)
        zeroes_[sector + i].push_back(id);
}

Checker::Complain Checker::acknowledged(std::uint64_t id, Uuid generation, bool protocol_c,
                                        bool fua, const std::vector<const SimDisk*>& holders) {
    const Write& w = writes_[id];
    Model& m = models_.at(uuid_identity(generation));
    m.answered = true;
    for (std::uint64_t s = w.sector; s < w.sector + w.sectors; ++s) {
        for (const SimDisk* disk : holders) {
            if (protocol_c && !fits(disk->visible(s), s, id, generation)) {
                return describe("I-C2 acknowledged, but not on every in-sync replica", s, id,
                                disk->visible(s));
            }
            if (fua && !fits(disk->durable(s), s, id, generation)) {
                return describe("I-C3 FUA acknowledged, but not stable everywhere", s, id,
                                disk->durable(s));
            }
        }
        std::uint64_t& newest = m.acked[s];
        newest = std::max(newest, id);
        if (fua) {
            m.flushed[s] = std::max(m.flushed[s], id);
        } else {
            m.pending[s] = newest;
        }
    }
    return {};
}

std::map<std::uint64_t, std::uint64_t> Checker::flush_submitted(Uuid generation) const {
    return model(generation).pending;
}

Checker::Complain Checker::flushed(const std::map<std::uint64_t, std::uint64_t>& promise,
                                   Uuid generation, const std::vector<const SimDisk*>& holders) {
    Model& m = models_.at(uuid_identity(generation));
    for (const auto& [sector, id] : promise) {
        for (const SimDisk* disk : holders) {
            if (!fits(disk->durable(sector), sector, id, generation)) {
                return describe("I-C3 flush acknowledged, but not stable everywhere", sector, id,
                                disk->durable(sector));
            }
        }
        m.flushed[sector] = std::max(m.flushed[sector], id);
        const auto pending = m.pending.find(sector);
        if (pending != m.pending.end() && pending->second <= id) m.pending.erase(pending);
    }
    if (m.looked_at == holders && ++m.flushes % 16 != 0) return {};
    m.looked_at = holders;
    for (const auto& [sector, id] : m.flushed) {
        for (const SimDisk* disk : holders) {
            if (fits(disk->durable(sector), sector, id, generation)) continue;
            return describe("I-C3 what was stable is so no more", sector, id,
                            disk->durable(sector));
        }
    }
    return {};
}

ReadToken Checker::read_submitted(Uuid generation, std::uint64_t sector,
                                  std::uint32_t sectors) const {
    ReadToken token{uuid_identity(generation), {}};
    const Model& m = model(generation);
    for (std::uint64_t s = sector; s < sector + sectors; ++s) {
        const auto acked = m.acked.find(s);
        token.bound.push_back(acked == m.acked.end() ? 0 : acked->second);
    }
    return token;
}

Checker::Complain Checker::read_done(const ReadToken& token, std::uint64_t sector,
                                     const std::vector<Stamp>& values) const {
    // The generation may have moved on while the read was under way; its writes are newer still.
    for (std::size_t i = 0; i < values.size(); ++i) {
        const Write* const written = write_of(values[i]);
        const Uuid lineage = written != nullptr && descends(written->generation, token.generation)
                                 ? written->generation
                                 : token.generation;
        if (values[i] == 0 && token.bound[i] != 0) {
            const auto zeroes = zeroes_.find(sector + i);
            const bool zeroed = zeroes != zeroes_.end() && !zeroes->second.empty() &&
                                zeroes->second.back() >= token.bound[i];
            if (zeroed) continue;
        }
        if (!fits(values[i], sector + i, token.bound[i], lineage)) {
            return describe("I-C1 a read went back", sector + i, token.bound[i], values[i]);
        }
    }
    return {};
}

Checker::Complain Checker::promoted(Uuid generation, const SimDisk& disk, bool strict) const {
    const Model& m = model(generation);
    for (const auto& [sector, id] : strict ? m.acked : m.flushed) {
        if (!fits(disk.visible(sector), sector, id, generation)) {
            return describe(strict ? "I-C2 promoted without an acknowledged write"
                                   : "I-C5 promoted without a flushed write",
                            sector, id, disk.visible(sector));
        }
    }
    return {};
}

Checker::Complain Checker::missing_at_the_end(Uuid generation, const SimDisk& disk) const {
    for (const auto& [sector, id] : model(generation).acked) {
        if (!fits(disk.visible(sector), sector, id, generation))
            return describe("I-C4 healed without an acknowledged write", sector, id,
                            disk.visible(sector));
    }
    return {};
}

}  // namespace replica::sim
