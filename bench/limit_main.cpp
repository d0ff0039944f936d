// SPDX-License-Identifier: Apache-2.0
// Prints the limit (bench/limit.hpp) at several queue depths, as a table or as JSON. Depths take
// turns, so that a slow moment of the machine does not fall on one of them alone.
#include <getopt.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "bench/limit.hpp"

using namespace replica;
using namespace replica::bench;

namespace {

struct Arguments {
    LimitOptions limit;
    std::vector<unsigned> depths{1, 16, 64};
    unsigned rounds = 5;
    double seconds = 1.0;  // of one round
    std::string json;      // a file to write, empty: none
};

void usage() {
    std::puts(
        "usage: limit [--directory DIR] [--depth N]... [--rounds N] [--seconds S] [--bytes N] "
        "[--json FILE]\n"
        "Measures the least that a mirrored write can cost here: a direct write to a file in DIR\n"
        "(default /var/tmp) and at once a message over loopback TCP to a second thread, a direct\n"
        "write there, an acknowledgement back. Default: depths 1, 16, 64; 5 rounds of 1 s each\n"
        "(--quick: 3 of 0.2 s). Prints a table; --json also writes the numbers to FILE.");
}

bool parse(int argc, char** argv, Arguments& arguments) {
    static const option options[] = {{"directory", required_argument, nullptr, 'd'},
                                     {"depth", required_argument, nullptr, 'q'},
                                     {"rounds", required_argument, nullptr, 'r'},
                                     {"seconds", required_argument, nullptr, 's'},
                                     {"bytes", required_argument, nullptr, 'b'},
                                     {"json", required_argument, nullptr, 'j'},
                                     {"quick", no_argument, nullptr, 'k'},
                                     {"help", no_argument, nullptr, 'h'},
                                     {nullptr, 0, nullptr, 0}};
    bool depths_given = false;
    for (int c = 0; (c = getopt_long(argc, argv, "", options, nullptr)) != -1;) {
        const unsigned long number = optarg != nullptr ? std::strtoul(optarg, nullptr, 10) : 0;
        switch (c) {
            case 'd':
                arguments.limit.directory = optarg;
                break;
            case 'q':
                if (number < 1 || number > 256) return false;
                if (!depths_given) arguments.depths.clear();
                depths_given = true;
                arguments.depths.push_back(static_cast<unsigned>(number));
                break;
            case 'r':
                if (number < 1) return false;
                arguments.rounds = static_cast<unsigned>(number);
                break;
            case 's':
                arguments.seconds = std::strtod(optarg, nullptr);
                if (!(arguments.seconds > 0 && arguments.seconds < 3600)) return false;
                break;
            case 'b':
                if (number < 512 || number > (1U << 20) || number % 512 != 0) return false;
                arguments.limit.write_bytes = static_cast<std::uint32_t>(number);
                break;
            case 'j':
                arguments.json = optarg;
                break;
            case 'k':
                arguments.rounds = 3;
                arguments.seconds = 0.2;
                break;
            case 'h':
                usage();
                std::exit(0);
            default:
                return false;
        }
    }
    return optind == argc;
}

double micro(std::uint64_t ns) { return static_cast<double>(ns) / 1000; }

void print_table(const Arguments& arguments, const std::vector<Samples>& all) {
    std::printf("%6s %10s %10s %10s %10s\n", "depth", "p50 us", "p99 us", "IOPS", "writes");
    for (std::size_t i = 0; i < all.size(); ++i) {
        std::printf("%6u %10.1f %10.1f %10.0f %10zu\n", arguments.depths[i],
                    micro(all[i].percentile(0.5)), micro(all[i].percentile(0.99)), all[i].iops(),
                    all[i].latency_ns.size());
    }
}

bool write_json(const Arguments& arguments, const std::vector<Samples>& all) {
    std::FILE* file = std::fopen(arguments.json.c_str(), "we");
    if (file == nullptr) return false;
    for (std::size_t i = 0; i < all.size(); ++i) {
        std::fprintf(file,
                     "%s{\"name\": \"limit\", \"depth\": %u, \"bytes\": %u, \"p50_us\": %.1f, "
                     "\"p99_us\": %.1f, \"iops\": %.0f, \"writes\": %zu}",
                     i == 0 ? "[" : ",\n ", arguments.depths[i], arguments.limit.write_bytes,
                     micro(all[i].percentile(0.5)), micro(all[i].percentile(0.99)), all[i].iops(),
                     all[i].latency_ns.size());
    }
    std::fputs("]\n", file);
    return std::fclose(file) == 0;
}

}  // namespace

int main(int argc, char** argv) {
    Arguments arguments;
    if (!parse(argc, argv, arguments)) {
        usage();
        return 2;
    }
    auto limit = Limit::create(arguments.limit);
    if (!limit) {
        std::fprintf(stderr, "limit: %s\n", limit.error().message.c_str());
        return 1;
    }
    std::vector<Samples> all(arguments.depths.size());
    for (unsigned round = 0; round < arguments.rounds; ++round) {
        for (std::size_t i = 0; i < all.size(); ++i) {
            const auto duration = static_cast<std::uint64_t>(arguments.seconds * 1e9);
            auto samples = limit.value()->round(arguments.depths[i], duration);
            if (!samples) {
                std::fprintf(stderr, "limit: %s\n", samples.error().message.c_str());
                return 1;
            }
            all[i].add(samples.value());
        }
    }
    print_table(arguments, all);
    if (!arguments.json.empty() && !write_json(arguments, all)) {
        std::fprintf(stderr, "limit: can not write %s: %s\n", arguments.json.c_str(),
                     std::strerror(errno));
        return 1;
    }
    return 0;
}
