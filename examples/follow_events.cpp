// SPDX-License-Identifier: Apache-2.0
// Follows the events of a node, as a monitor or a cluster manager would: prints the state of every
// resource once, and then each change, in a poll loop that could watch other descriptors as well.
//
//     follow_events [URL [COUNT]]      unix:PATH or embedded:DIR; ends after COUNT events
#include <poll.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <replica/replica.hpp>

int main(int argc, char** argv) try {
    using namespace replica::client;
    Node node = Node::open(argc > 1 ? argv[1] : "unix:");
    long left = argc > 2 ? std::atol(argv[2]) : -1;

    // First the events, then the status: what changes in between comes twice rather than never.
    Events events = node.events();
    std::cout << node.status_json() << std::endl;

    while (left != 0) {
        pollfd fd{events.fd(), POLLIN, 0};
        if (::poll(&fd, 1, -1) < 0) return 1;
        while (auto event = events.next(std::chrono::milliseconds(0))) {
            if (event->missed > 0) {
                // Too slow: what was known is stale, so look again.
                std::cout << event->missed << " events were missed\n" << node.status_json() << "\n";
                continue;
            }
            std::cout << event->action << " " << event->kind << " " << event->resource
                      << (event->peer.empty() ? "" : " peer " + event->peer) << ": "
                      << event->detail << std::endl;
            if (left > 0 && --left == 0) break;
        }
    }
    return 0;
} catch (const std::exception& error) {
    std::cerr << "follow_events: " << error.what() << "\n";
    return 1;
}
