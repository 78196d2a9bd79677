// Instead of the host's: a failed assertion ends the launch, not the process. May be included again and again.
extern "C" void emu_trap(const char* text);  // NVIDIA's headers come here before interface.h does
#undef assert
#ifdef NDEBUG
#define assert(condition) ((void)0)
#else
#define assert(condition) ((condition) ? (void)0 : emu_trap("assert(" #condition ") failed"))
#endif
