// fiber.h - switching between the CUDA threads of a block: a few registers and the stack pointer.
#pragma once
#include <stdint.h>
#include <string.h>

// Saves the callee-saved registers on the stack, stores the stack pointer in *save and goes on at `to`.
extern "C" void emu_switch(void** save, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.globl emu_switch
.type emu_switch,@function
emu_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size emu_switch, .-emu_switch
)");

// A stack on which emu_switch "returns" into `entry`.
static void* first_frame(char* top, void (*entry)()) {
    void** stack = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
    *--stack = nullptr;  // entry's own return address: it never returns
    *--stack = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--stack = nullptr;
    return stack;
}
#elif defined(__aarch64__)
asm(R"(
.text
.globl emu_switch
.type emu_switch,%function
emu_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");

static void* first_frame(char* top, void (*entry)()) {
    uint64_t* stack = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15)) - 20;
    memset(stack, 0, 160);
    stack[11] = reinterpret_cast<uint64_t>(entry);  // x30, where ret goes
    return stack;
}
#else
#error "the emulator runs on x86-64 and aarch64"
#endif
