// SPDX-License-Identifier: Apache-2.0
// Two nodes as a value: cores, disks, the messages on their way and the I/O under way. A copy goes
// its own way, so that every possible next event can be tried from the same state. The third shell
// over engine/core; it has no delays and no chance in it, only choices.
// Blocks hold the number of the write that filled them (0: zeroes).
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "engine/core/core.hpp"

namespace replica::explore {

using Stamp = unsigned char;
using Data = std::string;  // one stamp for each block

struct Step {
    IoKind kind = IoKind::write;
    std::uint32_t block = 0;
    std::uint32_t blocks = 0;
};

struct Scope {
    const char* name = "";
    std::vector<Step> requests;  // submitted in this order, each at any moment
    std::uint32_t al_extents = 2;
    bool link_loss = false;            // once, at any moment, each side sees it at any later one
    bool kill_secondary = false;       // its process ends; what was in the kernel completes
    bool power_cut_secondary = false;  // its disk's cache is lost, and what was under way
    bool kill_primary = false;         // then the secondary is promoted
    bool resync = false;  // starts with blocks 0 and 2 out of sync, bitmaps on their way
    std::size_t states_max = 200'000;
};

struct Event {
    enum class Kind : std::uint8_t { submit, io, message, close, kill, power_cut } kind;
    std::uint8_t node = 0;
    std::uint8_t index = 0;  // I/O under way, or stream
};

class World {
  public:
    // Connected, in sync, node 0 primary, nothing under way (or as scope.resync has it).
    World(const Scope& scope, Mutant mutant);

    std::vector<Event> events(const Scope& scope) const;
    std::string label(const Scope& scope, Event event) const;
    void apply(const Scope& scope, Event event);
    // What must hold in every state; sets violation().
    void check();
    // Nothing can happen any more: everything was answered; then the links and nodes come back and
    // both disks must become equal.
    void check_end();
    const std::string& violation() const { return violation_; }
    std::uint64_t hash() const;
    std::string describe() const;

  private:
    struct Cell {
        std::uint32_t block;
        Stamp stamp;
    };
    // Few blocks are ever written; the others are zero.
    class Image {
      public:
        Stamp at(std::uint32_t block) const;
        void put(std::uint32_t block, Stamp stamp);
        const std::vector<Cell>& cells() const { return cells_; }

      private:
        std::vector<Cell> cells_;
    };
    using Block = std::array<std::byte, 4096>;
    using SharedBlock = std::shared_ptr<const Block>;
    struct Disk {
        Image visible, durable;
        SharedBlock superblock;
        Uuid current = 0;   // in that superblock
        bool good = false;  // it says Consistent or better
        std::array<SharedBlock, 8> log;
        std::vector<std::uint32_t> logged;  // extents that a restart finds in the log
        SharedBlock bitmap;
    };
    struct Io {
        IoTag tag;
        EffectKind kind = EffectKind::disk_read;
        BufferRef buffer;
        std::uint32_t block = 0, blocks = 0;
        bool durable = false;
        Data data;
        Image snapshot;  // flush: what it covers
        SharedBlock bytes;
        Uuid current = 0;
        bool good = false;
        std::uint32_t al_block = 0;
    };
    struct Buffer {
        BufferRef ref;
        Data data;
    };
    struct Node {
        std::shared_ptr<Core> core;
        mutable std::uint64_t core_hash = 0;  // 0: not known
        bool up = true;
        bool lost_cache = false;
        std::uint32_t starts = 0;
        std::uint8_t boot = 1;
        Disk disk;
        std::vector<Io> io;
        std::vector<Buffer> buffers;
    };
    struct Frame {
        Message message;
        std::shared_ptr<const std::vector<std::byte>> bytes;
        Data data;
    };
    struct Side {
        bool open = false;
        std::array<std::deque<Frame>, 2> incoming;  // by stream
    };
    struct Pending {
        bool used = false;
        std::uint8_t stamp = 0;  // of a write
        Step step;
        Image promise;  // flush
    };

    void fail(const std::string& what);
    void start(unsigned n);
    Core& change(unsigned n);
    void perform(unsigned n);
    void perform_one(unsigned n, const Effect& e);
    void send(unsigned n, const Effect& e);
    void disk_io(unsigned n, const Effect& e);
    void metadata_io(unsigned n, const Effect& e);
    void completed(const Effect& e);
    void finish_io(unsigned n, std::size_t index);
    void finish_metadata(Disk& disk, const Io& io);
    void replay_log(Disk& disk);
    void deliver(unsigned n, unsigned stream);
    void submit(const Step& step);
    void crash(unsigned n, bool power);
    Data& buffer(unsigned n, BufferRef ref);
    void drop_buffer(unsigned n, BufferRef ref);
    void dial();
    void command(unsigned n, CommandKind kind, bool force = false);
    void begin_resync();
    void fail_over();
    void settle();
    void advance(std::uint64_t ms);
    bool in_order();
    bool covered(unsigned n, std::uint32_t block) const;
    std::uint64_t hash_core(unsigned n) const;
    const Core& core(unsigned n) const { return *nodes_[n].core; }

    Instant now_{ns_per_s};
    Mutant mutant_ = Mutant::none;
    std::uint32_t al_extents_ = 2;
    std::array<Node, 2> nodes_;
    std::array<Side, 2> link_;
    bool bound_ = false;  // side 1 has adopted the connections
    bool dialling_ = false;
    bool lost_ = false;  // the link or a node was lost once
    unsigned primary_ = 0;
    std::size_t submitted_ = 0;
    Stamp last_stamp_ = 0;
    std::array<Pending, 3> pending_;
    Image acked_;
    std::string violation_;
};

}  // namespace replica::explore
