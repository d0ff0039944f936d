/* SPDX-License-Identifier: Apache-2.0
 * The first steps in C: starts a node in this process, creates a volume on a file, attaches it,
 * makes the node primary, writes a block and reads it back. The volume has no peers; give some to
 * replica_create() on each node and every write is mirrored.
 *
 *     first_volume DIRECTORY      an empty directory, absolute; 64 MiB are used
 */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <replica/replica.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void check(int code, const char* what) {
    if (code == REPLICA_OK) return;
    fprintf(stderr, "%s: %s (%s)\n", what, replica_last_error()->message, replica_code_name(code));
    exit(1);
}

static void make_disk(const char* path) {
    const int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || ftruncate(fd, 64 << 20) != 0) {
        perror(path);
        exit(1);
    }
    close(fd);
}

int main(int argc, char** argv) {
    char url[4096], disk[4096];
    if (argc != 2 || argv[1][0] != '/') {
        fprintf(stderr, "usage: first_volume DIRECTORY (absolute)\n");
        return 2;
    }
    snprintf(url, sizeof url, "embedded:%s", argv[1]);
    snprintf(disk, sizeof disk, "%s/disk.img", argv[1]);
    make_disk(disk);
    printf("libreplica %s\n", replica_version_string());

    replica_node* node = NULL;
    check(replica_open(url, &node), "open");

    replica_resource_config config = REPLICA_INIT(config);
    config.name = "first";
    config.disk = disk;
    check(replica_create(node, &config), "create");
    check(replica_up(node, "first"), "up");

    /* A fresh disk is Inconsistent until somebody says that what is on it counts. */
    check(replica_promote(node, "first", true), "promote");

    replica_volume* volume = NULL;
    uint64_t size = 0;
    check(replica_volume_open(node, "first", &volume), "open the volume");
    check(replica_volume_size(volume, &size), "size");
    printf("volume of %llu bytes\n", (unsigned long long)size);

    char out[4096] = "every acknowledged byte is on every in-sync replica";
    char in[4096] = "";
    check(replica_write(volume, out, sizeof out, 1 << 20, REPLICA_FUA), "write");
    check(replica_read(volume, in, sizeof in, 1 << 20), "read");
    printf("read back: %s\n", in);

    replica_status* status = NULL;
    check(replica_status_get(node, "first", &status), "status");
    printf("%s is %s, its disk %s\n", status->name, status->role, status->disk);
    replica_status_free(status);

    replica_volume_close(volume);
    check(replica_down(node, "first"), "down");
    replica_close(node);
    return memcmp(in, out, sizeof in) == 0 ? 0 : 1;
}
