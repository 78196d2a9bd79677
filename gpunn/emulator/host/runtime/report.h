// report.h - findings, as they are collected while a kernel runs.
#pragma once
#include <cstdarg>
#include <cstdio>
#include "schedule.h"

constexpr size_t MAX_REPORTS = 24;

// What memory an address is in: an argument, the shared memory of a block of the gang, or another place.
static void locate(Block* b, u64 address, Report& r) {
    for (Block* owner : b->gang->blocks) {
        const u64 in_dynamic = address - reinterpret_cast<u64>(owner->dynamic);
        const u64 in_shared = address - reinterpret_cast<u64>(owner->shared);
        if (in_shared >= owner->shared_size) continue;
        const u64 dynamic = owner->dynamic - owner->shared;
        r.memory_rank = owner == b ? -1 : owner->rank;
        r.memory_kind = in_dynamic < MAX_DYNAMIC_SHARED ? 3 : 2;
        r.address = r.memory_kind == 3 ? in_dynamic : in_shared < dynamic ? in_shared : in_shared - MAX_DYNAMIC_SHARED;
        return;
    }
    r.memory_kind = 4;
    r.address = address;
    for (auto& m : b->launch->memory)
        if (address - m.base < m.size) r.memory_kind = 1, r.base = m.base;
}

static void add_report(Report r, void* place, const Access* other, const char* format, va_list list) {
    Block* b = own_block;
    Launch* launch = b->launch;
    char text[700];
    vsnprintf(text, sizeof text, format, list);
    const Fiber* f = current();
    r.place = reinterpret_cast<u64>(place) - launch->image_start;
    if (f) r.block = f->block, r.thread = f->thread;
    r.other_thread = -1;
    if (other && other->gang) {
        r.other_place = other->place;
        r.other_gang = other->gang - launch->first_tag;
        const u32 threads = b->threads;
        r.other_rank = other->thread / threads;
        r.other_thread = r.other_rank < b->gang->size ? other->thread % threads : -2;  // -2: not a thread
    }
    r.text = text;
    std::lock_guard<std::mutex> guard(launch->report_mutex);
    if (launch->reports.size() >= MAX_REPORTS || !launch->reported.insert({r.fault, r.place}).second) return;
    launch->reports.push_back(r);
}

// A finding on the memory at an address, if it is not 0.
static void report(Fault fault, void* place, u64 address, const Access* other, const char* format, ...) {
    Report r{};
    r.fault = fault;
    r.memory_rank = -1;
    if (address) locate(current() ? current()->home : own_block, address, r);
    va_list list;
    va_start(list, format);
    add_report(r, place, other, format, list);
    va_end(list);
}

// An access outside of all arguments, near one of them.
static void report_near(const Memory& memory, void* place, u64 address, const char* format, ...) {
    Report r{};
    r.fault = OUT_OF_BOUNDS;
    r.memory_rank = -1;
    r.memory_kind = 1;
    r.address = address;
    r.base = memory.base;
    va_list list;
    va_start(list, format);
    add_report(r, place, nullptr, format, list);
    va_end(list);
}
