// SPDX-License-Identifier: Apache-2.0
// CRC-32C: known values, and that the instruction and the tables agree wherever their loops begin
// and end.
#include <array>
#include <span>
#include <vector>

#include "engine/base/crc32c.hpp"
#include "engine/base/prng.hpp"
#include "tests/catch.hpp"

using namespace replica;

TEST_CASE("crc32c has the published values") {
    const auto digits = std::as_bytes(std::span("123456789", 9));
    CHECK(crc32c(digits) == 0xe3069283);
    CHECK(crc32c_update(0, digits) == 0x58e3fa20);
    const std::array<std::byte, 32> zeroes{};  // RFC 3720, B.4
    CHECK(crc32c(zeroes) == 0x8a9136aa);
    std::array<std::byte, 32> ones;
    ones.fill(std::byte{0xff});
    CHECK(crc32c(ones) == 0x62a8ab43);
    CHECK(crc32c({}) == 0);
}

TEST_CASE("crc32c of the instruction is that of the tables at every length and alignment") {
    Prng prng(1);
    std::vector<std::byte> bytes(3 * 4096 + 64);
    for (std::byte& b : bytes)
        b = static_cast<std::byte>(prng.next());
    const auto seed = static_cast<std::uint32_t>(prng.next());
    const auto agree = [&](std::size_t offset, std::size_t length) {
        const auto part = std::span<const std::byte>(bytes).subspan(offset, length);
        return crc32c_update(seed, part) == crc32c_update_portable(seed, part);
    };
    for (std::size_t offset = 0; offset < 16; ++offset) {
        for (std::size_t length = 0; length < 128; ++length)
            REQUIRE(agree(offset, length));
        for (std::size_t length = 4064; length < 4128; ++length)
            REQUIRE(agree(offset, length));
        REQUIRE(agree(offset, 3 * 4096));
    }
}

TEST_CASE("crc32c may be computed piece by piece") {
    Prng prng(2);
    std::vector<std::byte> bytes(20000);
    for (std::byte& b : bytes)
        b = static_cast<std::byte>(prng.next());
    const std::uint32_t whole = crc32c_update(0, bytes);
    for (int i = 0; i < 100; ++i) {
        const std::size_t cut = prng.below(bytes.size());
        const std::span<const std::byte> all(bytes);
        REQUIRE(crc32c_update(crc32c_update(0, all.first(cut)), all.subspan(cut)) == whole);
    }
}
