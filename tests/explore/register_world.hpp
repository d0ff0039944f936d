// SPDX-License-Identifier: Apache-2.0
// A world, as a value, of nodes that agree on the in-sync set by the core's register: the protocol
// of docs/membership.md, and nothing else. There are no blocks. A write is one bit, a resync is one
// step, a label is an InSyncSet. The explorer copies this world and tries each event.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/core/register.hpp"

namespace replica::explore {

// A deliberate mistake in the use of the register.
enum class Misuse : std::uint8_t {
    none,
    acknowledge_before_in_force,
    answer_before_recorded,
    take_older_value,     // in a handshake: the peer's value, also if it is the older one
    join_without_number,  // all members of both, under the later number of the two
    count_stale_answer,   // to a proposal that was replaced
    tell_target_early,    // before the value that counts it in is in force
    promote_without_generation,
    lose_without_generation,
    keep_other_number,  // a promotion, though a member answered under another number
    keep_and_obey,      // the same, and writes under another number are carried out
};

struct RegisterScope {
    const char* name = "";
    unsigned nodes = 3;
    unsigned losses = 0, crashes = 0, promotions = 0, admissions = 0, writes = 0;
    enum class Begin { all, one_behind, one_alone, two_fill, forked } begin = Begin::all;
    unsigned demotions = 0;
    bool await_target = false;  // acknowledge nothing until the target has the value
    bool with_primary = true;   // node 0, at the beginning
    std::uint32_t pairs = ~0U;  // bit 4 * b + a, a < b: these two can be connected
    std::size_t states_max = 3'000'000;
};

enum class Act : std::uint8_t {
    deliver,
    record,
    cut,
    notice,
    crash,
    restart,
    write,
    admit,
    promote,
    connect,
    demote,
};
struct RegisterEvent {
    Act act = Act::deliver;
    std::uint8_t node = 0, peer = 0;
};

class RegisterWorld {
  public:
    static constexpr unsigned nodes_most = 4;
    explicit RegisterWorld(const RegisterScope& scope, Misuse misuse);

    std::vector<RegisterEvent> events(const RegisterScope& scope) const;
    void apply(RegisterEvent event);
    void check();  // of every state
    // All is healed: no node waits for anything, and all pairs that may connect are connected.
    bool settled() const;
    std::uint64_t hash() const;
    const std::string& violation() const { return violation_; }
    unsigned acknowledged() const { return static_cast<unsigned>(acks_.size()); }
    // Two primaries wrote in generations of which neither is in the other's line.
    bool split() const;
    std::string describe() const;
    static bool is_fault(Act act);  // or a request, which need not come either

  private:
    enum class Say : std::uint8_t {
        state,
        propose,
        recorded,
        sync_done,
        promote,
        promote_reply,
        cancel,
        write,
        written,
    };
    struct Message {
        Say say = Say::state;
        std::uint8_t id = 0;    // of a write, of a ballot
        std::uint8_t data = 0;  // writes that the sender holds
        std::int8_t sees = -1;
        bool primary = false, inconsistent = false, refused = false, equal = false;
        InSyncSet set{};
    };
    enum class Phase : std::uint8_t { down, greeting, established };
    struct Link {  // what one side knows of the other
        Phase phase = Phase::down;
        bool equal = false;   // it holds what this node holds
        bool target = false;  // it is filled by this node
        bool source = false;  // it fills this node
        bool told = false;    // sync_done is on its way to it, or the answer is on its way back
        bool owes_value = false, owes_promise = false;
        std::uint8_t ballot = 0;
        SetNumber owed;
        Message stated;
    };
    struct Label {
        InSyncSet set{};
        bool inconsistent = false;
    };
    struct Node {
        bool up = true, primary = false, inconsistent = false, dirty = false, asking = false;
        bool other_number = false;  // a node that was asked has another value
        std::int8_t sees = -1;      // whom it takes for Primary, on a link that stands
        std::int8_t admitting = -1;
        std::uint8_t data = 0, pending = 0, ballot = 0;
        std::uint64_t version = 0, writing_version = 0;
        NodeMask pending_awaited, asked, agreed;
        InSyncSet best;
        InSyncRegister reg;
        Label disk;
        std::optional<Label> writing;
        std::array<Link, nodes_most> link;
    };
    struct Acknowledged {
        std::uint8_t write, promotion;
        Uuid generation;
    };

    void begin(const RegisterScope& scope);
    void join_up(unsigned a, unsigned b);
    bool may_connect(unsigned a, unsigned b) const;
    bool may_admit(unsigned source, unsigned target) const;
    bool may_promote(unsigned n) const;
    bool in_line(Uuid ancestor, Uuid generation) const;
    bool diverged(const InSyncSet& a, const InSyncSet& b) const;
    Uuid open_generation(Uuid parent);

    void send(unsigned from, unsigned to, const Message& message);
    void save(unsigned n);
    void take(unsigned n, const InSyncSet& set);
    void propose(unsigned n, const InSyncSet& next, NodeMask others);
    NodeMask equal_members(unsigned n, NodeMask members) const;
    void drop(unsigned n, unsigned peer);
    void lost(unsigned n, unsigned peer);
    void lost_primary(unsigned n);
    void drop_idle(unsigned n);
    void connect(unsigned a, unsigned b);
    void crash(unsigned n);
    void restart(unsigned n);
    void admit(unsigned source, unsigned target);
    void write(unsigned n);
    void ask(unsigned n);
    void give_up(unsigned n);
    void demote(unsigned n);
    void refuse(unsigned n, unsigned peer);
    void decide(unsigned n);
    void settle(unsigned n);
    void settle_all();
    void acknowledge(unsigned n);
    void check_given_up(unsigned n, std::uint8_t data);

    void deliver(unsigned from, unsigned to);
    void on_state(unsigned n, unsigned peer, const Message& theirs);
    void compare_same(unsigned n, unsigned peer, const Message& mine, const Message& theirs);
    void learn(unsigned n, const InSyncSet& both);
    void become_target(unsigned n, unsigned peer, const Message& theirs);
    void on_propose(unsigned n, unsigned peer, const Message& message);
    void on_recorded(unsigned n, unsigned peer, const Message& message);
    void on_sync_done(unsigned n, unsigned peer, const Message& message);
    void on_promote(unsigned n, unsigned peer, const Message& message);
    void on_promote_reply(unsigned n, unsigned peer, const Message& message);
    void on_write(unsigned n, unsigned peer, const Message& message);
    void on_written(unsigned n, unsigned peer, const Message& message);
    void fail(const std::string& what);

    Misuse misuse_;
    // What is left of the scope's bounds is losses_ and so on.
    unsigned nodes_;
    bool forked_ = false;  // the scope begins with two values of one number
    unsigned losses_ = 0, crashes_ = 0, promotions_ = 0, admissions_ = 0, writes_ = 0;
    std::uint32_t pairs_;
    unsigned demotions_;
    bool await_target_;
    std::uint8_t promoted_ = 0, ballots_ = 0;
    std::array<Node, nodes_most> node_;
    std::array<std::array<std::vector<Message>, nodes_most>, nodes_most> queue_;
    std::array<std::array<bool, nodes_most>, nodes_most> cut_{};
    std::vector<std::uint32_t> line_;  // of each generation: itself and those before it
    std::array<std::uint8_t, nodes_most> promotion_{};
    std::vector<Acknowledged> acks_;
    std::string violation_;
};

}  // namespace replica::explore
