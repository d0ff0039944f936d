/* SPDX-License-Identifier: Apache-2.0
 * libreplica: Replica's C interface. It controls a node, one that runs in a daemon ("unix:PATH") or
 * one that it starts inside the calling process ("embedded:DIR"), and reads and writes the volumes
 * of an embedded node without any block device. C99 and later; replica.hpp puts C++20 over it.
 *
 * Results. Functions that can fail return 0 (REPLICA_OK) or a replica_code, and the calling
 * thread's replica_last_error() then says what was refused, why, and what would make it work.
 * Output parameters are written on success only.
 *
 * Threads. Every function may be called from any thread, at the same time on the same handle,
 * unless it says otherwise. Closing a handle while another thread uses it is a mistake of the
 * caller. Calls block until they are done; none may be made from inside a callback of this library.
 *
 * Strings are NUL-terminated UTF-8. Names of nodes and resources have 1 to 63 of the characters
 * A-Z a-z 0-9 . _ - and begin with a letter or a digit. Sizes and offsets are bytes. Strings that
 * are passed in are copied.
 *
 * Structures that may grow begin with struct_size: set it to sizeof the structure (or use
 * REPLICA_INIT) and zero the rest; a newer library then treats what an older caller does not have
 * as zero, which is always the default.
 */
#ifndef REPLICA_REPLICA_H
#define REPLICA_REPLICA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define REPLICA_VERSION_MAJOR 0
#define REPLICA_VERSION_MINOR 1
#define REPLICA_VERSION_PATCH 0

#if defined(__GNUC__) || defined(__clang__)
#define REPLICA_API __attribute__((visibility("default")))
#else
#define REPLICA_API
#endif

/* Zeroes a structure that begins with struct_size: replica_resource_config c = REPLICA_INIT(c);
 * In C++: replica_resource_config c{}; c.struct_size = sizeof c; */
#ifndef __cplusplus
#define REPLICA_INIT(variable) \
    { .struct_size = sizeof(variable) }
#endif

/* ------------------------------------------------------------------------------------------------
 * Version and errors
 */

/* The version of the library that is loaded: major << 16 | minor << 8 | patch. Within one soname a
 * program runs with any library at least as new as the header it was compiled with. */
REPLICA_API uint32_t replica_version(void);

/* The same as text, "0.1.0". Static; never freed. */
REPLICA_API const char* replica_version_string(void);

/* What kind of thing went wrong. The numbers are fixed; they are also replicactl's exit codes. */
typedef enum replica_code {
    REPLICA_OK = 0,
    REPLICA_INVALID = 1,     /* the request itself is malformed or contradictory */
    REPLICA_NOT_FOUND = 2,   /* no such resource, peer or file */
    REPLICA_EXISTS = 3,      /* would overwrite something; force may be what is wanted */
    REPLICA_BUSY = 4,        /* in use, or another operation of the kind is under way */
    REPLICA_IO = 5,          /* a disk or socket failed; os_errno says how */
    REPLICA_CORRUPT = 6,     /* bytes that fail their checksum, magic or bounds */
    REPLICA_UNSUPPORTED = 7, /* a version or feature that this node or handle does not have */
    REPLICA_STATE = 8,       /* refused in the present role, disk or connection state */
    REPLICA_NO_SPACE = 9,    /* the device is too small or full */
    REPLICA_PERMISSION = 10, /* the caller may not */
    REPLICA_TIMEOUT = 11,    /* did not happen in the time given */
    REPLICA_CANCELLED = 12,  /* ended by a shutdown or by the caller */
    REPLICA_LIMIT = 13       /* a compiled-in or configured limit, or memory */
} replica_code;

typedef struct replica_error {
    int code;            /* replica_code */
    int os_errno;        /* 0, or the errno that caused it */
    const char* message; /* for people; never NULL */
} replica_error;

/* The error of the last function of this library that failed on this thread; code REPLICA_OK and an
 * empty message if none has. Valid until the next call of this library on this thread. */
REPLICA_API const replica_error* replica_last_error(void);

/* A short name of a replica_code: "not-found". Static; "unknown" for other numbers. */
REPLICA_API const char* replica_code_name(int code);

/* Frees a string that a function of this library has handed out. NULL is allowed. */
REPLICA_API void replica_free(char* string);

/* ------------------------------------------------------------------------------------------------
 * Nodes
 */

/* A node that is talked to, or one that runs in this process. */
typedef struct replica_node replica_node;

/* Opens a node by URL. "unix:/run/replica/control.sock" is the replicad behind this socket, and
 * "unix:" alone means this very path. "embedded:/var/lib/app/replica" is as replica_open_embedded()
 * without options.
 *
 * A unix handle keeps a connection for each call that is under way and survives a restart of the
 * daemon. Errors: INVALID (URL), and for unix NOT_FOUND, IO, PERMISSION (nobody answers, or not to
 * us); for embedded as replica_open_embedded(). */
REPLICA_API int replica_open(const char* url, replica_node** node);

typedef struct replica_embedded_options {
    size_t struct_size;
    const char* name;    /* of the node; NULL: the host's name */
    const char* listen;  /* HOST:PORT for peers; NULL: nowhere (a lone node) */
    const char* control; /* path of a control socket, so that replicactl works; NULL: none */
    uint32_t reactors;   /* threads that serve resources, 1..64; 0: 1 */
    bool lock_memory;    /* lock the memory of the whole process against swapping */
    /* Called with a syslog level (0..7) and a line, on any thread; it must not call this library.
     * NULL: no log. */
    void (*log)(void* context, int level, const char* line);
    void* log_context;
} replica_embedded_options;

/* Starts a node in this process. `directory` (absolute; made if missing, mode 0700) holds its
 * configuration and belongs to this handle until it is closed. Resources that were up when the node
 * last ran are brought up again, as Secondary. `options` may be NULL.
 * Errors: INVALID, BUSY (directory or address in use), UNSUPPORTED (no io_uring), LIMIT, IO. */
REPLICA_API int replica_open_embedded(const char* directory,
                                      const replica_embedded_options* options, replica_node** node);

/* Closes the handle; NULL is allowed. An embedded node brings everything down cleanly first and
 * stops; it does so only when its last volume and event handle have been closed too. */
REPLICA_API void replica_close(replica_node* node);

/* ------------------------------------------------------------------------------------------------
 * Resources
 */

typedef struct replica_peer {
    const char* name;    /* node name */
    uint32_t node_id;    /* 0..31, unlike that of every other node of the resource */
    const char* address; /* HOST:PORT of its replicad; IPv6 in brackets */
} replica_peer;

typedef struct replica_resource_config {
    size_t struct_size;
    const char* name;
    uint32_t node_id; /* of this node, 0..31; it stays the same for life */
    uint32_t volume;  /* 0..65534 */
    const char* disk; /* file or block device, absolute path */
    const char*
        metadata; /* absolute path of external metadata; NULL: internal, at the disk's end */
    const replica_peer* peers;
    size_t peer_count; /* 0..31 */
    /* Options as a JSON object, with the names and values of `replicactl options`, for example
     * "{\"protocol\":\"C\",\"resync-rate-max\":\"100M\"}"; NULL: the defaults. */
    const char* options;
    /* For replica_create() only. */
    bool force;         /* overwrite data or metadata that is found on the disk */
    uint32_t max_peers; /* bitmap slots to make room for, 1..31; 0: one for each peer, at least 1 */
    uint64_t size_bytes; /* of the volume; 0: all that fits */
} replica_resource_config;

/* Writes fresh metadata and remembers the configuration; the resource is then down. Errors: EXISTS
 * (the name is taken, or the disk holds data or metadata and force is off), BUSY (disk in use),
 * NO_SPACE, NOT_FOUND, INVALID. */
REPLICA_API int replica_create(replica_node* node, const replica_resource_config* config);

/* Remembers a resource whose metadata is on its disk already: one that was moved here, or that DRBD
 * left. The disk is looked at when the resource is brought up. Errors: EXISTS (the name), INVALID.
 */
REPLICA_API int replica_adopt(replica_node* node, const replica_resource_config* config);

/* Forgets a resource that is down. Its disk is not touched. Errors: NOT_FOUND, STATE (it is up). */
REPLICA_API int replica_remove(replica_node* node, const char* name);

/* Changes options, as a JSON object with those that change. Errors: INVALID, NOT_FOUND, STATE. */
REPLICA_API int replica_set_options(replica_node* node, const char* name, const char* options);

/* Attaches the disk and connects to the peers, now and whenever the node starts. Nothing happens to
 * a resource that is up already. Errors: NOT_FOUND, BUSY, CORRUPT, IO, STATE (it is another node's
 * disk). */
REPLICA_API int replica_up(replica_node* node, const char* name);

/* Closes doors, demotes, disconnects and detaches, and stays down when the node starts. Errors:
 * NOT_FOUND, BUSY (a door is in use, or has NBD clients; replica_call() with "force" cuts them
 * off). */
REPLICA_API int replica_down(replica_node* node, const char* name);

/* Attaches the disk alone. Errors: NOT_FOUND, BUSY, CORRUPT, IO, STATE. */
REPLICA_API int replica_attach(replica_node* node, const char* name);

/* Detaches the disk; a Primary goes on with the data of its peers. Errors: NOT_FOUND, STATE (it
 * holds the last good data). */
REPLICA_API int replica_detach(replica_node* node, const char* name);

/* Connects to a peer, or to every peer for NULL, and goes on trying. With discard_my_data this node
 * takes over the peer's data after a split brain: what only this node has is lost. Errors:
 * NOT_FOUND, STATE. */
REPLICA_API int replica_connect(replica_node* node, const char* name, const char* peer,
                                bool discard_my_data);

/* Disconnects from a peer, or from every peer for NULL, and stays StandAlone. Errors: NOT_FOUND. */
REPLICA_API int replica_disconnect(replica_node* node, const char* name, const char* peer);

/* Makes this node Primary. With force also on data that may be old, which then counts as good.
 * Errors: NOT_FOUND, STATE (data not good enough, or a peer is Primary), TIMEOUT. */
REPLICA_API int replica_promote(replica_node* node, const char* name, bool force);

/* Makes this node Secondary. Errors: NOT_FOUND, BUSY (a door is in use). */
REPLICA_API int replica_demote(replica_node* node, const char* name);

/* Throws the local data away and resyncs all of it from a peer. Errors: NOT_FOUND, STATE. */
REPLICA_API int replica_invalidate(replica_node* node, const char* name);

/* Throws the data of a peer away (NULL: of the only peer) and resyncs all of it from this node.
 * Errors: NOT_FOUND, INVALID (several peers and none named), STATE. */
REPLICA_API int replica_invalidate_remote(replica_node* node, const char* name, const char* peer);

/* Pauses the resync with a peer, or with every peer for NULL. Errors: NOT_FOUND, STATE. */
REPLICA_API int replica_pause_sync(replica_node* node, const char* name, const char* peer);

/* Resumes it. Errors: NOT_FOUND, STATE. */
REPLICA_API int replica_resume_sync(replica_node* node, const char* name, const char* peer);

/* Opens a new generation on a Secondary. With clear_bitmap the initial sync is skipped: only for
 * replicas that were just created and can be proven equal. Errors: NOT_FOUND, STATE. */
REPLICA_API int replica_new_current_uuid(replica_node* node, const char* name, bool clear_bitmap);

/* Makes room on this node's disk, if that has grown, and lets the volume grow to size_bytes (0: to
 * all that every node has room for) once all nodes have made room. *new_size_bytes (may be NULL)
 * gets its size now, which is the old one while other nodes have no room yet: call it on each.
 * Takes as long as the new room takes to be zeroed. Errors: NOT_FOUND, STATE, NO_SPACE, UNSUPPORTED
 * (it can not shrink), INVALID (not a multiple of 4096), IO. */
REPLICA_API int replica_resize(replica_node* node, const char* name, uint64_t size_bytes,
                               uint64_t* new_size_bytes);

/* Opens a door: "unix:PATH" or "tcp:HOST:PORT" for an NBD export, "ublk" or "nbd" for a block
 * device by this driver of the kernel, which is then also at /dev/replica/by-res/NAME. Errors:
 * STATE (not Primary), EXISTS, IO, and for a block device UNSUPPORTED (this kernel has none),
 * PERMISSION. */
REPLICA_API int replica_export(replica_node* node, const char* name, const char* door);

/* Closes one door, as it was opened, or all of them for NULL. Errors: NOT_FOUND, BUSY (it is in
 * use, or has NBD clients). */
REPLICA_API int replica_unexport(replica_node* node, const char* name, const char* door);

/* ------------------------------------------------------------------------------------------------
 * State
 */

typedef enum replica_until {
    REPLICA_UNTIL_CONNECTED = 1, /* to the peer, or to every peer, and its state known */
    REPLICA_UNTIL_SYNCED = 2,    /* connected, and nothing is out of sync */
    REPLICA_UNTIL_UPTODATE = 3,  /* the local disk is UpToDate */
    REPLICA_UNTIL_PRIMARY = 4    /* this node is Primary */
} replica_until;

/* Waits for a state; `peer` limits it to one peer (NULL: all). timeout_ms 0: no limit. Errors:
 * TIMEOUT (the message says what is missing), NOT_FOUND, CANCELLED (the node stops). */
REPLICA_API int replica_wait(replica_node* node, const char* name, replica_until until,
                             const char* peer, uint64_t timeout_ms);

typedef struct replica_peer_status {
    const char* name;
    uint32_t node_id;
    const char* connection;  /* DRBD's names: "StandAlone", "Connecting", "Connected", ... */
    const char* role;        /* "Primary", "Secondary", "Unknown" */
    const char* disk;        /* "UpToDate", "Inconsistent", "DUnknown", ... */
    const char* replication; /* "Off", "Established", "SyncSource", "SyncTarget", ... */
    const char* why;         /* what there is to say about its state; empty: nothing */
    uint64_t out_of_sync_bytes;
    uint64_t resync_total_bytes; /* at the start of the resync; 0: none is running */
    uint64_t resync_done_bytes;
    uint64_t resync_bytes_per_s;
} replica_peer_status;

typedef struct replica_status {
    const char* name;
    uint32_t node_id;
    uint32_t volume;
    bool up;
    bool suspended;   /* writes wait */
    const char* role; /* "Primary", "Secondary" */
    const char* disk; /* DRBD's disk states: "UpToDate", "Inconsistent", "Diskless", ... */
    const char* why;  /* what there is to say about its state; empty: nothing */
    uint64_t size_bytes;
    uint64_t read_bytes;
    uint64_t written_bytes;
    const char* current_uuid; /* 16 hex digits */
    size_t peer_count;
    const replica_peer_status* const* peers; /* peer_count pointers */
} replica_status;

/* The state of one resource, to be freed with replica_status_free(). The library makes the
 * structure, so newer ones may have more members at its end. Errors: NOT_FOUND. */
REPLICA_API int replica_status_get(replica_node* node, const char* name, replica_status** status);

/* Frees a status and all it points to; NULL is allowed. */
REPLICA_API void replica_status_free(replica_status* status);

/* The state of one resource, or of all for NULL, as a JSON array with the field names of `drbdsetup
 * status --json`. Free it with replica_free(). Errors: NOT_FOUND. */
REPLICA_API int replica_status_json(replica_node* node, const char* name, char** json);

/* Latency histograms of the parts of a write as a JSON object: for each part "total", "sum-ns",
 * "max-ns" and "counts-log2-ns", whose entry i counts [2^i, 2^(i+1)) ns. Errors: NOT_FOUND. */
REPLICA_API int replica_stats_json(replica_node* node, const char* name, char** json);

/* Any method of the control protocol (docs/control.md) with its parameters as a JSON object
 * (NULL: none). `result` may be NULL; else free what it gets with replica_free(). Errors: as the
 * method, UNSUPPORTED (no such method), INVALID (params is not JSON). */
REPLICA_API int replica_call(replica_node* node, const char* method, const char* params,
                             char** result);

/* ------------------------------------------------------------------------------------------------
 * Events
 */

typedef struct replica_events replica_events;

typedef struct replica_event {
    uint64_t seq;    /* grows by 1 with each event of the node */
    uint64_t missed; /* > 0: this reader was too slow and so many were dropped; all else empty */
    const char* resource; /* name */
    const char* kind;     /* "resource", "device", "connection", "peer-device", "door", ... */
    const char* action;   /* "create", "change", "destroy" */
    const char* peer;     /* empty: not about a peer */
    const char* detail;   /* for people */
} replica_event;

/* Follows the events of one resource, or of all for NULL. A status that is asked for after this
 * call and then kept up with the events misses nothing. Errors: NOT_FOUND, LIMIT, IO. */
REPLICA_API int replica_events_open(replica_node* node, const char* name, replica_events** events);

/* A descriptor to poll for reading. When it is readable call replica_events_next() with timeout 0
 * until it returns TIMEOUT. It belongs to the handle and must not be read or closed. */
REPLICA_API int replica_events_fd(const replica_events* events);

/* The next event; timeout_ms -1: wait for one, 0: do not wait. The event is valid until the next
 * call on this handle, which one thread at a time may use. Errors: TIMEOUT (none came), IO (the
 * daemon went away: open again). */
REPLICA_API int replica_events_next(replica_events* events, int timeout_ms,
                                    const replica_event** event);

/* Stops following; NULL is allowed. */
REPLICA_API void replica_events_close(replica_events* events);

/* ------------------------------------------------------------------------------------------------
 * Volumes of an embedded node
 */

typedef struct replica_volume replica_volume;

/* Write, discard, write_zeroes: complete only when stable on every in-sync replica. */
#define REPLICA_FUA 1u

/* Opens the volume of a resource for reading and, while the node is Primary, for writing. It stays
 * open over promote, demote, down and up. Errors: NOT_FOUND, UNSUPPORTED (a unix handle: use the
 * daemon's NBD export). */
REPLICA_API int replica_volume_open(replica_node* node, const char* name, replica_volume** volume);

/* Closes; nothing submitted may be under way. NULL is allowed. */
REPLICA_API void replica_volume_close(replica_volume* volume);

/* The size in bytes as of now. Errors: NOT_FOUND (the resource was removed). */
REPLICA_API int replica_volume_size(replica_volume* volume, uint64_t* size_bytes);

/* Reads `length` bytes, of any length, and returns when they are there; offset and length are
 * multiples of 512. Errors: INVALID (alignment, beyond the end), STATE (down), IO (os_errno is one
 * of those of replica_io). */
REPLICA_API int replica_read(replica_volume* volume, void* buffer, size_t length, uint64_t offset);

/* Writes, and returns when the resource's protocol says that it is done. It is durable after the
 * next successful replica_flush(), or with REPLICA_FUA in `flags` when it returns. Lengths as for
 * replica_read(). Errors: INVALID, STATE (down, not Primary), NO_SPACE, IO. */
REPLICA_API int replica_write(replica_volume* volume, const void* buffer, size_t length,
                              uint64_t offset, uint32_t flags);

/* Makes every write that was done before it stable on every in-sync replica. Errors: STATE, IO. */
REPLICA_API int replica_flush(replica_volume* volume);

/* Gives the space of a range back; what it reads as afterwards is the same on all replicas. Offset
 * and length are multiples of 512. Errors: as replica_write(). */
REPLICA_API int replica_discard(replica_volume* volume, uint64_t offset, uint64_t length);

/* Writes zeroes to a range, without sending them where that can be avoided. Offset and length are
 * multiples of 512. Errors: as replica_write(). */
REPLICA_API int replica_write_zeroes(replica_volume* volume, uint64_t offset, uint64_t length);

typedef enum replica_io_kind {
    REPLICA_IO_READ = 1,
    REPLICA_IO_WRITE = 2,
    REPLICA_IO_FLUSH = 3,
    REPLICA_IO_DISCARD = 4,
    REPLICA_IO_WRITE_ZEROES = 5
} replica_io_kind;

typedef struct replica_io {
    size_t struct_size;
    replica_io_kind kind;
    uint32_t flags;  /* REPLICA_FUA or 0 */
    uint64_t offset; /* a multiple of 512 */
    uint64_t length; /* a multiple of 512; 0 for a flush */
    void* buffer;    /* read: filled; write: sent from. In place and, for a write, unchanged until
                      * done was called. NULL for the others. */
    /* Called once, on a thread of the node, with 0 or a positive errno: EROFS (not Primary),
     * ENOLINK (no replica with good data can be reached), ESHUTDOWN (going down), EBUSY (a block
     * device waits to be adopted), EINVAL; of a disk, where no other replica has done it: ENOSPC,
     * ENODATA (a medium error), EILSEQ (a checksum), ETIMEDOUT, and EIO for all else. It must
     * return soon and call nothing of this library. */
    void (*done)(void* context, int os_errno);
    void* context;
} replica_io;

/* Starts an IO and returns. The structure itself may go when it has returned; many may be under way
 * and complete in any order. If it fails, done is not called. Errors: as replica_write(). */
REPLICA_API int replica_submit(replica_volume* volume, const replica_io* io);

#ifdef __cplusplus
}
#endif

#endif
