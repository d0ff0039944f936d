#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares the first bytes of two sparse files. It skips what is a hole in both.

    sparse_compare.py FILE FILE BYTES     ends with 1 and says where if they differ
    sparse_compare.py --self-test
"""
import os
import sys
import tempfile

PIECE = 64 << 10


def pieces_with_data(fd, end):
    """The numbers of the pieces of PIECE bytes in which the file has data."""
    found = set()
    at = 0
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # a hole up to the end
            break
        hole = os.lseek(fd, at, os.SEEK_HOLE)
        if at < end:
            found.update(range(at // PIECE, (min(hole, end) - 1) // PIECE + 1))
        at = hole
    return found


def first_difference(paths, end):
    """The offset of the piece in which they differ first, or None; and how many were read."""
    files = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        numbers = sorted(pieces_with_data(files[0], end) | pieces_with_data(files[1], end))
        for number in numbers:
            length = min(PIECE, end - number * PIECE)
            one, other = (os.pread(fd, length, number * PIECE) for fd in files)
            if len(one) != length or one != other:
                return number * PIECE, len(numbers)
        return None, len(numbers)
    finally:
        for fd in files:
            os.close(fd)


def self_test():
    end = 8 * PIECE
    with tempfile.TemporaryDirectory(dir=os.environ.get("REPLICA_DIR", "/var/tmp")) as folder:
        paths = [os.path.join(folder, name) for name in ("one", "other")]
        for path in paths:
            with open(path, "wb") as file:
                file.truncate(end + PIECE)
        assert first_difference(paths, end)[0] is None

        def put(which, at, byte):
            with open(paths[which], "r+b") as file:
                file.seek(at)
                file.write(byte)

        put(0, end, b"x")  # behind what counts
        assert first_difference(paths, end)[0] is None
        put(1, 3 * PIECE, b"\0")  # data on one side, a hole on the other, equal all the same
        assert first_difference(paths, end)[0] is None
        put(1, end - 1, b"x")
        assert first_difference(paths, end)[0] == 7 * PIECE
        put(0, 2 * PIECE + 5, b"x")
        assert first_difference(paths, end)[0] == 2 * PIECE
        with open(paths[1], "r+b") as file:
            file.truncate(PIECE)
        assert first_difference(paths, end)[0] is not None
    print("every difference is seen, and nothing else")


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    at, count = first_difference(sys.argv[1:3], int(sys.argv[3]))
    if at is not None:
        sys.exit(f"they differ between {at} and {at + PIECE}")
    print(f"equal: {count} pieces of {PIECE} bytes with data")
    return None


if __name__ == "__main__":
    main()
