//! Room for deep recursion: parser and evaluator of the CEL crate recurse, with frames of several KiB per level.

/// Stack of the threads on which deep expressions are handled. Only what is used becomes memory.
const STACK_BYTES: usize = 64 << 20;

/// Runs `work` on this thread, or on one with much stack if it needs that.
pub(super) fn with_room<T: Send>(is_deep: bool, work: impl FnOnce() -> T + Send) -> T {
    if !is_deep {
        return work();
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let joined = thread.expect("the system gives a thread").join();
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
