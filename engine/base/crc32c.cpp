// SPDX-License-Identifier: Apache-2.0
// Three ways to the same number: slicing-by-8 tables, one stream of CRC instructions, and three
// streams at once for long inputs. The instruction takes three cycles to answer but accepts a new
// operand every cycle, so three independent lanes triple the speed; a table that advances a CRC
// over a lane of zero bytes joins them. One turn of three lanes and a short tail is a 4 KiB block.
#include "engine/base/crc32c.hpp"

#include <array>

#include "engine/base/endian.hpp"

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace replica {
namespace {

constexpr std::uint32_t polynomial = 0x82f63b78;

using ByteTable = std::array<std::uint32_t, 256>;

// tables[k][b]: the CRC of byte b followed by k zero bytes.
constexpr std::array<ByteTable, 8> make_slicing_tables() {
    std::array<ByteTable, 8> tables{};
    for (std::uint32_t b = 0; b < 256; ++b) {
        std::uint32_t crc = b;
        for (int bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1) ^ ((crc & 1U) != 0 ? polynomial : 0U);
        }
        tables[0][b] = crc;
    }
    for (std::size_t k = 1; k < tables.size(); ++k) {
        for (std::size_t b = 0; b < 256; ++b) {
            const std::uint32_t previous = tables[k - 1][b];
            tables[k][b] = (previous >> 8) ^ tables[0][previous & 0xffU];
        }
    }
    return tables;
}

constexpr auto slicing = make_slicing_tables();

constexpr std::uint32_t update_byte(std::uint32_t crc, std::byte byte) {
    return (crc >> 8) ^ slicing[0][(crc ^ static_cast<std::uint32_t>(byte)) & 0xffU];
}

#if defined(__x86_64__) || defined(__aarch64__)

constexpr std::size_t lane_bytes = 1360;  // 3 * 1360 + 16 = 4096
static_assert(lane_bytes % 8 == 0);

// shift[k][b]: what byte k of a CRC, having the value b, becomes after lane_bytes zero bytes.
constexpr std::array<ByteTable, 4> make_shift_tables() {
    std::array<ByteTable, 4> tables{};
    for (std::size_t bit = 0; bit < 32; ++bit) {
        std::uint32_t crc = std::uint32_t{1} << bit;
        for (std::size_t i = 0; i < lane_bytes; ++i) {
            crc = (crc >> 8) ^ slicing[0][crc & 0xffU];
        }
        // The operation is linear: an entry is the sum of the entries of its bits.
        const std::size_t weight = std::size_t{1} << (bit % 8);
        for (std::size_t b = weight; b < 2 * weight; ++b) {
            tables[bit / 8][b] = tables[bit / 8][b - weight] ^ crc;
        }
    }
    return tables;
}

constexpr auto shift = make_shift_tables();

std::uint32_t advance_over_lane(std::uint32_t crc) {
    return shift[0][crc & 0xffU] ^ shift[1][(crc >> 8) & 0xffU] ^ shift[2][(crc >> 16) & 0xffU] ^
           shift[3][crc >> 24];
}

#if defined(__x86_64__)
#define REPLICA_CRC_TARGET __attribute__((target("sse4.2")))

bool have_instruction() { return __builtin_cpu_supports("sse4.2"); }

REPLICA_CRC_TARGET inline std::uint32_t update_word(std::uint32_t crc, std::uint64_t word) {
    return static_cast<std::uint32_t>(__builtin_ia32_crc32di(crc, word));
}
#else
#define REPLICA_CRC_TARGET

bool have_instruction() {
    static const bool have = (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
    return have;
}

inline std::uint32_t update_word(std::uint32_t crc, std::uint64_t word) {
    asm(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
    return crc;
}
#endif

REPLICA_CRC_TARGET std::uint32_t update_by_instruction(std::uint32_t crc, const std::byte* p,
                                                       std::size_t size) {
    while (size >= 3 * lane_bytes) {
        std::uint32_t second = 0;
        std::uint32_t third = 0;
        for (std::size_t i = 0; i < lane_bytes; i += 8) {
            crc = update_word(crc, load_le<std::uint64_t>(p + i));
            second = update_word(second, load_le<std::uint64_t>(p + lane_bytes + i));
            third = update_word(third, load_le<std::uint64_t>(p + 2 * lane_bytes + i));
        }
        crc = advance_over_lane(advance_over_lane(crc) ^ second) ^ third;
        p += 3 * lane_bytes;
        size -= 3 * lane_bytes;
    }
    for (; size >= 8; p += 8, size -= 8) {
        crc = update_word(crc, load_le<std::uint64_t>(p));
    }
    for (; size > 0; ++p, --size) {
        crc = update_byte(crc, *p);
    }
    return crc;
}

#endif

}  // namespace

std::uint32_t crc32c_update_portable(std::uint32_t crc, std::span<const std::byte> bytes) {
    const std::byte* p = bytes.data();
    std::size_t size = bytes.size();
    for (; size >= 8; p += 8, size -= 8) {
        const std::uint64_t word = load_le<std::uint64_t>(p) ^ crc;
        crc = 0;
        for (std::size_t k = 0; k < 8; ++k) {
            crc ^= slicing[7 - k][(word >> (8 * k)) & 0xffU];
        }
    }
    for (; size > 0; ++p, --size) {
        crc = update_byte(crc, *p);
    }
    return crc;
}

std::uint32_t crc32c_update(std::uint32_t crc, std::span<const std::byte> bytes) {
#if defined(__x86_64__) || defined(__aarch64__)
    if (have_instruction()) return update_by_instruction(crc, bytes.data(), bytes.size());
#endif
    return crc32c_update_portable(crc, bytes);
}

}  // namespace replica
