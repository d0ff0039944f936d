// SPDX-License-Identifier: Apache-2.0
// What the command lines of the programs have in common, for CLI11: it takes "010" for eight, as C
// does, and an empty argument, which is what a shell makes of a variable that is not set, for one
// that was not given.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

namespace replica::tools {

// For transform(), before a range is checked: a whole number, in decimal.
inline CLI::Validator decimal() {
    return CLI::Validator(
        [](std::string& text) -> std::string {
            const bool digits = !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
                return c >= '0' && c <= '9';
            });
            if (!digits) return fmt::format("\"{}\" is no whole number", text);
            text.erase(0, std::min(text.find_first_not_of('0'), text.size() - 1));
            return "";
        },
        "");
}

// For transform(): bytes, of a number with or without K, M, G, T or P, powers of 1024; not 0.
inline CLI::Validator size_in_bytes() {
    return CLI::Validator(
        [](std::string& text) -> std::string {
            constexpr std::string_view suffixes = "KMGTP";
            const std::size_t end = std::min(text.find_first_not_of("0123456789"), text.size());
            std::uint64_t bytes = 0;
            bool good = end > 0 && end <= 20 && text.size() - end <= 1;
            for (std::size_t at = 0; good && at < end; ++at) {
                const auto digit = static_cast<std::uint64_t>(text[at] - '0');
                good = !__builtin_mul_overflow(bytes, 10U, &bytes) &&
                       !__builtin_add_overflow(bytes, digit, &bytes);
            }
            if (good && end < text.size()) {
                const auto found = suffixes.find(static_cast<char>(text[end] & ~0x20));
                good = found != suffixes.npos;
                for (std::size_t i = 0; good && i <= found; ++i)
                    good = !__builtin_mul_overflow(bytes, 1024U, &bytes);
            }
            if (!good || bytes == 0) {
                return fmt::format(
                    "\"{}\" is refused: write a whole number of bytes, or one with K, M, G, T or P",
                    text);
            }
            text = std::to_string(bytes);
            return "";
        },
        "");
}

// Where an argument is empty, in words; empty: nowhere.
inline std::string empty_argument(int argc, const char* const* argv) {
    for (int i = 1; i < argc; ++i) {
        if (argv[i][0] != '\0') continue;
        const bool value = i > 1 && argv[i - 1][0] == '-';
        return fmt::format("{} is empty: is a variable not set?",
                           value ? argv[i - 1] : "an argument");
    }
    return "";
}

}  // namespace replica::tools
