// SPDX-License-Identifier: Apache-2.0
// Writes random blocks through an NBD export and remembers which version of which block was
// acknowledged; later, on whichever node survived, proves that each block holds its acknowledged
// version or one that was submitted after it and never answered.
//
//   acked_writer write  SOCKET EXPORT STATE FIRST_BLOCK BLOCKS DEPTH SECONDS
//   acked_writer verify SOCKET EXPORT STATE
//
// `write` ends with 0 also when the server disappears: that is what it is for. An error reply, or
// no answer for wait_seconds_max, is a failure. For scripts: it says "writing" as soon as a write
// was acknowledged, and its last line is key=value pairs.
#include <algorithm>
#include <array>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "bench/nbd_client.hpp"
#include "engine/base/endian.hpp"
#include "engine/base/prng.hpp"
#include "engine/base/units.hpp"

namespace {

using replica::Prng;
using replica::test::NbdClient;
using Clock = std::chrono::steady_clock;
using Block = std::array<std::byte, replica::block_bytes>;

constexpr unsigned wait_seconds_max = 60;
constexpr unsigned acks_per_flush = 200;
constexpr std::uint64_t blocks_per_read = 64;  // when verifying
constexpr std::uint64_t flush_cookie = ~std::uint64_t{0};

// What is known of one block. Version 0: never written by this program.
struct Known {
    std::uint32_t acked = 0;
    std::uint32_t submitted = 0;  // >= acked; the versions between may or may not be there
};

struct State {
    std::uint64_t seed = 0;
    std::uint64_t first_block = 0;
    std::vector<Known> blocks;
};

constexpr std::uint64_t state_magic = 0x61636b6564777231;

bool load(const std::string& path, State& state) {
    std::FILE* file = std::fopen(path.c_str(), "rb");
    if (file == nullptr) return false;
    std::array<std::uint64_t, 4> head{};
    bool good = std::fread(head.data(), sizeof head, 1, file) == 1 && head[0] == state_magic;
    if (good) {
        state.seed = head[1];
        state.first_block = head[2];
        state.blocks.resize(head[3]);
        good = std::fread(state.blocks.data(), sizeof(Known), head[3], file) == head[3];
    }
    std::fclose(file);
    if (!good) {
        std::fprintf(stderr, "%s: not a state file of this program\n", path.c_str());
        std::exit(2);
    }
    return true;
}

void save(const std::string& path, const State& state) {
    std::FILE* file = std::fopen(path.c_str(), "wb");
    const std::array<std::uint64_t, 4> head{state_magic, state.seed, state.first_block,
                                            state.blocks.size()};
    const bool good = file != nullptr && std::fwrite(head.data(), sizeof head, 1, file) == 1 &&
                      std::fwrite(state.blocks.data(), sizeof(Known), state.blocks.size(), file) ==
                          state.blocks.size();
    if (file == nullptr || std::fclose(file) != 0 || !good) {
        std::perror(path.c_str());
        std::exit(2);
    }
}

// The bytes of one version of a block: every word depends on block and version, so that a sector of
// another block or version, or half of one, can not pass.
void fill(const State& state, std::uint64_t block, std::uint32_t version, Block& out) {
    Prng prng(state.seed ^ (block << 32U) ^ version);
    for (std::size_t at = 0; at < out.size(); at += 8) {
        replica::store_le(out.data() + at, prng.next());
    }
}

// Writes until the time is over or the server is gone.
class Writer {
  public:
    Writer(NbdClient& client, State& state, unsigned depth)
        : client_(client), state_(state), depth_(depth), prng_(state.seed + state.blocks.size()) {
        busy_since_.resize(state.blocks.size());
        for (const Known& known : state.blocks)
            prng_ = Prng(prng_.next() + known.submitted);
    }

    // False: an error reply or a stall.
    bool run(unsigned seconds) {
        const auto end = Clock::now() + std::chrono::seconds(seconds);
        while (alive_ && Clock::now() < end) {
            while (alive_ && in_flight_ < depth_)
                submit();
            if (alive_) complete_one();
        }
        while (alive_ && (in_flight_ > 0 || flushing_))
            complete_one();
        if (alive_) client_.send_disconnect();
        std::printf("acked=%" PRIu64 " unanswered=%u flushes=%" PRIu64
                    " lost=%d longest_wait_ms=%lld\n",
                    acked_, in_flight_, flushes_, alive_ ? 0 : 1,
                    static_cast<long long>(
                        std::chrono::duration_cast<std::chrono::milliseconds>(longest_).count()));
        return errors_ == 0 && client_.why().find("no answer") == std::string::npos;
    }

  private:
    void submit() {
        std::uint64_t index = prng_.below(state_.blocks.size());
        while (busy_since_[index] != Clock::time_point{})
            index = (index + 1) % busy_since_.size();
        const std::uint64_t block = state_.first_block + index;
        fill(state_, block, ++state_.blocks[index].submitted, buffer_);
        busy_since_[index] = Clock::now();
        ++in_flight_;
        alive_ = client_.send_write(index, block * replica::block_bytes, buffer_);
    }

    void complete_one() {
        const auto reply = client_.receive();
        if (!reply) {
            alive_ = false;
            return;
        }
        if (reply->error != 0) {
            std::printf("an error reply: NBD error %u\n", reply->error);
            ++errors_;
        }
        if (reply->cookie == flush_cookie) {
            flushing_ = false;
            ++flushes_;
            return;
        }
        if (reply->cookie >= busy_since_.size()) {
            std::printf("a reply to a request that was never made\n");
            ++errors_;
            return;
        }
        Clock::time_point& since = busy_since_[reply->cookie];
        longest_ = std::max(longest_, Clock::now() - since);
        since = {};
        --in_flight_;
        Known& known = state_.blocks[reply->cookie];
        if (reply->error == 0) known.acked = known.submitted;
        if (acked_ == 0) {
            std::puts("writing");
            std::fflush(stdout);
        }
        if (++acked_ % acks_per_flush == 0 && !flushing_) {
            flushing_ = true;
            alive_ = client_.send_flush(flush_cookie);
        }
    }

    NbdClient& client_;
    State& state_;
    unsigned depth_;
    Prng prng_;
    Block buffer_{};
    std::vector<Clock::time_point> busy_since_;  // of each block; the epoch: not in flight
    Clock::duration longest_{};
    std::uint64_t acked_ = 0;
    std::uint64_t flushes_ = 0;
    std::uint64_t errors_ = 0;
    unsigned in_flight_ = 0;
    bool flushing_ = false;
    bool alive_ = true;
};

// The versions between acked and submitted that each sector may hold. Sectors of a write that was
// never answered may differ; of an answered one all must be of the same version.
bool matches(const State& state, std::uint64_t index, const std::byte* seen,
             std::uint32_t& version) {
    const Known& known = state.blocks[index];
    Block expected;
    std::array<bool, replica::block_bytes / replica::sector_bytes> found{};
    for (version = known.submitted;; --version) {
        bool whole = true;
        if (version == 0) {
            expected.fill(std::byte{0});  // not written by us: the volume was blank there
        } else {
            fill(state, state.first_block + index, version, expected);
        }
        for (std::size_t sector = 0; sector < found.size(); ++sector) {
            const std::size_t at = sector * replica::sector_bytes;
            const bool same =
                std::memcmp(seen + at, expected.data() + at, replica::sector_bytes) == 0;
            found[sector] = found[sector] || same;
            whole = whole && same;
        }
        if (whole) return true;
        if (version == known.acked) break;
    }
    for (const bool sector_found : found) {
        if (!sector_found) return false;
    }
    return true;
}

int verify(NbdClient& client, State& state) {
    std::uint64_t checked = 0, newer = 0, wrong = 0;
    std::vector<std::byte> chunk(blocks_per_read * replica::block_bytes);
    for (std::uint64_t index = 0; index < state.blocks.size(); ++index) {
        Known& known = state.blocks[index];
        const std::uint64_t block = state.first_block + index;
        const std::uint64_t in_chunk = index % blocks_per_read;
        if (in_chunk == 0) {
            const std::uint64_t count = std::min(blocks_per_read, state.blocks.size() - index);
            if (!client.read(block * replica::block_bytes,
                             std::span(chunk).first(count * replica::block_bytes))) {
                std::printf("reading block %" PRIu64 ": %s\n", block, client.why().c_str());
                return 1;
            }
        }
        if (known.submitted == 0) continue;
        ++checked;
        std::uint32_t version = 0;
        if (!matches(state, index, chunk.data() + in_chunk * replica::block_bytes, version)) {
            if (++wrong <= 10) {
                std::printf("block %" PRIu64 " holds none of the versions %u..%u\n", block,
                            known.acked, known.submitted);
            }
            continue;
        }
        // What was read once must be read again: from here on it counts as acknowledged.
        if (known.acked != known.submitted) {
            newer += version > known.acked ? 1U : 0U;
            known.acked = version;
        }
    }
    client.send_disconnect();
    std::printf("checked=%" PRIu64 " newer=%" PRIu64 " wrong=%" PRIu64 "\n", checked, newer, wrong);
    return wrong == 0 ? 0 : 1;
}

int usage() {
    std::fprintf(stderr,
                 "usage: acked_writer write SOCKET EXPORT STATE FIRST_BLOCK BLOCKS DEPTH SECONDS\n"
                 "       acked_writer verify SOCKET EXPORT STATE\n");
    return 2;
}

}  // namespace

int main(int argc, char** argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    const bool writing = arguments.size() == 8 && arguments[0] == "write";
    if (!writing && !(arguments.size() == 4 && arguments[0] == "verify")) return usage();

    State state;
    const bool known = load(arguments[3], state);
    if (!known && !writing) return usage();
    if (!known) {
        state.seed = static_cast<std::uint64_t>(Clock::now().time_since_epoch().count());
        state.first_block = std::stoull(arguments[4]);
        state.blocks.resize(std::stoull(arguments[5]));
    }
    NbdClient client(wait_seconds_max);
    if (!client.open(arguments[1], arguments[2])) {
        std::fprintf(stderr, "acked_writer: %s\n", client.why().c_str());
        return 1;
    }
    const std::uint64_t end = (state.first_block + state.blocks.size()) * replica::block_bytes;
    const auto depth = writing ? static_cast<unsigned>(std::stoul(arguments[6])) : 1U;
    if (end > client.size_bytes() || depth == 0 || depth >= state.blocks.size()) {
        std::fprintf(stderr, "acked_writer: the blocks do not fit the volume or the depth\n");
        return 2;
    }
    if (!writing) {
        const int code = verify(client, state);
        save(arguments[3], state);
        return code;
    }
    const bool good =
        Writer(client, state, depth).run(static_cast<unsigned>(std::stoul(arguments[7])));
    save(arguments[3], state);
    return good ? 0 : 1;
}
