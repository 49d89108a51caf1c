// Blocks run one after another in a shuffled order; the threads of a block are fibers that give
// way at barriers and warp operations, picked at random from a seed. One thread of the host runs
// them all, so that an atomic is a plain read and write.
#ifndef PRECAST_SOFTDEV_RUN_H
#define PRECAST_SOFTDEV_RUN_H
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define SOFTDEV_SHARED_MAX (227 * 1024)
#define SOFTDEV_SHARED_GUARD 1024
extern "C" {
__attribute__((aligned(1024), visibility("hidden"))) thread_local unsigned char
    dyn_smem[SOFTDEV_SHARED_MAX + SOFTDEV_SHARED_GUARD];
}
static constexpr int warpSize = 32;

namespace softdev {

// What a launch is told, and where it says what went wrong. The same layout stands in `host.rs`.
struct Launch {
  unsigned grid[3], block[3], shared, reserved;
  unsigned long long seed;
  void **args;
  char *message;
  unsigned long long message_size;
};
// Results of a launch; the last two are numbers that the driver API uses too.
enum { kOk = 0, kBadLaunch = 1, kBarrier = 2, kIllegalAddress = 700, kTrap = 719 };

struct Warp;
struct Pending { void *to; const void *from; unsigned bytes, zero; int group; };
struct Thread {
  uint3 tid;
  int lane;
  Warp *warp;
#if defined(__x86_64__)
  void *sp;
#else
  ucontext_t *sp;
#endif
  char *stack;
  Thread *next;  // in the list of those that wait at the same place
  bool done, waiting;
  const char *what;  // the operation it waits in
  int line;
  Pending *pending;  // cp.async copies not yet waited for
  int pending_count, group;
};
struct Rendezvous {
  unsigned mask, arrived, phase, came[2];
  const char *what;
  int line;
  Thread *waiting;
  unsigned char slot[2][32][32];
};
struct Warp {
  unsigned live;
  int used;
  Rendezvous at[4];
};
struct Barrier {
  int arrived, needed, accumulated, result, line;
  Thread *waiting;
};

static constexpr int kMaxThreads = 1024;
// An odd number of cache lines, so that the tops of the stacks do not fall into one cache set.
static constexpr size_t kStack = 128 * 1024 + 9 * 64;
static constexpr uint64_t kCanary = 0x5afe57ac5afe57acull;

static Thread threads[kMaxThreads];
static Warp warps[kMaxThreads / 32];
static Barrier barriers[16];
static Thread *fresh[kMaxThreads], *ready[kMaxThreads];
static int fresh_count, ready_count, ready_head, live, total;
static Thread *cur;
static uint3 block_id;
static dim3 block_dim, grid_dim;
static uint64_t rng;
static void (*entry)(void **);
static void **entry_args;
static Launch *launch;
static int failure;
static char *stacks;
static char *free_stacks[kMaxThreads + 1];
static int free_stack_count, stacks_made;
static sigjmp_buf back;
static bool running;
static pthread_t runner;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static constexpr int kSignals[4] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
static struct sigaction old_actions[4];
static bool handlers_installed;

static inline uint64_t random_next() {
  rng ^= rng << 13; rng ^= rng >> 7; rng ^= rng << 17;
  return rng;
}
static inline uint32_t random_below(uint32_t n) { return (uint32_t)((random_next() >> 32) * n >> 32); }

__attribute__((format(printf, 2, 3))) static void report(int code, const char *format, ...) {
  if (failure) return;
  failure = code;
  if (!launch->message || !launch->message_size) return;
  va_list list;
  va_start(list, format);
  int n = vsnprintf(launch->message, launch->message_size, format, list);
  va_end(list);
  if (n >= 0 && (uint64_t)n < launch->message_size && cur)
    snprintf(launch->message + n, launch->message_size - n, ", block (%u,%u,%u) thread (%u,%u,%u)",
             block_id.x, block_id.y, block_id.z, cur->tid.x, cur->tid.y, cur->tid.z);
}
// Leaves the launch from a fiber; what the other fibers hold on their stacks is dropped.
[[noreturn]] static void leave() { siglongjmp(back, 1); }

#if defined(__x86_64__)
extern "C" __attribute__((visibility("hidden"))) void softdev_switch(void **save, void *to);
__asm__(R"(.text
.globl softdev_switch
.hidden softdev_switch
.type softdev_switch,@function
softdev_switch:
 pushq %rbp
 pushq %rbx
 pushq %r12
 pushq %r13
 pushq %r14
 pushq %r15
 movq %rsp,(%rdi)
 movq %rsi,%rsp
 popq %r15
 popq %r14
 popq %r13
 popq %r12
 popq %rbx
 popq %rbp
 ret
)");
static void *main_sp;
#else
static ucontext_t main_sp_place;
static ucontext_t *main_sp = &main_sp_place;
static inline void softdev_switch(ucontext_t **save, ucontext_t *to) { swapcontext(*save, to); }
#endif

static void fiber_main();

static void start_on(Thread *t, char *stack) {
  t->stack = stack;
  *(uint64_t *)stack = kCanary;
#if defined(__x86_64__)
  void **top = (void **)(stack + kStack) - 2;
  top[0] = (void *)fiber_main;
  t->sp = top - 6;
#else
  t->sp = (ucontext_t *)(stack + 64);
  getcontext(t->sp);
  t->sp->uc_stack.ss_sp = stack + 64 + sizeof(ucontext_t);
  t->sp->uc_stack.ss_size = kStack - 64 - sizeof(ucontext_t);
  t->sp->uc_link = nullptr;
  makecontext(t->sp, fiber_main, 0);
#endif
}
static char *new_stack() {
  if (free_stack_count) return free_stacks[--free_stack_count];
  return stacks + kStack * stacks_made++;
}
static inline void make_ready(Thread *t) {
  t->waiting = false;
  ready[(ready_head + ready_count++) % kMaxThreads] = t;
}
static void release(Thread *&list) {
  for (Thread *t = list; t;) {
    Thread *next = t->next;
    make_ready(t);
    t = next;
  }
  list = nullptr;
}
// The thread to run next; null where none can.
static Thread *pick() {
  int all = ready_count + fresh_count;
  if (!all) return nullptr;
  bool take_fresh = fresh_count != 0;
  if (launch->seed) take_fresh = (int)random_below(all) < fresh_count;
  if (take_fresh) return fresh[--fresh_count];
  if (launch->seed) {
    int other = (ready_head + (int)random_below(ready_count)) % kMaxThreads;
    Thread *t = ready[other];
    ready[other] = ready[ready_head];
    ready[ready_head] = t;
  }
  Thread *t = ready[ready_head];
  ready_head = (ready_head + 1) % kMaxThreads;
  ready_count--;
  return t;
}
static void to_main() {
#if defined(__x86_64__)
  static void *dropped;
  softdev_switch(&dropped, main_sp);
#else
  setcontext(main_sp);
#endif
}
// Gives way; the caller stands in a waiting list or among the ready.
static void give_way() {
  Thread *me = cur;
  if (*(uint64_t *)me->stack != kCanary) {
    report(kTrap, "a thread used more than %zu bytes of stack", kStack);
    leave();
  }
  Thread *t = pick();
  if (!t) to_main();
  if (t == me) return;
  if (!t->stack) start_on(t, new_stack());
  cur = t;
  softdev_switch(&me->sp, t->sp);
}

static void finish_barrier(Barrier &b) {
  b.result = b.accumulated;
  b.arrived = b.accumulated = 0;
  release(b.waiting);
}
static void check_barrier(Barrier &b) {
  int needed = b.needed ? b.needed : live;
  if (b.arrived && b.arrived >= needed) finish_barrier(b);
}
static int sync_block(int index, int count, int predicate, const char *what, int line) {
  Barrier &b = barriers[index];
  Thread *me = cur;
  if (b.arrived && (b.line != line || b.needed != count)) {
    report(kBarrier, "divergent barrier: a thread is at %s of line %d, others of its block at one of line %d",
           what, line, b.line);
    leave();
  }
  b.line = line;
  b.needed = count;
  b.arrived++;
  b.accumulated += predicate != 0;
  me->what = what;
  me->line = line;
  me->waiting = true;
  me->next = b.waiting;
  b.waiting = me;
  check_barrier(b);
  give_way();
  me->what = nullptr;
  return b.result;
}
static void check_rendezvous(Warp *w, Rendezvous &r) {
  if (!r.arrived || (r.arrived & w->live) != (r.mask & w->live)) return;
  r.came[r.phase & 1] = r.arrived;
  r.arrived = 0;
  r.phase++;
  release(r.waiting);
}
struct Came {
  unsigned char (*slot)[32];
  unsigned lanes;
};
// Every lane of `mask` leaves `bytes` bytes; afterwards each can read what all have left.
static Came exchange(unsigned mask, const void *value, size_t bytes, const char *what, int line) {
  Thread *me = cur;
  Warp *w = me->warp;
  if (!(mask >> me->lane & 1)) {
    report(kBarrier, "%s of line %d: lane %d is not in its own mask %08x", what, line, me->lane, mask);
    leave();
  }
  Rendezvous *r = nullptr;
  for (int i = 0; i < w->used && !r; i++) if (w->at[i].mask == mask) r = &w->at[i];
  for (int i = 0; i < w->used; i++) {
    Rendezvous &o = w->at[i];
    if (&o != r && o.arrived && (o.mask & mask)) {
      report(kBarrier, "%s of line %d with mask %08x while lanes of it wait at %s of line %d with mask %08x",
             what, line, mask, o.what, o.line, o.mask);
      leave();
    }
    // A lane that has passed may still have to read its slot, so only one whose lanes have all
    // moved on could be taken over; the masks of a warp are few, hence four places and no reuse
    // until they run out.
  }
  if (!r && w->used < 4) {
    r = &w->at[w->used++];
    memset(r, 0, sizeof *r);
    r->mask = mask;
  }
  for (int i = 0; i < w->used && !r; i++) if (!w->at[i].arrived) {
    r = &w->at[i];
    r->mask = mask;
  }
  if (!r) {
    report(kBarrier, "%s of line %d: more than four masks of one warp are waited for", what, line);
    leave();
  }
  if (r->arrived && (r->line != line || r->what != what)) {
    report(kBarrier, "divergent warp: lane %d is at %s of line %d, others at %s of line %d", me->lane, what, line,
           r->what, r->line);
    leave();
  }
  unsigned phase = r->phase;
  r->what = what;
  r->line = line;
  memcpy(r->slot[phase & 1][me->lane], value, bytes);
  r->arrived |= 1u << me->lane;
  me->what = what;
  me->line = line;
  me->waiting = true;
  me->next = r->waiting;
  r->waiting = me;
  check_rendezvous(w, *r);
  give_way();
  me->what = nullptr;
  return {r->slot[phase & 1], r->came[phase & 1]};
}

static void fiber_main() {
  for (;;) {
    entry(entry_args);
    Thread *me = cur;
    char *stack = me->stack;
    if (*(uint64_t *)stack != kCanary) {
      report(kTrap, "a thread used more than %zu bytes of stack", kStack);
      leave();
    }
    me->done = true;
    me->stack = nullptr;
    live--;
    me->warp->live &= ~(1u << me->lane);
    for (auto &b : barriers) if (b.arrived) check_barrier(b);
    for (int i = 0; i < me->warp->used; i++) check_rendezvous(me->warp, me->warp->at[i]);
    Thread *t = pick();
    if (!t) {
      free_stacks[free_stack_count++] = stack;
      to_main();
    }
    cur = t;
    if (!t->stack) {  // a thread that has not begun goes on here, without a switch
      t->stack = stack;
#if !defined(__x86_64__)
      t->sp = (ucontext_t *)(stack + 64);
#endif
      continue;
    }
    free_stacks[free_stack_count++] = stack;
#if defined(__x86_64__)
    static void *dropped;
    softdev_switch(&dropped, t->sp);
#else
    setcontext(t->sp);
#endif
  }
}

static void report_deadlock() {
  char list[400];
  int at = 0, shown = 0;
  list[0] = 0;
  for (int i = 0; i < total && shown < 4; i++) {
    Thread &t = threads[i];
    if (t.done) continue;
    shown++;
    at += snprintf(list + at, sizeof list - at, "%s thread (%u,%u,%u) waits at %s of line %d", shown > 1 ? "," : "",
                   t.tid.x, t.tid.y, t.tid.z, t.what ? t.what : "?", t.line);
  }
  cur = nullptr;
  report(kBarrier, "deadlock in block (%u,%u,%u): %d of %d threads wait for others that never come:%s", block_id.x,
         block_id.y, block_id.z, live, total, list);
}

struct Tls { char *start; size_t size; };
static int find_tls(dl_phdr_info *info, size_t, void *out) {
  bool ours = false;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    auto &p = info->dlpi_phdr[i];
    uintptr_t a = (uintptr_t)&threads - info->dlpi_addr;
    ours |= p.p_type == PT_LOAD && a >= p.p_vaddr && a < p.p_vaddr + p.p_memsz;
  }
  if (!ours) return 0;
  for (int i = 0; i < info->dlpi_phnum; i++)
    if (info->dlpi_phdr[i].p_type == PT_TLS)
      *(Tls *)out = {(char *)info->dlpi_tls_data, info->dlpi_phdr[i].p_memsz};
  return 1;
}
// Shared memory holds nothing at the start of a block: all bits set reads as NaN.
static void poison_shared(const Tls &tls, char *dynamic) {
  if (tls.start) {
    memset(tls.start, 0xff, dynamic - tls.start);
    char *after = dynamic + sizeof dyn_smem, *end = tls.start + tls.size;
    if (end > after) memset(after, 0xff, end - after);
  }
  memset(dynamic, 0xff, launch->shared);
  memset(dynamic + launch->shared, 0xa5, SOFTDEV_SHARED_GUARD);
}
static void check_shared(char *dynamic) {
  for (int i = 0; i < SOFTDEV_SHARED_GUARD; i++)
    if ((unsigned char)dynamic[launch->shared + i] != 0xa5) {
      cur = nullptr;
      report(kIllegalAddress, "block (%u,%u,%u) wrote %d bytes past its %u bytes of dynamic shared memory", block_id.x,
             block_id.y, block_id.z, i + 1, launch->shared);
      return;
    }
}

static void on_signal(int signal, siginfo_t *info, void *context) {
  if (running && pthread_equal(pthread_self(), runner)) {
    if (signal == SIGILL) report(kTrap, "misaligned access, index outside an array, or trap");
    else if (signal == SIGFPE) report(kTrap, "integer division by zero");
    else report(kIllegalAddress, "illegal address %p", info->si_addr);
    leave();
  }
  for (int i = 0; i < 4; i++) {
    if (kSignals[i] != signal) continue;
    struct sigaction &old = old_actions[i];
    if (old.sa_flags & SA_SIGINFO) old.sa_sigaction(signal, info, context);
    else if (old.sa_handler != SIG_IGN && old.sa_handler != SIG_DFL) old.sa_handler(signal);
    else sigaction(signal, &old, nullptr);  // the instruction runs again and ends the process
  }
}
// The library is linked with `-z nodelete`, so that a handler outlives every launch.
static void install_handlers() {
  if (handlers_installed) return;
  handlers_installed = true;
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < 4; i++) sigaction(kSignals[i], &action, &old_actions[i]);
}

static void run_block() {
  unsigned bx = block_dim.x, by = block_dim.y;
  memset(barriers, 0, sizeof barriers);
  for (int w = 0; w < (total + 31) / 32; w++) {
    int lanes = total - 32 * w;
    warps[w].live = lanes >= 32 ? ~0u : (1u << lanes) - 1;
    warps[w].used = 0;
  }
  for (int i = 0; i < total; i++) {
    Thread &t = threads[i];
    t.tid = {i % bx, i / bx % by, i / (bx * by)};
    t.lane = i & 31;
    t.warp = &warps[i / 32];
    t.stack = nullptr;
    t.done = t.waiting = false;
    t.what = nullptr;
    t.pending_count = t.group = 0;
    fresh[total - 1 - i] = &t;  // taken from the end
  }
  if (launch->seed)
    for (int i = total - 1; i > 0; i--) {
      int j = (int)random_below(i + 1);
      Thread *t = fresh[i];
      fresh[i] = fresh[j];
      fresh[j] = t;
    }
  fresh_count = live = total;
  ready_count = ready_head = 0;
  free_stack_count = stacks_made = 0;
  cur = pick();
  start_on(cur, new_stack());
  softdev_switch(&main_sp, cur->sp);
  if (live) report_deadlock();
}

static int run(Launch *what, void (*kernel)(void **)) {
  pthread_mutex_lock(&one_at_a_time);
  launch = what;
  failure = kOk;
  cur = nullptr;
  uint64_t threads_of_block = (uint64_t)what->block[0] * what->block[1] * what->block[2];
  uint64_t blocks = (uint64_t)what->grid[0] * what->grid[1] * what->grid[2];
  if (!threads_of_block || threads_of_block > kMaxThreads || !blocks || what->grid[1] > 65535 || what->grid[2] > 65535 ||
      what->block[2] > 64 || what->grid[0] > 0x7fffffffu || what->shared > SOFTDEV_SHARED_MAX) {
    report(kBadLaunch, "bad launch: grid %u x %u x %u, block %u x %u x %u, %u bytes of shared memory", what->grid[0],
           what->grid[1], what->grid[2], what->block[0], what->block[1], what->block[2], what->shared);
    pthread_mutex_unlock(&one_at_a_time);
    return failure;
  }
  install_handlers();
  entry = kernel;
  entry_args = what->args;
  total = (int)threads_of_block;
  rng = what->seed * 0x9e3779b97f4a7c15ull | 1;
  block_dim = dim3(what->block[0], what->block[1], what->block[2]);
  grid_dim = dim3(what->grid[0], what->grid[1], what->grid[2]);
  size_t stack_bytes = kStack * (size_t)total;
  stacks = (char *)mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  char *dynamic = (char *)dyn_smem;
  __asm__("" : "+r"(dynamic));
  *(volatile char *)dynamic = 0;  // the storage of this thread exists from here on
  Tls tls = {nullptr, 0};
  dl_iterate_phdr(find_tls, &tls);
  // Blocks run in the order i -> (a i + b) mod n, where a and n have no common divisor.
  uint64_t a = 1, b = 0;
  if (what->seed && blocks > 1) {
    b = random_next() % blocks;
    for (a = random_next() % blocks | 1;; a++) {
      uint64_t x = a, y = blocks;
      while (y) { uint64_t r = x % y; x = y; y = r; }
      if (x == 1) break;
    }
  }
  runner = pthread_self();
  running = true;
  if (!sigsetjmp(back, 1))
    for (uint64_t i = 0; i < blocks && !failure; i++) {
      uint64_t k = (uint64_t)(((unsigned __int128)a * i + b) % blocks);
      block_id = {(unsigned)(k % grid_dim.x), (unsigned)(k / grid_dim.x % grid_dim.y),
                  (unsigned)(k / ((uint64_t)grid_dim.x * grid_dim.y))};
      poison_shared(tls, dynamic);
      run_block();
      if (!failure) check_shared(dynamic);
    }
  running = false;
  munmap(stacks, stack_bytes);
  for (int i = 0; i < total; i++) {
    free(threads[i].pending);
    threads[i].pending = nullptr;
  }
  int result = failure;
  pthread_mutex_unlock(&one_at_a_time);
  return result;
}
template <class... A, size_t... I>
inline void call(void (*kernel)(A...), void **args, std::index_sequence<I...>) {
  kernel(*(std::remove_const_t<std::remove_reference_t<A>> *)args[I]...);
}
template <class... A>
inline void call(void (*kernel)(A...), void **args) {
  call(kernel, args, std::index_sequence_for<A...>{});
}
template <class... A>
constexpr int parameters(void (*)(A...)) { return sizeof...(A); }
template <class... A>
inline int parameter_sizes(void (*)(A...), unsigned *out, int most) {
  unsigned sizes[] = {(unsigned)sizeof(A)..., 0};
  for (int i = 0; i < (int)sizeof...(A) && i < most; i++) out[i] = sizes[i];
  return sizeof...(A);
}
inline unsigned static_shared() {
  *(volatile char *)dyn_smem = dyn_smem[0];
  Tls tls = {nullptr, 0};
  dl_iterate_phdr(find_tls, &tls);
  return tls.size > sizeof dyn_smem ? (unsigned)(tls.size - sizeof dyn_smem) : 0;
}
}  // namespace softdev

// The host entry of a kernel: put after its text, once for each. `args[i]` points to argument i.
#define PRECAST_HOST_ENTRY(name)                                                             \
  extern "C" __attribute__((visibility("default"))) int launch_##name(softdev::Launch *l) {  \
    return softdev::run(l, [](void **args) { softdev::call(name, args); });                  \
  }                                                                                          \
  extern "C" __attribute__((visibility("default"))) int parameters_##name(unsigned *sizes, int most) { \
    return softdev::parameter_sizes(name, sizes, most);                                      \
  }                                                                                          \
  extern "C" __attribute__((visibility("default"))) unsigned static_shared_##name() { return softdev::static_shared(); }

// The bound of a kernel's threads, where its text gives one.
#define PRECAST_HOST_BOUNDS(name, threads) \
  extern "C" __attribute__((visibility("default"))) unsigned max_threads_##name() { return (threads); }

#define threadIdx (softdev::cur->tid)
#define blockIdx (softdev::block_id)
#define blockDim (softdev::block_dim)
#define gridDim (softdev::grid_dim)
[[noreturn]] inline void __trap() {
  softdev::report(softdev::kTrap, "__trap");
  softdev::leave();
}
#endif
