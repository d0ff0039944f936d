// SPDX-License-Identifier: Apache-2.0
// The independent model. It knows what was asked and answered, which generation each write belongs
// to, and which nodes were in the in-sync set when it was acknowledged; from that it says what
// every disk must hold. It shares no code with the core but the formats.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/base/units.hpp"
#include "engine/format/superblock.hpp"
#include "tests/sim/sim_disk.hpp"

namespace replica::sim {

struct ReadToken {
    Uuid generation = 0;
    std::vector<std::uint64_t> bound;  // per sector: a value older than this write is stale
};

class Checker {
  public:
    using Complain = std::string;  // empty: fine

    // A generation was opened: it starts from what its parent had acknowledged.
    void generation(Uuid uuid, Uuid parent);
    // The sector after the last one that was acknowledged in it.
    std::uint64_t end_of(Uuid generation) const {
        const auto& acked = model(generation).acked;
        return acked.empty() ? 0 : acked.rbegin()->first + 1;
    }
    bool knows(Uuid uuid) const { return models_.count(uuid_identity(uuid)) != 0; }

    // A write was submitted on a primary of `generation`. Ids rise.
    void submitted(std::uint64_t id, Uuid generation, std::uint64_t sector, std::uint32_t sectors,
                   bool zero);
    // It was acknowledged: `holders` are the members of the in-sync set with their disks.
    // protocol_c: every one has it. fua: durably.
    Complain acknowledged(std::uint64_t id, Uuid generation, bool protocol_c, bool fua,
                          const std::vector<const SimDisk*>& holders);
    // What becomes stable by a flush that is submitted now; the rest is stable already.
    std::map<std::uint64_t, std::uint64_t> flush_submitted(Uuid generation) const;
    Complain flushed(const std::map<std::uint64_t, std::uint64_t>& promise, Uuid generation,
                     const std::vector<const SimDisk*>& holders);

    ReadToken read_submitted(Uuid generation, std::uint64_t sector, std::uint32_t sectors) const;
    Complain read_done(const ReadToken& token, std::uint64_t sector,
                       const std::vector<Stamp>& values) const;

    // A node becomes primary of `generation` with this disk. strict: no acknowledged write may be
    // missing; else only what was flushed must be there.
    Complain promoted(Uuid generation, const SimDisk& disk, bool strict) const;

    // All is healed: nothing that was acknowledged in this generation is missing.
    Complain missing_at_the_end(Uuid generation, const SimDisk& disk) const;

    // After a common power loss: what is there is what was acknowledged, from now on.
    void adopted_losses(Uuid generation, const SimDisk& disk);
    // A forced promotion takes what the disk holds, whatever it is.
    void adopted(Uuid generation, const SimDisk& disk, std::uint64_t sectors);

    bool descends(Uuid generation, Uuid ancestor) const;
    // The value of a sector as of `bound` or later, from the lineage of `generation`?
    bool fits(Stamp value, std::uint64_t sector, std::uint64_t bound, Uuid generation) const;

  private:
    struct Write {
        Uuid generation = 0;
        std::uint64_t sector = 0;
        std::uint32_t sectors = 0;
        bool zero = false;
    };
    struct Model {
        Uuid parent = 0;
        bool answered = false;                           // something was acknowledged in it
        std::map<std::uint64_t, std::uint64_t> acked;    // sector -> newest acknowledged write
        std::map<std::uint64_t, Stamp> base;             // what a forced promotion found
        std::map<std::uint64_t, std::uint64_t> flushed;  // sector -> newest write known stable
        std::map<std::uint64_t, std::uint64_t> pending;  // acknowledged, and not known stable
        // What is known to be stable is checked again on other disks, and now and then on this one.
        std::vector<const SimDisk*> looked_at;
        std::uint64_t flushes = 0;
    };
    const Model& model(Uuid generation) const { return models_.at(uuid_identity(generation)); }

    std::map<Uuid, Model> models_;
    mutable Uuid descendant_ = 0, ancestor_ = 0;  // the last answer of descends() that was yes
    bool may_hold(Uuid generation, Uuid written_in) const;
    const Write* write_of(Stamp id) const {
        return id == 0 || id >= writes_.size() || writes_[id].sectors == 0 ? nullptr : &writes_[id];
    }

    std::vector<Write> writes_;                                   // by id
    std::map<std::uint64_t, std::vector<std::uint64_t>> zeroes_;  // sector -> zeroing writes
};

}  // namespace replica::sim
