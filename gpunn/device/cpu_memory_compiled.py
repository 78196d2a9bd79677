"""The four functions that NumPy calls for memory inside a planned step, and the last farewell.

Numba compiles them to plain machine code, so that an allocation costs what a library's does; no C
compiler is needed. Importing this file imports Numba and compiles, or reads what was compiled
before. NumPy calls them with the interpreter locked, so they never run side by side.

What they share lies in memory of the C library as words of 64 bits, so the code is address
arithmetic. The address of a handler's control block is the context that NumPy hands over. A block
from the C library has four words before it: the next spare block, its class (-1: none), its size
and the address that `free` wants. A block of the arena has none: OWNER holds its number at its
first granule, and USED has a bit for each granule that is taken, so no memory is ever given away
twice, whatever a step does. What a step needs besides the arena (blocks that outlive it, sizes that
depend on the data, scratch of threads that share out pieces as they come) is served by spare
blocks, eight classes of sizes to a doubling: given back, such a block waits in the list of its
class for the next.
"""

from __future__ import annotations

import functools

import numba
from llvmlite import ir
from numba import types
from numba.core.types import ExternalFunction
from numba.extending import intrinsic

CLASSES = 480  # of sizes
WORDS = 26 + CLASSES  # in a control block
HANDLER = 192  # bytes before it: NumPy's PyDataMem_Handler, in the same block
GRANULE_BITS = 6  # blocks of the arena begin at multiples of 64 bytes, a line of the cache
HEADER, ALIGN = 32, 64  # bytes before a block of the C library, and what it is aligned to
SPARE_ROOM = 1 << 20  # bytes of spare blocks that are kept besides TOP and a quarter of it
LARGEST = 1 << 60  # bytes of a block; beyond is out of memory
WINDOW = 64  # planned allocations that may be skipped to find one of the size asked for
PATIENCE = 16  # allocations in a row without a place before larger ones are skipped for a smaller

LOGGING, SERVING, SCATTERED = 1, 2, 4  # bits of MODE; scattered: threads are at work on pieces


# The words of a control block, as distances in bytes.
(
    MODE,  # LOGGING | SERVING | SCATTERED
    LOG,  # pairs (address, size), size -1 for a block that is given back
    LOGGED,
    LOG_ROOM,
    LOG_LOST,  # the log could not grow
    ARENA,
    ARENA_END,
    ARENA_RAW,  # what `free` wants
    LIVE,  # blocks of the arena that are taken
    RETIRED,  # the arena is not used again: away with it as soon as nothing is taken
    COUNT,  # planned allocations
    NEXT,  # of them, in this run
    MISSED,  # allocations in a row for which none was found
    SIZES,  # of them
    PLACES,  # offsets in the arena; -1 for a block that outlives the step
    USED,
    OWNER,
    SPARE,  # bytes of spare blocks
    IN_USE,  # bytes of spare blocks that this run has taken and not given back
    TOP,  # the most of them in any run: about as many are worth keeping
    UNPLANNED,  # allocations of this run that the plan had no place for
    UNPLANNED_BYTES,
    FRESH,  # allocations of this run that the C library had to serve
    FRESH_BYTES,
    SERVED,  # from the arena
    SERVED_BYTES,
    HEADS,  # the first spare block of each class
) = range(0, 8 * 27, 8)

_word = types.int64
_malloc = ExternalFunction("malloc", _word(_word))
_calloc = ExternalFunction("calloc", _word(_word, _word))
_realloc = ExternalFunction("realloc", _word(_word, _word))
_free = ExternalFunction("free", types.void(_word))
_copy = ExternalFunction("memcpy", _word(_word, _word, _word))
_set = ExternalFunction("memset", _word(_word, types.int32, _word))
_context = ExternalFunction("PyCapsule_GetContext", _word(_word))


@intrinsic
def peek(typing, address):
    """The word at an address."""

    def code(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(types.int64), code


@intrinsic
def poke(typing, address, value):
    """Write a word."""

    def code(context, builder, signature, args):
        builder.store(args[1], builder.inttoptr(args[0], ir.IntType(64).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@numba.njit
def add(address, value):
    poke(address, peek(address) + value)


@numba.njit
def log(c, address, size):
    """Note an event; the log doubles when it is full."""
    if not peek(c + MODE) & LOGGING:
        return
    count = peek(c + LOGGED)
    if count == peek(c + LOG_ROOM):
        room = 2 * count if count else 4096
        grown = _realloc(peek(c + LOG), 16 * room)
        if grown == 0:
            poke(c + LOG_LOST, 1)
            return
        poke(c + LOG, grown)
        poke(c + LOG_ROOM, room)
    poke(peek(c + LOG) + 16 * count, address)
    poke(peek(c + LOG) + 16 * count + 8, size)
    poke(c + LOGGED, count + 1)


@numba.njit
def library_block(size, kind, zero):
    """A block of the C library with its words before it; 0 where there is no memory."""
    room = size + HEADER + ALIGN - 1
    raw = _calloc(1, room) if zero else _malloc(room)
    if raw == 0:
        return 0
    address = (raw + HEADER + ALIGN - 1) & -ALIGN
    poke(address - 24, kind)
    poke(address - 16, size)
    poke(address - 8, raw)
    return address


@numba.njit
def mask(word, first, last):
    """The bits of word number `word` that belong to the granules `first` ... `last`."""
    bits = -1
    if word == first >> 6:
        bits = -1 << (first & 63)
    if word == last >> 6:
        bits &= (2 << (last & 63)) - 1
    return bits


@numba.njit
def take(c, where, size):
    """Whether the place in the arena is free; then it is taken."""
    used = peek(c + USED)
    first, last = where >> GRANULE_BITS, (where + size - 1) >> GRANULE_BITS
    for word in range(first >> 6, (last >> 6) + 1):
        if peek(used + 8 * word) & mask(word, first, last):
            return False
    for word in range(first >> 6, (last >> 6) + 1):
        at = used + 8 * word
        poke(at, peek(at) | mask(word, first, last))
    return True


@numba.njit
def drop_arena(c):
    for word in (ARENA_RAW, USED, OWNER):
        _free(peek(c + word))
        poke(c + word, 0)
    poke(c + ARENA, 0)
    poke(c + ARENA_END, 0)


@numba.njit
def give_back(c, where):
    """A place in the arena is free again."""
    used, first = peek(c + USED), where >> GRANULE_BITS
    size = peek(peek(c + SIZES) + 8 * peek(peek(c + OWNER) + 8 * first))
    last = (where + size - 1) >> GRANULE_BITS
    for word in range(first >> 6, (last >> 6) + 1):
        at = used + 8 * word
        poke(at, peek(at) & ~mask(word, first, last))
    add(c + LIVE, -1)
    if peek(c + RETIRED) and peek(c + LIVE) == 0:
        drop_arena(c)


@numba.njit
def class_of(size):
    """(class, size of its blocks): up to 1024 bytes in steps of 64, then eight to a doubling."""
    step, first = 6, 0
    while size > 16 << step:
        step, first = step + 1, first + 8
    steps = (size + (1 << step) - 1) >> step
    return first + steps, steps << step


@numba.njit
def spare_block(c, size, zero):
    """A block that was given back, or a new one."""
    kind, room = class_of(size)
    address = peek(c + HEADS + 8 * kind)
    if address:
        poke(c + HEADS + 8 * kind, peek(address - 32))
        add(c + SPARE, -room)
        if zero:
            _set(address, 0, size)
    else:
        address = library_block(room, kind, zero)
        if address == 0:
            return 0
        add(c + FRESH, 1)
        add(c + FRESH_BYTES, room)
    add(c + IN_USE, room)
    poke(c + TOP, max(peek(c + TOP), peek(c + IN_USE)))
    return address


@numba.njit
def unplanned(c, size, zero):
    add(c + UNPLANNED, 1)
    add(c + UNPLANNED_BYTES, size)
    return spare_block(c, size, zero)


@numba.njit
def serve(c, size, zero):
    """The next planned block of this size, if its place is free; else a spare one.

    An allocation more than planned must not make the plan lose its large ones: for one that finds
    nothing on its way to the next larger one, nothing is skipped.
    """
    count, sizes = peek(c + COUNT), peek(c + SIZES)
    number = peek(c + NEXT)
    stop = min(count, number + WINDOW)
    patient = peek(c + MISSED) < PATIENCE
    while number < stop and peek(sizes + 8 * number) != size:
        number += 1
        if patient and peek(sizes + 8 * (number - 1)) > size:
            number = stop
    if number == stop:
        add(c + MISSED, 1)
        return unplanned(c, size, zero)
    poke(c + NEXT, number + 1)
    poke(c + MISSED, 0)
    where = peek(peek(c + PLACES) + 8 * number)
    if where < 0:
        return spare_block(c, size, zero)
    if not take(c, where, size):
        return unplanned(c, size, zero)
    poke(peek(c + OWNER) + 8 * (where >> GRANULE_BITS), number)
    add(c + LIVE, 1)
    add(c + SERVED, 1)
    add(c + SERVED_BYTES, size)
    address = peek(c + ARENA) + where
    if zero:
        _set(address, 0, size)
    return address


@numba.njit
def allocate(c, size, zero):
    if size < 0 or size > LARGEST:  # one past 2^63 looks negative
        return 0
    size = max(size, 1)
    mode = peek(c + MODE)
    if mode & SERVING and mode & SCATTERED:
        address = spare_block(c, size, zero)
    elif mode & SERVING:
        address = serve(c, size, zero)
    else:
        address = library_block(size, -1, zero)
    if address and not mode & SCATTERED:
        log(c, address, size)
    return address


@numba.njit
def release(c, address):
    if address == 0:
        return
    log(c, address, -1)
    arena = peek(c + ARENA)
    if arena <= address < peek(c + ARENA_END):
        give_back(c, address - arena)
        return
    kind, size = peek(address - 24), peek(address - 16)
    if kind >= 0:
        poke(c + IN_USE, max(0, peek(c + IN_USE) - size))
    top = peek(c + TOP)
    limit = top + (top >> 2) + SPARE_ROOM
    if kind < 0 or peek(c + RETIRED) or peek(c + SPARE) + size > limit:
        _free(peek(address - 8))
        return
    poke(address - 32, peek(c + HEADS + 8 * kind))
    poke(c + HEADS + 8 * kind, address)
    add(c + SPARE, size)


@numba.njit
def size_of(c, address):
    arena = peek(c + ARENA)
    if arena <= address < peek(c + ARENA_END):
        number = peek(peek(c + OWNER) + 8 * ((address - arena) >> GRANULE_BITS))
        return peek(peek(c + SIZES) + 8 * number)
    return peek(address - 16)


@numba.njit
def drop_spare_blocks(c):
    for head in range(c + HEADS, c + HEADS + 8 * CLASSES, 8):
        address = peek(head)
        while address:
            following = peek(address - 32)
            _free(peek(address - 8))
            address = following
        poke(head, 0)
    poke(c + SPARE, 0)


def on_malloc(c, size):
    return allocate(c, size, False)


def on_calloc(c, count, size):
    if size < 0 or (size > 0 and count > LARGEST // size):
        return 0
    return allocate(c, count * size, True)


def on_realloc(c, address, size):
    fresh = allocate(c, size, False)
    if fresh and address:
        _copy(fresh, address, min(size, size_of(c, address)))
        release(c, address)
    return fresh


def on_free(c, address, size):
    release(c, address)


def on_retire(c):
    """No step is served any more: spare blocks go now, the arena with its last block."""
    poke(c + RETIRED, 1)
    drop_spare_blocks(c)
    _free(peek(c + LOG))
    poke(c + LOG, 0)
    if peek(c + LIVE) == 0:
        drop_arena(c)


def on_last(capsule):
    """The capsule dies: neither the plan's owner nor any array with memory from here is left."""
    c = _context(capsule)
    drop_spare_blocks(c)
    drop_arena(c)
    _free(peek(c + LOG))
    _free(peek(c + SIZES))  # with places behind them
    _free(c - HANDLER)


def _compile(function, signature):
    """Machine code for C; kept beside the source or in NUMBA_CACHE_DIR where that can be."""
    compile_ = functools.partial(numba.cfunc, signature)
    try:
        return compile_(cache=True)(function)
    except (RuntimeError, OSError):  # no folder for the cache
        return compile_()(function)


FUNCTIONS = {
    function.__name__: _compile(function, signature)
    for function, signature in (
        (on_malloc, _word(_word, _word)),
        (on_calloc, _word(_word, _word, _word)),
        (on_realloc, _word(_word, _word, _word)),
        (on_free, types.void(_word, _word, _word)),
        (on_retire, types.void(_word)),
        (on_last, types.void(_word)),
    )
}
