// SPDX-License-Identifier: Apache-2.0
// A program that embeds a node in C++20 and keeps many writes under way at once: it fills a volume
// with numbered blocks, makes them stable, and checks every one of them. A second run finds the
// volume again and reads what the first one wrote.
//
//     embed_node DIRECTORY      an empty directory, absolute; 64 MiB are used
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <replica/replica.hpp>
#include <vector>

namespace {

namespace fs = std::filesystem;
using namespace replica::client;

constexpr std::size_t block_bytes = 4096;
constexpr std::size_t blocks = 2048;
constexpr const char* name = "numbers";

void create(Node& node, const fs::path& directory) {
    const fs::path disk = directory / "disk.img";
    std::ofstream(disk).close();
    fs::resize_file(disk, 64U << 20);
    ResourceConfig config;
    config.name = name;
    config.disk = disk.string();
    node.create(config);
    node.up(name);
    node.promote(name, true);  // a fresh disk: what is on it shall count
}

// Block i holds the number i, over and over.
void fill(std::vector<std::byte>& block, std::uint64_t number) {
    for (std::size_t at = 0; at < block.size(); at += sizeof number) {
        std::memcpy(&block[at], &number, sizeof number);
    }
}

void write_all(Volume& volume) {
    std::vector<std::vector<std::byte>> buffers(blocks, std::vector<std::byte>(block_bytes));
    std::atomic<std::size_t> left = blocks;
    std::atomic<int> failed = 0;
    for (std::size_t i = 0; i < blocks; ++i) {
        fill(buffers[i], i);
        volume.submit_write(buffers[i], i * block_bytes, false, [&](int os_errno) {
            if (os_errno != 0) failed = os_errno;
            if (left.fetch_sub(1) == 1) left.notify_one();
        });
    }
    for (auto now = left.load(); now > 0; now = left.load())
        left.wait(now);
    if (failed != 0) throw Error(REPLICA_IO, failed, "a write failed");
    volume.flush();
}

void check_all(Volume& volume) {
    std::vector<std::byte> wanted(block_bytes);
    std::vector<std::byte> found(block_bytes);
    for (std::size_t i = 0; i < blocks; ++i) {
        fill(wanted, i);
        volume.read(found, i * block_bytes);
        if (found != wanted) throw Error(REPLICA_CORRUPT, 0, "block " + std::to_string(i));
    }
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc != 2 || argv[1][0] != '/') {
        std::cerr << "usage: embed_node DIRECTORY (absolute)\n";
        return 2;
    }
    EmbeddedOptions options;
    options.name = "example";
    Node node = Node::embed(argv[1], options);
    const bool again = node.status_json() != "[]";
    if (!again) create(node, argv[1]);
    node.promote(name);
    Volume volume = node.open_volume(name);
    if (!again) write_all(volume);
    check_all(volume);
    std::cout << blocks << " blocks are " << (again ? "still " : "") << "as they were written; "
              << node.status(name).written_bytes << " bytes written by this run\n";
    return 0;
} catch (const std::exception& error) {
    std::cerr << "embed_node: " << error.what() << "\n";
    return 1;
}
