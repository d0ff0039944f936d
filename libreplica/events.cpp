// SPDX-License-Identifier: Apache-2.0
// Events of the C interface.
#include <utility>

#include "libreplica/backend.hpp"
#include "libreplica/edge.hpp"
#include "replica/replica.h"

using namespace replica;
using namespace replica::lib;

int replica_events_open(replica_node* node, const char* name, replica_events** events) {
    return at_edge([&]() -> Status {
        if (node == nullptr || events == nullptr) {
            return invalid_argument("the node or the place for the handle is NULL");
        }
        TRY(auto source, node->backend->events(name == nullptr ? "" : name));
        auto handle = std::make_unique<replica_events>();
        handle->backend = node->backend;
        handle->source = std::move(source);
        *events = handle.release();
        return ok_status();
    });
}

int replica_events_fd(const replica_events* events) {
    return events == nullptr ? -1 : events->source->fd();
}

int replica_events_next(replica_events* events, int timeout_ms, const replica_event** event) {
    return at_edge([&]() -> Status {
        if (events == nullptr || event == nullptr || timeout_ms < -1) {
            return invalid_argument(
                "the handle or the place for the event is NULL, or the timeout "
                "is below -1");
        }
        std::optional<EventSource::Item> item;
        do {
            TRY(item, events->source->next(timeout_ms));
        } while (!item && timeout_ms < 0);  // a signal may have ended the wait
        if (!item) return Error{Errc::timeout, 0, "no event came"};
        events->last = std::move(item->event);
        const Event& last = events->last;
        events->view = {last.seq,           item->missed,        last.resource.c_str(),
                        last.kind.c_str(),  last.action.c_str(), last.peer.c_str(),
                        last.detail.c_str()};
        *event = &events->view;
        return ok_status();
    });
}

void replica_events_close(replica_events* events) { delete events; }
