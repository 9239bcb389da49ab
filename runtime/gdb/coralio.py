# Coroutines in gdb: of a live process, or of a core file as far as it contains them.
#
#     $ gdb -p PID -x coralio.py               or: gdb PROGRAM CORE -x coralio.py
#     (gdb) coralio coroutines                 lists all: state, where created, where last suspended
#     (gdb) coralio bt 'reader'                a coroutine's stack, by name; #17 by number; or all
#     (gdb) coralio select 'reader'            then: bt, up, info locals, print; without a name: back
#     (gdb) coralio core FILE                  like generate-core-file, with the coroutines' stacks
#
# Needs the types of the runtime: the dev profile has them, and a release profile with line tables
# (`debug = 1`) and `[profile.release.package.coralio-runtime] debug = 2` in the workspace's
# Cargo.toml; or CARGO_PROFILE_RELEASE_DEBUG=2 for one build. Listing works on every architecture,
# stack walks on x86-64.
#
# How it works. The runtime keeps all control blocks on one list, `CHUNKS`. The block of a suspended
# coroutine contains the stack pointer that corosensei saved, and the stack holds, from there
# upwards, its rip, rbx and rbp. No register or memory is written: an unwinder tells gdb that the
# selected thread's innermost frame was called by the coroutine, and gdb continues from there with
# the program's own unwind tables.
#
# The core file. gdb's generate-core-file stops copying a mapping at the first unreadable page, such
# as the guard page of a stack (on Linux 6.13 and newer, where guards lie within the mapping). So
# `coralio core` adds the stacks afterwards. Cores that the kernel writes are complete.

import re
import struct
from contextlib import contextmanager

import gdb
from gdb.unwinder import Unwinder, register_unwinder

CHUNKS = "coralio_runtime::coroutine::block_pool::CHUNKS"
PAGE = 4096


# -- Reading the program's memory and types. Fields are found by name, through any standard library
# wrappers.


def fields(value):
    """Returns the non-empty fields of a value. Of an enum: the discriminant, and the active variant."""
    if value.type.strip_typedefs().code not in (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION):
        return []
    return [(field.name or "", value[field]) for field in value.type.fields() if field.type.sizeof]


def find(value, wanted):
    """Returns the first part, at any depth, for which `wanted(name, part)` holds; None without one."""
    for name, part in fields(value):
        found = part if wanted(name, part) else find(part, wanted)
        if found is not None:
            return found
    return None


def named(value, *starts):
    return find(value, lambda name, _: name.startswith(starts))


def leaf(value):
    """Returns the content of a Cell, an atomic or another single-field wrapper."""
    inner = fields(value)
    return leaf(inner[0][1]) if inner else value


def pointer(value):
    return find(value, lambda _, part: part.type.strip_typedefs().code == gdb.TYPE_CODE_PTR)


def memory(address, size):
    return gdb.selected_inferior().read_memory(address, size).tobytes()


def words(address, count):
    return struct.unpack("<%dQ" % count, memory(address, 8 * count))


def text(value):
    """Returns a str or a String, in any wrapper."""
    length = int(leaf(named(value, "len")))
    return memory(int(pointer(value)), length).decode("utf-8", "replace").rstrip("\0")


def place(cell):
    """Returns a Location, given by reference. Its fields differ between standard library versions."""
    location = pointer(cell)
    if location is None or int(location) == 0:
        return None
    location = location.dereference()
    file, line, column = (named(location, name) for name in ("file", "line", "col"))
    if file is None or line is None:
        return location.format_string()
    return "%s:%d" % (text(file), int(line)) + ("" if column is None else ":%d" % int(column))


def symbol(name):
    found = gdb.lookup_global_symbol(name)
    if found is None:
        statics = gdb.lookup_static_symbols(name)
        found = statics[0] if statics else None
    if found is None:
        raise gdb.GdbError(
            "coralio: nothing is known of `%s` here; either this program does not use coralio, or its file was not"
            " loaded (say `file PROGRAM`), or it was built without the types of the runtime: add `debug = 2` under"
            " [profile.release.package.coralio-runtime] to Cargo.toml, or build with CARGO_PROFILE_RELEASE_DEBUG=2" % name
        )
    return found.value()


# -- Coroutines.


class Coroutine:
    """A coroutine that was created and not released yet. Plain numbers and texts."""

    def __init__(self, control, local, stack_pointers):
        self.context = int(leaf(control["context"]))
        self.serial = int(leaf(local["serial"]))
        # RefCell<Option<Cow<str>>>: it has a length only if there is a name.
        has_name = named(local["name"], "len") is not None
        self.label = "'%s'" % text(local["name"]["value"]) if has_name else "#%d" % self.serial
        self.state = variant(local)
        self.created_at = place(local["created_at"])
        self.suspended_at = place(local["suspended_at"]) if has_field(local, "suspended_at") else None
        self.sp = self.initial_sp = self.limit = 0
        self.thread = None
        if self.state == "Finished":
            return
        self.initial_sp = int(leaf(named(local["raw"], "initial_stack_ptr")))
        stack = named(local["raw"], "stack")
        self.limit, base = int(leaf(stack["limit"])), int(leaf(stack["base"]))
        self.thread = next((number for number, sp in stack_pointers if self.limit <= sp < base), None)
        # While the coroutine runs, optimised programs leave a stale stack pointer there. And its
        # state is Suspended slightly before it leaves its stack.
        if self.state != "Entered" and self.thread is None:
            self.sp = words(int(named(local["raw"], "stack_ptr").address), 1)[0]

    def is_started(self):
        return self.sp != self.initial_sp

    def describe(self):
        if self.state == "Finished":
            return "ended, its result is not fetched"
        if self.sp:
            return self.state.lower() + ("" if self.is_started() else ", not started")
        return "entered, beneath others" if self.thread is None else "entered, runs on thread %d" % self.thread


def has_field(value, name):
    return any(field.name == name for field in value.type.fields())


def variant(local):
    state = leaf(local["state"])
    names = {field.enumval: field.name for field in state.type.fields()}
    return names.get(int(state), "state %d" % int(state)).split("::")[-1]


def coroutines():
    """Returns all coroutines, by context, in order of creation."""
    found, on_threads = [], stack_pointers()
    chunk = pointer(symbol(CHUNKS))
    while int(chunk):
        blocks = chunk.dereference()["blocks"]
        first, last = blocks.type.range()
        for index in range(first, last + 1):
            local = blocks[index]["local"]
            if variant(local) != "Free":
                found.append(Coroutine(blocks[index], local, on_threads))
        chunk = pointer(chunk.dereference()["next"])
    return sorted(found, key=lambda coroutine: (coroutine.context, coroutine.serial))


def chosen(argument):
    """Returns the coroutines that an argument denotes: 'name', name, #17, all."""
    every = coroutines()
    if argument == "all":
        return every
    name = argument if argument.startswith("#") else "'%s'" % argument.strip("'\"")
    found = [coroutine for coroutine in every if coroutine.label == name or "#%d" % coroutine.serial == name]
    if not argument or not found:
        raise gdb.GdbError("coralio: no coroutine %s; `coralio coroutines` lists them" % (name if argument else "given"))
    return found


def stack_pointers():
    """Returns the number and stack pointer of each thread that is stopped."""
    if not is_x86_64():
        return []
    before, found = gdb.selected_thread(), []
    selected = gdb.selected_frame() if before is not None and before.is_stopped() else None
    for thread in gdb.selected_inferior().threads():
        if not thread.is_running():
            thread.switch()
            found.append((thread.num, int(gdb.newest_frame().read_register("rsp"))))
    if before is not None:
        before.switch()
    if selected is not None and selected.is_valid():
        selected.select()
    return found


def is_x86_64():
    return gdb.selected_inferior().architecture().name().startswith("i386:x86-64")


def require_x86_64():
    if not is_x86_64():
        raise gdb.GdbError("coralio: stacks on this machine are not supported, only those on x86-64; the listing works")


# -- Stacks.


class FrameId:
    def __init__(self, sp, pc):
        self.sp, self.pc = sp, pc


class Detour(Unwinder):
    """Redirects gdb from a thread's innermost frame to a coroutine's. Inactive without a target."""

    def __init__(self):
        super().__init__("coralio")
        self.target = None
        self.live = None

    def __call__(self, pending):
        if self.target is None:
            return None
        pc, sp = (int(pending.read_register(name)) for name in ("rip", "rsp"))
        if (pc, sp) == self.live:
            rip, rbx, rbp = words(self.target.sp, 3)
            saved = {"rip": rip, "rbx": rbx, "rbp": rbp, "rsp": self.target.sp + 24}
            # The frame's own address must be below that of the next frame.
            return self.called_by(pending, self.target.sp, pc, saved)
        # corosensei's first frame leads to the latest enterer, whose stack has changed since.
        if sp == self.target.initial_sp + 8:
            return self.called_by(pending, sp + 8, pc, {"rip": 0, "rsp": sp + 8})
        return None

    def called_by(self, pending, sp, pc, saved):
        """Returns the unwind info of a frame at `sp` whose caller had the registers in `saved`."""
        def register(name, number):
            return gdb.Value(number).cast(pending.read_register(name).type)

        info = pending.create_unwind_info(FrameId(register("rsp", sp), register("rip", pc)))
        for name, number in saved.items():
            info.add_saved_register(name, register(name, number))
        return info

    def lead(self, target):
        """Redirects to `target` from now on; with None, back to the thread's own stack."""
        self.target = None
        gdb.invalidate_cached_frames()
        if target is not None:
            newest = gdb.newest_frame()
            self.live = tuple(int(newest.read_register(name)) for name in ("rip", "rsp"))
            self.target = target
            gdb.invalidate_cached_frames()

    def frames(self):
        """Yields the target's frames, innermost first."""
        frame = gdb.newest_frame()
        while frame is not None and tuple(int(frame.read_register(name)) for name in ("rip", "rsp")) == self.live:
            frame = frame.older()
        if frame is None or int(frame.read_register("rsp")) != self.target.sp + 24:
            raise gdb.GdbError("coralio: gdb did not follow to the stack of %s" % self.target.label)
        while frame is not None and int(frame.read_register("rsp")) != self.target.initial_sp + 8:
            yield frame
            frame = frame.older()


DETOUR = Detour()


@contextmanager
def led_to(target):
    before, selected = DETOUR.target, gdb.selected_frame()
    past_main = gdb.parameter("backtrace past-main")
    # The thread itself may be in main, where gdb would stop unwinding.
    gdb.execute("set backtrace past-main on", to_string=True)
    DETOUR.lead(target)
    try:
        yield
    finally:
        DETOUR.lead(before)
        gdb.execute("set backtrace past-main %s" % ("on" if past_main else "off"), to_string=True)
        if selected.is_valid():
            selected.select()


def why_not(coroutine):
    """Returns the reason why the coroutine has no frames to show; None if it has."""
    if coroutine.state == "Finished":
        return "It has ended."
    if not coroutine.sp:
        number = coroutine.thread
        where = "a thread's own backtrace" if number is None else "`thread apply %d bt`" % number
        return "It is entered: its frames are in %s." % where
    if not coroutine.is_started():
        return "It has not been started."
    try:
        if words(coroutine.sp, 1)[0] != 0:
            return None
    except gdb.MemoryError:
        pass
    return (
        "Its stack is not in the core file. gdb's generate-core-file leaves it out, at the guard page; use `coralio core"
        " FILE` instead, or let the kernel write it: prlimit --pid PID --core=unlimited; kill -ABRT PID"
    )


def show(frame):
    """Prints a frame as gdb does, but without type parameters, which take half a screen. The number is the one that gdb uses
    after `coralio select`."""
    name = (frame.name() or "0x%x" % frame.pc()).replace("->", "")
    while "<" in name[1:] and name != (shorter := re.sub(r"<[^<>]*>", "", name)):
        name = shorter
    line = "#%-2d %s" % (frame.level(), name)
    sal = frame.find_sal()
    if sal.symtab is not None:
        line += " at %s:%d" % (sal.symtab.filename, sal.line)
    gdb.write(line + "\n")


# -- Commands.


class Coralio(gdb.Command):
    """Commands for coralio's coroutines: their list, their stacks."""

    def __init__(self):
        super().__init__("coralio", gdb.COMMAND_STACK, gdb.COMPLETE_NONE, True)


class ListCoroutines(gdb.Command):
    """Lists all coroutines, by context: state, where created, where last suspended."""

    def __init__(self):
        super().__init__("coralio coroutines", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        every = coroutines()
        width = max((len(coroutine.label) for coroutine in every), default=0)
        context = None
        for coroutine in every:
            if coroutine.context != context:
                context = coroutine.context
                gdb.write("context 0x%x\n" % context)
            line = "  %-*s  %s; created at %s" % (
                width, coroutine.label, coroutine.describe(), coroutine.created_at)
            if coroutine.suspended_at is not None and coroutine.is_started():
                line += "; suspended last at %s" % coroutine.suspended_at
            gdb.write(line + "\n")
        gdb.write("%d coroutine%s\n" % (len(every), "" if len(every) == 1 else "s"))


class Backtrace(gdb.Command):
    """Prints the stack of a suspended coroutine: coralio bt 'NAME', coralio bt #17, coralio bt all."""

    def __init__(self):
        super().__init__("coralio bt", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        require_x86_64()
        for coroutine in chosen(argument.strip()):
            gdb.write("%s: %s\n" % (coroutine.label, coroutine.describe()))
            reason = why_not(coroutine)
            if reason is not None:
                gdb.write("    %s\n" % reason)
                continue
            with led_to(coroutine):
                for frame in DETOUR.frames():
                    # The frames below the coroutine's own closure, and those of the switch, are the
                    # same for all.
                    name = frame.name() or ""
                    if "::__rust_begin_short_backtrace" in name or "::create_on_stack::" in name:
                        break
                    if not name.startswith("corosensei::"):
                        show(frame)


class Select(gdb.Command):
    """Makes gdb's own commands (bt, up, info locals, print) show a suspended coroutine's frames: coralio select 'NAME'.
Without a name, returns to the thread's own frames, as does continuing the program. For inspection only: `finish` and
`return` would act on the thread."""

    def __init__(self):
        super().__init__("coralio select", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        require_x86_64()
        DETOUR.lead(None)
        if not argument:
            return
        found = chosen(argument.strip())
        if len(found) > 1:
            raise gdb.GdbError("coralio: %d coroutines are called so; select one of them" % len(found))
        reason = why_not(found[0])
        if reason is not None:
            raise gdb.GdbError("coralio: %s: %s" % (found[0].label, reason))
        DETOUR.lead(found[0])
        first = next(DETOUR.frames())
        gdb.write("%s: its frames are those from #%d on\n" % (found[0].label, first.level()))
        gdb.execute("frame %d" % first.level())


class Core(gdb.Command):
    """Writes a core file that includes the coroutines' stacks: coralio core FILE. The process continues."""

    def __init__(self):
        super().__init__("coralio core", gdb.COMMAND_DATA, gdb.COMPLETE_FILENAME)

    def invoke(self, argument, from_tty):
        if not argument:
            raise gdb.GdbError("coralio: into which file? `coralio core FILE`")
        gdb.execute("generate-core-file " + argument)
        with open(argument, "r+b") as core:
            segments = load_segments(core)
            for coroutine in coroutines():
                # The page of the stack pointer and all pages above: below lies garbage. Without a
                # stack pointer, all above the guard.
                page = coroutine.sp & ~(PAGE - 1) or coroutine.limit + PAGE
                for start, offset, size in segments:
                    if start <= page < start + size:
                        copy_pages(core, page, start + size, offset - start)


def load_segments(core):
    """Returns address, file offset and size of each memory segment of a 64-bit little-endian ELF file."""
    core.seek(0)
    header = core.read(64)
    (table,), (entry, count) = struct.unpack_from("<Q", header, 32), struct.unpack_from("<HH", header, 54)
    segments = []
    for index in range(count):
        core.seek(table + index * entry)
        kind, _, offset, address, _, size = struct.unpack("<IIQQQQ", core.read(40))
        if kind == 1:
            segments.append((address, offset, size))
    return segments


def copy_pages(core, page, end, shift):
    """Copies pages up to the first unreadable one, the next stack's guard."""
    while page < end:
        try:
            content = memory(page, PAGE)
        except gdb.MemoryError:
            return
        core.seek(page + shift)
        core.write(content)
        page += PAGE


register_unwinder(None, DETOUR, replace=True)
gdb.events.cont.connect(lambda event: DETOUR.target is not None and DETOUR.lead(None))
for command in (Coralio, ListCoroutines, Backtrace, Select, Core):
    command()
