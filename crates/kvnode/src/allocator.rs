//! What the allocator keeps of what was freed.

/// From this size on an allocation is mapped by itself, and unmapped when it is freed, in bytes.
const MAPPED_FROM: &str = "262144";
/// Where glibc looks for it, once, before `main`.
const VARIABLE: &str = "MALLOC_MMAP_THRESHOLD_";

/// Has glibc give large buffers back to the system as soon as they are freed.
///
/// By itself it raises the size from which it does so to the largest buffer that was ever freed,
/// here a segment of the storage engine, 8 MiB. From then on all buffers come from its heaps, which
/// shrink only at their end: with `--memory 128MiB` a node that has served large values keeps 65
/// MiB. A size that is set does not rise. It can be set in the environment of a new program only,
/// so this process becomes the same program once more, with the same id and open files. One that
/// finds the variable continues, whatever its value: the user's counts.
///
/// Call it before there is another thread. Where it cannot be done the node starts as it is.
pub fn give_back_large() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::os::unix::process::CommandExt;
        use std::process::Command;

        let mut arguments = std::env::args_os();
        let (Some(name), None) = (arguments.next(), std::env::var_os(VARIABLE)) else { return };
        let Ok(program) = std::env::current_exe() else { return };
        // It returns only if it fails.
        let _ = Command::new(program).arg0(name).args(arguments).env(VARIABLE, MAPPED_FROM).exec();
    }
}
